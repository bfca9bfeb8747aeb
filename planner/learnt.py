"""What runs have taught about operators: calls, tokens and pass rates, with where they come from.

Operators are known by shape (`planner.shape`), so what was learnt of a workflow serves every batch
in which the same operator occurs, whatever its rows and whatever else is in it. Estimates use it in
place of assumptions; what is counted on the rows stays exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from costmodel.usage import OpMetrics
from planner.logical import Filter, LogicalPlan
from planner.shape import shapes

Source = Literal["sampled", "learnt"]

Z_95 = 1.959963984540054
"""Standard normal quantile of a two-sided 95 % interval."""


def wilson(successes: float, trials: float) -> tuple[float, float]:
    """The 95 % interval of a rate (Wilson 1927, "Probable inference, the law of succession, and
    statistical inference", JASA 22): honest for few trials and for rates near 0 or 1.

    Example:
        >>> low, high = wilson(5, 10)
        >>> round(low, 3), round(high, 3)
        (0.237, 0.763)
        >>> wilson(0, 0)
        (0.0, 1.0)
    """
    if trials <= 0:
        return 0.0, 1.0
    rate = successes / trials
    spread = Z_95 * Z_95 / trials
    middle = (rate + spread / 2) / (1 + spread)
    half = Z_95 * math.sqrt(rate * (1 - rate) / trials + spread / (4 * trials)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True, slots=True)
class Measured:
    """What one operator did, summed over runs.

    Attributes:
        uses: how often its value was asked for; `answers`: answers made for it.
        input_tokens, output_tokens: of all those answers.
        seen, kept: of a filter, the rows that it looked at, and those that it kept.
    """

    uses: int = 0
    answers: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    seen: int = 0
    kept: int = 0

    def __add__(self, other: Measured) -> Measured:
        return Measured(
            self.uses + other.uses,
            self.answers + other.answers,
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.seen + other.seen,
            self.kept + other.kept,
        )

    @property
    def mean_output_tokens(self) -> float | None:
        return self.output_tokens / self.answers if self.answers else None

    @property
    def pass_rate(self) -> float | None:
        return self.kept / self.seen if self.seen else None

    @property
    def pass_interval(self) -> tuple[float, float]:
        """95 % interval of the pass rate."""
        return wilson(self.kept, self.seen)


@dataclass(frozen=True)
class Learnt:
    """Measurements by operator shape, all of one source: `sampled` by a dry run of some rows of
    this batch, or `learnt` from runs before it."""

    ops: Mapping[str, Measured] = field(default_factory=dict[str, Measured])
    source: Source = "learnt"

    @classmethod
    def from_runs(
        cls,
        runs: Iterable[tuple[LogicalPlan, Mapping[str, OpMetrics]]],
        source: Source = "learnt",
    ) -> Learnt:
        """From the plans of several runs, each with what its operators did, by fingerprint."""
        ops: dict[str, Measured] = {}
        for plan, metrics in runs:
            shape_of = shapes(plan)
            # By predicate, because which filters come before a filter is the planner's choice.
            filters = {
                op.fingerprint: pass_key(shape_of[op.predicate.fingerprint])
                for op in plan.walk()
                if isinstance(op, Filter)
            }
            for op, m in metrics.items():
                shape = shape_of.get(op)
                if shape is None:
                    continue
                if op in filters:
                    shape = filters[op]
                    found = Measured(seen=m.requested, kept=m.kept)
                else:
                    usage = m.usage
                    found = Measured(m.requested, m.made, usage.input_tokens, usage.output_tokens)
                ops[shape] = ops.get(shape, Measured()) + found
        return cls(ops, source)

    def __add__(self, other: Learnt) -> Learnt:
        """Both; where both know an operator, `other` is believed."""
        return Learnt({**self.ops, **other.ops}, other.source if other.ops else self.source)

    def of(self, shape: str) -> Measured | None:
        """What is known of operators of a shape; None when nothing is."""
        return self.ops.get(shape)

    def to_json(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "ops": {
                op: [m.uses, m.answers, m.input_tokens, m.output_tokens, m.seen, m.kept]
                for op, m in self.ops.items()
            },
        }

    @classmethod
    def from_json(cls, obj: Mapping[str, Any]) -> Learnt:
        ops = {op: Measured(*numbers) for op, numbers in obj["ops"].items()}
        return cls(ops, "sampled" if obj["source"] == "sampled" else "learnt")


def pass_key(predicate_shape: str) -> str:
    """The key under which the pass rate of a predicate is known."""
    return f"pass {predicate_shape}"


NOTHING_LEARNT = Learnt()
