"""What EXPLAIN knows of a plan: the listing, with estimates, placement and what happened."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from costmodel.usage import OpMetrics, Usage
from planner.listing import Listing, Node
from planner.logical import CALLS, LogicalPlan, Op
from planner.physical import PhysicalPlan, Worker
from planner.rewrite import Rewritten
from planner.stats import OpStats, PlanStats


@dataclass(frozen=True)
class View:
    """One EXPLAIN.

    Attributes:
        stats: None prints no estimates.
        metrics: what happened, by operator fingerprint; None for a plan that has not run.
        physical: the placed plan, or None for the logical stages.
        verbose: shorten nothing.
        rewritten: how the plan was rewritten, or None.
        volatile: print what differs from run to run; otherwise `<time>` and `<tokens>`.
    """

    plan: LogicalPlan
    stats: PlanStats | None = None
    metrics: Mapping[str, OpMetrics] | None = None
    physical: PhysicalPlan | None = None
    verbose: bool = False
    volatile: bool = True
    rewritten: Rewritten | None = None

    @cached_property
    def listing(self) -> Listing:
        return Listing.of(self.plan)

    @property
    def counted(self) -> str:
        """What the engines' own counts are: measured, or simulated where the engines are."""
        workers = self.physical.workers if self.physical is not None else ()
        simulated = bool(workers) and all(w.engine == "simulated" for w in workers)
        return "simulated" if simulated else "measured"

    @cached_property
    def calling(self) -> tuple[Op, ...]:
        """Operators that call an engine or a tool, each once, every scope."""
        found = (op for op in self.plan.walk_all() if isinstance(op, CALLS))
        return tuple(dict.fromkeys(found))

    def estimate(self, op: Op) -> OpStats | None:
        """The estimate of an operator that makes calls."""
        if self.stats is None or not isinstance(op, CALLS):
            return None
        return self.stats.of(op)

    def actual(self, op: Op) -> OpMetrics | None:
        """What a calling operator did; zeros for one that never ran."""
        if self.metrics is None or not isinstance(op, CALLS):
            return None
        return self.metrics.get(op.fingerprint, OpMetrics())

    def worker(self, op: Op) -> Worker | None:
        return None if self.physical is None else self.physical.worker_of(op)

    def cached(self, op: Op) -> float:
        """Predicted input tokens from the prefix cache: as the operator's worker caches, or, before
        placement, as an engine with a prefix cache of single tokens would."""
        stats = self.estimate(op)
        if stats is None:
            return 0.0
        worker = self.worker(op)
        if worker is None:
            return stats.cached_tokens()
        return stats.cached_tokens(worker.prefix_block_tokens) if worker.prefix_cache else 0.0

    @cached_property
    def cached_total(self) -> float:
        return sum(self.cached(op) for op in self.calling)

    @cached_property
    def actual_total(self) -> OpMetrics | None:
        if self.metrics is None:
            return None
        return summed(m for op in self.calling if (m := self.actual(op)) is not None)

    @cached_property
    def reuse(self) -> Reuse | None:
        """Prefix reuse of the whole run; None before a run."""
        if self.metrics is None:
            return None
        usages = [m.usage for op in self.calling if (m := self.actual(op)) is not None]
        return Reuse.of(usages)

    @cached_property
    def merged_calls(self) -> int:
        """Calls that merging saved in the run: a call of an operator that several queries share
        serves all of them, and each query alone would have asked for it again."""
        if self.metrics is None:
            return 0
        return sum(
            actual.requested * (len(node.queries) - 1)
            for node in self.listing.walk()
            if self.place_of_estimate(node) and (actual := self.actual(node.op)) is not None
        )

    def place_of_estimate(self, node: Node) -> bool:
        """Whether numbers go here: they are kept by fingerprint, and equal operators of several
        bodies print them at the first."""
        return node.first_number == node.number


@dataclass(frozen=True, slots=True)
class Reuse:
    """Cached input tokens, those that engines measured apart from those that Halo predicted.

    `measured_of` and `predicted_of` are the input tokens of the calls behind each number, and
    `unknown_of` those of calls about which nothing is known.
    """

    measured: int = 0
    measured_of: int = 0
    predicted: int = 0
    predicted_of: int = 0
    unknown_of: int = 0

    @classmethod
    def of(cls, usages: Iterable[Usage]) -> Reuse:
        measured = measured_of = predicted = predicted_of = unknown_of = 0
        for usage in usages:
            if usage.cached_tokens is not None:
                measured += usage.cached_tokens
                measured_of += usage.input_tokens
            elif usage.predicted_cached_tokens is not None:
                predicted += usage.predicted_cached_tokens
                predicted_of += usage.input_tokens
            else:
                unknown_of += usage.input_tokens
        return cls(measured, measured_of, predicted, predicted_of, unknown_of)


def summed(metrics: Iterable[OpMetrics]) -> OpMetrics:
    """The sum of what operators did."""
    total = OpMetrics()
    for m in metrics:
        total.requested += m.requested
        total.made += m.made
        total.shared += m.shared
        total.replayed += m.replayed
        total.retries += m.retries
        total.errors += m.errors
        total.busy_s += m.busy_s
        total.usage += m.usage
    return total
