"""Rows of a stage that wait to start, those together whose prompts begin alike.

Rows come while others start. They start in sweeps, as a lift stops at floors: rows of the group
under way, then of the groups behind it, then from the first group again. So a group is finished
before the next one begins, and no row waits for more than one sweep of later rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from heapq import heapify, heappop, heappush
from typing import Generic, Protocol, TypeAlias, TypeVar

from planner.logical import canonical_json
from planner.row_profile import Path, value_at
from runtime.derive import Made
from runtime.records import RowError


class Waiting(Protocol):
    """A row that waits: its number, and its columns or why it has none."""

    @property
    def index(self) -> int: ...

    @property
    def row(self) -> Made: ...


RowT = TypeVar("RowT", bound=Waiting)
Place: TypeAlias = "tuple[tuple[int, ...], int]"
"""The group of a row, as numbers of its values by first appearance; its number."""


class GroupedRows(Generic[RowT]):
    """A queue with the operations of a `deque` that stages use."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = tuple(paths)
        self._codes: list[dict[str, int]] = [{} for _ in self._paths]
        self._now: list[tuple[Place, RowT]] = []
        self._later: list[tuple[Place, RowT]] = []
        self._reached: Place = ((), -1)

    def __len__(self) -> int:
        return len(self._now) + len(self._later)

    def append(self, row: RowT) -> None:
        """Let a row wait. Rows have different numbers."""
        place = self._place(row)
        heappush(self._now if place > self._reached else self._later, (place, row))

    def extend(self, rows: Iterable[RowT]) -> None:
        """Let several rows wait."""
        for row in rows:
            self.append(row)

    def popleft(self) -> RowT:
        """The row that starts next. Raises `IndexError` when none waits."""
        if not self._now:
            self._now, self._later = self._later, []
            heapify(self._now)
        self._reached, row = heappop(self._now)
        return row

    def clear(self) -> None:
        self._now.clear()
        self._later.clear()

    def _place(self, row: RowT) -> Place:
        if isinstance(row.row, RowError):
            return (), row.index
        codes: list[int] = []
        for path, known in zip(self._paths, self._codes, strict=True):
            text = canonical_json(value_at(row.row, path))
            codes.append(known.setdefault(text, len(known)))
        return tuple(codes), row.index
