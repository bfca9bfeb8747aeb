"""The queries of a batch: each a workflow, traced over its rows, under a name of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from halo.errors import WorkflowError
from halo.flow import Flow, Traced
from halo.rows import RowSet, read_rows, rows_from
from runtime.tools import ToolSpec

Batch: TypeAlias = "Sequence[tuple[Flow, Any]]"
"""Several workflows with their rows: (workflow, rows) pairs, run as one merged batch."""


@dataclass(frozen=True)
class Query:
    """One workflow over its rows, under the name that results and EXPLAIN use."""

    name: str
    traced: Traced
    rows: RowSet


def trace_queries(flow: Flow | Batch, rows: Any = None) -> tuple[Query, ...]:
    """The queries of one workflow over rows, or of a batch. Of several workflows with one name, the
    later ones get a number. Raises `WorkflowError` for rows that are missing or too many."""
    queries: list[Query] = []
    names: set[str] = set()
    for each, its_rows in _pairs(flow, rows):
        row_set = its_rows if isinstance(its_rows, RowSet) else _row_set(its_rows)
        name, n = each.name, 2
        while name in names:
            name, n = f"{each.name}-{n}", n + 1
        names.add(name)
        queries.append(Query(name, each.trace(row_set.source, row_set.columns), row_set))
    return tuple(queries)


def tools_of(queries: Sequence[Query]) -> dict[str, ToolSpec]:
    """The tools that queries name, by name. Raises `WorkflowError` when a name means two tools."""
    tools: dict[str, ToolSpec] = {}
    for query in queries:
        for name, spec in query.traced.tools.items():
            known = tools.setdefault(name, spec)
            if known.digest != spec.digest:
                raise WorkflowError(
                    f"two different tools are named {name!r} (the second in {query.name!r}); "
                    "rename one of them"
                )
    return tools


def _pairs(flow: Flow | Batch, rows: Any) -> list[tuple[Flow, Any]]:
    if isinstance(flow, Sequence):
        if rows is not None:
            raise WorkflowError("a batch of (workflow, rows) pairs takes no rows of its own")
        return list(flow)
    if rows is None:
        raise WorkflowError(f"workflow {flow.name!r} needs rows: a path, a glob or a list")
    return [(flow, rows)]


def _row_set(rows: Any) -> RowSet:
    return read_rows(str(rows)) if isinstance(rows, str | Path) else rows_from(rows)
