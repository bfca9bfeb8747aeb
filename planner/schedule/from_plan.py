"""From a logical plan with statistics to a workload that can be scheduled."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from costmodel.simulator.machine import EngineSpec, Machine, ToolLaneSpec, WorkerSpec
from costmodel.simulator.timer import H200_8B, AffineTimer, StepTimer
from costmodel.simulator.workload import (
    ModelWork,
    Operation,
    PromptPart,
    ToolWork,
    Workload,
    even_groups,
)
from planner.logical import (
    CALLS,
    Agent,
    Const,
    Loop,
    ModelOp,
    Op,
    Prompt,
    Tool,
    render_value,
    walk,
)
from planner.logical import LogicalPlan as Plan
from planner.physical import Worker
from planner.stats import CountTokens, PlanStats

SQL_LANE = "sql"
SQL_LIMIT, TOOL_LIMIT = 32, 8
"""Calls at once where nobody says otherwise: a tool has a lane of its own, as in the runtime."""

TOOL_LATENCY_S = 0.05
SERIAL_SHARE = 0.5
"""Agents and loops are expected to take half of the turns they may, as in the statistics."""

SIMULATED_ENGINE = AffineTimer(per_prefill_token_s=2e-4, decode_s=0.02, per_request_s=0.0)
"""What `runtime.backends.simulated` takes by default."""


@dataclass(frozen=True)
class PlannedWorkload:
    """A workload and, for each of its operations, the fingerprint of the operator behind it."""

    workload: Workload
    fingerprints: tuple[str, ...]


class _Builder:
    def __init__(
        self,
        plan: Plan,
        stats: PlanStats,
        count_tokens: CountTokens,
        latency_s: Mapping[str, float],
    ) -> None:
        self.plan = plan
        self.stats = stats
        self.count_tokens = count_tokens
        self.latency_s = latency_s
        self.rows = max(stats.rows.values(), default=0)
        self.operations: list[Operation] = []
        self.fingerprints: list[str] = []
        self.index: dict[str, int] = {}
        self.names: set[str] = set()
        self.value_tokens: dict[str, int] = {}

    def build(self, n_groups: int) -> PlannedWorkload:
        self._scope([*self.plan.walk()], {}, 1.0)
        sizes = even_groups(self.rows, n_groups) if self.rows else (0,)
        return PlannedWorkload(Workload(tuple(self.operations), sizes), tuple(self.fingerprints))

    def _scope(
        self, ops: Sequence[Op], given: Mapping[int, frozenset[int]], serial: float
    ) -> frozenset[int]:
        """Add the calls of one scope; returns the calls that its last operator waits for. `given`:
        for each parameter, the calls behind it. `serial`: uses one after the other of one row."""
        behind: dict[Op, frozenset[int]] = {}
        outside = frozenset[int]().union(*given.values())
        for op in ops:
            waits = frozenset[int]().union(*(behind[d] for d in op.dependencies))
            if not op.inputs:
                waits |= outside
            if isinstance(op, CALLS):
                behind[op] = frozenset({self._call(op, waits, serial)})
                continue
            result = waits
            if op.bodies:
                times = serial
                if isinstance(op, Loop):
                    times *= max(1.0, op.max_rounds * SERIAL_SHARE)
                params = {i: behind[x] for i, x in enumerate(op.inputs)}
                for body in op.bodies:
                    result |= self._scope([*walk((body.result,))], params, times)
            behind[op] = result
        return behind[ops[-1]] if ops else outside

    def _call(self, op: Op, waits: frozenset[int], serial: float) -> int:
        known = self.index.get(op.fingerprint)
        if known is not None:
            return known
        stats = self.stats.of(op)
        times = serial
        if isinstance(op, Agent):
            times *= max(1.0, op.max_turns * SERIAL_SHARE)
        per_row = stats.calls / times / self.rows if self.rows else 0.0
        name = op.label or f"{op.kind.lower()}-{op.fingerprint[:6]}"
        while name in self.names:
            name += "'"
        self.names.add(name)
        work = self._work(op, stats.calls, times)
        # Nearly one call a row is one: rounding would only spread the rest over groups.
        per_row = 1.0 if abs(per_row - 1) < 1e-9 else per_row
        position = len(self.operations)
        self.operations.append(Operation(name, work, tuple(sorted(waits)), per_row))
        self.fingerprints.append(op.fingerprint)
        self.index[op.fingerprint] = position
        return position

    def _work(self, op: Op, calls: float, times: float) -> ModelWork | ToolWork:
        if not isinstance(op, ModelOp):
            lane = tool_lane(op.tool.name) if isinstance(op, Tool) else SQL_LANE
            seconds = self.latency_s.get(op.fingerprint, TOOL_LATENCY_S)
            return ToolWork(lane, seconds * times)
        stats = self.stats.of(op)
        per_call = stats.input_tokens / calls if calls else 0.0
        answer = stats.output_tokens / calls if calls else 0.0
        parts = self._prompt(op, per_call)
        extra = (times - 1) * answer
        if extra >= 1:
            parts.append(PromptPart(f"turns:{op.fingerprint}", round(extra), True))
        return ModelWork(op.model, tuple(parts), max(0, round(answer * times)))

    def _prompt(self, op: ModelOp, tokens: float) -> list[PromptPart]:
        """Literal pieces with their own tokens; the rest is shared out between references."""
        pieces = [
            piece
            for prompt in (op.system, op.prompt)
            if prompt is not None
            for piece in self._pieces(op, prompt)
        ]
        literal = sum(size for _, size in pieces if size is not None)
        references = [key for key, size in pieces if size is None]
        left = max(float(len(references)), tokens - literal)
        # A value is as long wherever it is read: the first reader's mean decides.
        each = max(1, round(left / len(references))) if references else 0
        sizes = {key: self.value_tokens.setdefault(key, each) for key in references}
        rest = round(left) - sum(sizes[key] for key in references)
        fits = rest >= 0
        parts: list[PromptPart] = []
        for key, size in pieces:
            if size is not None:
                if round(size):
                    parts.append(PromptPart(key, round(size)))
            elif fits:
                parts.append(PromptPart(key, sizes[key], True))
            else:
                # Shorter here than elsewhere on the mean: not the same text for the cache.
                parts.append(PromptPart(f"{key} in {op.fingerprint}", each, True))
        if fits and rest:
            parts.append(PromptPart(f"rest:{op.fingerprint}", rest, True))
        return parts or [PromptPart(f"empty:{op.fingerprint}", 1)]

    def _pieces(self, op: ModelOp, prompt: Prompt) -> list[tuple[str, float | None]]:
        pieces: list[tuple[str, float | None]] = []
        for segment in prompt.segments:
            if isinstance(segment, str):
                pieces.append((_text_key(segment), float(self.count_tokens(segment))))
                continue
            source = op.inputs[segment.index]
            if isinstance(source, Const):
                text = render_value(source.value)
                pieces.append((_text_key(text), float(self.count_tokens(text))))
            else:
                pieces.append((f"value:{source.fingerprint}", None))
        return pieces


def planned_workload(
    plan: Plan,
    stats: PlanStats,
    count_tokens: CountTokens,
    *,
    n_groups: int = 16,
    latency_s: Mapping[str, float] | None = None,
) -> PlannedWorkload:
    """The calls of `plan` as a workload.

    Operators that make no call are folded into the dependencies of those that do. Calls inside maps
    are several a row, side by side; those of loops and agents, one after the other, are one long
    call. `latency_s`: of tools by fingerprint, where it is known.
    """
    return _Builder(plan, stats, count_tokens, latency_s or {}).build(n_groups)


def tool_lane(name: str) -> str:
    """The lane of a tool."""
    return f"tool {name}"


def machine_for(
    workload: Workload,
    workers: Mapping[str, Sequence[Worker]],
    timers: Mapping[str, StepTimer] | None = None,
    tool_limits: Mapping[str, int] | None = None,
) -> Machine:
    """The machine of engines that are served already: one worker each, its model loaded; and the
    lanes of the tools that `workload` calls.

    `workers`: by model name, the workers that have it. `timers`: by worker name, where one was
    calibrated; others are priced as the simulated engine, or as an 8B model on an H200 (assumed).
    `tool_limits`: calls at once, by tool name.
    """
    specs: dict[str, WorkerSpec] = {}
    for model, those in workers.items():
        for worker in those:
            timer = (timers or {}).get(worker.name)
            if timer is None:
                timer = SIMULATED_ENGINE if worker.engine.startswith("simulated") else H200_8B
            engine = EngineSpec(
                timer,
                weight_bytes=0.0,
                kv_bytes_per_token=0.0,
                max_running=max(1, worker.max_in_flight),
                block_tokens=max(1, worker.prefix_block_tokens),
                shares_in_batch=worker.prime_prefix or worker.prefix_cache,
            )
            known = specs.get(worker.name)
            engines = {**known.engines, model: engine} if known else {model: engine}
            specs[worker.name] = WorkerSpec(
                worker.name, engines, memory_bytes=1.0, resident=tuple(engines)
            )
    limits = {tool_lane(name): n for name, n in (tool_limits or {}).items()}
    lanes = dict.fromkeys(
        op.work.lane for op in workload.operations if isinstance(op.work, ToolWork)
    )
    return Machine(
        tuple(specs.values()),
        tuple(
            ToolLaneSpec(lane, limits.get(lane, SQL_LIMIT if lane == SQL_LANE else TOOL_LIMIT))
            for lane in lanes
        ),
    )


def _text_key(text: str) -> str:
    return "text:" + hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]
