"""Runs an assignment on real servers: what the simulator claims to predict.

A small client with the simulator's policies: rows flow through operations as they become ready,
each server takes waiting calls by priority up to a limit, a worker that holds one model at a time
dispatches to one of its servers only (and flushes the other's cache when it changes), barriers
hold operations back, tools sleep on lanes with limits. Prompts are token ids drawn from the keys of
their parts, so prompts share exactly what the workload says they share.
"""

from __future__ import annotations

import asyncio
import hashlib
import heapq
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from halo.scheduling import Assignment, Machine, ModelWork, ToolWork, Workload

FIRST_TOKEN, TOKENS = 1_000, 30_000
"""Prompt tokens are drawn from this range of ids: any vocabulary of today has them."""


LONGEST_PREFIX_WINDOW = 128
"""As in the simulator, and as SGLang does before it falls back to arrival order."""


@dataclass
class Server:
    """One SGLang server: where it listens, and which model of which worker it is."""

    worker: str
    model: str
    url: str


@dataclass
class Measured:
    """One measured run. Times are seconds since its beginning."""

    makespan_s: float
    calls: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    group_end_s: list[float]
    calls_log: list[tuple[str, str, float, float]] = field(default_factory=list[Any])


class Client:
    """HTTP to the servers. Use as an async context manager."""

    def __init__(self, timeout_s: float = 300.0) -> None:
        self._timeout_s = timeout_s
        self._session: Any = None

    async def __aenter__(self) -> Client:
        import aiohttp

        # Servers close idle connections after 5 s, and planning can hold this loop for longer.
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=2.0)
        timeout = aiohttp.ClientTimeout(total=self._timeout_s)
        self._session = aiohttp.ClientSession(connector=connector, timeout=timeout)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def generate(self, url: str, tokens: Sequence[int], max_new_tokens: int) -> Any:
        """One call; the server's meta_info."""
        body = {
            "input_ids": list(tokens),
            "sampling_params": {
                "max_new_tokens": max_new_tokens,
                "temperature": 0.0,
                "ignore_eos": True,
            },
        }
        async with self._session.post(f"{url}/generate", json=body) as response:
            response.raise_for_status()
            answer = await response.json()
        return answer["meta_info"]

    async def flush(self, url: str) -> None:
        """Empty a server's prefix cache; waits until the server is idle enough to do it."""
        for _ in range(200):
            async with self._session.post(f"{url}/flush_cache") as response:
                if response.status == 200:
                    return
            await asyncio.sleep(0.02)
        raise TimeoutError(f"{url} did not flush its cache: it is still busy")


class Prompts:
    """Token ids of prompts, made once."""

    def __init__(self, workload: Workload, salt: str) -> None:
        self._workload = workload
        self._salt = salt
        self._parts: dict[tuple[str, int], list[int]] = {}

    def of(self, operation: int, row: int) -> list[int]:
        work = self._workload.operations[operation].work
        assert isinstance(work, ModelWork)
        tokens: list[int] = []
        for part in work.prompt:
            key = (f"{work.model}/{part.key}/{part.tokens}", row if part.per_row else -1)
            found = self._parts.get(key)
            if found is None:
                seed = hashlib.sha256(f"{self._salt}/{key}".encode()).digest()
                draw = Random(seed)
                found = [FIRST_TOKEN + draw.randrange(TOKENS) for _ in range(part.tokens)]
                self._parts[key] = found
            tokens += found
        return tokens


class _Worker:
    """The servers of one worker and what is going on there."""

    def __init__(self, name: str, urls: dict[str, str], side_by_side: bool, held: str) -> None:
        self.name = name
        self.urls = urls
        self.side_by_side = side_by_side
        self.held = held
        self.switching = False
        self.queues: dict[str, list[tuple[float, int, int]]] = {m: [] for m in urls}
        self.running: dict[str, int] = dict.fromkeys(urls, 0)
        self.sent: dict[str, set[tuple[str, int]]] = {m: set() for m in urls}


class AssignmentRun:
    """One run of an assignment on servers."""

    def __init__(
        self,
        workload: Workload,
        machine: Machine,
        assignment: Assignment,
        servers: Sequence[Server],
        client: Client,
        prompts: Prompts,
        *,
        tool_scale: float = 1.0,
    ) -> None:
        self.workload = workload
        self.machine = machine
        self.plan = assignment
        self.client = client
        self.prompts = prompts
        self.tool_scale = tool_scale
        self.groups = len(workload.group_rows)
        starts = [0]
        for rows in workload.group_rows:
            starts.append(starts[-1] + rows)
        self.first_row = starts
        self.next_group = self.in_flight = 0
        self.group_of = [g for g, rows in enumerate(workload.group_rows) for _ in range(rows)]
        self.workers: list[_Worker] = []
        for w, spec in enumerate(machine.workers):
            urls = {s.model: s.url for s in servers if s.worker == spec.name}
            side = bool(assignment.co_resident) and assignment.co_resident[w]
            held = spec.resident[0] if spec.resident else ""
            self.workers.append(_Worker(spec.name, urls, side, held))
        n_ops, n_rows = len(workload.operations), workload.rows
        self.waits = [[len(set(op.inputs)) for op in workload.operations] for _ in range(n_rows)]
        self.users: list[list[int]] = [[] for _ in workload.operations]
        for i, op in enumerate(workload.operations):
            for j in dict.fromkeys(op.inputs):
                self.users[j].append(i)
        self.left = n_ops * n_rows
        self.rows_left = [n_ops * rows for rows in workload.group_rows]
        self.lane_free = [lane.limit for lane in machine.lanes]
        self.lane_queue: list[list[tuple[float, int, int]]] = [[] for _ in machine.lanes]
        self.stage = assignment.stage
        self.current_stage = 0
        self.stage_left: dict[int, int] = {}
        if self.stage is not None:
            for s in self.stage:
                self.stage_left[s] = self.stage_left.get(s, 0) + n_rows
        self.held_back: dict[int, list[tuple[int, int]]] = {}
        self.done = asyncio.Event()
        self.tasks: set[asyncio.Task[None]] = set()
        self.failure: BaseException | None = None
        self.measured = Measured(0.0, 0, 0, 0, 0, [0.0] * self.groups)

    async def run(self) -> Measured:
        """Run to the end; raises the first failure of a call. Calls that are under way at its end,
        or when it is cancelled, are cancelled."""
        self.began = time.monotonic()
        self._admit()
        self._dispatch()
        try:
            if self.left:
                await self.done.wait()
        finally:
            for task in self.tasks:
                task.cancel()
        if self.failure is not None:
            raise self.failure
        self.measured.makespan_s = time.monotonic() - self.began
        return self.measured

    def _admit(self) -> None:
        """Start the groups that may be under way."""
        limit = self.plan.groups_in_flight or self.groups
        while self.next_group < self.groups and self.in_flight < limit:
            g = self.next_group
            self.next_group += 1
            self.in_flight += 1
            for row in range(self.first_row[g], self.first_row[g + 1]):
                for op, inputs in enumerate(self.waits[row]):
                    if not inputs:
                        self._ready(op, row)

    def _ready(self, op: int, row: int) -> None:
        if self.stage is not None and self.stage[op] > self.current_stage:
            self.held_back.setdefault(self.stage[op], []).append((op, row))
            return
        item = op * self.groups + self.group_of[row]
        entry = (float(self.plan.priority[item]), row, op)
        work = self.workload.operations[op].work
        if isinstance(work, ToolWork):
            heapq.heappush(self.lane_queue[self.machine.lane_index[work.lane]], entry)
        else:
            worker = self.workers[self.plan.worker[item]]
            heapq.heappush(worker.queues[work.model], entry)

    def _dispatch(self) -> None:
        for lane, queue in enumerate(self.lane_queue):
            while queue and self.lane_free[lane]:
                _, row, op = heapq.heappop(queue)
                self.lane_free[lane] -= 1
                self._spawn(self._tool(lane, op, row))
        for index, worker in enumerate(self.workers):
            self._dispatch_worker(index, worker)

    def _dispatch_worker(self, index: int, worker: _Worker) -> None:
        if worker.switching:
            return
        engines = self.machine.workers[index].engines
        if worker.side_by_side or len(worker.urls) == 1:
            allowed = list(worker.urls)
        else:
            if self._change(worker):
                return
            allowed = [worker.held] if worker.held else []
            first = min((q[0] for q in worker.queues.values() if q), default=None)
            if (
                self.plan.switching == "priority"
                and first is not None
                and worker.held
                and not (worker.queues[worker.held] and worker.queues[worker.held][0] == first)
            ):
                allowed = []  # drain, then change
        for model in allowed:
            queue = worker.queues[model]
            while queue and worker.running[model] < engines[model].max_running:
                row, op = self._pop(worker, model)
                worker.running[model] += 1
                self._spawn(self._call(worker, model, op, row))

    def _pop(self, worker: _Worker, model: str) -> tuple[int, int]:
        """The waiting call that goes next: by priority, or the one whose prompt begins with the
        most tokens that this server was sent before."""
        queue, sent = worker.queues[model], worker.sent[model]
        if self.plan.order == "longest_prefix" and len(queue) > 1:
            window = heapq.nsmallest(LONGEST_PREFIX_WINDOW, queue)
            best = max(window, key=lambda entry: self._known(entry[2], entry[1], sent))
            queue.remove(best)
            heapq.heapify(queue)
        else:
            best = heapq.heappop(queue)
        _, row, op = best
        if self.plan.order == "longest_prefix":
            sent.update(self._path(op, row))
        return row, op

    def _path(self, op: int, row: int) -> list[tuple[str, int]]:
        work = self.workload.operations[op].work
        assert isinstance(work, ModelWork)
        path: list[tuple[str, int]] = []
        so_far, differs = "", False
        for part in work.prompt:
            differs = differs or part.per_row
            so_far += f"/{part.key}"
            path.append((so_far, row if differs else -1))
        return path

    def _known(self, op: int, row: int, sent: set[tuple[str, int]]) -> int:
        work = self.workload.operations[op].work
        assert isinstance(work, ModelWork)
        tokens = 0
        for part, node in zip(work.prompt, self._path(op, row), strict=True):
            if node not in sent:
                break
            tokens += part.tokens
        return tokens

    def _change(self, worker: _Worker) -> bool:
        """Begin to change models when the worker should; true while it does."""
        waiting = {m: q[0] for m, q in worker.queues.items() if q}
        if not waiting or any(worker.running.values()):
            return False
        if worker.held in waiting and self.plan.switching == "drain":
            return False
        wanted = min(waiting, key=lambda m: waiting[m])
        if wanted == worker.held:
            return False
        worker.switching = True
        self._spawn(self._switch(worker, wanted))
        return True

    async def _switch(self, worker: _Worker, model: str) -> None:
        if worker.held:
            await self.client.flush(worker.urls[worker.held])
        worker.held = model
        worker.switching = False

    async def _tool(self, lane: int, op: int, row: int) -> None:
        work = self.workload.operations[op].work
        assert isinstance(work, ToolWork)
        await asyncio.sleep(work.latency_s * self.tool_scale)
        self.lane_free[lane] += 1
        self._ended(op, row)

    async def _call(self, worker: _Worker, model: str, op: int, row: int) -> None:
        work = self.workload.operations[op].work
        assert isinstance(work, ModelWork)
        begun = time.monotonic()
        tokens = self.prompts.of(op, row)
        info: Mapping[str, Any] = await self.client.generate(
            worker.urls[model], tokens, work.output_tokens
        )
        worker.running[model] -= 1
        m = self.measured
        m.calls += 1
        m.prompt_tokens += len(tokens)
        m.cached_tokens += int(info.get("cached_tokens") or 0)
        m.output_tokens += int(info.get("completion_tokens") or 0)
        name = self.workload.operations[op].name
        m.calls_log.append((name, worker.name, begun - self.began, time.monotonic() - self.began))
        self._ended(op, row)

    def _ended(self, op: int, row: int) -> None:
        self.left -= 1
        g = self.group_of[row]
        self.rows_left[g] -= 1
        if not self.rows_left[g]:
            self.measured.group_end_s[g] = time.monotonic() - self.began
            self.in_flight -= 1
            self._admit()
        for user in self.users[op]:
            self.waits[row][user] -= 1
            if not self.waits[row][user]:
                self._ready(user, row)
        if self.stage is not None:
            self.stage_left[self.stage[op]] -= 1
            last = max(self.stage_left)
            while self.current_stage < last and not self.stage_left.get(self.current_stage, 0):
                self.current_stage += 1
                for held_op, held_row in self.held_back.pop(self.current_stage, ()):
                    self._ready(held_op, held_row)
        self._dispatch()
        if not self.left:
            self.done.set()

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(self._guarded(work))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _guarded(self, work: Any) -> None:
        try:
            await work
            self._dispatch()
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self.failure = self.failure or error
            self.done.set()
