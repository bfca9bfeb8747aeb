"""How many prompt tokens a prefix cache of a given size would answer: a simulation on some rows.

The prompts of the rows go through `costmodel.prefix_cache` in the order in which rows start, those
of one row in plan order, as blocks that are named by the segments before them. Values are told
apart by their codes, so nothing is rendered. Equal prompts are one call and come once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from costmodel.prefix_cache import PrefixCache
from planner.prefix_tree import PrefixNode, PrefixTree, Reference
from planner.row_profile import RowProfile

BLOCK_BUDGET = 200_000
"""Blocks to simulate: about a quarter of a second. More rows are extrapolated."""


@dataclass(frozen=True, slots=True)
class PrefixHits:
    """Of one operator: `tokens` of its prompts, and `hit_tokens` of them that were cached, on the
    rows that were simulated."""

    tokens: float = 0.0
    hit_tokens: float = 0.0

    @property
    def share(self) -> float:
        return self.hit_tokens / self.tokens if self.tokens else 0.0


@dataclass(frozen=True)
class SimulatedHits:
    """Hits by operator fingerprint, on `rows` of `of_rows` rows."""

    ops: Mapping[str, PrefixHits]
    rows: int
    of_rows: int

    @property
    def total(self) -> PrefixHits:
        found = self.ops.values()
        return PrefixHits(sum(h.tokens for h in found), sum(h.hit_tokens for h in found))


def simulate_hits(
    tree: PrefixTree,
    source: str,
    profile: RowProfile,
    order: Sequence[int],
    *,
    capacity_tokens: int | None,
    block_tokens: int = 16,
    block_budget: int = BLOCK_BUDGET,
) -> SimulatedHits:
    """Hits of all operators of the tree over the rows of `source`, one prompt an operator and row.

    `capacity_tokens` is the KV cache that the engine has for prefixes; None evicts nothing.
    """
    caches = {model: PrefixCache(capacity_tokens, block_tokens) for model in tree.roots}
    models = {template.op: template.model for template in tree.templates}
    prompts = [
        _Prompt(op, path, profile)
        for op, path in tree.paths.items()
        if all(name == source for node in path for name, _ in _paths(node))
    ]
    found = {prompt.op: [0.0, 0.0] for prompt in prompts}
    seen: set[tuple[str, tuple[object, ...]]] = set()
    blocks = rows = 0
    for row in order:
        if blocks >= block_budget:
            break
        rows += 1
        for prompt in prompts:
            names = prompt.names(row)
            if (prompt.op, names) in seen:
                continue
            seen.add((prompt.op, names))
            chain, tokens = prompt.chain(names, row, block_tokens)
            cache = caches[models[prompt.op]]
            hits = cache.match(chain) * block_tokens
            cache.insert(chain)
            blocks += len(chain) + 1
            found[prompt.op][0] += tokens
            found[prompt.op][1] += hits
    return SimulatedHits(
        {op: PrefixHits(*counts) for op, counts in found.items()}, rows, len(order)
    )


def _paths(node: PrefixNode) -> Sequence[tuple[str, object]]:
    return node.edge.paths if isinstance(node.edge, Reference) else ()


_Part: TypeAlias = "tuple[int, Sequence[Sequence[int]], Sequence[int] | None, float, bool]"
"""Number of the node, codes of the columns that decide a value, lengths by code of the first, mean
length, whether it differs from row to row whatever the columns."""


class _Prompt:
    """The prompt of one operator on any row."""

    def __init__(self, op: str, path: Sequence[PrefixNode], profile: RowProfile) -> None:
        self.op = op
        self._parts: list[_Part] = []
        for node in path:
            if isinstance(node.edge, str):
                tokens = float(profile.count_tokens(node.edge))
                self._parts.append((node.number, (), None, tokens, False))
            elif isinstance(node.edge, Reference):
                edge = node.edge
                codes = [profile.codes(each) for each in edge.paths]
                lengths = profile.token_counts(edge.paths[0]) if edge.is_column else None
                self._parts.append((node.number, codes, lengths, edge.tokens, edge.varies))

    def names(self, row: int) -> tuple[object, ...]:
        """What its segments are on a row: equal names, equal prompts."""
        return tuple(
            (number, row) if varies else (number, *[each[row] for each in codes])
            for number, codes, _, _, varies in self._parts
        )

    def chain(
        self, names: tuple[object, ...], row: int, block_tokens: int
    ) -> tuple[list[int], float]:
        """The names of its full blocks, and its tokens."""
        chain: list[int] = []
        name, end = 0, 0.0
        next_block = float(block_tokens)
        for part, segment in zip(self._parts, names, strict=True):
            _, codes, lengths, tokens, _ = part
            end += lengths[codes[0][row]] if lengths is not None else tokens
            name = hash((name, segment))
            while next_block <= end:
                chain.append(hash((name, next_block)))
                next_block += block_tokens
        return chain, end
