"""EXPLAIN of prefixes: what to compute once, and what a KV cache of a given size would hit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from planner.context import PlanContext
from planner.describe import quoted
from planner.listing import Listing
from planner.logical import LogicalPlan
from planner.numbers import compact, percent, whole
from planner.prefix_hits import SimulatedHits, simulate_hits
from planner.prefix_tree import PrefixTree, StaticPrefix

SHOWN = 8


def prefix_report(
    plan: LogicalPlan,
    context: PlanContext,
    row_order: Mapping[str, Sequence[int]],
    *,
    capacity_tokens: int,
    block_tokens: int = 16,
) -> str:
    """Static prefixes, and for each source of rows the hits of every operator, predicted by a
    simulation in the planned order and in input order."""
    tree = PrefixTree(context.stats(plan).templates)
    numbers = {node.op.fingerprint: node for node in reversed(list(Listing.of(plan).walk()))}
    lines = [f"prefix cache of {whole(capacity_tokens)} tokens in blocks of {block_tokens}"]
    for each in tree.static_prefixes(context.count_tokens, least_tokens=block_tokens)[:SHOWN]:
        lines.append(_static(each, [numbers[op].reference for op in each.ops]))
    for source, order in row_order.items():
        planned, given = (
            simulate_hits(
                tree,
                source,
                context.profile,
                rows,
                capacity_tokens=capacity_tokens,
                block_tokens=block_tokens,
            )
            for rows in (order, range(len(order)))
        )
        lines.append(
            f"{source}: {_share(planned)} of prompt tokens in the planned order, "
            f"{_share(given)} in input order (simulated on {whole(planned.rows)} of "
            f"{whole(planned.of_rows)} rows)"
        )
        for op, hits in planned.ops.items():
            node = numbers[op]
            name = f" {node.op.label}" if node.op.label else ""
            lines.append(
                f"  {node.reference} {node.op.kind}{name}: "
                f"{percent(hits.hit_tokens, hits.tokens)} of {compact(hits.tokens)}"
            )
    return "\n".join(lines)


def _static(prefix: StaticPrefix, references: Sequence[str]) -> str:
    text = "".join(prefix.turns)
    return (
        f"static prefix of {whole(prefix.tokens)} tokens for {whole(prefix.calls)} calls of "
        f"{','.join(references[:SHOWN])}: {quoted(text, 60)}"
    )


def _share(hits: SimulatedHits) -> str:
    return percent(hits.total.hit_tokens, hits.total.tokens)
