"""The order in which rows start, so that prompts which begin alike come one after the other.

Prompts have a fixed layout, so what rows can share is decided by the columns that their prompts
begin with. An order is chosen among three: the input order; sorted by column statistics, the
columns that save most first; and greedy group recursion (Liu and others, "Optimizing LLM queries in
relational data analytics workloads", MLSys 2025): the group of rows with an equal beginning that
saves most comes first, and so on inside and outside of it. The one with the most tokens shared with
the prompt before wins; the input order if none is better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from planner.prefix_tree import Reference, Template
from planner.row_profile import Dependency, Path, RowProfile

GROUP_DEPTH = 4
"""Levels of greedy group recursion; below, rows are sorted by column statistics. The published
evaluation uses 4."""
MAX_PICKS = 32
"""Groups taken out of the rows on one level, the best first."""


@dataclass(frozen=True, slots=True)
class Beginning:
    """What prompts begin with on a row, as columns of one source.

    Attributes:
        paths: the columns, in the order of the prompts.
        tokens: what each column adds to a shared beginning, text between columns included, summed
            over the operators whose prompts begin so.
    """

    paths: tuple[Path, ...]
    tokens: tuple[float, ...]


def beginnings(templates: Sequence[Template], source: str, rows: int) -> list[Beginning]:
    """The beginnings of all prompts over the rows of a source, equal ones together. A prompt counts
    as often as it is asked for in a row on average."""
    found: dict[tuple[Path, ...], list[float]] = {}
    for template in templates:
        paths: list[Path] = []
        tokens: list[float] = []
        for segment in template.segments:
            if not isinstance(segment, Reference):
                continue
            own = [path for name, path in segment.paths if name == source]
            if segment.varies or len(own) < len(segment.paths):
                break
            new = [path for path in own if path not in paths]
            paths += new
            if new:
                tokens += [0.0] * (len(new) - 1) + [segment.tokens]
            elif tokens:
                tokens[-1] += segment.tokens
        if paths:
            weight = min(1.0, template.calls / rows) if rows else 0.0
            known = found.setdefault(tuple(paths), [0.0] * len(paths))
            for i, each in enumerate(tokens):
                known[i] += each * weight
    return [Beginning(paths, tuple(tokens)) for paths, tokens in found.items()]


def best_order(templates: Sequence[Template], source: str, profile: RowProfile) -> tuple[int, ...]:
    """The order of the rows of `source`; see the module."""
    n_rows = profile.n_rows(source)
    given = tuple(range(n_rows))
    starts = beginnings(templates, source, n_rows)
    starts = [each for each in starts if _repeats(each, source, profile)]
    if not starts or n_rows < 2:
        return given
    coded = _Coded(starts, source, profile)
    sorted_order = coded.by_statistics(given)
    candidates = [given, sorted_order]
    if len(starts) > 1:
        candidates.append(coded.by_groups(given))
    scores = [coded.shared_tokens(order) for order in candidates]
    best = max(range(len(candidates)), key=lambda i: (scores[i], -i))
    return tuple(candidates[best])


def shared_tokens(
    templates: Sequence[Template], source: str, profile: RowProfile, order: Sequence[int]
) -> float:
    """Tokens that prompts share with the same operator's prompt of the row before, in `order`."""
    starts = beginnings(templates, source, profile.n_rows(source))
    return _Coded(starts, source, profile).shared_tokens(order) if starts else 0.0


def _repeats(beginning: Beginning, source: str, profile: RowProfile) -> bool:
    first: Dependency = (source, beginning.paths[0])
    return profile.distinct([first]) < profile.n_rows(source)


class _Coded:
    """Beginnings as codes of the values in each row."""

    def __init__(self, starts: Sequence[Beginning], source: str, profile: RowProfile) -> None:
        self._n_rows = profile.n_rows(source)
        self._source = source
        self._profile = profile
        self._starts = sorted(starts, key=lambda b: (-self._saved(b), repr(b.paths)))
        self._codes = {
            path: profile.codes((source, path)) for start in starts for path in start.paths
        }

    def _saved(self, start: Beginning) -> float:
        """Tokens that a cache of any size would save."""
        saved = 0.0
        for depth in range(1, len(start.paths) + 1):
            groups = self._profile.distinct((self._source, path) for path in start.paths[:depth])
            saved += (self._n_rows - groups) * start.tokens[depth - 1]
        return saved

    def by_statistics(self, rows: Sequence[int]) -> list[int]:
        """Sorted by the columns of the beginnings, those that save most first. Groups come in order
        of first appearance."""
        return sorted(rows, key=self._ranks.__getitem__)

    @cached_property
    def _ranks(self) -> list[int]:
        """The place of each row when all are sorted by column statistics."""
        paths = list(dict.fromkeys(path for start in self._starts for path in start.paths))
        keys = list(zip(*(self._codes[path] for path in paths), strict=True))
        ranks = [0] * self._n_rows
        for rank, row in enumerate(sorted(range(self._n_rows), key=keys.__getitem__)):
            ranks[row] = rank
        return ranks

    def by_groups(self, rows: Sequence[int]) -> list[int]:
        """Greedy group recursion. Iterative: a stack of parts to order, each with how many columns
        of each beginning its rows are equal in."""
        ordered: list[int] = []
        stack: list[tuple[list[int], tuple[int, ...], int]] = [
            (list(rows), (0,) * len(self._starts), 0)
        ]
        while stack:
            part, depths, level = stack.pop()
            picks = self._groups(part, depths) if level < GROUP_DEPTH and len(part) > 2 else []
            if not picks:
                ordered += self.by_statistics(part)
                continue
            taken: set[int] = set()
            parts: list[tuple[list[int], tuple[int, ...], int]] = []
            for start, group in picks:
                members = [row for row in group if row not in taken]
                if len(members) > 1:
                    taken.update(members)
                    deeper = tuple(d + (i == start) for i, d in enumerate(depths))
                    parts.append((members, deeper, level + 1))
            rest = [row for row in part if row not in taken]
            if rest:
                parts.append((rest, depths, GROUP_DEPTH))
            stack.extend(reversed(parts))
        return ordered

    def _groups(self, part: list[int], depths: tuple[int, ...]) -> list[tuple[int, list[int]]]:
        """The best groups of a part: (beginning, rows that are equal in its next column)."""
        found: list[tuple[float, int, list[int]]] = []
        for i, start in enumerate(self._starts):
            if depths[i] == len(start.paths):
                continue
            codes = self._codes[start.paths[depths[i]]]
            groups: dict[int, list[int]] = {}
            for row in part:
                groups.setdefault(codes[row], []).append(row)
            tokens = start.tokens[depths[i]]
            best = sorted(groups.values(), key=len, reverse=True)[:MAX_PICKS]
            found += [(tokens * (len(group) - 1), i, group) for group in best if len(group) > 1]
        found.sort(key=lambda each: -each[0])
        return [(i, group) for saved, i, group in found[:MAX_PICKS] if saved > 0]

    def shared_tokens(self, order: Sequence[int]) -> float:
        """Tokens shared with the row before, over all beginnings."""
        total = 0.0
        for start in self._starts:
            columns = [self._codes[path] for path in start.paths]
            counts = [0] * len(columns)
            before = order[0] if order else 0
            for row in order[1:] if order else ():
                for depth, codes in enumerate(columns):
                    if codes[row] != codes[before]:
                        break
                    counts[depth] += 1
                before = row
            total += sum(n * tokens for n, tokens in zip(counts, start.tokens, strict=True))
        return total
