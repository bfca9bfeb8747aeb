"""Calls of AI functions, lifted out of SQL: what is asked, apart from the rows that it is asked of.

A `CallSpec` is content: two calls with equal specs over equal arguments are one call, wherever they
are written. The arguments stay in the SQL, where DuckDB computes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from halo.ai_sql.types import struct_type

OnError = Literal["null", "fail", "detail"]

ERROR_TYPE = "STRUCT(class VARCHAR, message VARCHAR, attempts INTEGER)"

_RESULTS = {
    "AI_FILTER": "BOOLEAN",
    "AI_SCORE": "DOUBLE",
    "AI_EMBED": "FLOAT[]",
    "AI_CHUNKS": "VARCHAR[]",
}


@dataclass(frozen=True)
class CallSpec:
    """What a call asks for.

    Attributes:
        function: the name in `FUNCTIONS`; sugar has been resolved.
        segments: the prompt: texts, and numbers of arguments.
        model: empty for the session's.
        max_tokens: 0 for the function's own.
        returns: DuckDB type of the answer; empty for the function's own.
        labels: (label, description) of AI_CLASSIFY.
        fields: (name, DuckDB type, question) of AI_EXTRACT.
        examples: (input, answer) pairs.
        task: of AI_AGG.
        workflow, names: of AI_RUN; `names` are those of its named arguments, which come last.
        cascade: the cheap model and the one that is trusted.
        settings: (name, value) of a function's own numeric options.
    """

    function: str
    segments: tuple[str | int, ...] = ()
    n_args: int = 1
    model: str = ""
    temperature: float = 0.0
    max_tokens: int = 0
    returns: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    multi: bool = False
    fields: tuple[tuple[str, str, str], ...] = ()
    examples: tuple[tuple[str, str], ...] = ()
    task: str = ""
    workflow: str = ""
    names: tuple[str, ...] = ()
    cascade: tuple[str, str] | None = None
    per_row: bool = False
    cache: bool = True
    settings: tuple[tuple[str, float], ...] = ()

    @property
    def type(self) -> str:
        """The DuckDB type of the answer."""
        if self.returns:
            return self.returns
        if self.function == "AI_CLASSIFY":
            return "VARCHAR[]" if self.multi else "VARCHAR"
        if self.function == "AI_EXTRACT":
            return struct_type({name: kind for name, kind, _ in self.fields})
        return _RESULTS.get(self.function, "VARCHAR")

    @property
    def is_aggregate(self) -> bool:
        return self.function == "AI_AGG"

    @property
    def label(self) -> str:
        """For people: EXPLAIN and the errors table."""
        return f"{self.function}({self.workflow})" if self.workflow else self.function


@dataclass(eq=False)
class Call:
    """One written call: its spec, the sqlglot node that stands for it, its arguments (nodes too).

    Attributes:
        offset: of its name in the text of the batch.
        joins: whether it stands in the condition of a join.
        filter, order: of an aggregate: FILTER (WHERE ...) and ORDER BY, as nodes.
    """

    spec: CallSpec
    node: Any
    args: list[Any]
    on_error: OnError
    offset: int
    filter: Any = None
    order: Any = None
    joins: bool = False

    @property
    def result_type(self) -> str:
        """The DuckDB type of the whole expression."""
        if self.on_error == "detail":
            return f'STRUCT("value" {self.spec.type}, error VARCHAR)'
        return self.spec.type
