"""How many rows may be under way so that what later calls of a row reuse is still cached.

A call may begin as an earlier call of its row did: a second answer behind the first question, a
reply behind the debate so far. Between the two, every row under way puts its own prompts into the
KV cache. With more rows than the cache has room for, the least recently used prefixes are dropped
just before they are needed, and every row computes them twice. The bound is a forecast from mean
lengths, for rows that move in step; calls in the bodies of maps, loops and agents are not counted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from planner.logical import LogicalPlan, ModelOp, Op
from planner.prefix_tree import PrefixNode, PrefixTree, Reference
from planner.stats import PlanStats

LEAST_SHARED_TOKENS = 64
FILL = 0.8
"""Share of the cache that rows may fill between two uses: calls that run keep the rest."""


def rows_that_fit(
    logical: LogicalPlan,
    stats: PlanStats,
    cache_tokens: Mapping[str, int],
    *,
    least_calls: float = 0.0,
) -> float | None:
    """The number of rows. None when no later call reuses what an earlier one of its row computed,
    and when so few rows have less than `least_calls` calls under way: the engine would be half
    empty.

    `cache_tokens` has the KV cache of the engine of each model whose engine tells it.
    """
    rows = max(stats.rows.values(), default=0)
    levels = _levels(logical)
    if not rows or not levels or not stats.templates:
        return None
    tree = PrefixTree(stats.templates)
    bounds: list[float] = []
    for model, capacity in cache_tokens.items():
        ops = [t.op for t in tree.templates if t.model == model and t.op in levels]
        ops.sort(key=lambda op: levels[op])
        prompts = {op: _Prompt(tree.paths[op], stats, op) for op in ops}
        new: dict[int, float] = defaultdict(float)
        reused: list[tuple[int, int]] = []
        for at, op in enumerate(ops):
            prompt, level = prompts[op], levels[op]
            shared = [(prompt.shared(prompts[other]), levels[other]) for other in ops[:at]]
            most = max((tokens for tokens, _ in shared), default=0.0)
            new[level] += prompt.new_tokens(most) / rows
            near = [each for tokens, each in shared if tokens > most - LEAST_SHARED_TOKENS]
            latest = max(near, default=level)
            if most >= LEAST_SHARED_TOKENS and latest < level:
                reused.append((latest, level))
        for first, last in reused:
            # Of the rows before it the later calls come first, of those behind it the earlier ones.
            between = max(new[first], new[last]) + sum(new[n] for n in range(first + 1, last))
            if between > 0:
                bounds.append(FILL * capacity / between)
    fitting = min(bounds, default=None)
    at_once = sum(stats.ops[op].calls for op in levels) / rows / (1 + max(levels.values()))
    if fitting is None or fitting * at_once < least_calls:
        return None
    return fitting


def _levels(logical: LogicalPlan) -> dict[str, int]:
    """By fingerprint of a model operator of the row scope, how many of them come before it in its
    row on the longest way."""
    depth: dict[Op, int] = {}
    levels: dict[str, int] = {}
    for op in logical.walk():
        before = max((depth[d] for d in op.dependencies), default=0)
        is_call = isinstance(op, ModelOp)
        if is_call:
            levels[op.fingerprint] = before
        depth[op] = before + is_call
    return levels


class _Prompt:
    """The prompt of an operator: its segments, and the mean length of each in tokens."""

    def __init__(self, path: tuple[PrefixNode, ...], stats: PlanStats, op: str) -> None:
        self._found = found = stats.ops[op]
        texts = sum(len(node.edge) for node in path if isinstance(node.edge, str))
        values = sum(node.edge.tokens for node in path if isinstance(node.edge, Reference))
        self._mean = found.input_tokens / found.calls if found.calls else 0.0
        per_char = max(0.0, self._mean - values) / texts if texts else 0.0
        self._static = 0.0
        self._nodes: dict[int, float] = {}
        for node in path:
            edge = node.edge
            tokens = len(edge) * per_char if isinstance(edge, str) else 0.0
            if node.is_static:
                self._static += tokens
            else:
                self._nodes[node.number] = edge.tokens if isinstance(edge, Reference) else tokens

    def shared(self, other: _Prompt) -> float:
        """Tokens that the two begin with in common on every row, behind the text that all rows have
        in common, which nothing drops."""
        return sum(tokens for number, tokens in self._nodes.items() if number in other._nodes)

    def new_tokens(self, shared: float) -> float:
        """What all its calls put into the cache, when each finds `shared` tokens of its row."""
        calls = self._found.calls
        if not calls:
            return 0.0
        found = max(self._found.cached_tokens() / calls, self._static + shared)
        return max(0.0, self._mean - found) * calls + self._found.output_tokens
