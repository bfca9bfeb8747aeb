"""What a batch would take: calls, tokens, time and money, each as an interval. Makes no call.

Counts come from the plan's statistics; what is not exact there becomes an interval. Time is the
batch's prompt and decode work priced step by step on the engine's profile, at the concurrency that
the rows and the engine allow; its interval also holds the profile's own error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from costmodel.interval import Interval, summed
from costmodel.step import StepModel
from halo.profiles import EngineProfile
from planner.logical import Agent, LogicalPlan, Loop, ModelOp, Op, Sql, Tool
from planner.physical import PhysicalPlan
from planner.stats import OpStats, PlanStats, Provenance
from runtime.budget import Budget, Prices

CALLS_FACTORS: Mapping[Provenance, tuple[float, float]] = {
    "exact": (1.0, 1.0), "sampled": (0.8, 1.25), "learnt": (0.7, 1.4), "declared": (0.5, 1.5),
    "assumed": (0.2, 2.0),
}  # fmt: skip
"""Low and high ends of an estimated number, by where it comes from. Assumed numbers are half of a
bound (turns, rounds, `max_tokens`), hence at most twice themselves."""

UNCALIBRATED_ERROR = 1.0
"""Relative error of times from a profile that was not measured on the engine: half to double."""


@dataclass(frozen=True)
class OpEstimate:
    """What one calling operator would take. `seconds` is its engine time with the batch to
    itself."""

    name: str
    kind: str
    model: str
    calls: Interval
    input_tokens: Interval
    cached_tokens: Interval
    output_tokens: Interval
    seconds: Interval


@dataclass(frozen=True)
class Estimate:
    """What a batch would take.

    Attributes:
        calls, input_tokens, cached_tokens, output_tokens: of models; cached ones are part of the
            input.
        tool_calls: calls of tools and SQL steps, whose time is not estimated.
        seconds: from start to last answer, tools not counted.
        usd: by token prices or the device's price; None without either.
        energy_j: of the device.
        calibrated: whether times come from a profile measured on this engine.
        profile: its name and weakest evidence, in words.
        notes: what the estimate leaves out.
    """

    rows: int
    calls: Interval
    calls_alone: float
    input_tokens: Interval
    cached_tokens: Interval
    output_tokens: Interval
    tool_calls: Interval
    seconds: Interval
    usd: Interval | None
    energy_j: Interval
    ops: tuple[OpEstimate, ...]
    calibrated: bool
    profile: str
    notes: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """One JSON object with every interval as low, expected, high."""
        return {
            "rows": self.rows,
            "calls": self.calls.to_json(),
            "calls_without_sharing": self.calls_alone,
            "input_tokens": self.input_tokens.to_json(),
            "cached_tokens": self.cached_tokens.to_json(),
            "output_tokens": self.output_tokens.to_json(),
            "tool_calls": self.tool_calls.to_json(),
            "seconds": self.seconds.to_json(),
            "usd": None if self.usd is None else self.usd.to_json(),
            "energy_j": self.energy_j.to_json(),
            "calibrated": self.calibrated,
            "profile": self.profile,
            "notes": list(self.notes),
            "operators": [
                {
                    "name": op.name,
                    "kind": op.kind,
                    "model": op.model,
                    "calls": op.calls.to_json(),
                    "input_tokens": op.input_tokens.to_json(),
                    "cached_tokens": op.cached_tokens.to_json(),
                    "output_tokens": op.output_tokens.to_json(),
                    "seconds": op.seconds.to_json(),
                }
                for op in self.ops
            ],
        }

    def against(self, budget: Budget) -> list[str]:
        """For each limit of a budget: whether the batch fits, may or will not fit it."""
        total = self.input_tokens + self.output_tokens
        used: list[tuple[str, float | None, Interval | None]] = [
            ("calls", budget.calls, self.calls),
            ("tokens", budget.tokens, total),
            ("minutes", budget.minutes, self.seconds.scaled(1 / 60)),
            ("usd", budget.usd, self.usd),
        ]
        lines: list[str] = []
        for name, limit, need in used:
            if limit is None or need is None:
                continue
            verdict = "may stop the run early"
            if need.high <= limit:
                verdict = "is enough"
            elif need.low > limit:
                verdict = "will stop the run early"
            lines.append(
                f"{name}={limit:g} {verdict}: {need.mid:.4g} expected, "
                f"{need.low:.4g} to {need.high:.4g}"
            )
        return lines


def estimate_batch(
    plan: PhysicalPlan,
    stats: PlanStats,
    profiles: Mapping[str, EngineProfile],
    *,
    prices: Prices = Prices(),
) -> Estimate:
    """The estimate of a placed plan. `profiles` has one profile a worker, by name.

    Raises `ProfileError` for a worker without one.
    """
    rows = sum(stats.rows.values())
    depth = max(1.0, critical_calls(plan.logical))
    ops: list[OpEstimate] = []
    energy: list[Interval] = []
    tools: list[Interval] = []
    top = set(plan.logical.walk())
    calling = [op for op in dict.fromkeys(plan.logical.walk_all()) if stats.of(op).calls]
    model_calls = sum(stats.of(op).calls for op in calling if isinstance(op, ModelOp))
    for op in calling:
        known = stats.of(op)
        calls = _spread(known.calls, known.calls_from)
        if op in top and not isinstance(op, Agent):
            # Outside of loops and maps there is at most one call a row.
            calls = replace(calls, high=max(calls.mid, min(calls.high, float(rows))))
        if isinstance(op, Tool | Sql):
            tools.append(calls)
            continue
        if not isinstance(op, ModelOp):
            continue
        worker = plan.worker_of(op)
        assert worker is not None
        profile = profiles[worker.name]
        # Rows run independently: what is in the engine at once is all calls over the longest chain.
        at_once = max(1.0, min(float(worker.max_in_flight), model_calls / depth))
        block = worker.prefix_block_tokens
        cached = known.cached_tokens(block) if worker.prefix_cache else 0.0
        one, joules = _op_estimate(op, known, calls, cached, at_once, profile, worker.model)
        ops.append(one)
        energy.append(joules)
    seconds = summed(op.seconds for op in ops)
    return Estimate(
        rows=rows,
        calls=summed(op.calls for op in ops),
        calls_alone=sum(stats.of(op).calls_alone for op in calling if isinstance(op, ModelOp)),
        input_tokens=summed(op.input_tokens for op in ops),
        cached_tokens=summed(op.cached_tokens for op in ops),
        output_tokens=summed(op.output_tokens for op in ops),
        tool_calls=summed(tools),
        seconds=seconds,
        usd=_usd(ops, seconds, profiles, prices),
        energy_j=summed(energy),
        ops=tuple(ops),
        calibrated=all(profile.calibrated for profile in profiles.values()),
        profile=", ".join(dict.fromkeys(_words(profile) for profile in profiles.values())),
        notes=("the time of tools is not estimated",) if tools else (),
    )


def _op_estimate(
    op: ModelOp,
    known: OpStats,
    calls: Interval,
    cached: float,
    at_once: float,
    profile: EngineProfile,
    model: str,
) -> tuple[OpEstimate, Interval]:
    n = known.calls
    per_call_in = _spread(known.input_tokens / n, known.input_from)
    per_call_out = _output(op, known)
    per_call_hit = Interval.within(cached / n, 0.5, 1.25) if cached else Interval()
    step = StepModel(profile.model, profile.hardware)
    ends: list[float] = []
    for number, prompt, hit, answer in (
        (calls.low, per_call_in.low, per_call_hit.high, per_call_out.low),
        (calls.mid, per_call_in.mid, per_call_hit.mid, per_call_out.mid),
        (calls.high, per_call_in.high, per_call_hit.low, per_call_out.high),
    ):
        ends.append(calls_s(step, number, prompt, min(hit, prompt), answer, at_once))
    error = UNCALIBRATED_ERROR
    if profile.calibrated and profile.hardware.held_out_p90_error is not None:
        error = profile.hardware.held_out_p90_error
    seconds = Interval(ends[0] / (1 + error), ends[1], ends[2] * (1 + error))
    input_tokens = calls.times(per_call_in)
    hits = Interval(
        min(calls.low * per_call_hit.low, input_tokens.low),
        min(calls.mid * per_call_hit.mid, input_tokens.mid),
        min(calls.high * per_call_hit.high, input_tokens.high),
    )
    estimate = OpEstimate(
        name=op.label,
        kind=op.kind,
        model=model,
        calls=calls,
        input_tokens=input_tokens,
        cached_tokens=hits,
        output_tokens=calls.times(per_call_out),
        seconds=seconds,
    )
    watts = profile.hardware.power_w
    return estimate, seconds.scaled(watts)


def calls_s(
    step: StepModel, calls: float, prompt: float, hit: float, answer: float, at_once: float
) -> float:
    """Seconds of many equal calls with `at_once` of them in the engine: prompts in chunks of steps,
    decodes at full concurrency, and what calls cost outside steps."""
    if calls <= 0:
        return 0.0
    new, held = max(1, round(prompt - hit)), round(hit)
    together = max(1, min(int(at_once), 8192 // new or 1, int(calls) or 1))
    prefill = step.step_s(((new, held),) * together, 0, 0) / together
    batch = max(1, min(round(at_once), round(calls)))
    context = prompt + answer / 2
    decode = step.step_s((), batch, round(batch * context)) / batch
    outside = step.calls_s(1, round(prompt)) - step.hardware.call_latency_s
    latency = step.hardware.call_latency_s / batch
    return calls * (prefill + max(0.0, answer - 1) * decode + outside + latency)


def critical_calls(plan: LogicalPlan) -> float:
    """Model calls on the longest chain of one row: agents count their turns, loops their rounds, at
    half of their bounds."""
    return _longest_chain(plan.walk())


def _longest_chain(ops: Iterator[Op]) -> float:
    """Calls on the longest chain of one scope; recursive over the nesting of bodies alone."""
    depth: dict[Op, float] = {}
    for op in ops:
        own = 0.0
        if isinstance(op, Agent):
            own = max(1.0, op.max_turns / 2)
        elif isinstance(op, ModelOp):
            own = 1.0
        elif op.bodies:
            rounds = max(1.0, op.max_rounds / 2) if isinstance(op, Loop) else 1.0
            own = rounds * sum(_longest_chain(body.walk()) for body in op.bodies)
        depth[op] = own + max((depth.get(i, 0.0) for i in op.inputs), default=0.0)
    return max(depth.values(), default=0.0)


def _spread(value: float, source: Provenance) -> Interval:
    return Interval.within(value, *CALLS_FACTORS[source])


def _output(op: ModelOp, known: OpStats) -> Interval:
    """Tokens of one answer."""
    mean = known.output_tokens / known.calls
    spread = _spread(mean, known.output_from)
    limit = getattr(op, "max_tokens", None)
    high = spread.high if limit is None else min(spread.high, max(float(limit), mean))
    return Interval(min(spread.low, mean), mean, high)


def _usd(
    ops: list[OpEstimate],
    seconds: Interval,
    profiles: Mapping[str, EngineProfile],
    prices: Prices,
) -> Interval | None:
    """Money by token prices if there are any, else by the hour of the devices."""
    if prices.usd_per_million_input is not None or prices.usd_per_million_output is not None:
        tokens_in = summed(op.input_tokens for op in ops)
        tokens_out = summed(op.output_tokens for op in ops)
        return tokens_in.scaled(1e-6 * (prices.usd_per_million_input or 0.0)) + tokens_out.scaled(
            1e-6 * (prices.usd_per_million_output or 0.0)
        )
    hourly = [profile.hardware.price_usd_per_h for profile in profiles.values()]
    if not hourly or any(price is None for price in hourly):
        return None
    return seconds.scaled(sum(price or 0.0 for price in hourly) / 3600)


def _words(profile: EngineProfile) -> str:
    if profile.calibrated:
        error = profile.hardware.held_out_p90_error
        words = "calibrated" if error is None else f"calibrated, p90 error {error:.0%}"
    else:
        words = "not calibrated: half to double"
    return f"{profile.hardware.title} ({words}), {profile.model.title}"
