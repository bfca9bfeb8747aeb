"""The parts of a prompt that may change places: its paragraphs, and the fields in a paragraph.

    You sort parcels.            a paragraph
                                 (an empty line parts paragraphs)
    Title: {title}               a field: a label, a colon, a value, and nothing else in the line
    Genre: {genre}               another one, in the same run of fields

A paragraph stays whole, and only fields that follow each other change places among themselves.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from planner.logical import Prompt, Ref, Segment
from planner.surgery import joined_literals

BREAK = "\n\n"
_LABEL = re.compile(r"[^:\n]{1,60}:[ \t]*\Z")

Line: TypeAlias = "tuple[Segment, ...]"
Arrange: TypeAlias = "Callable[[Sequence[Line]], Sequence[int]]"
"""Gives the order of some parts, as positions among them."""


@dataclass(frozen=True, slots=True)
class Paragraph:
    """The lines of a paragraph. `runs`: (first, behind the last) of fields that follow each other,
    at least two of them."""

    lines: tuple[Line, ...]
    runs: tuple[tuple[int, int], ...] = ()

    @property
    def segments(self) -> Line:
        """The paragraph as one part."""
        return _with_between(self.lines, "\n")

    def arranged(self, arrange: Arrange) -> Paragraph:
        """The paragraph with each run of fields in the order that `arrange` gives."""
        lines = list(self.lines)
        for first, end in self.runs:
            run = self.lines[first:end]
            lines[first:end] = [run[i] for i in arrange(run)]
        return Paragraph(tuple(lines), self.runs)


def paragraphs_of(prompt: Prompt) -> tuple[Paragraph, ...]:
    """The paragraphs of a prompt.

    Example:
        >>> [len(each.lines) for each in paragraphs_of(Prompt(("Sort.", "\\n\\nA: ", Ref(0))))]
        [1, 1]
    """
    return tuple(
        Paragraph(lines, _runs(lines))
        for block in _split(joined_literals(prompt).segments, BREAK)
        if (lines := tuple(tuple(line) for line in _split(block, "\n"))) != ((),)
    )


def prompt_of(paragraphs: Sequence[Paragraph]) -> Prompt:
    """The prompt with these paragraphs."""
    return joined_literals(Prompt(_with_between([each.segments for each in paragraphs], BREAK)))


def _split(segments: Sequence[Segment], mark: str) -> list[list[Segment]]:
    parts: list[list[Segment]] = [[]]
    for segment in segments:
        if isinstance(segment, Ref):
            parts[-1].append(segment)
            continue
        for number, text in enumerate(segment.split(mark)):
            if number:
                parts.append([])
            if text:
                parts[-1].append(text)
    return parts


def _with_between(parts: Sequence[Line], mark: str) -> Line:
    segments: list[Segment] = []
    for number, part in enumerate(parts):
        segments += [mark, *part] if number else part
    return tuple(segments)


def _runs(lines: Sequence[Line]) -> tuple[tuple[int, int], ...]:
    found: list[tuple[int, int]] = []
    first = 0
    for i in range(len(lines) + 1):
        if i < len(lines) and _is_field(lines[i]):
            continue
        if i - first > 1:
            found.append((first, i))
        first = i + 1
    return tuple(found)


def _is_field(line: Line) -> bool:
    match line:
        case (str() as label, Ref()):
            return _LABEL.match(label) is not None
        case _:
            return False
