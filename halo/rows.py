"""The rows that workflows run over: from files, documents, or Python objects.

Rows are JSON objects. Those of one input may have different columns: the columns are the union, in
order of first appearance, and a row that lacks one has null there.
"""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

from halo.errors import InputError
from halo.row_formats import Row, read_document, row_format
from planner.logical import Json, LogicalPlan, Scan, canonical_json
from runtime.errors import ValueTypeError
from runtime.values import checked


@dataclass(frozen=True)
class RowSet:
    """Rows of one input.

    Attributes:
        source: names the rows in plans. Derived from their content, so that equal rows have equal
            names wherever they come from.
        columns: of every row, in order of first appearance.
        rows: every row has every column.
        description: where the rows come from, for people.
    """

    source: str
    columns: tuple[str, ...]
    rows: list[dict[str, Json]]
    description: str = ""

    @classmethod
    def of(cls, rows: Iterable[Row], description: str) -> RowSet:
        """The set of `rows`. Raises `InputError` when there are none."""
        given = list(rows)
        if not given:
            raise InputError(f"{description} has no rows")
        columns = tuple(dict.fromkeys(name for row in given for name in row))
        filled = [{name: row.get(name) for name in columns} for row in given]
        digest = hashlib.sha256(canonical_json(list(columns)).encode())
        for row in filled:
            digest.update(b"\n" + canonical_json(cast("Json", row)).encode())
        return cls(f"rows:{digest.hexdigest()[:12]}", columns, filled, description)

    def spread(self, n: int) -> RowSet:
        """`n` of the rows at even distances (all, if there are no more), under the same name."""
        total = len(self.rows)
        if n >= total:
            return self
        return replace(self, rows=[self.rows[i * total // n] for i in range(n)])

    @classmethod
    def single(cls, plan: LogicalPlan) -> RowSet:
        """One row without columns, under the name that `plan` scans."""
        sources = [op.source for op in plan.walk() if isinstance(op, Scan)]
        return cls(sources[0] if sources else "rows", (), [{}], "one row")


def read_rows(spec: str) -> RowSet:
    """The rows that a path or a glob names.

    `.jsonl`, `.ndjson`, `.json` (an array of objects), `.csv` (with a header; values are texts) and
    `.parquet` hold rows; a glob of such files is all their rows, in the order of the file names.
    Any other file is a document. A directory or a glob of documents has one row for each, sorted,
    with the columns `path` (relative to the directory), `name` and `text`; hidden files are left
    out.

    Raises `InputError` naming file and line (byte, element) of what cannot be read.
    """
    path = Path(spec)
    if path.is_dir():
        return _documents(sorted(_files_below(path)), path, spec)
    if path.is_file():
        read = row_format(path)
        if read is None:
            return RowSet.of([read_document(path, path.parent)], spec)
        return RowSet.of(read(path), spec)
    if glob.has_magic(spec):
        return _matching(spec)
    raise InputError(f"no input {spec!r}: there is no such file or directory{_near(path)}")


def _files_below(directory: Path) -> Iterable[Path]:
    for folder, folders, names in os.walk(directory):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(folder) / name for name in names if not name.startswith("."))


def _matching(pattern: str) -> RowSet:
    # Not Path.glob, which takes no absolute pattern.
    names = glob.glob(pattern, recursive=True)  # noqa: PTH207
    found = sorted(path for path in map(Path, names) if path.is_file())
    if not found:
        raise InputError(f"no input {pattern!r}: the pattern matches no file")
    formats = [row_format(path) for path in found]
    readers = [read for read in formats if read is not None]
    if len(readers) == len(found):
        together = zip(readers, found, strict=True)
        return RowSet.of((row for read, path in together for row in read(path)), pattern)
    return _documents(found, _base(pattern), pattern)


def _base(pattern: str) -> Path:
    """The part of a pattern before its first wildcard: paths of documents are relative to it, so
    that they do not change with the directory from which Halo is started."""
    fixed: list[str] = []
    for part in Path(pattern).parts[:-1]:
        if glob.has_magic(part):
            break
        fixed.append(part)
    return Path(*fixed)


def _documents(paths: list[Path], base: Path, description: str) -> RowSet:
    return RowSet.of([read_document(path, base) for path in paths], description)


def _near(path: Path) -> str:
    parent = path.parent
    while not parent.is_dir() and parent != parent.parent:
        parent = parent.parent
    if parent != path.parent:
        return f" (there is no directory {path.parent})"
    names = sorted(each.name for each in parent.iterdir() if not each.name.startswith("."))
    near = get_close_matches(path.name, names, n=3)
    if near:
        return f"; did you mean {' or '.join(str(parent / name) for name in near)}?"
    return f" in {parent.absolute()}"


# --- Python objects ------------------------------------------------------------------------------


def rows_from(obj: Any) -> RowSet:
    """The rows of a Python object: an iterable of mappings, pydantic models or data classes, or a
    data frame (pandas, polars, pyarrow). Missing values of a data frame (NaN, NaT) become null.

    Raises `InputError` naming the row that has no JSON form.
    """
    description = f"the given {type(obj).__name__}"
    records, from_frame = _records(obj, description)
    return RowSet.of(
        (_row(record, f"row {n} of {description}", from_frame) for n, record in enumerate(records)),
        description,
    )


def _records(obj: Any, description: str) -> tuple[Iterable[Any], bool]:
    if isinstance(obj, Mapping):
        raise InputError(f"{description} is one row or a table by columns; pass a list of rows")
    if isinstance(obj, str | bytes):
        raise InputError(f"{description} is no list of rows; pass a path to read_rows")
    if hasattr(obj, "to_dicts"):  # polars
        return obj.to_dicts(), True
    if hasattr(obj, "to_pylist"):  # pyarrow
        return obj.to_pylist(), True
    if hasattr(obj, "to_dict") and hasattr(obj, "columns"):  # pandas
        return obj.to_dict(orient="records"), True
    if not isinstance(obj, Iterable):
        raise InputError(
            f"{description} is no list of rows; rows are mappings, pydantic models or a data frame"
        )
    return cast("Iterable[object]", obj), False


def _row(record: Any, what: str, from_frame: bool) -> Row:
    from pydantic_core import PydanticSerializationError, to_jsonable_python

    if from_frame:
        record = {name: None if _is_missing(v) else v for name, v in record.items()}
    try:
        plain: object = to_jsonable_python(record, by_alias=True, fallback=_array_value)
    except (PydanticSerializationError, ValueError, TypeError) as error:
        raise InputError(f"{what} has no JSON form: {error}") from None
    if not isinstance(plain, dict):
        raise InputError(
            f"{what} is a {type(record).__name__}; a row is a mapping, a pydantic model or a data "
            'class, such as {"question": "..."}'
        )
    row = cast("Row", plain)
    try:
        checked(row, what)
        canonical_json(cast("Json", row)).encode()
    except ValueTypeError as error:
        raise InputError(str(error)) from None
    except UnicodeEncodeError:
        raise InputError(f"{what} holds half a character (a lone surrogate)") from None
    return row


def _is_missing(value: Any) -> bool:
    """Whether a data frame means "no value": NaN, NaT or NA, which has no truth of its own."""
    if type(value).__name__ in ("NaTType", "NAType"):
        return True
    return isinstance(value, float) and value != value


def _array_value(value: Any) -> Any:
    """Numbers and arrays of array libraries, as Python values."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise ValueError(f"a {type(value).__name__} is no JSON value")
