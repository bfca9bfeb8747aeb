"""Masking: AI function names become names that sqlglot gives no meaning of its own.

sqlglot types some of them too narrowly (`AI_CLASSIFY` takes three arguments at most, `AI.IF` is
read as `IF`), and its classes cannot be subclassed in its compiled build. So a known name that
stands before a parenthesis gets `ZZ` in place of its first two letters, and the dotted form also
loses its dot. The length of the text does not change: every position stays right.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from halo.sql.functions import FOREIGN, FUNCTIONS

_BARE = frozenset(name for name in (*FUNCTIONS, *FOREIGN) if "." not in name) - {"PROMPT"}
_DOTTED = frozenset(name.partition(".")[2] for name in FOREIGN if "." in name)


def mask(text: str, tokens: Sequence[Any]) -> str:
    """`text` with the AI function names among `tokens` (sqlglot's, of the text) masked. Texts,
    quoted names and comments are left alone.

    Example:
        >>> import sqlglot
        >>> text = "SELECT AI_FILTER('AI_FILTER(x)'), AI.IF(y)"
        >>> mask(text, sqlglot.tokenize(text, read="duckdb"))
        "SELECT ZZ_FILTER('AI_FILTER(x)'), ZZ_IF(y)"
    """
    out = list(text)

    def bare(index: int) -> str:
        if index >= len(tokens) or tokens[index].token_type.name in ("IDENTIFIER", "STRING"):
            return ""
        return str(tokens[index].text).upper()

    def opens(index: int) -> bool:
        return index < len(tokens) and tokens[index].token_type.name == "L_PAREN"

    for i, token in enumerate(tokens):
        after_dot = i > 0 and tokens[i - 1].token_type.name == "DOT"
        if bare(i) in _BARE and opens(i + 1) and not after_dot:
            out[token.start : token.start + 2] = "ZZ"
        elif (
            bare(i) == "AI"
            and i + 3 < len(tokens)
            and tokens[i + 1].token_type.name == "DOT"
            and bare(i + 2) in _DOTTED
            and opens(i + 3)
            # "AI . IF" is left alone, and refused: the masked name would not fit.
            and tokens[i + 2].start == token.start + 3
        ):
            out[token.start : token.start + 3] = "ZZ_"
    return "".join(out)
