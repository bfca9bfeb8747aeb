"""What rules and prefix planning may know beyond the plan: the rows, and what runs have taught."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from planner.learnt import NOTHING_LEARNT, Learnt
from planner.logical import Json, LogicalPlan
from planner.row_profile import RowProfile
from planner.stats import PlanStats


def _bytes_over_four(text: str) -> int:
    from costmodel.tokens import estimate_tokens

    return estimate_tokens(text)


@dataclass(frozen=True)
class PlanContext:
    """Statistics of plans over given rows. One context serves all plans of a rewrite: what is
    counted on the rows is counted once.

    Attributes:
        rows: by scan source.
        count_tokens: tokens of a text, by the model's tokenizer or an estimate.
        query_rows: counted rows of queries, by fingerprint.
        learnt: what earlier runs or a dry run of some rows measured.
        enforces_choice: whether every engine of the plan keeps to the options of a choice while
            decoding.
        cache_tokens: prompt tokens that the smallest prefix cache of the plan's engines holds; None
            when unknown, and then nothing is taken to be evicted.
    """

    rows: Mapping[str, Sequence[Mapping[str, Json]]] = field(
        default_factory=dict[str, Sequence[Mapping[str, Json]]]
    )
    count_tokens: Callable[[str], int] = _bytes_over_four
    query_rows: Mapping[str, int] = field(default_factory=dict[str, int])
    learnt: Learnt = NOTHING_LEARNT
    enforces_choice: bool = False
    cache_tokens: int | None = None
    _profiles: list[RowProfile] = field(default_factory=list[RowProfile], repr=False)
    _stats: dict[str, PlanStats] = field(default_factory=dict[str, PlanStats], repr=False)

    @property
    def profile(self) -> RowProfile:
        """Counts over the rows."""
        if not self._profiles:
            self._profiles.append(RowProfile(self.rows, self.count_tokens, self.query_rows))
        return self._profiles[0]

    def stats(self, plan: LogicalPlan, *, orders: bool = False) -> PlanStats:
        """The statistics of a plan over the rows; with `orders`, also in which order they share
        most."""
        known = self._stats.get(plan.fingerprint)
        if known is None or (orders and not known.prefix_order):
            from planner.estimator import Estimator

            known = Estimator(plan, self.profile, self.count_tokens, self.learnt).run(orders=orders)
            self._stats[plan.fingerprint] = known
        return known
