"""Statistics: what each operator is expected to be asked, before anything runs.

Every number says where it comes from: counted on the rows (exact), measured by a dry run of some of
the rows (sampled) or by earlier runs (learnt), promised by the workflow (declared), or assumed. A
combined number is as good as its weakest part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from planner.logical import Json, LogicalPlan, Op
from planner.prefix_tree import Template

Provenance = Literal["exact", "sampled", "learnt", "declared", "assumed"]
CountTokens = Callable[[str], int]

_WEAKNESS: dict[Provenance, int] = {
    "exact": 0,
    "sampled": 1,
    "learnt": 2,
    "declared": 3,
    "assumed": 4,
}


def weakest(provenances: Iterable[Provenance]) -> Provenance:
    """The provenance of a number made of several.

    Example:
        >>> weakest(("exact", "assumed", "declared"))
        'assumed'
    """
    found: Provenance = "exact"
    for provenance in provenances:
        if _WEAKNESS[provenance] > _WEAKNESS[found]:
            found = provenance
    return found


@dataclass(frozen=True, slots=True)
class OpStats:
    """What is expected of one operator, over all rows, summed over the places where it occurs.

    Attributes:
        uses: how often its value is needed: once a row, more inside maps and loops.
        distinct: uses whose arguments differ; equals `uses` for sampled and writing calls.
        calls: expected calls of an engine or tool; 0 for operators that make none.
        calls_alone: calls if every query ran alone and shared nothing, not even equal rows.
        input_tokens, output_tokens: of all `calls` together, the chat template not counted.
        prefixes: (tokens, reuses) for each depth at which prompts part: `reuses` calls find the
            first `tokens` of their prompt in the cache and nothing behind them.
    """

    uses: float = 0.0
    distinct: float = 0.0
    calls: float = 0.0
    calls_alone: float = 0.0
    input_tokens: float = 0.0
    output_tokens: float = 0.0
    prefixes: tuple[tuple[float, float], ...] = ()
    calls_from: Provenance = "exact"
    input_from: Provenance = "exact"
    output_from: Provenance = "exact"

    def cached_tokens(self, block_tokens: int = 1) -> float:
        """Input tokens that a prefix cache of this block size would answer: a prediction, and a
        low one, since prefixes that different operators share are not counted."""
        return sum(tokens // block_tokens * block_tokens * n for tokens, n in self.prefixes)

    def __add__(self, other: OpStats) -> OpStats:
        return OpStats(
            self.uses + other.uses,
            self.distinct + other.distinct,
            self.calls + other.calls,
            self.calls_alone + other.calls_alone,
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.prefixes + other.prefixes,
            weakest((self.calls_from, other.calls_from)),
            weakest((self.input_from, other.input_from)),
            weakest((self.output_from, other.output_from)),
        )


NO_STATS = OpStats()


@dataclass(frozen=True, slots=True)
class RelationStats:
    """What is expected of a relation.

    Attributes:
        rows: how many it has, and `rows_from` where that comes from.
        pass_rate: of a filter, the share of rows that it keeps; `pass_low` and `pass_high` are a
            95 % interval, from 0 to 1 where the rate is assumed; `pass_from` where it comes from.
    """

    rows: float = 0.0
    rows_from: Provenance = "exact"
    pass_rate: float | None = None
    pass_low: float = 0.0
    pass_high: float = 1.0
    pass_from: Provenance = "assumed"


@dataclass(frozen=True)
class PlanStats:
    """Statistics of a plan over given rows.

    Attributes:
        ops: by operator fingerprint, every scope.
        rows: number of rows of each scan source.
        relations: by fingerprint, every relation of the plan.
        prefix_order: for each scan source, the order in which its rows share most
            (`planner.row_order`).
        templates: what the prompts of the model operators are made of.
    """

    ops: Mapping[str, OpStats] = field(default_factory=dict[str, OpStats])
    rows: Mapping[str, int] = field(default_factory=dict[str, int])
    relations: Mapping[str, RelationStats] = field(default_factory=dict[str, RelationStats])
    prefix_order: Mapping[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])
    templates: tuple[Template, ...] = ()

    def of(self, op: Op) -> OpStats:
        """The statistics of an operator of any scope; zeros for one that the plan has not."""
        return self.ops.get(op.fingerprint, NO_STATS)

    @property
    def total(self) -> OpStats:
        """The sum over calling operators; `uses` and `distinct` are those of calls."""
        calling = [stats for stats in self.ops.values() if stats.calls_alone]
        return OpStats(
            uses=sum(s.uses for s in calling),
            distinct=sum(s.distinct for s in calling),
            calls=sum(s.calls for s in calling),
            calls_alone=sum(s.calls_alone for s in calling),
            input_tokens=sum(s.input_tokens for s in calling),
            output_tokens=sum(s.output_tokens for s in calling),
            prefixes=tuple(prefix for s in calling for prefix in s.prefixes),
            calls_from=weakest(s.calls_from for s in calling),
            input_from=weakest(s.input_from for s in calling),
            output_from=weakest(s.output_from for s in calling),
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` reads. The row order is kept by the physical plan; the
        templates are not kept."""
        return {
            "rows": dict(self.rows),
            "relations": {op: asdict(found) for op, found in self.relations.items()},
            "ops": {
                op: [
                    s.uses, s.distinct, s.calls, s.calls_alone, s.input_tokens, s.output_tokens,
                    [list(prefix) for prefix in s.prefixes],
                    s.calls_from, s.input_from, s.output_from,
                ]
                for op, s in self.ops.items()
            },
        }  # fmt: skip

    @classmethod
    def from_json(cls, obj: Mapping[str, Any]) -> PlanStats:
        """The statistics that `to_json` wrote, without row order and templates."""
        ops: dict[str, OpStats] = {}
        for op, values in obj["ops"].items():
            prefixes = tuple((float(tokens), float(n)) for tokens, n in values[6])
            uses, distinct, calls, alone, tokens_in, tokens_out = values[:6]
            ops[op] = OpStats(
                uses, distinct, calls, alone, tokens_in, tokens_out, prefixes, *values[7:10]
            )
        relations = {op: RelationStats(**found) for op, found in obj["relations"].items()}
        return cls(ops=ops, rows=dict(obj["rows"]), relations=relations)


def estimate(
    plan: LogicalPlan,
    rows: Mapping[str, Sequence[Mapping[str, Json]]],
    count_tokens: CountTokens,
    query_rows: Mapping[str, int] | None = None,
) -> PlanStats:
    """Statistics of `plan` over `rows` (by scan source; a missing source has no rows), and over
    queries whose rows have been counted (`query_rows`, by fingerprint).

    Calls are exact where an operator depends on scanned columns alone: equal arguments are one
    call. Answers of models and tools are assumed to differ whenever their arguments do. Lengths of
    answers are assumed as half of `max_tokens`; a choice costs its options' mean.
    """
    from planner.estimator import Estimator
    from planner.row_profile import RowProfile

    return Estimator(plan, RowProfile(rows, count_tokens, query_rows), count_tokens).run()
