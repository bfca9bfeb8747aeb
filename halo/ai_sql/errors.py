"""Errors of SQL statements: what is wrong, where in the text, and what to write instead.

Codes are stable and documented in docs/sql.md: S0xx statements, S1xx calls of AI functions, S2xx
places where an AI function may not stand, S3xx files.
"""

from __future__ import annotations

from collections.abc import Iterable

from costmodel.errors import HaloError


class SqlError(HaloError):
    """A statement cannot be read or planned.

    Attributes:
        code: stable, such as "S102".
        line, column: of the text as given, from 1; 0 when no place is known.
    """

    def __init__(self, code: str, message: str, *, text: str = "", offset: int | None = None):
        self.code = code
        self.line = self.column = 0
        shown = message
        if text and offset is not None and 0 <= offset <= len(text):
            self.line = text.count("\n", 0, offset) + 1
            start = text.rfind("\n", 0, offset) + 1
            self.column = offset - start + 1
            shown = f"{message}\n\n{caret(text, offset)}"
        super().__init__(f"{code}: {shown}")
        self.message = message


class SqlRefusedError(SqlError):
    """A statement asks for what policy refuses: a file outside the allowed ones, a kind of
    statement that Halo does not run. The command line exits with 5."""


_BEFORE, _AFTER = 60, 40


def caret(text: str, offset: int) -> str:
    """The line around `offset` as DuckDB shows it, with a caret below.

    Example:
        >>> print(caret("SELECT 1\\nFORM t", 9))
        LINE 2: FORM t
                ^
    """
    number = text.count("\n", 0, offset) + 1
    start = text.rfind("\n", 0, offset) + 1
    end = text.find("\n", offset)
    line = text[start : end if end >= 0 else len(text)]
    at = offset - start
    head, prefix = f"LINE {number}: ", ""
    if at > _BEFORE:
        line, at, prefix = line[at - _BEFORE :], _BEFORE, "..."
    if len(line) > at + _AFTER:
        line = line[: at + _AFTER] + "..."
    return f"{head}{prefix}{line}\n{' ' * (len(head) + len(prefix) + at)}^"


def nearest(name: str, names: Iterable[str]) -> str:
    """ " Did you mean 'x'?" for the name most like `name`, or nothing."""
    import difflib

    known = list(names)
    found = difflib.get_close_matches(name.lower(), [each.lower() for each in known], 1, 0.5)
    return f" Did you mean {found[0]!r}?" if found else ""
