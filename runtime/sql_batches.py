"""Look-ups that wait for the same database, asked together.

While a batch of an operator is under way, its further look-ups gather; the next batch takes all of
them. So batches are as large as the database is slow, and a single look-up waits for nobody. A
query has one thread, so a batch that would take long is cut into parts that run side by side.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from planner.logical import Json, Sql
from planner.sql_batch import INDEX, INDICES, ORDER, batched_text
from runtime.clock import wall_s
from runtime.errors import ToolError

MAX_LOOKUPS = 1024
"""Look-ups of one batch: the answers of all are held at once."""

WORTH_A_PART_S = 0.02
"""A part of a batch takes at least this long, as far as can be told: each costs a query."""

Ask: TypeAlias = "Callable[[str, Mapping[str, Json], int], Awaitable[Sequence[Json]]]"
"""Runs a query text with parameters, for at most so many rows."""


@dataclass(slots=True)
class _Lookup:
    params: Mapping[str, Json]
    answer: asyncio.Future[list[Json]]


@dataclass(slots=True)
class _Shape:
    """Look-ups of one text with parameters of the same types."""

    waiting: list[_Lookup] = field(default_factory=list[_Lookup])
    task: asyncio.Task[None] | None = None
    lookup_s: float = 0.0
    """Seconds of a look-up in the last batch; 0 while that is not known."""


class SqlBatches:
    """The batches of a run.

    Args:
        most_parts: parts of batches that run side by side in one database.
        is_open: whether a database's file has been opened: otherwise its first answer takes longer.

    Attributes:
        batches, lookups: counts of what was sent together and what it answered.
    """

    def __init__(
        self, most_parts: int = 1, is_open: Callable[[str], bool] = lambda database: True
    ) -> None:
        self.batches = 0
        self.lookups = 0
        self._most_parts = most_parts
        self._is_open = is_open
        self._running: Counter[str] = Counter()
        self._shapes: dict[tuple[str, str, int, tuple[str, ...]], _Shape] = {}

    async def query(self, op: Sql, params: Mapping[str, Json], ask: Ask) -> list[Json]:
        """The rows of `op` for `params`: what the query alone would give. `ask` runs a query on the
        operator's database. Raises what `ask` raises for this look-up alone."""
        text = op.text or ""
        if any(isinstance(value, dict | list) for value in params.values()):
            return list(await ask(text, params, op.max_rows))
        types = tuple(type(params[name]).__name__ for name in op.params)
        shape = self._shapes.setdefault((op.database, text, op.max_rows, types), _Shape())
        lookup = _Lookup(params, asyncio.get_running_loop().create_future())
        shape.waiting.append(lookup)
        if shape.task is None:
            shape.task = asyncio.get_running_loop().create_task(self._serve(op, shape, ask))
        return await lookup.answer

    async def _serve(self, op: Sql, shape: _Shape, ask: Ask) -> None:
        """Ask until nobody waits."""
        taken: list[_Lookup] = []
        try:
            while shape.waiting:
                # One alone tells how long one takes.
                taken = shape.waiting[: MAX_LOOKUPS if shape.lookup_s else 1]
                del shape.waiting[: len(taken)]
                try:
                    await self._ask_in_parts(op, shape, taken, ask)
                except Exception as error:  # a defect: it ends the look-ups, not the ones to come
                    for lookup in taken:
                        if not lookup.answer.done():
                            lookup.answer.set_exception(error)
        finally:
            shape.task = None
            for lookup in (*taken, *shape.waiting):
                lookup.answer.cancel()
            shape.waiting.clear()

    async def _ask_in_parts(
        self, op: Sql, shape: _Shape, lookups: Sequence[_Lookup], ask: Ask
    ) -> None:
        free = self._most_parts - self._running[op.database]
        wanted = int(len(lookups) * shape.lookup_s / WORTH_A_PART_S)
        parts = max(1, min(len(lookups), free, wanted))
        known = self._is_open(op.database)
        began_s = wall_s()
        self._running[op.database] += parts
        try:
            await asyncio.gather(*(self._ask(op, lookups[i::parts], ask) for i in range(parts)))
        finally:
            self._running[op.database] -= parts
        if known:
            shape.lookup_s = (wall_s() - began_s) * parts / len(lookups)

    async def _ask(self, op: Sql, lookups: Sequence[_Lookup], ask: Ask) -> None:
        text = None
        if len(lookups) > 1:
            text = batched_text(op.text or "", op.params)
        if text is not None:
            try:
                answers = await self._together(op, text, lookups, ask)
            except ToolError:
                # One of them may be at fault, or all together be too large.
                text = None
            else:
                for lookup, answer in zip(lookups, answers, strict=True):
                    _answer(lookup, answer)
        if text is None:
            for lookup in lookups:
                try:
                    found = await ask(op.text or "", lookup.params, op.max_rows)
                    _answer(lookup, list(found))
                except Exception as error:
                    if not lookup.answer.done():
                        lookup.answer.set_exception(error)

    async def _together(
        self, op: Sql, text: str, lookups: Sequence[_Lookup], ask: Ask
    ) -> list[list[Json]]:
        params: dict[str, Json] = {INDICES: list(range(len(lookups)))}
        for name in op.params:
            params[name] = [lookup.params[name] for lookup in lookups]
        # More rows than all may have together: some look-up has more than it may, and what was cut
        # off is another's.
        most = len(lookups) * op.max_rows
        rows = await ask(text, params, most + 1)
        if len(rows) > most:
            raise ToolError("the look-ups have more rows than they may", tool="sql")
        answers: list[list[Json]] = [[] for _ in lookups]
        for row in rows:
            assert isinstance(row, dict)
            index = row.pop(INDEX)
            row.pop(ORDER)
            assert isinstance(index, int)
            if len(answers[index]) < op.max_rows:
                answers[index].append(row)
        self.batches += 1
        self.lookups += len(lookups)
        return answers


def _answer(lookup: _Lookup, rows: list[Json]) -> None:
    if not lookup.answer.done():
        lookup.answer.set_result(rows)
