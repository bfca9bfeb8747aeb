"""Which order of the parts of prompts lets a prefix cache answer most of them.

What prompts begin with is what they can share, so the order of their parts decides how much that
is. The orders that are tried:

- *few values first*, *long and repetitive first*: column statistics, each part for itself;
- *groups*: greedy group recursion (Liu and others, MLSys 2025) with one order for all rows: the
  part whose groups of rows save most comes first, then the one that saves most within those
  groups, and so on. A part that others decide (a title by its id) costs nothing behind them;
- each of them with what is the same on every row first, or last: several operators that read the
  same document share it when it comes before what each of them asks.

Every order is tried together with the order of the rows that is best for it, on a simulated prefix
cache that all operators share (`planner.prefix_hits`), and taken only if it hits more tokens than
the prompts as they are: the result is never worse than what was written, by that count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from planner.context import PlanContext
from planner.logical import LogicalPlan, ModelOp, Prompt, Ref
from planner.prefix_hits import simulate_hits
from planner.prefix_tree import TURN, PrefixTree, Reference, Segment, Template
from planner.prompt_parts import Line, Paragraph, paragraphs_of, prompt_of
from planner.row_order import best_order
from planner.row_profile import Dependency, RowProfile

BLOCKS_PER_PROMPT = 64
"""Into how many blocks a prompt of mean length is divided: hits are counted to about 2 %."""
TRIAL_BLOCKS = 60_000
"""Blocks of one trial, which decides how many rows it looks at: spread over all rows."""
LEAST_ROWS = 64
LEAST_GAIN = 0.01
"""Share of the prompt tokens that a layout must save more than another: less is not worth a prompt
that nobody wrote."""
MAX_TRIALS = 48
"""Trials of a plan, each a fraction of a second."""

Causes = frozenset[Dependency]


@dataclass(frozen=True, slots=True)
class Layout:
    """One order of the parts of an operator's prompt, and the template that it makes."""

    prompt: Prompt
    template: Template


def better_layouts(plan: LogicalPlan, context: PlanContext) -> dict[str, Prompt]:
    """The prompts that are to be laid out differently, by fingerprint of their operators."""
    ops = {
        op.fingerprint: op
        for op in plan.walk_all()
        if isinstance(op, ModelOp) and op.prompt.references
    }
    if not ops:
        return {}
    templates = context.stats(plan).templates
    chosen = {each.op: each for each in templates}
    tried = {
        template.op: found
        for template in templates
        if template.op in ops and (found := _layouts(ops[template.op], template, context.profile))
    }
    if not tried:
        return {}
    hits = _HitCounter(templates, context)
    best, tokens = hits.of(chosen.values())
    prompts: dict[str, Prompt] = {}
    for trial in _trials(tried, chosen)[:MAX_TRIALS]:
        layouts = {op: tried[op][name] for op, name in trial.items()}
        changed = {**chosen, **{op: each.template for op, each in layouts.items()}}
        answered, _ = hits.of(changed.values())
        if answered - best > LEAST_GAIN * tokens:
            best, chosen = answered, changed
            prompts |= {op: each.prompt for op, each in layouts.items()}
    return {op: prompt for op, prompt in prompts.items() if prompt != ops[op].prompt}


def predicted_hit_tokens(plan: LogicalPlan, context: PlanContext) -> float:
    """Prompt tokens of a plan that a prefix cache answers, its rows in the order that suits it."""
    templates = context.stats(plan).templates
    hits, _ = _HitCounter(templates, context).of(templates)
    return hits


def _trials(
    tried: Mapping[str, Mapping[str, Layout]], templates: Mapping[str, Template]
) -> list[dict[str, str]]:
    """Names of layouts by operator, to be tried one after the other: operators that read the same
    values together, since they may begin alike, and then each for itself."""
    trials: list[dict[str, str]] = []
    groups = _readers_of_the_same(templates[op] for op in tried)
    for group in [*(each for each in groups if len(each) > 1), *([op] for op in tried)]:
        names = dict.fromkeys(name for op in group for name in tried[op])
        trials += [{op: name for op in group if name in tried[op]} for name in names]
    return trials


def _readers_of_the_same(templates: Iterable[Template]) -> list[list[str]]:
    """Operators by the values and the model that they share, directly or through others."""
    groups: list[tuple[set[tuple[str, str]], list[str]]] = []
    for template in templates:
        read = {
            (template.model, each.producer)
            for each in template.segments
            if isinstance(each, Reference)
        }
        ops = [template.op]
        apart: list[tuple[set[tuple[str, str]], list[str]]] = []
        for values, members in groups:
            if values & read:
                read |= values
                ops = members + ops
            else:
                apart.append((values, members))
        groups = [*apart, (read, ops)]
    return [ops for _, ops in groups]


# --- orders of one prompt ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Part:
    """What is known of a paragraph or a field: `distinct` texts over the calls."""

    tokens: float
    causes: Causes
    varies: bool
    distinct: float

    @property
    def is_constant(self) -> bool:
        return not self.varies and not self.causes


class _Parts:
    """The parts of one operator's prompt."""

    def __init__(
        self, references: Mapping[int, Reference], calls: float, profile: RowProfile
    ) -> None:
        self._references = references
        self._calls = calls
        self._profile = profile

    def of(self, line: Line) -> _Part:
        tokens = 0.0
        causes: set[Dependency] = set()
        varies = False
        for segment in line:
            if isinstance(segment, str):
                tokens += self._profile.count_tokens(segment)
            else:
                read = self._references[segment.index]
                tokens += read.tokens
                causes.update(read.paths)
                varies = varies or read.varies
        found = frozenset(causes)
        return _Part(tokens, found, varies, self.calls if varies else self.distinct(found))

    @property
    def calls(self) -> float:
        return self._calls

    def distinct(self, causes: Collection[Dependency]) -> float:
        return min(self._calls, float(self._profile.distinct(causes)))


Order = Callable[[Sequence[_Part], _Parts, Causes], list[int]]
"""Positions of parts in a new order, behind what `Causes` decide."""


def _few_values_first(parts: Sequence[_Part], known: _Parts, before: Causes) -> list[int]:
    return sorted(range(len(parts)), key=lambda i: (parts[i].varies, parts[i].distinct))


def _long_and_repetitive_first(parts: Sequence[_Part], known: _Parts, before: Causes) -> list[int]:
    def saved(part: _Part) -> float:
        return part.tokens * (known.calls - part.distinct)

    return sorted(
        range(len(parts)),
        key=lambda i: (not parts[i].is_constant, parts[i].varies, -saved(parts[i])),
    )


def _by_groups(parts: Sequence[_Part], known: _Parts, before: Causes) -> list[int]:
    left = list(range(len(parts)))
    ordered: list[int] = []
    while left:
        groups = known.distinct(before)

        def rank(i: int, before: Causes = before, groups: float = groups) -> tuple[float, ...]:
            part = parts[i]
            if part.varies:
                return (1.0, math.inf, part.distinct)
            deeper = known.distinct(before | part.causes)
            # One that adds no group keeps all that is shared: it costs nothing here.
            return (deeper > groups, -part.tokens * (known.calls - deeper), part.distinct)

        best = min(left, key=rank)
        left.remove(best)
        ordered.append(best)
        before |= parts[best].causes
    return ordered


_ORDERS: Mapping[str, Order] = {
    "groups": _by_groups,
    "long": _long_and_repetitive_first,
    "few": _few_values_first,
}


def _layouts(op: ModelOp, template: Template, profile: RowProfile) -> dict[str, Layout]:
    """The layouts of an operator that differ from its own and from each other, by name."""
    paragraphs = paragraphs_of(op.prompt)
    if len(paragraphs) < 2 and not any(each.runs for each in paragraphs):
        return {}
    before, own = _of_the_prompt(op, template)
    references = {
        segment.index: read
        for segment, read in zip(op.prompt.segments, own, strict=True)
        if isinstance(segment, Ref) and isinstance(read, Reference)
    }
    parts = _Parts(references, max(1.0, template.calls), profile)
    found: dict[str, Layout] = {}
    seen = {op.prompt}
    for name, order in _ORDERS.items():
        for constants_first in (True, False):
            prompt = prompt_of(_arranged(paragraphs, order, parts, constants_first))
            if prompt not in seen:
                seen.add(prompt)
                segments = [
                    s if isinstance(s, str) else references[s.index] for s in prompt.segments
                ]
                changed = replace(template, segments=(*before, *segments, TURN))
                found[name if constants_first else f"{name}, data first"] = Layout(prompt, changed)
    return found


def _of_the_prompt(
    op: ModelOp, template: Template
) -> tuple[tuple[Segment, ...], tuple[Segment, ...]]:
    """The segments of a template before the prompt, and those of the prompt."""
    end = len(template.segments) - 1
    begin = end - len(op.prompt.segments)
    return template.segments[:begin], template.segments[begin:end]


def _arranged(
    paragraphs: Sequence[Paragraph], order: Order, parts: _Parts, constants_first: bool
) -> list[Paragraph]:
    whole = [parts.of(each.segments) for each in paragraphs]
    moved = order(whole, parts, frozenset())
    constant = [i for i, part in enumerate(whole) if part.is_constant]
    data = [i for i in moved if not whole[i].is_constant]
    arranged: list[Paragraph] = []
    before: Causes = frozenset()
    for i in [*constant, *data] if constants_first else [*data, *constant]:

        def fields(lines: Sequence[Line], before: Causes = before) -> list[int]:
            return order([parts.of(line) for line in lines], parts, before)

        arranged.append(paragraphs[i].arranged(fields))
        before |= whole[i].causes
    return arranged


# --- what they would hit -------------------------------------------------------------------------


class _HitCounter:
    """Counts the hits of templates, always over the same rows."""

    def __init__(self, templates: Sequence[Template], context: PlanContext) -> None:
        self._capacity = context.cache_tokens
        lengths = [_mean_tokens(each, context.count_tokens) for each in templates]
        mean = sum(lengths) / len(lengths) if lengths else 0.0
        self._block_tokens = max(1, round(mean / BLOCKS_PER_PROMPT))
        most = max(LEAST_ROWS, TRIAL_BLOCKS // (BLOCKS_PER_PROMPT * max(1, len(templates))))
        sources = sorted(
            {
                source
                for template in templates
                for segment in template.segments
                if isinstance(segment, Reference)
                for source, _ in segment.paths
            }
        )
        self._profiles: dict[str, RowProfile] = {}
        for source in sources:
            rows = context.rows.get(source, ())
            if len(rows) <= most:
                self._profiles[source] = context.profile
            else:
                some = [rows[i * len(rows) // most] for i in range(most)]
                self._profiles[source] = RowProfile({source: some}, context.count_tokens)

    def of(self, templates: Iterable[Template]) -> tuple[float, float]:
        """Tokens that the cache answers, and tokens of the prompts, over all sources of rows."""
        known = tuple(templates)
        tree = PrefixTree(known)
        hits = tokens = 0.0
        for source, profile in self._profiles.items():
            total = simulate_hits(
                tree,
                source,
                profile,
                best_order(known, source, profile),
                capacity_tokens=self._capacity,
                block_tokens=self._block_tokens,
                block_budget=2 * TRIAL_BLOCKS,
            ).total
            hits += total.hit_tokens
            tokens += total.tokens
        return hits, tokens


def _mean_tokens(template: Template, count_tokens: Callable[[str], int]) -> float:
    return sum(
        float(count_tokens(segment)) if isinstance(segment, str) else segment.tokens
        for segment in template.segments
        if isinstance(segment, str | Reference)
    )
