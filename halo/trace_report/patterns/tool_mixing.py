"""Tool mixing: going to and fro between families of tools without using what they gave."""

from __future__ import annotations

from halo.trace_report.finding import Finding, Thresholds, Verdict, quote
from halo.trace_report.tool_families import family_of, is_action, is_final
from halo.trace_report.view import CallAt, View
from halo.trace_report.words import is_telling

NAME = "tool_mixing"
_FEWEST = 2


def find(view: View, thresholds: Thresholds) -> Verdict:
    """Counts alternations A, B, A between families in which B only asked, and the second A uses
    nothing that B gave; fires at two."""
    calls = [each for each in view.calls if not is_final(each.name)]
    families = [family_of(each.name) for each in calls]
    paper = len(set(families)) > 1
    if not paper:
        return Verdict(NAME, "clear", paper=False)
    if not view.trace.has_content or not view.has_answers:
        return Verdict(NAME, "unknown", paper=True, reason="the trace has no tool answers")
    findings: list[Finding] = []
    start = 0
    runs: list[tuple[int, int]] = []  # stretches of calls of one family
    for place in range(1, len(calls) + 1):
        if place == len(calls) or families[place] != families[start]:
            runs.append((start, place))
            start = place
    gave: dict[str, set[int]] = {}  # turns with answers, by family
    for each, family in zip(calls, families, strict=True):
        gave.setdefault(family, set()).add(each.answer_turn)
    for first, middle, second in zip(runs, runs[1:], runs[2:], strict=False):
        if families[first[0]] != families[second[0]]:
            continue
        back = calls[second[0]]
        given = calls[middle[0] : middle[1]]
        if any(is_action(each) for each in given):
            continue  # its effect may be what the second A needs
        if _uses(view, back, given, gave[families[middle[0]]]):
            continue
        wasted = given[-1]
        text = back.call.arguments_text or str(back.call.arguments or "")
        findings.append(
            Finding(
                back.turn, "call", 0, len(text), quote(f"{back.name} {text}"), 0.6,
                _cost(view, given),
                why=f"{families[first[0]]}, {families[middle[0]]}, {families[second[0]]}: "
                f"{back.name} uses nothing that {wasted.name} gave",
            )
        )  # fmt: skip
    fired = len(findings) >= _FEWEST
    return Verdict(NAME, "fired" if fired else "clear", tuple(findings) if fired else (), paper)


def _uses(view: View, back: CallAt, given: list[CallAt], gave: set[int]) -> bool:
    """Whether a call, or what the model says beside it, has a word that an answer of that family
    brought into the trace; what an earlier stretch of the family gave may be used now."""
    if any(each.answer is None for each in given):
        return True  # nobody can tell
    if any(each.answer_turn > back.turn for each in given):
        return True  # asked side by side: it could not use this
    brought_at = view.word_places.brought_at
    return any(
        brought_at.get(word) in gave and is_telling(word)
        for word in view.word_places.outputs[back.turn]
    )


def _cost(view: View, given: list[CallAt]) -> float:
    """The turns that asked, and carrying what they got."""
    cost = sum(view.costs[turn].value for turn in {each.turn for each in given})
    for each in given:
        if each.answer is not None:
            cost += view.carry(each.answer.tokens, each.answer_turn)
    return cost
