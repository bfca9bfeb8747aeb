"""Confirmatory tool use: a tool is asked for what the model had already stated."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from functools import cached_property

from halo.trace_report.finding import Finding, Thresholds, Verdict, quote
from halo.trace_report.tool_families import is_final
from halo.trace_report.view import CallAt, View

NAME = "confirmatory"
_CUE = re.compile(
    r"\b(verify|verifying|double[- ]?check|confirm|confirming|make sure|sanity[- ]check|"
    r"cross[- ]?check|validate)\b",
    re.IGNORECASE,
)
# Repeats are bounded: a text made for it must not take more than a moment.
_MARKED = (
    re.compile(r"\\boxed\{((?:[^{}]|\{[^{}]{0,100}\}){1,200})\}"),
    re.compile(r"<answer>(.{1,300}?)</answer>", re.DOTALL | re.IGNORECASE),
    re.compile(
        r"\bfinal answer(?: is)? ?[:=]? ?\*{0,2}([^\n*]{1,200}?)\*{0,2}(?:\.\s|\.?$|\n)", re.I
    ),
    re.compile(r"(?:^|\n|[.!?] )\*{0,2}answer\*{0,2} ?:\*{0,2}([^\n]{1,200})", re.IGNORECASE),
    re.compile(
        r"\bthe answer is ?:? ?\*{0,2}([^\n*]{1,200}?)\*{0,2}(?:\.\s|\.?$|\n|,)", re.IGNORECASE
    ),
)
_LAST_CHARACTERS = 8000
_NUMBER = re.compile(r"^[-+]?\$?\d[\d,]*(?:\.\d+)?(?:/\d+)?%?$")
_MEASURED = re.compile(r"^([-+]?\$?\d[\d,]*(?:\.\d+)?)\s*(?:[a-zA-Zµ°€£][\w/^°²³]*){1,2}$")
_STATED = re.compile(
    r"(?:\bis|\bare|\bwas|=|\bequals|\bget|\bgives|\banswer|\bbe|:|\btotal(?:s)?|\\boxed\{)\s*\**\$?$",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class _Answer:
    """A final answer as it is searched for, in texts that live as long as it does.

    Attributes:
        hints: a text without any of them has no match; the expression is slow on long texts.
        without: ids of texts that were found to have none: answers of tools are asked twice.
    """

    shown: str
    expression: str
    needs_cue: bool
    hints: tuple[str, ...]
    without: set[int] = field(default_factory=set[int])

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        return re.compile(self.expression, re.IGNORECASE)

    def find(self, text: str) -> re.Match[str] | None:
        if id(text) in self.without:
            return None
        if not any(hint in text for hint in self.hints):
            self.without.add(id(text))
            return None
        for match in self.pattern.finditer(text):
            before = text[max(0, match.start() - 24) : match.start()].rstrip()
            if not self.needs_cue or _STATED.search(before):
                return match
        return None


def find(view: View, thresholds: Thresholds) -> Verdict:
    """Fires where the final answer stands in the model's own text at or before a call, comes from
    neither the prompt nor an earlier tool answer, and does not change after it. A verification that
    changed the answer is useful and no waste."""
    trace = view.trace
    if not trace.has_content:
        return Verdict(NAME, "unknown", reason="the trace has no texts")
    work = [each for each in view.calls if not is_final(each.name)]
    if not work:
        return Verdict(NAME, "clear", paper=False)
    answer = final_answer(view)
    if answer is None:
        return Verdict(NAME, "unknown", reason="no final answer is marked in the trace")
    first = _first_statement(view, answer)
    if first is None:
        if view.thinking_hidden:
            return Verdict(NAME, "unknown", reason="the thinking is hidden")
        useful = _useful(view, work, answer)
        return Verdict(NAME, "clear", useful, paper=False)
    turn, start, end, text = first
    later = [each for each in work if each.turn >= turn]
    if not later:
        return Verdict(NAME, "clear", paper=False)
    cue = _CUE.search(text)
    echoed = any(each.answer and answer.find(each.answer.text) for each in later)
    confidence = 0.6 + (0.2 if cue else 0.0) + (0.15 if echoed else 0.0)
    carried = 0.0
    if turn < len(view.turns) - 1:
        carried = sum(view.costs[i].value for i in range(turn + 1, len(view.costs)))
    finding = Finding(
        turn, "output", start, end, quote(text, max(0, start - 60), end + 40), confidence, carried,
        why=f"{answer.shown!r} is stated before {len(later)} more tool calls"
        + (", and a tool repeats it" if echoed else "")
        + (f", with the cue {cue.group()!r}" if cue else ""),
    )  # fmt: skip
    return Verdict(NAME, "fired", (finding,), paper=True)


def final_answer(view: View) -> _Answer | None:
    """The marked answer of the last turn, or what the trace gives as the answer; numbers are found
    with or without separators, other texts need four characters."""
    trace = view.trace
    last = trace.turns[-1].output.text[-_LAST_CHARACTERS:]
    candidates: list[str] = []
    for marked in _MARKED:
        candidates += [match.strip() for match in marked.findall(last)][-1:]
    for each in view.calls:
        if is_final(each.name) and each.turn == len(trace.turns) - 1:
            arguments = each.call.arguments
            if isinstance(arguments, dict):
                candidates += [str(value) for value in arguments.values()][:1]  # pyright: ignore
    candidates += [trace.answer, trace.expected if trace.expected in last else ""]
    for candidate in candidates:
        answer = _answer(candidate.strip().strip("`'\"$* ").rstrip("."))
        if answer is not None:
            return answer
    return None


def _answer(text: str) -> _Answer | None:
    if not text or len(text) > 200:
        return None
    measured = _MEASURED.match(text)
    if measured:  # a number with its unit, which may be stated without it
        text = measured.group(1)
    if _NUMBER.match(text):
        digits = text.replace(",", "").replace("$", "").rstrip("%")
        head, dot, tail = digits.partition(".")
        spaced = "".join(
            char + (",?" if (len(head) - i - 1) % 3 == 0 and i < len(head) - 1 else "")
            for i, char in enumerate(re.escape(c) if not c.isdigit() else c for c in head)
        )
        body = spaced + (re.escape(dot + tail) if dot else r"(?:\.0+)?")
        hints = (head, f"{int(head):,}") if head.isdigit() else (head[-3:],)
        return _Answer(
            text,
            rf"(?<![\w.,/])\$?{body}(?![\w/]|[.,]\d)",
            needs_cue=len(re.sub(r"\D", "", text)) < 3,
            hints=tuple(dict.fromkeys(hints)),
        )
    if len(text) < 4:
        return None
    body = r"\s+".join(re.escape(word) for word in text.split())
    first = text.split()[0]
    spellings = (first, first.lower(), first.upper(), first.capitalize())
    return _Answer(
        text, rf"(?<!\w){body}(?!\w)", needs_cue=False, hints=tuple(dict.fromkeys(spellings))
    )


def _first_statement(view: View, answer: _Answer) -> tuple[int, int, int, str] | None:
    """(turn, start, end, text) where the model first states the answer by itself."""
    plain = replace(answer, needs_cue=False)
    for place, turn in enumerate(view.trace.turns[:-1]):
        for message in turn.inputs:
            if plain.find(message.text):
                return None
        for text in (turn.output.reasoning, turn.output.text):
            match = answer.find(text) if text else None
            if match:
                return place, match.start(), match.end(), text
    return None


def _useful(view: View, work: list[CallAt], answer: _Answer) -> tuple[Finding, ...]:
    """Verifications that changed the answer: one was stated before a tool gave the final one."""
    for each in work:
        if each.answer is None or not answer.find(each.answer.text):
            continue
        text = view.trace.turns[each.turn].output.text[-_LAST_CHARACTERS:]
        cue = _CUE.search(text)
        stated = next((m for pattern in _MARKED if (m := pattern.search(text))), None)
        if cue and stated:
            return (
                Finding(
                    each.turn, "output", stated.start(), stated.end(), quote(stated.group()),
                    0.5, 0.0, "useful verification", "the tool's answer changed the stated one",
                ),
            )  # fmt: skip
    return ()
