"""Lack of tool priors: calls that fail because the model does not know its tool."""

from __future__ import annotations

from halo.trace_report.answers import is_nothing, priors_failure
from halo.trace_report.finding import Finding, Thresholds, Verdict, quote
from halo.trace_report.tool_families import (
    answer_kind,
    code_of,
    ends_in_bare_expression,
    family_of,
)
from halo.trace_report.view import CallAt, View

NAME = "tool_priors"


def find(view: View, thresholds: Thresholds) -> Verdict:
    """Fires on an interpreter call that computes and prints nothing, on failures of the kind of
    SyntaxError and NameError, and on a failing call repeated without a change."""
    if not view.calls:
        return Verdict(NAME, "clear", paper=False)
    if not view.trace.has_content or all(each.answer is None for each in view.calls):
        return Verdict(NAME, "unknown", reason="the trace has no tool answers")
    findings: list[Finding] = []
    failed: dict[tuple[str, str], int] = {}
    paper = False
    for each in view.calls:
        kind = answer_kind(each, each.answer is not None and view.is_failure(each.answer))
        paper = paper or kind in ("error", "empty", "expected empty")
        failed_before = None
        if failed or kind == "error":
            key = (each.name, each.same_arguments)
            failed_before = failed.pop(key, None)
            if kind == "error":
                failed[key] = each.turn
        found = _judge(each, kind, failed_before)
        if found is not None:
            confidence, why, start, end = found
            text = each.answer.text if each.answer else ""
            findings.append(
                Finding(
                    each.turn, f"input {each.answer_place}", start, end,
                    quote(text, start, end) or quote(code_of(each)), confidence,
                    _cost(view, each), why=why,
                )
            )  # fmt: skip
    return Verdict(NAME, "fired" if findings else "clear", tuple(findings), paper)


def _judge(
    each: CallAt, kind: str, failed_before: int | None
) -> tuple[float, str, int, int] | None:
    answer = each.answer
    if answer is None:
        return None
    family = family_of(each.name)
    if family == "compute" and is_nothing(answer.text) and ends_in_bare_expression(code_of(each)):
        return 0.9, "the code computes and prints nothing", 0, len(answer.text)
    if family in ("compute", "shell") and kind == "error":
        match = priors_failure(answer)
        if match:
            return 0.85, f"failed with {match.group()}", match.start(), match.end()
    if kind == "error" and failed_before is not None:
        return (
            0.8, f"the same call failed at turn {failed_before + 1} already", 0, len(answer.text)
        )  # fmt: skip
    return None


def _cost(view: View, each: CallAt) -> float:
    """The turn that made the failing call, and carrying its answer. A turn with several calls
    counts in part."""
    share = 1 / max(1, len(view.trace.turns[each.turn].output.calls))
    cost = view.costs[each.turn].value * share
    if each.answer is not None:
        cost += view.carry(each.answer.tokens, each.answer_turn)
    return cost
