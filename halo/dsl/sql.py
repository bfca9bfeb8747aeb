"""`halo.sql`: queries as nodes of workflows, batches of SQL with AI functions, and databases opened
for reading alone."""

from __future__ import annotations

import os
import re
from typing import Any

from halo.dsl.eager import in_eager_run, record
from halo.dsl.lazy import Lazy, make
from halo.dsl.lift import lift, scope_here
from halo.dsl.trace import current_scope, fault, located
from halo.dsl.value_types import is_text
from planner.logical import Op, Sql

Rows = list[dict[str, Any]]

_SKIPPED = re.compile(
    r"'(?:[^']|'')*'"  # text
    r'|"(?:[^"]|"")*"'  # identifier
    r"|--[^\n]*|/\*.*?\*/"  # comments
    r"|\$([A-Za-z_]\w*|)\$.*?\$\1\$",  # dollar-quoted text
    re.DOTALL,
)
_SETTINGS = ("tables", "workflows", "allow", "out", "resume", "off", "on", "sample", "session")
_PARAMETER = re.compile(r"\$([A-Za-z_]\w*)")


class Database:
    """A DuckDB file, opened read-only, without file or network access for the queries."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __repr__(self) -> str:
        return f"halo.sql.readonly({self.path!r})"

    @property
    def schema(self) -> str:
        """The database's tables and columns as text for a prompt, read now."""
        from runtime.sql_tool import Databases

        return Databases.schema(self.path)

    def query(self, text: str, /, max_rows: int = 1000, **params: Any) -> Rows:
        """The rows of a query, at most `max_rows`. `text` is SQL that the workflow's author wrote,
        with values as `$name` parameters, or a lazy value: SQL that a model wrote."""
        return query(self.path, text, params, max_rows)


class SqlFunction:
    """`halo.sql(text, /, **params)` and `halo.sql.readonly(path)`."""

    def __call__(self, text: str, /, **params: Any) -> Any:
        """SQL on the session's database. Values go in as `$name` parameters.

        Inside a workflow it is a node: a plain DuckDB query whose value is a list of row objects.

        Outside, it runs now and is a batch of statements that may hold AI functions (docs/sql.md).
        The result is a sequence of row objects with `.df()`, `.pl()`, `.arrow()`, `.show()`,
        `.write(path)`, `.errors` and `.explain()`. These keywords are settings, not parameters:
        `tables` (data frames or lists of objects by name), `workflows` (for AI_RUN), `allow`
        (directories to read), `out` (a run directory), `resume`, `off` and `on` (rules by name),
        `sample` (inputs of each call that are asked first, to plan by), `session`.
        """
        if current_scope() is not None or in_eager_run():
            return query("", text, params, 1000)
        from halo.ai_sql.api import run_sql

        settings = {name: params.pop(name) for name in _SETTINGS if name in params}
        return run_sql(text, parameters=params, **settings)

    def readonly(self, path: str | os.PathLike[str]) -> Database:
        """A database file that queries can only read."""
        return Database(os.fspath(path))


sql = SqlFunction()


def query(database: str, text: Any, params: dict[str, Any], max_rows: int) -> Rows:
    """A query as a node of the trace, or its rows outside one."""
    if max_rows < 1:
        raise fault(f"max_rows is {max_rows}", "It is at least 1")

    def build() -> Any:
        literal, inputs = _text(text, params)
        with located():
            op = Sql(
                (*inputs, *(lift(value) for value in params.values())),
                database=database,
                text=literal,
                params=tuple(params),
                max_rows=max_rows,
                label="sql",
            )
        return make(op, Rows)

    # Sorted, so that the order in which parameters are written does not make plans differ.
    params = dict(sorted(params.items()))
    return record(build, Rows)  # type: ignore[no-any-return]


def _text(text: Any, params: dict[str, Any]) -> tuple[str | None, tuple[Op, ...]]:
    """The literal text of a query; or None, with the operator of a lazy one."""
    if isinstance(text, Lazy):
        return None, (lift(text),)
    if not isinstance(text, str):
        raise fault(f"a query is a {type(text).__name__}", "It is SQL text, or a model's answer")
    parts = scope_here().tracer.split(str(text))
    if len(parts) == 1 and isinstance(parts[0], Lazy) and is_text(parts[0].__halo__.type):
        return None, (lift(text),)
    if any(isinstance(part, Lazy) for part in parts):
        raise fault(
            "a lazy value was formatted into the text of a query, where it could become SQL",
            "Write $name in the text and pass the value: halo.sql('... $name ...', name=value)",
        )
    _check_parameters(text, params)
    return str(text), ()


def _check_parameters(text: str, params: dict[str, Any]) -> None:
    named = list(dict.fromkeys(_PARAMETER.findall(_SKIPPED.sub(" ", text))))
    missing = [f"${name}" for name in named if name not in params]
    unused = [name for name in params if name not in named]
    if missing:
        raise fault(f"the query names {', '.join(missing)}", "Pass each as a keyword argument")
    if unused:
        raise fault(
            f"the query does not use the parameters {', '.join(unused)}", "Write $name in its text"
        )
