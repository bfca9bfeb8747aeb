"""Results, errors and trace of a run, written from its journal with flat memory.

Equal outcomes give equal bytes, whatever order they were recorded in and however often the run was
killed: the order is that of the queries and the rows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TypeAlias, cast

from runtime.atomic_file import replaced_path, replaced_text
from runtime.errors import RunDirectoryError
from runtime.journal_reader import reading
from runtime.run_directory import RunDirectory

ROW_GROUP_ROWS = 20_480
"""Fixed, so that bytes do not depend on the machine; small, because a group is held in memory."""

FIXED_COLUMNS = ("query", "row", "row_key", "value")

TRACE_FIELDS = (
    "process", "kind", "name", "op", "query", "row_key", "path", "turn", "effect", "key",
    "queued_s", "start_s", "first_token_s", "end_s", "attempts", "input_tokens", "output_tokens",
    "cached_tokens", "predicted_cached_tokens", "finish_reason", "error", "value",
)  # fmt: skip
"""What a line of the trace has of a call, in this order. Times are seconds on the clock of its
process."""

_Failure: TypeAlias = "tuple[str, int, str, str, str, str]"


def write_results(directory: RunDirectory, queries: Sequence[str]) -> None:
    """Write `results.jsonl`, `results.parquet`, `errors.jsonl` and `trace.jsonl`. Each replaces
    what was there only when it is whole. Raises `RunDirectoryError`."""
    fields = FlatFields()
    longest = _write_values(directory, queries, fields)
    _write_parquet(directory.results, directory.results_parquet, fields.columns(), longest)
    with replaced_text(directory.errors) as file:
        for query, row, key, kind, message, op in _failures(directory.journal, queries):
            line = {
                "query": query,
                "row": row,
                "key": key,
                "type": kind,
                "message": message,
                "op": op,
            }
            file.write(_line(line))
    with replaced_text(directory.trace) as file:
        for call in _calls(directory.journal):
            file.write(_line(call))


class FlatFields:
    """Which fields of the values can be columns: all values are objects with the same keys, and a
    field has scalars of one type (or null) in all of them."""

    def __init__(self) -> None:
        self._types: dict[str, str | None] | None = None
        self._flat = True

    def add(self, value: object) -> None:
        """Take one value into account."""
        if not self._flat:
            return
        if not isinstance(value, dict):
            self._flat = False
            return
        fields = cast("dict[str, object]", value)
        if self._types is None:
            self._types = dict.fromkeys(sorted(fields))
        elif self._types.keys() != fields.keys():
            self._flat = False
            return
        for key, field in fields.items():
            if field is not None:
                self._types[key] = _common_type(self._types[key], field)

    def columns(self) -> dict[str, str]:
        """DuckDB type by field, in alphabetic order. Fields whose name a column already has (case
        does not count), or that are null everywhere, are left to the column `value`."""
        if not self._flat or self._types is None:
            return {}
        taken = {"", *FIXED_COLUMNS}
        columns: dict[str, str] = {}
        for key, kind in self._types.items():
            if kind and key.lower() not in taken and key.isprintable():
                taken.add(key.lower())
                columns[key] = kind
        return columns


_MIXED = ""
"""The type of a field that cannot be a column."""


def _common_type(known: str | None, value: object) -> str:
    if isinstance(value, bool):
        found = "BOOLEAN"
    elif isinstance(value, int):
        found = "BIGINT" if -(1 << 63) <= value < 1 << 63 else _MIXED
    elif isinstance(value, float):
        found = "DOUBLE"
    else:
        found = "VARCHAR" if isinstance(value, str) else _MIXED
    if known is None or known == found:
        return found
    return "DOUBLE" if {known, found} == {"BIGINT", "DOUBLE"} else _MIXED


def _write_values(directory: RunDirectory, queries: Sequence[str], fields: FlatFields) -> int:
    longest = 0
    with replaced_text(directory.results) as file:
        for query, row, key, value in _values(directory.journal, queries):
            fields.add(json.loads(value))
            head = _encode({"query": query, "row": row, "key": key})
            line = f'{head[:-1]}, "value": {value}}}\n'
            longest = max(longest, len(line))
            file.write(line)
    return longest


def _values(journal: Path, queries: Sequence[str]) -> Iterator[tuple[str, int, str, str]]:
    with reading(journal) as connection:
        for query in queries:
            yield from connection.execute(
                "SELECT query, row_index, row_key, value FROM outcomes "
                "WHERE query = ? AND error_type IS NULL AND NOT dropped "
                "ORDER BY row_index, row_key",
                (query,),
            )


def _failures(journal: Path, queries: Sequence[str]) -> Iterator[_Failure]:
    with reading(journal) as connection:
        for query in queries:
            yield from connection.execute(
                "SELECT query, row_index, row_key, error_type, error_message, error_op "
                "FROM outcomes WHERE query = ? AND error_type IS NOT NULL "
                "ORDER BY row_index, row_key",
                (query,),
            )


def _calls(journal: Path) -> Iterator[dict[str, Any]]:
    """The lines of the trace. From the journal's rows, without a `CallRecord` in between: there is
    a line for each call of the run."""
    fields = ", ".join(TRACE_FIELDS)
    with reading(journal) as connection:
        rows = connection.execute(
            f"SELECT {fields} FROM calls UNION ALL SELECT {fields} FROM failed_calls "
            "ORDER BY process, start_s, end_s, key"
        )
        for row in rows:
            line: dict[str, Any] = dict(zip(TRACE_FIELDS, row, strict=True))
            line["value"] = json.loads(line["value"])
            yield line


def _write_parquet(
    source: Path, target: Path, columns: Mapping[str, str], longest_line: int
) -> None:
    import duckdb

    # The reader takes a JSON null for a missing value.
    value = "coalesce(CAST(value AS VARCHAR), 'null') AS value"
    selected = ["query", "row", "key AS row_key", value]
    for field, kind in columns.items():
        # A JSON pointer, because a field's name may hold anything that a path would interpret.
        pointer = "/" + field.replace("~", "~0").replace("/", "~1")
        selected.append(f"CAST(value ->> {_text(pointer)} AS {kind}) AS {_name(field)}")
    # One thread keeps the order of the file, and with it the bytes.
    settings: dict[str, str | bool | int | float | list[str]] = {
        "threads": 1,
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
    }
    with replaced_path(target) as aside:
        try:
            with closing(duckdb.connect(":memory:", config=settings)) as connection:
                connection.execute(
                    f"""COPY (
                        SELECT {", ".join(selected)} FROM read_json(
                            {_text(_no_glob(source))}, format = 'newline_delimited',
                            columns = {{query: 'VARCHAR', row: 'BIGINT', key: 'VARCHAR',
                                        value: 'JSON'}},
                            maximum_object_size = {max(1 << 24, 4 * longest_line + 1024)}
                        )
                    ) TO {_text(str(aside))}
                    (FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {ROW_GROUP_ROWS})"""
                )
        except duckdb.Error as error:
            raise RunDirectoryError(f"cannot write {target}: {error}") from error


# Made once: `json.dumps` with this argument would make an encoder for each line.
_encode: Callable[[object], str] = json.JSONEncoder(ensure_ascii=False).encode


def _line(document: Mapping[str, Any]) -> str:
    return _encode(document) + "\n"


def _text(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _name(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def _no_glob(path: Path) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in str(path))
