"""What a rule finds, with its evidence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["fired", "clear", "unknown"]
_QUOTE = 160


@dataclass(frozen=True, slots=True)
class Finding:
    """One occurrence.

    Attributes:
        turn: index of the turn that made the waste.
        where: "output" or "input N" of that turn (N from 0), or "call" for a tool call's arguments.
        start, end: the span within that text, in characters.
        quote: the text of the span, cut to a line.
        confidence: from 0 to 1.
        pte: what it accounts for; findings of different patterns may overlap.
        label: a variety, such as "slip", "collapse" or "useful verification".
        why: the evidence in words.
    """

    turn: int
    where: str
    start: int
    end: int
    quote: str
    confidence: float
    pte: float
    label: str = ""
    why: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A rule's answer on one trace.

    Attributes:
        paper: the plain rule of the publication, where it has one; None where it has none or
            cannot be told.
        reason: why it is unknown.
    """

    pattern: str
    status: Status
    findings: tuple[Finding, ...] = ()
    paper: bool | None = None
    reason: str = ""

    @property
    def pte(self) -> float:
        """PTE of all findings."""
        return sum(finding.pte for finding in self.findings)


def quote(text: str, start: int = 0, end: int | None = None) -> str:
    """A span as one short line."""
    piece = text[start : end if end is not None else len(text)][: _QUOTE + 1]
    line = " ".join(piece.split())
    return line if len(line) <= _QUOTE else line[: _QUOTE - 1] + "…"


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What counts as large.

    Attributes:
        unread_tokens: a tool answer of at least this many tokens is judged for being unread.
        lost_tokens: a follow-on call that lost more than this is a cache loss: several blocks of
            the usual 64 to 128 tokens.
    """

    unread_tokens: int = 400
    lost_tokens: int = 512


DEFAULT_THRESHOLDS = Thresholds()
