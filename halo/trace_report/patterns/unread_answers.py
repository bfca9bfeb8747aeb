"""Oversized unread tool answers: long, and nothing of them is ever used."""

from __future__ import annotations

from halo.trace_report.finding import Finding, Thresholds, Verdict, quote
from halo.trace_report.view import View
from halo.trace_report.words import is_strong, is_telling

NAME = "unread_answers"
_STUB_TOKENS = 50  # what a short notice in its place would take
_FEW_WORDS = 3


def find(view: View, thresholds: Thresholds) -> Verdict:
    """Fires on a long tool answer of which no identifier or longer number, and fewer than three
    other new words, occur in anything that the model writes later."""
    trace = view.trace
    large = [
        each
        for each in view.calls
        if each.answer is not None
        and each.answer.tokens >= thresholds.unread_tokens
        and each.answer_turn < len(trace.turns)
    ]
    if not large:
        if not trace.has_content and view.calls:
            return Verdict(NAME, "unknown", reason="the trace has no tool answers")
        return Verdict(NAME, "clear")
    if not any(each.answer and each.answer.text for each in large):
        return Verdict(NAME, "unknown", reason="the trace has no tool answers")
    places = view.word_places
    findings: list[Finding] = []
    for each in large:
        answer = each.answer
        assert answer is not None
        here = (each.answer_turn, each.answer_place)
        used = [word for word in places.brought.get(here, ()) if is_telling(word)]
        if len(used) >= _FEW_WORDS or any(is_strong(word) for word in used):
            continue
        if here in places.repeats:
            continue  # it repeats what the context has: another rule's business
        confidence = 0.75 if not used else 0.6
        findings.append(
            Finding(
                each.answer_turn, f"input {each.answer_place}", 0, len(answer.text),
                quote(answer.text), confidence,
                view.carry(max(0.0, answer.tokens - _STUB_TOKENS), each.answer_turn),
                why=f"{answer.tokens:,.0f} tokens of {each.name}, of which nothing is used later",
            )
        )  # fmt: skip
    if findings and view.thinking_hidden:
        return Verdict(NAME, "unknown", reason="the thinking, where it may be used, is hidden")
    return Verdict(NAME, "fired" if findings else "clear", tuple(findings))
