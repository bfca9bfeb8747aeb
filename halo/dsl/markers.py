"""Markers: how a lazy value travels through an f-string, and how a text is split again.

A marker is the identifier of a reference between two Unicode noncharacters (code points that are
set aside for use inside a program and never interchanged), together with a random nonce of the
process and one of the trace: text from outside cannot forge one. Its letters alternate in case, so
that every change of case destroys it, and a destroyed marker is recognized by what is left of it:
an error, never text that is sent to a model.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass

_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
_RESERVED = re.compile("[\ufdd0-\ufdef]")
_CONSONANTS = "bcdfghjklmnpqrstvwxz"
_NONCE_LETTERS, _TAG_LETTERS = 16, 8
_REMNANT_LETTERS = 6


def _letters(count: int) -> str:
    drawn = (secrets.choice(_CONSONANTS) for _ in range(count))
    return "".join(c.upper() if i % 2 else c for i, c in enumerate(drawn))


_PROCESS = _letters(8)
_MARKER = re.compile(
    f"{_OPEN}{_PROCESS}([A-Za-z]{{{_NONCE_LETTERS}}})([A-Za-z]{{{_TAG_LETTERS}}}){_CLOSE}"
)


class MarkerError(ValueError):
    """A text holds a marker that cannot be resolved; the message says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Tag:
    """The identifier of a reference, found in a text."""

    text: str


def new_nonce() -> str:
    """A nonce for one trace."""
    return _letters(_NONCE_LETTERS)


def new_tag() -> str:
    """An identifier for one reference. Random rather than a number, so that a replaced digit
    cannot turn one reference into another."""
    return _letters(_TAG_LETTERS)


def marker(nonce: str, tag: str) -> str:
    """The text that stands for the reference `tag` of the trace `nonce`."""
    return f"{_OPEN}{_PROCESS}{nonce}{tag}{_CLOSE}"


def holds_marker(text: str) -> bool:
    """Whether `text` has a whole marker of any trace of this process."""
    return _MARKER.search(text) is not None


def split(text: str, nonce: str) -> list[str | Tag]:
    """The literals (none empty) and references of `text`, in order.

    Raises `MarkerError` for a marker of another trace and for what is left of a damaged one.
    """
    parts: list[str | Tag] = []
    position = 0
    for match in _MARKER.finditer(text):
        if match[1] != nonce:
            raise MarkerError("the text holds a lazy value of another trace")
        parts += [text[position : match.start()], Tag(match[2])]
        position = match.end()
    parts.append(text[position:])
    literals = [part for part in parts if isinstance(part, str)]
    if any(_is_damaged(literal, nonce) for literal in literals):
        raise MarkerError(
            "the text holds what is left of a lazy value: a string method, a slice, !r, or a "
            "list or dict formatted as text changed the place where its value belongs"
        )
    return [part for part in parts if part]


def _is_damaged(literal: str, nonce: str) -> bool:
    if _RESERVED.search(literal):
        return True
    folded, wanted = literal.casefold(), nonce.casefold()
    grams = range(_NONCE_LETTERS - _REMNANT_LETTERS + 1)
    return any(wanted[i : i + _REMNANT_LETTERS] in folded for i in grams)
