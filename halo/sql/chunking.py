"""Cutting texts into chunks of about so many tokens, at paragraph, sentence or word ends."""

from __future__ import annotations

import re

from costmodel.tokens import BYTES_PER_TOKEN

_END = re.compile(r"\n\s*\n|(?<=[.!?])\s+|\s+")


def chunks(text: str, tokens: int = 512, overlap: int = 32) -> list[str]:
    """Chunks of at most `tokens` tokens (a token is estimated as four bytes); each begins with
    about the last `overlap` tokens of the one before. A text without spaces is cut anywhere.

    Every character of the text is in a chunk, white space at the ends of chunks apart.

    Example:
        >>> chunks("one two three four", tokens=2, overlap=0)
        ['one two', 'three', 'four']
    """
    size, keep = tokens * BYTES_PER_TOKEN, overlap * BYTES_PER_TOKEN
    found: list[str] = []
    start = 0
    while start < len(text):
        end = _fit(text, start, size)
        if end < len(text):
            end = _break(text, start, end)
        if piece := text[start:end].strip():
            found.append(piece)
        if end >= len(text):
            break
        back = _back(text, start, end, keep)
        start = back if back > start else end
    return found


def _fit(text: str, start: int, size: int) -> int:
    """The end of the longest piece from `start` of at most `size` bytes, at least one character."""
    end = min(len(text), start + size)
    while end > start + 1 and len(text[start:end].encode(errors="surrogatepass")) > size:
        excess = len(text[start:end].encode(errors="surrogatepass")) - size
        end = max(start + 1, end - max(1, excess // 4))
    return end


def _break(text: str, start: int, end: int) -> int:
    """The best place to cut at or before `end`: after a paragraph, a sentence, a word."""
    if text[end : end + 1].isspace():
        return end
    half = start + (end - start) // 2
    paragraph = text.rfind("\n\n", half, end)
    if paragraph > start:
        return paragraph
    sentences = [m.end() for m in re.finditer(r"[.!?]\s", text[half:end])]
    if sentences:
        return half + sentences[-1]
    for position in range(end - 1, start, -1):
        if text[position].isspace():
            return position
    return end


def _back(text: str, start: int, end: int, keep: int) -> int:
    """Where the next chunk begins: at a word, about `keep` bytes before `end`."""
    if not keep:
        return end
    position = max(start + 1, end - keep)
    while position < end and not text[position - 1].isspace():
        position += 1
    return position
