"""Simulated against measured makespans of schedules on SGLang servers.

    python -m workloads.gpu.schedule_reality run --server gpu0/small=http://127.0.0.1:30001 \\
        --server gpu0/large=http://127.0.0.1:30002 --out raw.jsonl
    python -m workloads.gpu.schedule_reality evaluate raw.jsonl --out result.json

A server is named `worker/model=URL`: servers of one worker share its accelerator. Models are named
from the smallest to the largest in the order of their first server; the workloads' three sizes are
mapped onto them. `run` first measures each server (prefill, decode, both side by side), fits the
simulator's timers to that, then plans every workload with every scheduler and runs each plan,
workloads interleaved. The makespans that are compared are never used for the fit. Every run is a
line of the raw file as soon as it has ended, and `evaluate` reads what is there.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

from aiohttp import ClientError

from halo.scheduling import (
    AffineTimer,
    Assignment,
    EngineSpec,
    Machine,
    Operation,
    Problem,
    PromptPart,
    Simulator,
    ToolLaneSpec,
    ToolWork,
    WorkerSpec,
    Workload,
    even_groups,
    schedule,
)
from halo.scheduling import ModelWork as Work
from workloads.gpu.schedule_client import AssignmentRun, Client, Prompts, Server
from workloads.gpu.schedule_records import RawFile, evaluate, read_raw
from workloads.shapes import LARGE, MEDIUM, SHAPES, SMALL, TOOL_LANES, trading

SCHEDULERS = (
    "auto",
    "operator-wise",
    "min-switch",
    "longest-prefix-first",
    "random",
    "round-robin",
)
"""Not among them is `query-wise`, which takes several times as long as any other."""

WORKLOADS = ("W1", "W3", "W4", "W6", "shared")
TOOL_SCALE = 0.1
"""Tools take a tenth of the published latencies, so that short batches are not all waiting."""

ANSWER_TOKENS = 48
MAX_RUNNING = 64
CHUNK_TOKENS = 8192


# --- workloads -----------------------------------------------------------------------------------


def workload_of(name: str, models: Sequence[str], rows: int, groups: int) -> Workload:
    """A shape with its three sizes mapped onto `models`, shorter answers and shorter tools."""
    if name == "shared":
        operations = _shared(models)
    else:
        shape = SHAPES[name]() if name in SHAPES else trading()
        sizes = {SMALL: models[0], MEDIUM: models[len(models) // 2], LARGE: models[-1]}
        if len(models) == 2:
            sizes[MEDIUM] = models[0]
        operations = [_smaller(op, sizes) for op in shape.operations]
    return Workload(tuple(operations), even_groups(rows, groups))


def _smaller(op: Operation, sizes: dict[str, str]) -> Operation:
    work = op.work
    if isinstance(work, ToolWork):
        return replace(op, work=replace(work, latency_s=work.latency_s * TOOL_SCALE))
    prompt = tuple(
        replace(part, tokens=ANSWER_TOKENS)
        if part.key.startswith("value:") and part.tokens == 120
        else part
        for part in work.prompt
    )
    return replace(op, work=Work(sizes[work.model], prompt, ANSWER_TOKENS))


def _shared(models: Sequence[str]) -> list[Operation]:
    """Six experts of each model over one long document a row (so its prefix is worth keeping),
    then a summary: the order of calls decides what is found in the cache."""
    operations: list[Operation] = []
    for model in models:
        for i in range(6):
            parts = (
                PromptPart("system:experts", 200),
                PromptPart("document", 1200, True),
                PromptPart(f"role:{i}", 40, True),
            )
            operations.append(Operation(f"{model}-expert{i}", Work(model, parts, ANSWER_TOKENS)))
    inputs = tuple(range(len(operations)))
    given = (
        PromptPart("system:summary", 150),
        *(PromptPart(f"value:{i}", ANSWER_TOKENS, True) for i in inputs),
    )
    operations.append(Operation("summary", Work(models[-1], given, ANSWER_TOKENS), inputs))
    return operations


# --- calibration ---------------------------------------------------------------------------------


async def measure_server(client: Client, server: Server) -> dict[str, Any]:
    """Seconds of prefills of several lengths and of decodes in several batches and contexts."""
    draw = Random(f"calibration {server.url}")

    def tokens(n: int) -> list[int]:
        return [1_000 + draw.randrange(30_000) for _ in range(n)]

    async def timed(calls: Sequence[tuple[list[int], int]]) -> float:
        begun = time.monotonic()
        await asyncio.gather(*(client.generate(server.url, t, n) for t, n in calls))
        return time.monotonic() - begun

    await timed([(tokens(64), 4)])
    prefill: list[list[float]] = []
    for n, count in ((256, 1), (1024, 1), (4096, 1), (512, 16), (600, 48)):
        best = min([await timed([(tokens(n), 1) for _ in range(count)])
                    for _ in range(2)])  # fmt: skip
        prefill.append([n * count, -(-n * count // CHUNK_TOKENS), best])
    decode: list[list[float]] = []
    for batch, context, steps in (
        (1, 64, 48), (8, 64, 48), (32, 64, 48), (64, 64, 48), (32, 1200, 48), (64, 800, 48),
    ):  # fmt: skip
        prompts = [tokens(context) for _ in range(batch)]
        # Warm the prompts, so that what is timed is decoding.
        await timed([(p, 1) for p in prompts])
        short = min([await timed([(p, 8) for p in prompts]) for _ in range(2)])
        long = min([await timed([(p, 8 + steps) for p in prompts]) for _ in range(2)])
        decode.append([batch, batch * (context + 8 + steps / 2), (long - short) / steps])
    await client.flush(server.url)
    return {"prefill": prefill, "decode": decode}


async def measure_together(client: Client, servers: Sequence[Server]) -> float:
    """Throughput of the servers of one worker side by side, one alone being 1."""
    draw = Random("together")

    async def load(server: Server, calls: int) -> float:
        begun = time.monotonic()
        await asyncio.gather(
            *(
                client.generate(
                    server.url, [1_000 + draw.randrange(30_000) for _ in range(400)], 48
                )
                for _ in range(calls)
            )
        )
        return time.monotonic() - begun

    alone: list[float] = []
    for server in servers:
        alone.append(await load(server, 32))
    # As many calls each as take about equally long, so that they overlap to the end.
    counts = [max(8, round(32 * max(alone) / s)) for s in alone]
    expected = [s * n / 32 for s, n in zip(alone, counts, strict=True)]
    begun = time.monotonic()
    await asyncio.gather(*(load(s, n) for s, n in zip(servers, counts, strict=True)))
    together = time.monotonic() - begun
    for server in servers:
        await client.flush(server.url)
    return sum(expected) / together


async def calibrate(client: Client, servers: Sequence[Server]) -> dict[str, Any]:
    """What the simulator is told of the servers: timers, throughput side by side, switch time."""
    began = time.monotonic()
    found: dict[str, Any] = {"points": {}, "timers": {}, "together": {}}
    for server in servers:
        points = await measure_server(client, server)
        key = f"{server.worker}/{server.model}"
        found["points"][key] = points
        found["timers"][key] = asdict(fit(points))
    for worker in dict.fromkeys(server.worker for server in servers):
        mine = [server for server in servers if server.worker == worker]
        if len(mine) > 1:
            found["together"][worker] = await measure_together(client, mine)
    begun = time.monotonic()
    await client.flush(servers[0].url)
    found["switch_s"] = time.monotonic() - begun
    found["seconds"] = time.monotonic() - began
    return found


def fit(measured: dict[str, Any]) -> AffineTimer:
    """Least squares with coefficients kept at zero or above: prefill seconds by tokens and steps,
    decode step seconds by requests and context."""
    prefill = _least_squares(
        [[row[0], row[1]] for row in measured["prefill"]], [row[2] for row in measured["prefill"]]
    )
    decode = _least_squares(
        [[1.0, row[0], row[1]] for row in measured["decode"]],
        [row[2] for row in measured["decode"]],
    )
    return AffineTimer(
        per_prefill_token_s=prefill[0],
        prefill_s=prefill[1],
        decode_s=decode[0],
        per_request_s=decode[1],
        per_context_token_s=decode[2],
    )


def _least_squares(rows: list[list[float]], values: list[float]) -> list[float]:
    """Weighted by 1/value (relative errors), coefficients >= 0 by dropping the negative ones."""
    n = len(rows[0])
    active = list(range(n))
    while active:
        size = len(active)
        a = [[0.0] * (size + 1) for _ in range(size)]
        for row, value in zip(rows, values, strict=True):
            weight = 1 / max(value, 1e-6) ** 2
            for i, p in enumerate(active):
                for j, q in enumerate(active):
                    a[i][j] += weight * row[p] * row[q]
                a[i][size] += weight * row[p] * value
        solution = _solve(a)
        if min(solution) >= 0:
            found = [0.0] * n
            for position, coefficient in zip(active, solution, strict=True):
                found[position] = coefficient
            return found
        active.pop(solution.index(min(solution)))
    return [0.0] * n


def _solve(a: list[list[float]]) -> list[float]:
    """Gaussian elimination with pivots; a is n x (n + 1)."""
    n = len(a)
    for i in range(n):
        pivot = max(range(i, n), key=lambda r: abs(a[r][i]))
        a[i], a[pivot] = a[pivot], a[i]
        if abs(a[i][i]) < 1e-30:
            continue
        for r in range(n):
            if r != i:
                factor = a[r][i] / a[i][i]
                a[r] = [x - factor * y for x, y in zip(a[r], a[i], strict=True)]
    return [a[i][n] / a[i][i] if abs(a[i][i]) > 1e-30 else 0.0 for i in range(n)]


def machine_of(calibration: dict[str, Any], servers: Sequence[Server]) -> Machine:
    """The machine that the simulator is given."""
    workers: list[WorkerSpec] = []
    for name in dict.fromkeys(server.worker for server in servers):
        engines = {
            s.model: EngineSpec(
                AffineTimer(**calibration["timers"][f"{s.worker}/{s.model}"]),
                weight_bytes=1.0,
                kv_bytes_per_token=0.0,
                load_s=calibration["switch_s"],
                wake_s=calibration["switch_s"],
                max_running=MAX_RUNNING,
                chunk_tokens=CHUNK_TOKENS,
                shares_in_batch=False,
            )
            for s in servers
            if s.worker == name
        }
        workers.append(
            WorkerSpec(
                name,
                engines,
                memory_bytes=len(engines) + 1.0,
                resident=tuple(engines)[:1],
                co_run_throughput=calibration["together"].get(name, 1.0),
            )
        )
    lanes = tuple(ToolLaneSpec(lane.name, lane.limit) for lane in TOOL_LANES)
    return Machine(tuple(workers), lanes)


# --- the run -------------------------------------------------------------------------------------


async def measure(arguments: argparse.Namespace, raw: RawFile) -> None:
    """Calibrate, plan, run: every step is written to the raw file when it is done."""
    servers = [parse_server(text) for text in arguments.server]
    models = list(dict.fromkeys(server.model for server in servers))
    began = time.monotonic()
    raw.write(
        "setup",
        servers=[asdict(server) for server in servers],
        models=models,
        rows=arguments.rows,
        groups=arguments.groups,
        measured_on=arguments.note,
    )
    async with Client() as client:
        calibration = await calibrate(client, servers)
        raw.write("calibration", **calibration)
        _say(f"calibrated in {calibration['seconds']:.0f} s: {calibration['timers']}")
        machine = machine_of(calibration, servers)
        by_workload: list[list[Pair]] = []
        for name in arguments.workload or WORKLOADS:
            workload = workload_of(name, models, arguments.rows, arguments.groups)
            plans = plans_of(Problem(workload, machine), arguments.scheduler or SCHEDULERS)
            predicted = [Simulator(workload, machine).run(plan).makespan_s for _, plan in plans]
            by_workload.append(
                [
                    Pair(name, scheduler, workload, plan, seconds)
                    for (scheduler, plan), seconds in zip(plans, predicted, strict=True)
                ]
            )
        order = interleaved(by_workload, arguments.repeat)
        _say(
            f"{len(order)} runs are {sum(pair.predicted_s for pair in order):.0f} s as predicted; "
            f"{time.monotonic() - began:.0f} s so far"
        )
        for number, pair in enumerate(order):
            if time.monotonic() - began + pair.predicted_s > arguments.limit_s:
                _say(f"time is over: {len(order) - number} runs were not made")
                break
            what = f"{number + 1}/{len(order)} {pair.workload_name} {pair.scheduler}"
            try:
                found = await measure_pair(client, servers, machine, pair, f"run {number}")
            except (OSError, TimeoutError, ClientError) as error:
                raw.write(
                    "failed",
                    workload=pair.workload_name,
                    scheduler=pair.scheduler,
                    error=repr(error)[:500],
                )
                _say(f"{what}: failed: {error!r}")
                continue
            if not arguments.calls:
                found.pop("calls_log")
            raw.write("run", **found)
            _say(
                f"{what}: predicted {pair.predicted_s:.2f} s, measured {found['measured_s']:.2f} s,"
                f" cached {found['cached_tokens'] / max(1, found['prompt_tokens']):.0%}"
            )
        raw.write("end", seconds=time.monotonic() - began)


@dataclass(frozen=True)
class Pair:
    """A workload and a schedule of it, with the makespan that the simulator predicts."""

    workload_name: str
    scheduler: str
    workload: Workload
    plan: Assignment
    predicted_s: float


def interleaved(by_workload: Sequence[Sequence[Pair]], repeat: int) -> list[Pair]:
    """The order of runs. Each pass over the pairs takes workloads in turn, each workload's
    schedules shuffled anew: whatever drifts on the machine meets all of them alike, and a
    measurement that is cut off has about as many pairs of each workload. The schedule that `auto`
    chose is in the first half of its workload's, since without it a workload says little."""
    draw = Random(0)
    order: list[Pair] = []
    for _ in range(repeat):
        queues: list[list[Pair]] = []
        for pairs in by_workload:
            shuffled = draw.sample(list(pairs), len(pairs))
            chosen = next((i for i, p in enumerate(shuffled) if p.scheduler == "auto"), 0)
            if chosen > len(shuffled) // 2:
                shuffled.insert(draw.randrange(len(shuffled) // 2 + 1), shuffled.pop(chosen))
            queues.append(shuffled)
        for turn in range(max(map(len, queues), default=0)):
            order += [queue[turn] for queue in queues if turn < len(queue)]
    return order


async def measure_pair(
    client: Client, servers: Sequence[Server], machine: Machine, pair: Pair, salt: str
) -> dict[str, Any]:
    """Run one plan on empty caches, with prompts that no other salt has. Raises the client's error
    when a call fails, and `TimeoutError` when the run takes ten times what was predicted."""
    for server in servers:
        await client.flush(server.url)
    prompts = Prompts(pair.workload, salt)
    for op, operation in enumerate(pair.workload.operations):
        if isinstance(operation.work, Work):
            for row in range(pair.workload.rows):
                prompts.of(op, row)
    run = AssignmentRun(pair.workload, machine, pair.plan, servers, client, prompts)
    measured = await asyncio.wait_for(run.run(), 30.0 + 10 * pair.predicted_s)
    return {
        "workload": pair.workload_name,
        "scheduler": pair.scheduler,
        "predicted_s": pair.predicted_s,
        "measured_s": measured.makespan_s,
        "calls": measured.calls,
        "prompt_tokens": measured.prompt_tokens,
        "cached_tokens": measured.cached_tokens,
        "output_tokens": measured.output_tokens,
        "group_end_s": measured.group_end_s,
        "calls_log": measured.calls_log,
        "plan": _plan_json(pair.plan),
    }


def plans_of(problem: Problem, schedulers: Sequence[str]) -> list[tuple[str, Assignment]]:
    """A plan of each scheduler and of a few more policies, equal plans once: on one worker several
    schedulers agree, and running one plan under two names would only measure noise."""
    plans: list[tuple[str, Assignment]] = []
    seen: set[str] = set()

    def add(name: str, plan: Assignment) -> None:
        text = json.dumps(_plan_json(plan))
        if text not in seen:
            seen.add(text)
            plans.append((name, plan))

    for scheduler in schedulers:
        add(scheduler, schedule(problem, scheduler, now=time.monotonic, budget_s=1.0).assignment)
    base = schedule(problem, "longest-prefix-first", now=time.monotonic, budget_s=0.0).assignment
    if tuple(schedulers) == SCHEDULERS:
        draw = Random(1)
        shuffled = [float(p) for p in draw.sample(range(problem.n_items), problem.n_items)]
        soft = replace(base, order="soft")
        add("random order", replace(soft, priority=shuffled))
        add("switching by priority", replace(soft, switching="priority"))
        add("two groups at a time", replace(soft, groups_in_flight=2))
        add("four groups at a time", replace(soft, groups_in_flight=4))
    return plans


def _plan_json(plan: Assignment) -> dict[str, Any]:
    return {
        "worker": list(plan.worker),
        "priority": list(plan.priority),
        "order": plan.order,
        "switching": plan.switching,
        "co_resident": list(plan.co_resident) if any(plan.co_resident) else [],
        "stage": list(plan.stage) if plan.stage is not None else None,
        "groups_in_flight": plan.groups_in_flight,
    }


def parse_server(text: str) -> Server:
    """`worker/model=URL`. Exits with a message for anything else."""
    name, separator, url = text.partition("=")
    worker, slash, model = name.partition("/")
    if not separator or not slash or not worker or not model or not url.startswith("http"):
        sys.exit(f"error: --server is worker/model=http://host:port, not {text!r}")
    return Server(worker, model, url.rstrip("/"))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="measure; writes raw JSON")
    run.add_argument("--server", action="append", required=True, help="worker/model=URL")
    run.add_argument("--out", type=Path, required=True, help="raw file, a JSON object a line")
    run.add_argument("--rows", type=int, default=32)
    run.add_argument("--groups", type=int, default=8)
    run.add_argument("--repeat", type=int, default=1, help="runs of each plan, as far as time goes")
    run.add_argument("--limit-s", type=float, default=290.0, help="no run ends after this")
    run.add_argument("--workload", action="append", help=f"of {', '.join(WORKLOADS)}, trading")
    run.add_argument("--scheduler", action="append", help=f"of {', '.join(SCHEDULERS)}")
    run.add_argument("--note", default="", help="written to the file: the machine, the servers")
    run.add_argument("--calls", action="store_true", help="keep the times of every call")
    again = commands.add_parser("evaluate", help="rank correlation and chosen against best")
    again.add_argument("raw", type=Path, nargs="+")
    again.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "run":
        raw = RawFile(arguments.out)
        try:
            asyncio.run(measure(arguments, raw))
        finally:
            raw.close()
        print(json.dumps(evaluate(read_raw([arguments.out])), indent=2))
        return
    text = json.dumps(evaluate(read_raw(arguments.raw)), indent=2)
    if arguments.out:
        arguments.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
