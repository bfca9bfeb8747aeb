"""Words and numbers of texts, by which rules see whether something was used."""

from __future__ import annotations

import re

_PATTERN = r"[a-z_]\w{3,}|\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+\.\d+|\d{2,}"
_ASCII_WORD = re.compile(_PATTERN, re.ASCII)
_WORD = re.compile(r"[^\W\d]\w{3,}|" + _PATTERN.split("|", 1)[1])
_STRONG = re.compile(r"\d{3}|_|\d\.\d")
_MOST_CHARACTERS = 24_000


def words(text: str) -> frozenset[str]:
    """Words of at least four letters and numbers of at least two digits, in lower case. Of a very
    long text the beginning and the end.

    Example:
        >>> sorted(words("Total: 1,234 for item_7 or so"))
        ['1234', 'item_7', 'total']
    """
    if len(text) > _MOST_CHARACTERS:
        half = _MOST_CHARACTERS // 2
        text = f"{text[:half]}\n{text[-half:]}"
    lower = text.lower()
    found = frozenset((_ASCII_WORD if lower.isascii() else _WORD).findall(lower))
    if "," in lower:
        return frozenset(word.replace(",", "") if "," in word else word for word in found)
    return found


def is_strong(word: str) -> bool:
    """Whether a word is unlikely to be met twice by chance: a longer number, an identifier.

    Example:
        >>> is_strong("should"), is_strong("order_id"), is_strong("4711")
        (False, True, True)
    """
    return bool(_STRONG.search(word))
