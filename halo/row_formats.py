"""Readers of one file of rows each, and of documents. Every error names the file and the place."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias, cast

from halo.errors import InputError
from planner.logical import Json, canonical_json
from runtime.values import kind_of

Row: TypeAlias = "dict[str, Json]"
ReadRows: TypeAlias = "Callable[[Path], Iterator[Row]]"

_CSV_FIELD_CHARS = 2**31 - 1
_BLANKS = " \t\r\n"


def row_format(path: Path) -> ReadRows | None:
    """The reader of a file of rows, by its suffix; None for a document."""
    return {
        ".jsonl": read_jsonl,
        ".ndjson": read_jsonl,
        ".json": read_json,
        ".csv": read_csv,
        ".parquet": read_parquet,
    }.get(path.suffix.lower())


def read_document(path: Path, base: Path) -> Row:
    """A text file as a row: `path` relative to `base`, `name`, `text`."""
    return {
        "path": path.relative_to(base).as_posix(),
        "name": path.name,
        "text": _text(path),
    }


def read_jsonl(path: Path) -> Iterator[Row]:
    """One JSON object a line; blank lines are skipped."""
    # Not splitlines: U+2028 and its like are legal inside JSON texts.
    for number, line in enumerate(_text(path).split("\n"), 1):
        if line.strip(_BLANKS):
            place = f"{path}:{number}"
            try:
                value = _DECODER.decode(line)
            except _JSON_ERRORS as error:
                raise InputError(f"{place}: {_problem(error)}") from None
            yield _as_row(value, place)


def read_json(path: Path) -> Iterator[Row]:
    """A JSON array of objects."""
    text = _text(path)
    at = _skip(text, 0)
    if text[at : at + 1] != "[":
        raise InputError(
            f"{path}:{_line(text, at)}: expected a JSON array of objects, [{{...}}, ...]; for one "
            "object a line use a .jsonl file"
        )
    at = _skip(text, at + 1)
    if text[at : at + 1] == "]":
        _end(path, text, at + 1)
        return
    while True:
        place = f"{path}:{_line(text, at)}"
        try:
            value, at = _DECODER.raw_decode(text, at)
        except _JSON_ERRORS as error:
            line = error.lineno if isinstance(error, json.JSONDecodeError) else _line(text, at)
            raise InputError(f"{path}:{line}: {_problem(error)}") from None
        yield _as_row(value, place)
        at = _skip(text, at)
        mark = text[at : at + 1]
        if mark == "]":
            _end(path, text, at + 1)
            return
        if mark != ",":
            raise InputError(f"{path}:{_line(text, at)}: expected , or ] after an element")
        at = _skip(text, at + 1)


def read_csv(path: Path) -> Iterator[Row]:
    """Comma-separated values with a header line; every value is a text."""
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    # The limit guards against unclosed quotes in streams; here the file is in memory already, and
    # documents are longer than its 128 KiB.
    limit = csv.field_size_limit(_CSV_FIELD_CHARS)
    try:
        records: list[tuple[int, list[str]]] = []
        first_line = 1
        for record in reader:
            records.append((first_line, record))
            first_line = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: not CSV: {error}") from None
    finally:
        csv.field_size_limit(limit)
    lines = iter((number, record) for number, record in records if record)
    empty: list[str] = []
    number, header = next(lines, (1, empty))
    _check_header(header, f"{path}:{number}")
    for number, record in lines:
        if len(record) != len(header):
            raise InputError(
                f"{path}:{number}: {len(record)} values, but the header has {len(header)} columns"
            )
        yield dict(zip(header, record, strict=True))


def _check_header(header: list[str], place: str) -> None:
    for position, name in enumerate(header, 1):
        if not name.strip():
            raise InputError(f"{place}: column {position} of the header has no name")
        if name in header[: position - 1]:
            raise InputError(f"{place}: the header has the column {name!r} twice")


def read_parquet(path: Path) -> Iterator[Row]:
    """A Parquet file; dates and times become ISO texts, decimals numbers."""
    import duckdb

    with duckdb.connect(config={"autoinstall_known_extensions": "false"}) as connection:
        try:
            query = "SELECT to_json(halo_row)::VARCHAR FROM read_parquet(?) AS halo_row"
            result = connection.execute(query, [str(path)])
            number = 0
            while batch := result.fetchmany(1000):
                for (text,) in batch:
                    number += 1
                    yield _parquet_row(str(text), f"{path}: row {number}")
        except duckdb.Error as error:
            problem = str(error).splitlines()[0]
            raise InputError(f"{path}: not a Parquet file that can be read: {problem}") from None


def _parquet_row(text: str, place: str) -> Row:
    try:
        return _as_row(_DECODER.decode(text), place)
    except _JSON_ERRORS as error:
        raise InputError(f"{place}: {_problem(error)}") from None


# --- JSON ----------------------------------------------------------------------------------------


class _NotJson(ValueError):
    """What Python's JSON reader accepts and Halo does not."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in members if names.count(name) > 1)
        raise _NotJson(f"the key {twice!r} is there twice")
    return members


def _constant(name: str) -> Any:
    raise _NotJson(f"{name} is not JSON; use null for a missing number")


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise _NotJson(f"the number {text} is too large")
    return number


_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique, parse_constant=_constant, parse_float=_finite
)
_JSON_ERRORS = (json.JSONDecodeError, _NotJson, RecursionError, ValueError)


def _problem(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "the value is nested too deeply"
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg} (column {error.colno})"
    return str(error)


def _as_row(value: object, place: str) -> Row:
    if not isinstance(value, dict):
        kind = kind_of(cast("Json", value))
        raise InputError(f'{place}: a row is a JSON object, {{"question": "..."}}, not {kind}')
    row = cast("Row", value)
    try:
        canonical_json(cast("Json", row)).encode()
    except UnicodeEncodeError:
        raise InputError(f"{place}: half a character (a lone surrogate)") from None
    return row


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in _BLANKS:
        at += 1
    return at


def _line(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1


def _end(path: Path, text: str, at: int) -> None:
    at = _skip(text, at)
    if at < len(text):
        raise InputError(f"{path}:{_line(text, at)}: text after the end of the array")


def _text(path: Path) -> str:
    """The text of a UTF-8 file, without a byte order mark."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path}:{line}: byte {error.start} (0x{data[error.start]:02x}) is not UTF-8; convert "
            "the file, or leave it out of the input"
        ) from None
