"""What the splitter asks of whoever plans the calls, and what it hands over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from halo.ai_sql.calls import Call, CallSpec
from halo.ai_sql.errors import SqlError

KEY, VALUE, ERROR, NUMBER = "halo_k", "halo_v", "halo_e", "halo_n"
"""Columns of answer tables: arguments (numbered), answer, error, and the number of a row among
those with equal arguments (for `sample := 'per_row'`)."""


MAX_SLICED_LIMIT = 1000
"""LIMITs above this do not stop filters early: rows are compared with a list of so many."""


@dataclass(frozen=True)
class Harvest:
    """A query for the inputs of a call. `columns` are its own, `reads` the answer tables in it."""

    text: str
    columns: tuple[str, ...]
    reads: tuple[str, ...]


@dataclass(frozen=True)
class Chain:
    """Filters of one conjunction over the same rows: `specs[i]` takes the columns `columns[i]`,
    `negated[i]` says whether false is wanted. `limit`: rows that are enough, None for all."""

    specs: tuple[CallSpec, ...]
    columns: tuple[tuple[str, ...], ...]
    negated: tuple[bool, ...]
    limit: int | None = None


class Host(Protocol):
    """What the splitter needs: someone who plans the calls, and DuckDB to bind texts."""

    rules: frozenset[str]

    def answer(self, call: Call, harvest: Harvest) -> str:
        """Plan the call for every row of the harvest; the name of its answer table."""
        ...

    def keep(self, chain: Chain, calls: Sequence[Call], harvest: Harvest) -> str:
        """Plan a conjunction of filters; the name of the table of the rows that pass."""
        ...

    def document_table(self, pattern: str, offset: int) -> str:
        """Plan the reading of documents; the name of their table."""
        ...

    def errors_table(self) -> str:
        """The name of the table of the errors of the statements before this one."""
        ...

    def binds(self, text: str) -> str:
        """Why DuckDB cannot bind a query; empty when it can."""
        ...

    def unbound(self, reason: str, offset: int = -1) -> SqlError:
        """The error of a query that DuckDB cannot bind, for the reason that `binds` gave; at
        `offset` when the reason names no place."""
        ...

    def is_aggregate(self, name: str) -> bool:
        """Whether a function name is an aggregate of DuckDB."""
        ...
