"""Counts over scanned rows: distinct tuples, mean tokens, mean list lengths, groups of rows.

A path is a column, or a member inside its values: `("question",)`, `("doc", "title")`. All counts
are exact and kept, so that asking for the same columns again costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

from planner.logical import Json, canonical_json, render_value

Path: TypeAlias = "tuple[str | int, ...]"
Source: TypeAlias = str
Dependency: TypeAlias = "tuple[Source, Path]"

Rows: TypeAlias = "Mapping[Source, Sequence[Mapping[str, Json]]]"


@dataclass(frozen=True, slots=True)
class _Coded:
    """The values at one path: a code for each row (numbered by first appearance), and what is known
    of the value with each code."""

    codes: list[int]
    tokens: list[int]
    lengths: list[int | None]


class RowProfile:
    """Exact counts over the rows of a batch."""

    def __init__(
        self,
        rows: Rows,
        count_tokens: Callable[[str], int],
        query_rows: Mapping[str, int] | None = None,
    ) -> None:
        """`query_rows`: how many rows queries make, by the fingerprint of their `SqlRows`, where
        they have been counted."""
        self.query_rows: Mapping[str, int] = query_rows or {}
        self._rows = rows
        self.count_tokens = count_tokens
        self._coded: dict[Dependency, _Coded] = {}
        self._representatives: dict[tuple[Source, frozenset[Path]], list[int]] = {}
        self._means: dict[tuple[Source, Path, frozenset[Path]], float] = {}

    def n_rows(self, source: Source) -> int:
        return len(self._rows.get(source, ()))

    def distinct(self, dependencies: Iterable[Dependency]) -> int:
        """Distinct tuples of values; 1 for none. Paths of several sources multiply."""
        count = 1
        for source, paths in _by_source(dependencies).items():
            count *= len(self._first_rows(source, paths))
        return count

    def codes(self, path: Dependency) -> Sequence[int]:
        """For each row a number that is equal where the values at `path` are equal."""
        return self._code(path).codes

    def token_counts(self, path: Dependency) -> Sequence[int]:
        """The tokens of the value with each code."""
        return self._code(path).tokens

    def mean_tokens(self, path: Dependency, over: Iterable[Dependency]) -> float:
        """Mean tokens of the value at `path`, over the distinct tuples of `over` and the path."""
        source, own = path
        paths = _by_source(over).get(source, frozenset[Path]()) | {own}
        key = (source, own, paths)
        if key not in self._means:
            rows = self._first_rows(source, paths)
            coded = self._code(path)
            tokens = sum(coded.tokens[coded.codes[row]] for row in rows)
            self._means[key] = tokens / len(rows) if rows else 0.0
        return self._means[key]

    def mean_length(self, path: Dependency) -> float | None:
        """Mean number of elements of the lists at `path`, over rows; None when none is a list."""
        coded = self._code(path)
        lengths = [n for code in coded.codes if (n := coded.lengths[code]) is not None]
        return sum(lengths) / len(lengths) if lengths else None

    def grouped(self, source: Source, paths: Sequence[Path]) -> tuple[int, ...]:
        """Row indices with equal values at `paths` together (the first path first), groups in order
        of first appearance, rows of a group in input order."""
        order = range(self.n_rows(source))
        if not paths:
            return tuple(order)
        keys = list(zip(*(self._code((source, path)).codes for path in paths), strict=True))
        return tuple(sorted(order, key=keys.__getitem__))

    def _first_rows(self, source: Source, paths: frozenset[Path]) -> list[int]:
        """The first row of each distinct tuple of values at `paths`."""
        key = (source, paths)
        if key not in self._representatives:
            columns = [self._code((source, path)).codes for path in sorted(paths, key=repr)]
            first: dict[tuple[int, ...], int] = {}
            for row, values in enumerate(zip(*columns, strict=True)):
                first.setdefault(values, row)
            self._representatives[key] = list(first.values())
        return self._representatives[key]

    def _code(self, path: Dependency) -> _Coded:
        if path not in self._coded:
            source, keys = path
            coded = _Coded([], [], [])
            known: dict[str | tuple[str], int] = {}
            for row in self._rows.get(source, ()):
                value = value_at(row, keys)
                # A number and its text read the same in a prompt and differ as tool arguments.
                name = value if isinstance(value, str) else (canonical_json(value),)
                code = known.setdefault(name, len(known))
                if code == len(coded.tokens):
                    coded.tokens.append(self.count_tokens(render_value(value)))
                    coded.lengths.append(len(value) if isinstance(value, list) else None)
                coded.codes.append(code)
            self._coded[path] = coded
        return self._coded[path]


def value_at(row: Mapping[str, Json], path: Path) -> Json:
    """The value at a path of a row; null where there is none."""
    value: Json = row.get(cast("str", path[0]))
    for key in path[1:]:
        if isinstance(value, dict) and isinstance(key, str):
            value = value.get(key)
        elif isinstance(value, list) and isinstance(key, int) and -len(value) <= key < len(value):
            value = value[key]
        else:
            return None
    return value


def _by_source(dependencies: Iterable[Dependency]) -> dict[Source, frozenset[Path]]:
    sources: dict[Source, set[Path]] = {}
    for source, path in dependencies:
        sources.setdefault(source, set()).add(path)
    return {source: frozenset(paths) for source, paths in sources.items()}
