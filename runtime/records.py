"""What a run records: calls, row outcomes, per-operator metrics, and the store that keeps them."""

from __future__ import annotations

import hashlib
from asyncio import Future
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from costmodel.usage import OpMetrics, Usage
from planner.logical import Effect, Json, canonical_json

NO_USAGE = Usage()

FRESH = "/fresh"
"""How the keys of fresh calls end: they stay apart from equal calls that a cache may answer."""


@dataclass(frozen=True, slots=True)
class CallRecord:
    """One model turn or tool call, as traced and as replayed on resume.

    Attributes:
        key: content key: equal keys are the same call, whoever asks. Pure calls hash what is asked
            (model or tool, rendered input, options); sampled and write calls add the identity of
            the written call, the row and the place in loops.
        op: fingerprint of the operator that asked first; `query`, `row_key`: the same first asker.
        path: place inside bodies, such as "map[3]/loop[1]"; empty in the row scope.
        turn: number of the turn inside an agent or of a retry; 0 otherwise.
        name: model or tool name.
        effect: "pure", "sampled" or "write".
        value: the answer (None with an error).
        start_s, end_s: seconds on the run's clock since the run began.
    """

    key: str
    kind: Literal["model", "tool", "sql", "http"]
    name: str
    op: str
    query: str
    row_key: str
    value: Json
    effect: str = "pure"
    path: str = ""
    turn: int = 0
    usage: Usage = NO_USAGE
    finish_reason: str = ""
    queued_s: float = 0.0
    start_s: float = 0.0
    first_token_s: float | None = None
    end_s: float = 0.0
    attempts: int = 1
    error: str | None = None

    @property
    def is_fresh(self) -> bool:
        """Whether the answer is for this run alone."""
        return self.key.endswith(FRESH)


@dataclass(frozen=True, slots=True)
class RowError:
    """Why a row has no value. `type` is the error class's name; `op` the operator's label or
    fingerprint; the message says what to do; `attempts` counts how often it was tried."""

    type: str
    message: str
    op: str = ""
    attempts: int = 1


@dataclass(frozen=True, slots=True)
class Outcome:
    """The one recorded end of a row in a query: a value, or an error with its reason. A `dropped`
    row is none of the query's rows (a filter or limit has dropped it) and has neither. `ended_s` is
    when, in seconds of the run's clock since the run began; 0 for what was read from a journal."""

    query: str
    row_index: int
    row_key: str
    value: Json = None
    error: RowError | None = None
    dropped: bool = False
    ended_s: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True)
class Recovered:
    """A failure that a `Recover` operator (fingerprint `op`) turned into a value."""

    op: str
    query: str
    row_index: int
    row_key: str
    error: RowError


@dataclass(frozen=True, slots=True)
class CallSite:
    """Who asks for a call: the operator, the query and row, and the place inside bodies."""

    op: str
    query: str
    row_index: int
    row_key: str
    path: str = ""
    label: str = ""
    effect: Effect = Effect.PURE
    call_id: str = ""
    turn: int = 0
    fresh: bool = False

    def key(self, digest: str) -> str:
        """The content key of a call asked for here, of which `digest` is what is asked."""
        return digest + FRESH if self.fresh else digest

    @property
    def identity(self) -> str:
        """What keeps a sampled or write call apart from an equal one; empty for pure calls."""
        if self.effect is Effect.PURE:
            return ""
        # Not the operator unless it has no id of its own: its fingerprint changes when a rule
        # rewrites what it reads, and the call is still the one that was written.
        who = self.call_id or self.op
        return f"{self.query}/{who}/{self.row_key}/{self.path}/{self.turn}"


class RowKeys:
    """A key for each row from its content, never from its position; the n-th of equal rows gets
    the suffix `.n` (n from 1), so that equal rows stay rows of their own."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}

    def next(self, row: Mapping[str, Json]) -> str:
        """The key of the next row."""
        digest = hashlib.sha256(canonical_json(dict(row)).encode()).hexdigest()[:20]
        count = self._seen.get(digest, 0)
        self._seen[digest] = count + 1
        return f"{digest}.{count}" if count else digest


def row_keys(rows: Sequence[Mapping[str, Json]]) -> list[str]:
    """The keys of all `rows`: see `RowKeys`."""
    keys = RowKeys()
    return [keys.next(row) for row in rows]


class Store(Protocol):
    """Where a run records what happened. Methods are called from the event loop's thread and do not
    block; durability is told by futures."""

    def recorded_call(self, key: str) -> CallRecord | None:
        """The successful call of this key that an earlier or this process recorded, or None."""
        ...

    def record_call(self, record: CallRecord) -> Future[None]:
        """Record a call; the future is done when it would survive `kill -9`."""
        ...

    def record_outcome(self, outcome: Outcome) -> Future[None]:
        """Record the end of a row. A second outcome for the same (query, row_key) is dropped."""
        ...

    def recorded_outcomes(self) -> Iterable[tuple[str, str]]:
        """(query, row_key) of every recorded outcome."""
        ...

    def record_metrics(self, metrics: Mapping[str, OpMetrics]) -> None:
        """The latest metrics of this process, by operator; kept with the next commit."""
        ...

    def durable(self) -> Future[None]:
        """Done when everything recorded so far would survive `kill -9`."""
        ...
