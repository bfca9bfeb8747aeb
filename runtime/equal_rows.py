"""Rows that are equal in everything that is read of them: one is run, and the others end with it.

Calls of equal rows are equal and made once in any case (`runtime.sharing`). But to ask for each of
them costs the event loop time at the start of a batch, while engines wait for their first calls.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from costmodel.usage import OpMetrics
from planner.logical import (
    CALLS,
    Choose,
    Column,
    Effect,
    Generate,
    Json,
    Op,
    Scan,
    Sql,
    Tool,
)
from runtime.errors import ValueTypeError
from runtime.scope import Frame, Scope
from runtime.sinks import Sink
from runtime.stages import StageRow
from runtime.values import checked, copied

Shares = Callable[[Tool | Sql], bool]
"""Whether equal calls of an operator are made once."""


@dataclass(slots=True)
class Equals:
    """Some equal rows of a table.

    Attributes:
        values: what the first of them has become, once it has ended without an error.
        waiting: those that wait for it; None while none is under way.
    """

    values: tuple[Json, ...] | None = None
    waiting: list[StageRow] | None = None


@dataclass(slots=True)
class EqualRows:
    """The rows of a scan that have equals, of one scope."""

    calls: tuple[str, ...]
    """Fingerprints of the operators whose calls a row that is not run shares."""
    groups: dict[int, Equals] = field(default_factory=dict[int, Equals])
    """By the row's number."""

    def of(self, row: StageRow) -> Equals | None:
        """The equals of a row, if it has any."""
        return self.groups.get(row.index)

    def ended(self, equals: Equals, frame: Frame) -> tuple[Sequence[StageRow], bool]:
        """The row that was run for `equals` has ended: those that waited for it, and whether they
        end with it. Where anything failed they do not: another attempt may succeed. Nor where a
        call was made again: the others would have asked for both."""
        waiting, equals.waiting = equals.waiting or (), None
        if frame.failures is None and not frame.asked_again:
            values = tuple(frame.values[at] for at in frame.scope.results)
            with contextlib.suppress(ValueTypeError):  # nested too deeply to be copied
                equals.values = tuple(map(copied, values))
        return waiting, equals.values is not None

    def values(self, equals: Equals, metrics: dict[str, OpMetrics]) -> list[Json]:
        """The results of a row that is not run, which shares each call of the one that was."""
        assert equals.values is not None
        for op in self.calls:
            counts = metrics.setdefault(op, OpMetrics())
            counts.requested += 1
            counts.shared += 1
        return [copied(value) for value in equals.values]


def equal_rows(
    scope: Scope, scan: Scan, rows: Sequence[Mapping[str, Json]], shares: Shares
) -> EqualRows | None:
    """The rows of `scan` that `scope` cannot tell apart; None when no two rows may share what they
    become: a call is not shared between rows, or how many calls a row makes depends on values."""
    if scope.gates or scope.in_turn or scope.recovers:
        return None
    calls = [op for op in scope.ops if isinstance(op, CALLS) or op.bodies]
    if not calls or not all(_is_shared(op, shares) for op in calls):
        return None
    columns: list[str] = []
    for op in scope.ops:
        if isinstance(op, Column):
            columns.append(op.name)
        elif scan in op.dependencies and not isinstance(op, Sink):
            return None
    found: dict[tuple[str | tuple[str], ...], list[int]] = {}
    for index, row in enumerate(rows):
        try:
            key = tuple([_key(row[name]) for name in columns])
        except (KeyError, ValueTypeError, RecursionError):
            continue  # it will fail, with an error of its own
        found.setdefault(key, []).append(index)
    groups: dict[int, Equals] = {}
    for indices in found.values():
        if len(indices) > 1:
            groups.update(dict.fromkeys(indices, Equals()))
    return EqualRows(tuple(op.fingerprint for op in calls), groups) if groups else None


def _is_shared(op: Op, shares: Shares) -> bool:
    if op.effect is not Effect.PURE:
        return False
    match op:
        case Tool() | Sql():
            return shares(op)
        case Generate() | Choose():
            return True
        case _:
            return False


def _key(value: Json) -> str | tuple[str]:
    """Equal for values that are the same inside a prompt: 1, 1.0 and true are not, and neither are
    objects whose keys come in another order. Raises `ValueTypeError` for what is no JSON."""
    return value if type(value) is str else (json.dumps(checked(value, "a column")),)
