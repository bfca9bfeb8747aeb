"""Cache losses: a follow-on call that did not find what the one before had left."""

from __future__ import annotations

from halo.trace_report.finding import Finding, Thresholds, Verdict
from halo.trace_report.view import View

NAME = "cache_loss"
_SMALLEST_CACHED_PROMPT = 1024  # providers cache nothing shorter


def find(view: View, thresholds: Thresholds) -> Verdict:
    """Fires where the tokens that an unbroken cache would have held exceed the reported cached
    tokens by more than several blocks. Calls without a reported count are not judged."""
    follow_on = [
        place
        for place, turn in enumerate(view.turns)
        if place and not turn.new_segment and turn.context_tokens >= _SMALLEST_CACHED_PROMPT
    ]
    known = [place for place in follow_on if view.costs[place].lost_tokens is not None]
    findings: list[Finding] = []
    for place in known:
        turn, cost = view.turns[place], view.costs[place]
        lost = cost.lost_tokens or 0
        if lost <= thresholds.lost_tokens:
            continue
        reported = view.trace.turns[place].prompt_origin == "reported"
        held = min(turn.cached_tokens or 0, turn.context_tokens)
        ideal = view.rates.prefill(turn.context_tokens, cost.kept_tokens)
        again = view.rates.prefill(turn.context_tokens, held) - ideal
        findings.append(
            Finding(
                place, "output", 0, 0, "", 0.95 if reported else 0.5, max(0.0, again),
                why=f"{lost:,} of {cost.kept_tokens:,} reusable tokens were not in the cache"
                + _pause(view, place),
            )
        )  # fmt: skip
    if findings:
        return Verdict(NAME, "fired", tuple(findings))
    if follow_on and len(known) < len(follow_on):
        return Verdict(NAME, "unknown", reason="cached tokens are not reported")
    return Verdict(NAME, "clear")


def _pause(view: View, place: int) -> str:
    before, now = view.trace.turns[place - 1].end_s, view.trace.turns[place].start_s
    if before is None or now is None or now < before:
        return ""
    return f", after a pause of {now - before:.1f} s"
