"""Notebooks: `%load_ext halo.magic`, then `%%halo` before a cell of SQL.

    %%halo [NAME] [--engine ENGINE] [--model MODEL] [--db FILE] [--explain]
    SELECT ... ;

The result of the last statement is shown, and kept as `NAME` when one is given. Data frames of the
notebook whose names the text mentions after FROM or JOIN are tables of it. `$name` takes the value
of the notebook's variable.
"""

from __future__ import annotations

import argparse
import html
import re
import shlex
import sys
from typing import Any, cast

from halo.errors import HaloError

_NAMED = re.compile(r"\b(?:FROM|JOIN)\s+([A-Za-z_]\w*)", re.IGNORECASE)
_PARAMETER = re.compile(r"\$([A-Za-z_]\w*)")


def load_ipython_extension(ipython: Any) -> None:
    """Register `%%halo`; IPython calls this."""

    def halo_cell(line: str, cell: str) -> Any:
        return run_cell(line, cell, ipython.user_ns)

    ipython.register_magic_function(halo_cell, magic_kind="cell", magic_name="halo")


def run_cell(line: str, cell: str, names: dict[str, Any]) -> Any:
    """Run a cell in the namespace `names`; returns what the notebook shows."""
    asked = _arguments(line)
    from halo.ai_sql.api import run_sql
    from halo.ai_sql.batch import SqlBatch, SqlOptions
    from halo.ai_sql.errors import SqlError
    from halo.session import Session, default_session

    settings = {k: v for k in ("engine", "model", "db") if (v := getattr(asked, k)) is not None}
    session = _session(names, settings, Session) if settings else default_session()
    tables = {name: names[name] for name in _NAMED.findall(cell) if _is_table(names.get(name))}
    parameters = {name: names[name] for name in _PARAMETER.findall(cell) if name in names}
    workflows = [value for value in names.values() if _is_workflow(value)]
    options = SqlOptions(parameters=parameters, tables=tables, workflows=workflows)
    if asked.explain:
        with SqlBatch(cell, session, options) as batch:
            return Plan(batch.explain(format="html"), batch.explain())
    try:
        result = run_sql(
            cell, parameters=parameters, tables=tables, workflows=workflows, session=session
        )
    except SqlError as error:
        if error.code != "S006":
            raise
        with SqlBatch(cell, session, options) as batch:  # nothing but EXPLAIN
            text = "\n".join(batch.explanations())
        return Plan(f"<pre>{html.escape(text)}</pre>", text) if text else None
    for each in result.batch:
        for warning in each.warnings:
            print(f"warning: {each.name}: {warning}", file=sys.stderr)
    if asked.name:
        names[asked.name] = result
    return result


class Plan:
    """A plan as the notebook shows it."""

    def __init__(self, html: str, text: str) -> None:
        self._html, self._text = html, text

    def __repr__(self) -> str:
        return self._text

    def _repr_html_(self) -> str:
        return self._html


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise HaloError(f"%%halo: {message}")


def _arguments(line: str) -> argparse.Namespace:
    parser = _Parser(prog="%%halo", add_help=False)
    parser.add_argument("name", nargs="?", default="")
    for option in ("--engine", "--model", "--db"):
        parser.add_argument(option)
    parser.add_argument("--explain", action="store_true")
    return parser.parse_args(shlex.split(line))


def _session(names: dict[str, Any], settings: dict[str, Any], make: Any) -> Any:
    """A session of these settings, made once for a notebook."""
    kept: dict[str, Any] = names.setdefault("_halo_sessions", {})
    key = repr(sorted(settings.items()))
    if key not in kept:
        kept[key] = make(**settings)
    return kept[key]


def _is_table(value: Any) -> bool:
    if isinstance(value, list):
        rows = cast("Any", value)
        return bool(rows) and all(isinstance(row, dict) for row in rows)
    kind = cast("Any", type(value))
    return kind.__name__ in ("DataFrame", "Table", "LazyFrame") and kind.__module__.split(".")[
        0
    ] in ("pandas", "polars", "pyarrow")


def _is_workflow(value: Any) -> bool:
    from halo.dsl.workflow import Workflow

    return isinstance(value, Workflow)
