"""Names of models and devices, written many ways, and the nearest to one that is not known."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

_SEPARATORS = re.compile(r"[^a-z0-9]+")
_SUFFIXES = ("-instruct", "-it", "-chat", "-hf", "-terminus")


def plain_name(name: str) -> str:
    """`name` without its organisation, case and separators.

    Example:
        >>> plain_name("meta-llama/Llama-3.1-8B-Instruct"), plain_name("RTX 4090")
        ('llama-3-1-8b', 'rtx-4090')
    """
    plain = _SEPARATORS.sub("-", name.rsplit("/", 1)[-1].lower()).strip("-")
    for suffix in _SUFFIXES:
        plain = plain.removesuffix(suffix)
    return plain


def nearest(name: str, known: Iterable[str]) -> str:
    """A phrase for an error message: the nearest names, or all when none is near.

    Example:
        >>> nearest("h20", ["H200", "A100", "V100"])
        'nearest: H200'
    """
    by_plain = {plain_name(each): each for each in known}
    close = difflib.get_close_matches(plain_name(name), by_plain, n=3, cutoff=0.5)
    if close:
        return f"nearest: {', '.join(by_plain[each] for each in close)}"
    return f"there are: {', '.join(sorted(by_plain.values(), key=str.lower))}"
