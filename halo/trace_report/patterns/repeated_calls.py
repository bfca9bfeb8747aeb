"""Repeated equal calls: the same tool, the same arguments, the same answer."""

from __future__ import annotations

from collections.abc import Sequence

from halo.trace_report.finding import Finding, Thresholds, Verdict, quote
from halo.trace_report.tool_families import is_final, is_polling
from halo.trace_report.view import CallAt, View

NAME = "repeated_calls"


def find(view: View, thresholds: Thresholds) -> Verdict:
    """Fires where an equal call gave an equal answer before. Failing calls are the business of
    `tool_priors`; tools that are asked again by nature (status, wait) are left alone."""
    if not view.calls:
        return Verdict(NAME, "clear")
    if all(not each.call.arguments_text and each.call.arguments is None for each in view.calls):
        return Verdict(NAME, "unknown", reason="the trace has no arguments of calls")
    first: dict[tuple[str, str], CallAt] = {}
    findings: list[Finding] = []
    for each in view.calls if _answers_begin_alike(view.calls) else ():
        if is_final(each.name) or is_polling(each.name):
            continue
        key = (each.name, each.same_arguments)
        before = first.get(key)
        first[key] = each
        if before is None or each.answer is None or before.answer is None:
            continue
        if view.is_failure(each.answer):
            continue
        known, now = before.answer.text.split(), each.answer.text.split()
        if known != now:
            continue
        if not now:
            continue  # a write that says nothing
        text = each.call.arguments_text or each.same_arguments
        turn = view.trace.turns[each.turn]
        cost = view.costs[each.turn].value / max(1, len(turn.output.calls))
        findings.append(
            Finding(
                each.turn, "call", 0, len(text), quote(f"{each.name} {text}"), 0.9,
                cost + view.carry(each.answer.tokens, each.answer_turn),
                why=f"turn {before.turn + 1} asked the same and got the same",
            )
        )  # fmt: skip
    if not findings and not view.has_answers:
        return Verdict(NAME, "unknown", reason="the trace has no tool answers")
    return Verdict(NAME, "fired" if findings else "clear", tuple(findings))


def _answers_begin_alike(calls: Sequence[CallAt]) -> bool:
    """Whether two answers of a tool have the same first words. Mostly none have, and then nobody
    has to compare arguments."""
    answered = [each for each in calls if each.answer is not None]
    beginnings = {
        (each.name, *each.answer.text.split(None, 2)[:2]) for each in answered if each.answer
    }
    return len(beginnings) < len(answered)
