"""Results of statements: rows in DuckDB, read as Python objects, data frames, files or a table."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast, overload

from halo.ai_sql.access import OpenDatabase
from halo.ai_sql.documents import sql_text
from halo.errors import HaloError
from halo.result import RunResult

if TYPE_CHECKING:
    from duckdb import DuckDBPyRelation

FORMATS = ("table", "json", "jsonl", "csv", "parquet")
_COPY = {
    "json": "(FORMAT json, ARRAY true)",
    "jsonl": "(FORMAT json)",
    "csv": "(FORMAT csv, HEADER true)",
    "parquet": "(FORMAT parquet)",
}


def counted(count: int, noun: str) -> str:
    """A number and its noun.

    Example:
        >>> counted(1, "row"), counted(2000, "row")
        ('1 row', '2,000 rows')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


@dataclass(frozen=True)
class RowFailure:
    """One line of `halo_errors`: a call that has no answer."""

    run: str
    query: str
    function: str
    key: str
    attempts: int
    error_class: str
    message: str


ERROR_COLUMNS = ("run", "query", "function", "key", "attempts", "error_class", "message")


@dataclass
class QueryResult(Sequence[dict[str, Any]]):
    """The rows of one statement: a sequence of dictionaries that stays in DuckDB until it is read.

    Attributes:
        name: of the statement in its batch, "q1", "q2", ...
        columns, types: as DuckDB names them.
        written: for CREATE, INSERT and COPY, the number of rows written; None for a SELECT.
        errors: the calls of this statement that have no answer.
        run: what the whole batch did: calls, tokens, time, EXPLAIN ANALYZE.
        warnings: what the author of the statement should know.
        batch: the results of all statements of the batch.
    """

    name: str
    columns: tuple[str, ...]
    types: tuple[str, ...]
    run: RunResult
    database: OpenDatabase
    written: int | None = None
    errors: list[RowFailure] = field(default_factory=list[RowFailure])
    warnings: tuple[str, ...] = ()
    n_rows: int = 0
    batch: list[QueryResult] = field(default_factory=list["QueryResult"])

    def __len__(self) -> int:
        return self.n_rows

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            start, stop, step = index.indices(self.n_rows)
            rows = self._some(start, max(0, stop - start)) if step > 0 else list(self)[index]
            return rows[::step] if step > 0 else rows
        position = index + self.n_rows if index < 0 else index
        if not 0 <= position < self.n_rows:
            raise IndexError(f"row {index} of {self.n_rows}")
        return self._some(position, 1)[0]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for values in self.tuples():
            yield dict(zip(self.columns, values, strict=True))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, QueryResult | list):
            return list(self) == list(cast("list[Any]", other))
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        count, done = (self.n_rows, "") if self.written is None else (self.written, " written")
        errors = counted(len(self.errors), "error")
        return f"<halo.sql {self.name}: {counted(count, 'row')}{done}, {errors}>"

    def _repr_html_(self) -> str:
        from halo.ai_sql.table import html_table

        return html_table(self)

    def tuples(self) -> Iterator[tuple[Any, ...]]:
        """The rows as tuples, read from DuckDB bit by bit."""
        if self.written is not None:
            return
        cursor = self.database.reading.cursor()
        try:
            cursor.execute(f"SELECT * FROM {self.table}")
            while batch := cursor.fetchmany(1024):
                yield from batch
        finally:
            cursor.close()

    @property
    def table(self) -> str:
        """The table in DuckDB that holds the rows."""
        return f'{self.database.results}."{self.name}"'

    @property
    def relation(self) -> DuckDBPyRelation:
        """The rows as a DuckDB relation."""
        return self.database.reading.sql(f"SELECT * FROM {self.table}")

    def df(self) -> Any:
        """A pandas data frame. Needs pandas."""
        return self._frame("df", "pandas")

    def pl(self) -> Any:
        """A polars data frame. Needs polars and pyarrow."""
        return self._frame("pl", "polars")

    def arrow(self) -> Any:
        """An Arrow table. Needs pyarrow."""
        return self._frame("to_arrow_table", "pyarrow")

    def _frame(self, method: str, package: str) -> Any:
        try:
            return getattr(self.relation, method)()
        except ImportError as error:
            raise HaloError(f"this needs {package}: pip install {package}") from error

    def show(self, max_rows: int = 40) -> None:
        """Print the rows as a table."""
        from halo.ai_sql.table import print_table

        print_table(self, max_rows=max_rows)

    def explain(self) -> str:
        """EXPLAIN ANALYZE of the batch: estimate beside actual."""
        return self.run.explain()

    def write(self, path: str | Path, format: str = "") -> Path:
        """Write the rows to a file; the format follows the file's name unless it is given."""
        target = Path(path)
        kind = format or target.suffix.lstrip(".").lower().replace("ndjson", "jsonl")
        made = self._export(kind)
        shutil.move(made, target)
        return target

    def stream(self, format: str, out: IO[bytes]) -> None:
        """Write the rows to a binary stream in a format other than "table"."""
        made = self._export(format)
        with made.open("rb") as file:
            shutil.copyfileobj(file, out)
        made.unlink()

    def _export(self, format: str) -> Path:
        if format not in _COPY:
            raise HaloError(f"no format {format!r}; the formats are: {', '.join(_COPY)}")
        if self.written is not None:
            raise HaloError(f"{self.name} has written its rows and has none to export")
        path = self.database.scratch / f"{self.name}.{format}"
        cursor = self.database.reading.cursor()
        try:
            cursor.execute(
                f"COPY (SELECT * FROM {self.table}) TO {sql_text(str(path))} {_COPY[format]}"
            )
        finally:
            cursor.close()
        return path

    def _some(self, start: int, count: int) -> list[dict[str, Any]]:
        cursor = self.database.reading.cursor()
        try:
            cursor.execute(f"SELECT * FROM {self.table} LIMIT {count} OFFSET {start}")
            rows = cursor.fetchall()
        finally:
            cursor.close()
        return [dict(zip(self.columns, values, strict=True)) for values in rows]
