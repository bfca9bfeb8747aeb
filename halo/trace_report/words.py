"""Words and numbers of texts, by which rules see whether something was used."""

from __future__ import annotations

import re
from collections.abc import Collection

_MOST_CHARACTERS = 24_000
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789_"
# Lower case, and blanks between words; only ASCII is looked up in it.
_TO_WORDS = bytes(
    ord(low) if (low := chr(code).lower()) in _LETTERS else ord(" ") for code in range(256)
)
_WORD = re.compile(r"\w{2,}")
_UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]{2,}")  # kana, hanzi, hangul


def words(text: str) -> Collection[str]:
    """Words and numbers of a text in lower case, with or without repeats; of scripts without
    blanks, pairs of characters. Of a very long text the beginning and the end.

    Example:
        >>> words("Total: 1,234 for item_7")
        ['total', '1', '234', 'for', 'item_7']
    """
    if len(text) > _MOST_CHARACTERS:
        half = _MOST_CHARACTERS // 2
        text = f"{text[:half]}\n{text[-half:]}"
    if text.isascii():
        return _ascii_words(text)
    lower = text.lower()
    if lower.isascii():
        return _ascii_words(lower)
    found = set(_WORD.findall(lower))
    for run in _UNSPACED.findall(lower):
        found.update(run[place : place + 2] for place in range(len(run) - 1))
    return found


def _ascii_words(text: str) -> list[str]:
    return text.encode("ascii").translate(_TO_WORDS).decode("ascii").split()


def is_telling(word: str) -> bool:
    """Whether meeting a word again says anything: four letters, or a number of two digits, or two
    characters of a script without blanks.

    Example:
        >>> is_telling("for"), is_telling("item"), is_telling("42"), is_telling("東京")
        (False, True, True, True)
    """
    return len(word) >= 4 or (len(word) >= 2 and (word.isdigit() or not word.isascii()))


def is_strong(word: str) -> bool:
    """Whether a word is unlikely to be met twice by chance: a longer number, an identifier.

    Example:
        >>> is_strong("should"), is_strong("order_id"), is_strong("4711")
        (False, True, True)
    """
    return "_" in word or sum(character.isdigit() for character in word) >= 3
