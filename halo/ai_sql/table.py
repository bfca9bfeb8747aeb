"""Results as tables for people: on a terminal, fitted to its width, and in a notebook."""

from __future__ import annotations

import html
import json
import sys
from collections.abc import Sequence
from typing import IO, Any

from halo.ai_sql.results import QueryResult, counted

MIN_COLUMN = 6
"""A column narrower than this says nothing: with so many columns, rows are printed one under the
other."""


def cell(value: Any) -> str:
    """A value on one line."""
    if value is None:
        return "NULL"
    if isinstance(value, str):
        text = value
    elif isinstance(value, bool):
        return "true" if value else "false"
    elif isinstance(value, dict | list):
        text = json.dumps(value, ensure_ascii=False, default=str)
    elif isinstance(value, float):
        text = f"{value:.6g}"
    else:
        text = str(value)
    return " ".join(text.split()) if text.strip() else text


def print_table(result: QueryResult, *, max_rows: int = 40, file: IO[str] | None = None) -> None:
    """Print the rows: all of a short result, the first and last of a long one. Text that is wider
    than the terminal allows is cut with an ellipsis."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(file=file or sys.stdout, highlight=False, markup=False, emoji=False)
    if result.written is not None:
        console.print(f"{counted(result.written, 'row')} written", markup=False)
        return
    rows, skipped = _excerpt(result, max_rows)
    if not result.columns or console.width < (MIN_COLUMN + 3) * len(result.columns):
        _print_records(result, rows, console)
    else:
        table = Table(box=box.ROUNDED, show_edge=True, pad_edge=True)
        numbers = ("INT", "DOUBLE", "FLOAT", "DECIMAL")
        cells = [[cell(value) for value in row] for row in rows]
        room = console.width - 3 * len(result.columns) - 1
        widths = _widths(result.columns, cells, room)
        for name, kind, width in zip(result.columns, result.types, widths, strict=True):
            right = any(each in kind for each in numbers) and "[" not in kind and "(" not in kind
            table.add_column(
                name,
                justify="right" if right else "left",
                overflow="ellipsis",
                no_wrap=True,
                width=width,
            )
        from rich.text import Text

        for number, row in enumerate(cells):
            if skipped and number == max_rows // 2:
                table.add_row(*(Text("…") for _ in result.columns))
            table.add_row(*map(Text, row))
        console.print(table)
    note = f", {skipped} not shown" if skipped else ""
    console.print(f"{counted(len(result), 'row')}{note}", markup=False)


def _widths(names: Sequence[str], rows: Sequence[Sequence[str]], room: int) -> list[int]:
    """A width for each column, `room` together: narrow columns have what they need, and the others
    equal parts of what is left."""
    from rich.cells import cell_len

    needed = [
        max(1, cell_len(name), *(cell_len(row[i]) for row in rows)) for i, name in enumerate(names)
    ]
    widths = [0] * len(names)
    for taken, i in enumerate(sorted(range(len(names)), key=lambda i: needed[i])):
        widths[i] = min(needed[i], room // (len(names) - taken))
        room -= widths[i]
    return widths


def _print_records(result: QueryResult, rows: list[tuple[Any, ...]], console: Any) -> None:
    width = max((len(name) for name in result.columns), default=0)
    for number, row in enumerate(rows, 1):
        console.print(f"-- row {number}", markup=False)
        for name, value in zip(result.columns, row, strict=True):
            room = max(20, console.width - width - 3)
            text = cell(value)
            text = text if len(text) <= room else text[: room - 1] + "…"
            console.print(f"{name.rjust(width)} | {text}", markup=False, overflow="ignore")


def _excerpt(result: QueryResult, max_rows: int) -> tuple[list[tuple[Any, ...]], int]:
    if len(result) <= max_rows:
        return list(result.tuples()), 0
    head = max_rows // 2
    tail = max_rows - head
    rows = [
        tuple(row.values())
        for part in (result[:head], result[len(result) - tail :])
        for row in part
    ]
    return rows, len(result) - len(rows)


def html_table(result: QueryResult, max_rows: int = 40) -> str:
    """The rows as an HTML table; all text is escaped."""
    if result.written is not None:
        return f"<p>{counted(result.written, 'row')} written</p>{_failures(result)}"
    rows, skipped = _excerpt(result, max_rows)
    head = "".join(f"<th>{html.escape(name)}</th>" for name in result.columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell(value))}</td>" for value in row) + "</tr>"
        for row in rows
    )
    note = f", {skipped} not shown" if skipped else ""
    return (
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        f"<p>{counted(len(result), 'row')}{note}</p>{_failures(result)}"
    )


def _failures(result: QueryResult) -> str:
    if not result.errors:
        return ""
    first = html.escape(result.errors[0].message)
    return f"<p>{counted(len(result.errors), 'call')} without an answer; the first: {first}</p>"
