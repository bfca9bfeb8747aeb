"""Which model-written query texts are handed to DuckDB's parser.

The parser cannot be interrupted and keeps the interpreter's lock, so no time limit holds while it
runs: a text that takes it long stops the whole process. Measured with DuckDB 2.0, a text with a
syntax error takes cubic time in open parentheses, and six times as long with each further nested
WITH: 110 characters of `WITH a AS (` were not done after 20 s. What is refused here is refused
before parsing, by counts that hold however quotes and comments are read.
"""

from __future__ import annotations

import re

from runtime.errors import ToolError

MAX_CHARS = 100_000
MAX_PARENTHESES = 500
_MAX_EFFORT = 1_000_000
"""Characters times what nested WITHs multiply: about half a second."""
_EFFORT_OF_WITH = 6

_WITH = re.compile(r"\bWITH\b", re.IGNORECASE)
_AS = re.compile(r"\bAS\b", re.IGNORECASE)


def check_text(text: str, database: str) -> None:
    """Raise `ToolError` for a text that could take the parser more than about half a second."""
    parentheses = text.count("(")
    if len(text) > MAX_CHARS or parentheses > MAX_PARENTHESES:
        raise ToolError(
            f"the query on {database} has {len(text):,} characters and {parentheses:,} opening "
            f"parentheses; a query that a model writes may have {MAX_CHARS:,} and "
            f"{MAX_PARENTHESES:,}",
            tool=database,
        )
    # Each nested WITH needs one of each.
    nested = min(len(_WITH.findall(text)), len(_AS.findall(text)), parentheses)
    if len(text) * _EFFORT_OF_WITH**nested > _MAX_EFFORT:
        raise ToolError(
            f"the query on {database} has {nested} WITH in {len(text):,} characters, more than a "
            "query that a model writes may have; name all common table expressions after one WITH",
            tool=database,
        )
