"""The agenda of a run: which of its stages have changed, and which have rows to start.

Plans of SQL batches have hundreds of stages, and most of what happens concerns one of them. So
nothing here looks at all stages: what follows from a change is followed from stage to stage.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterable
from heapq import heapify, heappop, heappush

from runtime.stages import Stage


class Agenda:
    """Of `stages`, each after those that it is made of.

    Args:
        start_query: called once for each stage whose rows a query makes, when its tables are whole.
    """

    def __init__(self, stages: Iterable[Stage], start_query: Callable[[Stage], None]) -> None:
        self._stages = tuple(stages)
        self._start_query = start_query
        self._numbers = {stage: number for number, stage in enumerate(self._stages)}
        self._changed: set[int] = set(range(len(self._stages)))
        self._waiting: list[int] = []
        self._is_waiting: set[int] = set()
        self._queried: set[int] = set()
        for stage in self._stages:
            stage.on_rows = self._has_rows
            if stage.pending:
                self._has_rows(stage)

    def changed(self, stage: Stage) -> None:
        """Rows of `stage` have ended or were left out, all of its rows are there, or one of its
        limits may be full."""
        self._changed.add(self._numbers[stage])

    def settle(self) -> None:
        """Pass on that stages have ended or are not needed any more, as far as it goes, and start
        the queries whose tables are whole."""
        if not self._changed:
            return
        changed, self._changed = self._changed, set[int]()
        self._close(changed)
        self._finish(changed)

    def next(self) -> Stage | None:
        """The last stage that has a row to start."""
        for at in reversed(range(len(self._waiting))):
            number = self._waiting[at]
            stage = self._stages[number]
            if not stage.pending:
                del self._waiting[at]
                self._is_waiting.discard(number)
            elif not stage.limited or stage.active < stage.allowance:
                return stage
        return None

    def _has_rows(self, stage: Stage) -> None:
        number = self._numbers[stage]
        if number not in self._is_waiting:
            self._is_waiting.add(number)
            insort(self._waiting, number)

    def _close(self, changed: set[int]) -> None:
        """From the last to the first: a stage that is not needed does not need those before it.
        Adds these to `changed`."""
        left = [-number for number in changed]
        heapify(left)
        while left:
            stage = self._stages[-heappop(left)]
            if stage.close_if_full():
                for target in stage.inputs:
                    number = self._numbers[target.source]
                    if number not in changed:
                        changed.add(number)
                        heappush(left, -number)

    def _finish(self, changed: set[int]) -> None:
        """From the first to the last: a stage that has ended may end those after it."""
        left = list(changed)
        heapify(left)
        while left:
            number = heappop(left)
            stage = self._stages[number]
            if stage.is_query_ready and not stage.ended and number not in self._queried:
                self._queried.add(number)
                self._start_query(stage)
            if stage.finish_if_done():
                for target in stage.targets:
                    if target.stage is not None:
                        after = self._numbers[target.stage]
                        if after not in changed:
                            changed.add(after)
                            heappush(left, after)
