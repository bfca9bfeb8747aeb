"""A store in memory: for runs without a directory, and for tests."""

from __future__ import annotations

import asyncio
from asyncio import Future
from collections.abc import Iterable, Mapping

from costmodel.usage import OpMetrics
from runtime.records import CallRecord, Outcome


class MemoryStore:
    """Keeps what a run records as long as the process lives. Everything is durable at once, as far
    as it goes."""

    def __init__(self) -> None:
        self.calls: list[CallRecord] = []
        self.outcomes: dict[tuple[str, str], Outcome] = {}

    def recorded_call(self, key: str) -> CallRecord | None:
        """None: the call table already knows what this process made."""
        return None

    def record_call(self, record: CallRecord) -> Future[None]:
        self.calls.append(record)
        return self.durable()

    def record_outcome(self, outcome: Outcome) -> Future[None]:
        self.outcomes.setdefault((outcome.query, outcome.row_key), outcome)
        return self.durable()

    def recorded_outcomes(self) -> Iterable[tuple[str, str]]:
        return list(self.outcomes)

    def record_metrics(self, metrics: Mapping[str, OpMetrics]) -> None:
        """The executor holds them; nothing to keep."""

    def durable(self) -> Future[None]:
        future: Future[None] = asyncio.get_running_loop().create_future()
        future.set_result(None)
        return future
