"""The model predicate that drops most for its price comes first."""

from __future__ import annotations

from collections.abc import Sequence

from planner.context import PlanContext
from planner.logical import CALLS, Filter, LogicalPlan, ModelOp, Op
from planner.stats import PlanStats
from planner.surgery import has_write, is_free, rebuild_rows, row_cone

OUTPUT_WEIGHT = 4.0
"""Price of an output token in input tokens. Providers charge three to five times as much, and an
engine decodes one token in the time in which it prefills several."""
TOOL_CALL_TOKENS = 50.0
"""Price of a tool call or query in input tokens, so that it is not free."""


def order_model_predicates(plan: LogicalPlan, context: PlanContext) -> LogicalPlan:
    """Order model predicates by cost / (1 - pass rate), the smallest first.

    For independent predicates that order has the least expected cost (Hellerstein and Stonebraker,
    "Predicate migration", SIGMOD 1993, section 3). It needs measured pass rates, sampled or learnt:
    predicates whose rate is assumed stay in the order in which they were written.
    """
    if Filter not in plan.kinds or not context.learnt.ops:
        return plan
    stats = context.stats(plan)

    # By predicate: inner filters of a chain have changed places before the outer one is looked at.
    ranks: dict[str, float | None] = {}

    def order(original: Op, op: Op) -> Op:
        if not isinstance(op, Filter) or not isinstance(original, Filter):
            return op
        ranks[op.predicate.fingerprint] = _rank(original, stats)
        chain = _chain(op)
        found_ranks = [ranks[each.predicate.fingerprint] for each in chain]
        if len(chain) < 2 or any(rank is None for rank in found_ranks):
            return op
        places = sorted(range(len(chain)), key=lambda i: found_ranks[i] or 0.0)
        if places == list(range(len(chain))):
            return op
        found = chain[0].rows
        for i in places:
            found = Filter((found, chain[i].predicate), label=chain[i].label)
        return found

    return rebuild_rows(plan, order)


def _chain(op: Filter) -> Sequence[Filter]:
    """Filters over each other that may change places, the innermost first, down from `op`."""
    found: list[Filter] = []
    rows = op
    while isinstance(rows, Filter) and not rows.after and not is_free([rows.predicate]):
        if has_write(rows.predicate):
            break
        found.append(rows)
        rows = rows.rows  # type: ignore[assignment]
    return found[::-1]


def _rank(op: Filter, stats: PlanStats) -> float | None:
    relation = stats.relations.get(op.fingerprint)
    if relation is None or relation.pass_rate is None:
        return None
    if relation.pass_from not in ("sampled", "learnt"):
        return None
    dropped = 1.0 - relation.pass_rate
    cost = sum(_cost(each, stats) for each in row_cone([op.predicate]) if isinstance(each, CALLS))
    return cost / dropped if dropped > 0 else float("inf")


def _cost(op: Op, stats: PlanStats) -> float:
    """Expected price of one use, in input tokens."""
    found = stats.of(op)
    if not isinstance(op, ModelOp) or not found.uses:
        return TOOL_CALL_TOKENS
    return (found.input_tokens + OUTPUT_WEIGHT * found.output_tokens) / found.uses
