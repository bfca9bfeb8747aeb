"""What DuckDB says of a statement that it cannot bind, in terms of what the author can change."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from halo.ai_sql.errors import SqlError, SqlRefusedError, nearest

_NO_FILE_ACCESS = re.compile(r'Cannot access (?:file|directory) "([^"]+)"')
_NO_TABLE = re.compile(r"Table with name (.+?) does not exist!")
_SUFFIXES = (".csv", ".parquet", ".json", ".jsonl", ".tsv")


def bind_error(reason: str, text: str, tables: Iterable[str], offset: int) -> SqlError:
    """The error of a statement of the batch `text`, for DuckDB's `reason`. `tables` are those that
    the statement may name; `offset` is where the reason points to, negative when unknown."""
    if file := _NO_FILE_ACCESS.search(reason):
        return _file_error(file[1], text)
    if table := _NO_TABLE.search(reason):
        # DuckDB's own hint names tables of its catalog.
        name = table[1].strip('"')
        reason = f"there is no table {name!r}.{nearest(name, tables) or _as_file(name)}"
    if "LINE " in reason and offset >= 0:
        reason = reason.partition("LINE ")[0].rstrip()  # of a text that nobody has written
    return SqlError("S003", reason.rstrip("."), text=text, offset=offset)


def _file_error(tried: str, text: str) -> SqlError:
    """DuckDB was not let at a file: there is none of that name, when the name stands in the text as
    it is; else it is not among those that may be read."""
    # DuckDB looks for a directory of that name after it has found no file.
    name = re.split(r"/\*\*|[*?\[]", tried)[0]
    if name and f"'{name}'" in text and not Path(name).exists():
        return SqlError(
            "S301", f"there is no file {name!r}.{_like(name)}".rstrip("."),
            text=text, offset=text.find(f"'{name}'"),
        )  # fmt: skip
    return SqlRefusedError(
        "S301",
        f"the file {tried!r} may not be read: statements open the files whose paths stand in them "
        "as texts, and those below a directory of --allow DIR (in Python: allow=[...])",
    )


def _like(name: str) -> str:
    """A file beside `name` that is most like it."""
    path = Path(name)
    if not path.parent.is_dir():
        return ""
    beside = [str(each.name) for each in path.parent.iterdir() if each.suffix == path.suffix]
    return nearest(path.name, beside)


def _as_file(name: str) -> str:
    for suffix in _SUFFIXES:
        if Path(name + suffix).is_file():
            return f" The file of that name is read with FROM '{name}{suffix}'"
    if Path(name).is_file():
        return f" As a file it is read with read_csv('{name}') or read_text('{name}')"
    return ""
