"""What the statements of a batch may reach: one DuckDB instance, and the files that they name.

The instance is in memory; a database file is attached to it, read-only unless a statement writes.
Files are limited to what `--allow DIR` gives and to the paths that stand as literals in FROM (or
after COPY ... TO): nothing that a query computes can open another. No extensions, no settings, no
Python variables as tables.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from sqlglot import exp

from halo.ai_sql.errors import SqlError, SqlRefusedError
from halo.ai_sql.types import quoted

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_GLOB = re.compile(r"[*?\[{]")
_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+:")
_FILE_LIKE = re.compile(
    r"\.(csv|tsv|txt|json|jsonl|ndjson|parquet|md)(\.gz|\.zst)?$", re.IGNORECASE
)
CATALOG = "halo_db"


@dataclass(frozen=True)
class Access:
    """`database`: the file of `--db`. `writable`: whether a statement writes to it. `directories`:
    of `--allow`. `literals`: the paths and globs that statements name."""

    database: Path | None = None
    writable: bool = False
    directories: tuple[Path, ...] = ()
    literals: tuple[str, ...] = ()
    memory_bytes: int = 4 * 2**30
    threads: int = 1


def file_literals(tree: Any) -> list[str]:
    """The paths and globs that a statement names in FROM, and after COPY ... TO. Raises
    `SqlRefusedError` for what is no local file."""
    found: list[str] = []
    for table in tree.find_all(exp.Table):
        function = table.this
        if isinstance(function, exp.Func):
            for node in function.find_all(exp.Literal):
                if node.is_string and node.find_ancestor(exp.PropertyEQ, exp.Kwarg) is None:
                    found.append(str(node.this))
        elif isinstance(function, exp.Identifier):
            # DuckDB reads mail.csv, a table of the schema `mail`, as the file too.
            name = ".".join(each.name for each in table.parts)
            if _FILE_LIKE.search(name) or (function.quoted and _names_file(name)):
                found.append(name)
    if isinstance(tree, exp.Copy):
        for each in tree.args.get("files") or ():
            if each.is_string:
                target = Path(str(each.this))
                # A file that is there is replaced by way of another one beside it.
                found += [str(each.this), str(target.parent / f"tmp_{target.name}")]
    for literal in found:
        if _SCHEME.match(literal):
            raise SqlRefusedError(
                "S301", f"{literal!r} is not a local file; halo reads local files alone"
            )
        if "\0" in literal:
            raise SqlRefusedError("S301", "a path with a NUL character")
    return found


def _names_file(name: str) -> bool:
    return "/" in name or _SCHEME.match(name) is not None


def check_target(tree: Any, text: str) -> None:
    """Refuse a COPY ... TO whose directory is not there: before any call, not after the last."""
    for each in tree.args.get("files") or ():
        if each.is_string and not (parent := Path(str(each.this)).parent).is_dir():
            raise SqlError(
                "S301", f"there is no directory {str(parent)!r} to write {str(each.this)!r} in",
                text=text, offset=_place(str(each.this), text),
            )  # fmt: skip


def _place(literal: str, text: str) -> int | None:
    place = text.find(f"'{literal}'")
    return place if place >= 0 else None


def allowed(literals: Iterable[str]) -> tuple[list[str], list[str]]:
    """(directories, files) that the literals name: of a glob, the directory before its first
    wildcard."""
    directories: list[str] = []
    files: list[str] = []
    for literal in literals:
        if _GLOB.search(literal):
            fixed = literal[: _GLOB.search(literal).start()]  # type: ignore[union-attr]
            parent = fixed.rpartition("/")[0] if "/" in fixed else "."
            directories.append(str(Path(parent or "/").resolve()) + "/")
        else:
            files += [literal, str(Path(literal).resolve())]
    return directories, files


RESULTS = "halo_results"


@dataclass
class OpenDatabase:
    """A locked DuckDB instance with its three cursors: to bind texts, to run them, to read results.

    `scratch` is a directory that DuckDB may write to: results are exported through it.
    """

    connection: DuckDBPyConnection
    planning: DuckDBPyConnection
    running: DuckDBPyConnection
    reading: DuckDBPyConnection
    scratch: Path
    results: str
    marks: str

    def __post_init__(self) -> None:
        # Results may be kept for as long as a program runs: nobody closes their database.
        self._remove = weakref.finalize(self, shutil.rmtree, self.scratch, True)

    def release(self) -> None:
        """Give the database file back, for others to open; results can still be read."""
        attached = self.connection.execute(
            "SELECT count(*) FROM duckdb_databases() WHERE database_name = ?", [CATALOG]
        ).fetchone()
        if attached != (1,):
            return
        for each in (self.planning, self.running, self.reading):
            each.execute("USE memory")
        self.connection.execute(f"DETACH {CATALOG}")

    def close(self) -> None:
        """Close everything. Safe to call twice."""
        for each in (self.planning, self.running, self.reading, self.connection):
            each.close()
        self._remove()


def open_database(access: Access, tables: Mapping[str, Any] | None = None) -> OpenDatabase:
    """A locked instance with `tables` in it. Raises `SqlError`."""
    import duckdb

    scratch = Path(tempfile.mkdtemp(prefix="halo-sql-"))
    connection = duckdb.connect(
        ":memory:",
        config={
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "python_enable_replacements": False,
            "memory_limit": f"{access.memory_bytes}B",
            "temp_directory": str(scratch),
            "threads": access.threads,
        },
    )
    try:
        for name, rows in (tables or {}).items():
            load_table(connection, name, rows)
        connection.execute(f"CREATE SCHEMA memory.{RESULTS}")
        path = "memory.main"
        if access.database is not None:
            _attach(connection, access)
            path = f"{CATALOG}.main,memory.main"
        cursors = [connection.cursor() for _ in range(3)]
        for cursor in cursors:
            cursor.execute(f"SET search_path = '{path}'")
        _lock(connection, access, str(scratch))
    except BaseException:
        connection.close()
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    marks = f"{CATALOG}.main" if access.database is not None and access.writable else ""
    return OpenDatabase(
        connection, cursors[0], cursors[1], cursors[2], scratch, f"memory.{RESULTS}", marks
    )


def _attach(connection: DuckDBPyConnection, access: Access) -> None:
    import duckdb

    path = access.database
    assert path is not None
    if not path.exists() and not access.writable:
        raise SqlError("S302", f"there is no database file {path}")
    if path.is_file() and path.stat().st_size and not _is_duckdb(path):
        raise SqlError(
            "S302",
            f"{path} is not a DuckDB database; a file of rows is read in the statement, with "
            f"FROM '{path}'",
        )
    mode = "" if access.writable else " (READ_ONLY)"
    text = str(path).replace("'", "''")
    try:
        connection.execute(f"ATTACH '{text}' AS {CATALOG}{mode}")
    except duckdb.Error as error:
        raise SqlError("S302", f"{path} cannot be opened as a DuckDB file: {error}") from None


def _is_duckdb(path: Path) -> bool:
    """By the mark that DuckDB writes after the checksum of a file's first block."""
    with path.open("rb") as file:
        return file.read(12)[8:] == b"DUCK"


def _lock(connection: DuckDBPyConnection, access: Access, scratch: str) -> None:
    directories, files = allowed(access.literals)
    directories.append(f"{scratch}/")
    directories += [f"{each.resolve()}/" for each in access.directories]
    connection.execute(f"SET allowed_directories = {_list(directories)}")
    connection.execute(f"SET allowed_paths = {_list(files)}")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")


def _list(texts: Sequence[str]) -> str:
    return "[" + ", ".join("'" + text.replace("'", "''") + "'" for text in texts) + "]"


def load_table(connection: DuckDBPyConnection, name: str, rows: Any) -> None:
    """Make a table of a data frame (pandas, polars, Arrow) or of a list of objects."""
    import duckdb

    relation = rows
    if isinstance(rows, list | tuple | dict | str):
        relation = _from_objects(connection, name, cast("Any", rows))
    try:
        connection.register("halo_given", relation)
        connection.execute(f"CREATE TABLE memory.main.{quoted(name)} AS SELECT * FROM halo_given")
        connection.unregister("halo_given")
    except duckdb.Error as error:
        raise SqlError("S303", f"table {name!r} cannot be read: {error}") from None


def _from_objects(connection: DuckDBPyConnection, name: str, given: Any) -> Any:
    import json

    rows = cast("list[Any]", given) if isinstance(given, list | tuple) else []
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise SqlError(
            "S303",
            f"table {name!r} must be a data frame (pandas, polars, Arrow), or a list of objects "
            "with at least one",
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        with path.open("w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
        found = connection.sql(
            f"SELECT * FROM read_json('{path}', format='newline_delimited', sample_size=-1)"
        )
        connection.execute("DROP TABLE IF EXISTS halo_objects")
        found.create("halo_objects")
    return connection.sql("SELECT * FROM halo_objects")
