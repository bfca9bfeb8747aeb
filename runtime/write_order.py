"""The order of writes: a writing operator runs for one row after the other, in admission order."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Turn:
    """A row's place in the order of one operator."""

    over: bool = False
    ready: asyncio.Future[None] | None = None


class WriteOrder:
    """The rows that one writing operator is to run for, first admitted first.

    A row takes its turn when it is admitted and ends it when the operator has run, failed or been
    skipped for that row; it never waits for a row that was admitted later, so rows cannot wait for
    each other in a circle.
    """

    def __init__(self) -> None:
        self._turns: deque[Turn] = deque()

    def take(self) -> Turn:
        """The next turn, behind all that were taken."""
        turn = Turn()
        self._turns.append(turn)
        return turn

    async def wait(self, turn: Turn) -> None:
        """Until every turn before `turn` is over."""
        if self._turns[0] is not turn:
            turn.ready = asyncio.get_running_loop().create_future()
            await turn.ready

    def end(self, turn: Turn) -> None:
        """The row is done with the operator: the next one may go."""
        turn.over = True
        turns = self._turns
        while turns and turns[0].over:
            turns.popleft()
        if turns:
            ready = turns[0].ready
            if ready is not None and not ready.done():
                ready.set_result(None)
