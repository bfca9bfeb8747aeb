"""The rules, in the order of reports."""

from __future__ import annotations

from collections.abc import Callable

from halo.trace_report.finding import DEFAULT_THRESHOLDS, Thresholds, Verdict
from halo.trace_report.patterns import (
    cache_loss,
    confirmatory,
    format_collapse,
    repeated_calls,
    tool_mixing,
    tool_priors,
    unread_answers,
)
from halo.trace_report.view import View

Rule = Callable[[View, Thresholds], Verdict]

RULES: dict[str, Rule] = {
    module.NAME: module.find
    for module in (
        confirmatory,
        tool_mixing,
        tool_priors,
        format_collapse,
        repeated_calls,
        unread_answers,
        cache_loss,
    )
}

TITLES = {
    "confirmatory": "Confirmatory tool use",
    "tool_mixing": "Tool mixing",
    "tool_priors": "Lack of tool priors",
    "format_collapse": "Tool format collapse",
    "repeated_calls": "Repeated equal calls",
    "unread_answers": "Oversized unread answers",
    "cache_loss": "Cache losses",
}


def judge(view: View, thresholds: Thresholds = DEFAULT_THRESHOLDS) -> dict[str, Verdict]:
    """Every rule's verdict on a trace."""
    return {name: rule(view, thresholds) for name, rule in RULES.items()}
