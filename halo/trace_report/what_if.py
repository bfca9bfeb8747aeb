"""The same traces under other conditions, in closed form on (L, D, C).

Answers that become shorter, and calls that go away, shrink every later context of their segment;
cached tokens shrink with them, because what goes away lay in the part that was kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from costmodel.pte import PteRates, Turn, ideal_turns, value_of
from halo.trace_report.view import View


@dataclass(frozen=True, slots=True)
class Scenarios:
    """What to compute.

    Attributes:
        cap_tokens: tool answers cut to this many tokens.
        remove_calls: this many of the costliest tool calls of each trace never made.
        hardware, model: other ones to price on; None leaves that scenario out.
    """

    cap_tokens: int = 1000
    remove_calls: int = 1
    hardware: str | None = None
    model: str | None = None


def capped(view: View, cap_tokens: int) -> list[Turn]:
    """The turns with tool answers of at most `cap_tokens` tokens."""
    cuts = [
        sum(
            max(0.0, message.tokens - cap_tokens)
            for message in turn.inputs
            if message.role == "tool"
        )
        for turn in view.trace.turns
    ]
    return _shrunk(view.turns, cuts)


def without_costliest(view: View, count: int) -> list[Turn]:
    """The turns without the `count` costliest tool calls: neither the turn that makes only that
    call, nor its answer in later contexts."""
    ranked: list[tuple[float, int]] = []
    for place, each in enumerate(view.calls):
        alone = len(view.trace.turns[each.turn].output.calls) == 1
        cost = view.costs[each.turn].value if alone else 0.0
        if each.answer is not None:
            cost += view.carry(each.answer.tokens, each.answer_turn)
        ranked.append((cost, place))
    ranked.sort(reverse=True)
    cuts = [0.0] * len(view.turns)
    gone: set[int] = set()
    for _, place in ranked[:count]:
        each = view.calls[place]
        tokens = each.answer.tokens if each.answer is not None else 0.0
        if len(view.trace.turns[each.turn].output.calls) == 1 and len(view.turns) > 1:
            gone.add(each.turn)
            tokens += view.turns[each.turn].decode_tokens
        if each.answer_turn < len(cuts):
            cuts[each.answer_turn] += tokens
    shrunk = _shrunk(view.turns, cuts)
    kept: list[Turn] = []
    carry_break = False
    for place, turn in enumerate(shrunk):
        if place in gone:
            carry_break = carry_break or turn.new_segment
            continue
        kept.append(turn._replace(new_segment=True) if carry_break else turn)
        carry_break = False
    return kept


def _shrunk(turns: Sequence[Turn], cuts: Sequence[float]) -> list[Turn]:
    changed: list[Turn] = []
    gone = 0.0
    before = 0.0  # what was gone when the last call left its context behind
    for turn, cut in zip(turns, cuts, strict=True):
        if turn.new_segment:
            gone = before = 0.0
        gone += cut
        if not (gone or before):
            changed.append(turn)
            continue
        context = max(0, round(turn.context_tokens - gone))
        cached = turn.cached_tokens
        if cached is not None:
            cached = min(context, max(0, round(cached - before)))
        changed.append(
            Turn(
                context,
                turn.decode_tokens,
                cached,
                turn.new_segment,
                max(0, round(turn.tool_tokens - gone)),
                max(0, round(turn.new_tool_tokens - cut)),
                turn.dropped_tokens,
            )
        )
        before = gone
    return changed


def outcomes(
    view: View,
    scenarios: Scenarios,
    other_hardware: PteRates | None,
    other_model: PteRates | None,
) -> dict[str, float]:
    """PTE of each scenario; "as recorded" is the trace itself."""
    found = {"as recorded": view.totals.value}
    found["perfect cache reuse"] = value_of(view.rates, ideal_turns(view.turns))
    found[f"tool answers capped at {scenarios.cap_tokens:,} tokens"] = value_of(
        view.rates, capped(view, scenarios.cap_tokens)
    )
    if scenarios.remove_calls:
        calls = "call" if scenarios.remove_calls == 1 else "calls"
        found[f"without the {scenarios.remove_calls} costliest {calls} of each trace"] = value_of(
            view.rates, without_costliest(view, scenarios.remove_calls)
        )
    if other_hardware is not None:
        found[f"on {other_hardware.hardware}"] = value_of(other_hardware, view.turns)
    if other_model is not None:
        found[f"with {other_model.model}"] = value_of(other_model, view.turns)
    return found
