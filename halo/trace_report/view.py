"""A priced trace, as the rules for patterns see it."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property

from costmodel.pte import PteRates, PteTotals, TurnCost, fresh_share, price, total
from costmodel.pte import Turn as PricedTurn
from halo.trace_report.answers import is_failure
from halo.trace_report.words import running_words, words
from halo.traces.counting import priced_turns
from halo.traces.record import Message, ToolCall, Trace

_SORTED_JSON = json.JSONEncoder(sort_keys=True)


@dataclass(frozen=True)
class CallAt:
    """A tool call, with the turn that made it and its answer, if the trace has one.

    Attributes:
        answer_turn: turn whose input the answer is; the number of turns when no call followed.
        answer_place: place within that turn's inputs.
    """

    turn: int
    call: ToolCall
    answer: Message | None
    answer_turn: int
    answer_place: int

    @property
    def name(self) -> str:
        return self.call.name or (self.answer.tool_name if self.answer else "")

    @cached_property
    def same_arguments(self) -> str:
        """Arguments as they are compared: spacing and the order of fields do not count."""
        arguments = self.call.arguments
        if isinstance(arguments, dict):
            return " ".join(_SORTED_JSON.encode(arguments).split())
        return " ".join((self.call.arguments_text or str(arguments)).split())


@dataclass(frozen=True, slots=True)
class WordPlaces:
    """What tool answers brought into a trace, of the words that the model writes.

    Attributes:
        brought_at: the turn with whose answers a word came in. Words that the model wrote first, or
            that a prompt had, are missing.
        brought: the words that an answer brought, if any, by its turn and place among the inputs:
            the model writes them, then or later, and nothing before this turn's answers had them.
        repeats: turn and place of tool answers that have no word which is new to the context,
            whether the model writes it or not.
        outputs: words of each turn's answer, calls included.
    """

    brought_at: dict[str, int]
    brought: dict[tuple[int, int], Set[str]]
    repeats: Set[tuple[int, int]]
    outputs: list[frozenset[str]]


@dataclass
class View:
    """A trace with its prices. Tokens are filled in."""

    trace: Trace
    rates: PteRates
    turns: list[PricedTurn] = field(default_factory=list[PricedTurn])
    costs: list[TurnCost] = field(default_factory=list[TurnCost])
    _failures: dict[int, bool] = field(default_factory=dict[int, bool])

    def __post_init__(self) -> None:
        self.turns = priced_turns(self.trace)
        self.costs = price(self.rates, self.turns)

    @cached_property
    def totals(self) -> PteTotals:
        return total(self.costs)

    def carry(self, tokens: float, entered: int) -> float:
        """PTE of `tokens` of context that entered with a turn, to the end of their segment:
        `costmodel.pte.carry_cost`, with the sums over later turns made once."""
        return tokens * self._carry_rates[entered] if entered < len(self.turns) else 0.0

    @cached_property
    def _carry_rates(self) -> list[float]:
        """PTE of carrying one token from each turn on."""
        found = [0.0] * len(self.turns)
        later = 0.0  # of the turns after this one, in its segment
        for place in range(len(self.turns) - 1, -1, -1):
            turn, cost = self.turns[place], self.costs[place]
            read = 0.0
            if turn.context_tokens:
                read = (
                    self.rates.kv_reads(turn.context_tokens, turn.decode_tokens)
                    / turn.context_tokens
                )
            found[place] = fresh_share(self.rates, turn, cost) + read + later
            if turn.new_segment:
                later = 0.0
            else:
                again = cost.re_prefill / cost.kept_tokens if cost.kept_tokens else 0.0
                later += read + again
        return found

    @cached_property
    def calls(self) -> list[CallAt]:
        """Tool calls in order, each with its answer: by id, and in order where ids repeat or are
        missing."""
        made: list[CallAt] = []
        waiting: list[tuple[int, ToolCall]] = []
        turns = self.trace.turns
        for place in range(len(turns) + 1):
            inputs = turns[place].inputs if place < len(turns) else self.trace.trailing
            for number, message in enumerate(inputs):
                if message.role != "tool":
                    continue
                found = _answered(waiting, message.call_id)
                if found is not None:
                    turn, call = waiting.pop(found)
                    made.append(CallAt(turn, call, message, place, number))
            if place < len(turns):
                waiting += [(place, call) for call in turns[place].output.calls]
        made += [CallAt(turn, call, None, len(turns), 0) for turn, call in waiting]
        made.sort(key=lambda each: each.turn)
        return made

    @cached_property
    def has_answers(self) -> bool:
        """Whether tool answers have texts."""
        return any(each.answer is not None and each.answer.text for each in self.calls)

    @cached_property
    def thinking_hidden(self) -> bool:
        """Whether a turn that called a tool thought where the trace does not show it: it says so,
        or it counts thinking tokens without text."""
        for turn in self.trace.turns:
            output = turn.output
            if output.reasoning:
                continue
            if output.reasoning_hidden or (turn.reasoning_tokens or 0) > 0:
                return True
        return False

    @cached_property
    def word_places(self) -> WordPlaces:
        """Where words that the model writes come from. Texts can be long: each is cut into its
        words once, and they meet those of others as whole sets."""
        outputs = [_output_words(turn.output) for turn in self.trace.turns]
        met: set[str] = set()
        unmet = set[str]().union(*outputs)  # written by the model, and met nowhere yet
        brought_at: dict[str, int] = {}
        brought: dict[tuple[int, int], Set[str]] = {}
        repeats: set[tuple[int, int]] = set()
        for place, (turn, output) in enumerate(zip(self.trace.turns, outputs, strict=True)):
            for message in turn.inputs:
                if message.role != "tool":
                    found = running_words(message.text)
                    met.update(found)
                    unmet.difference_update(found)
            # Answers of one turn are side by side: none of them is before another.
            answers: list[Collection[str]] = []
            answered: set[str] = set()
            for number, message in enumerate(turn.inputs):
                if message.role == "tool":
                    found = running_words(message.text)
                    answers.append(found)
                    if met.issuperset(found):
                        repeats.add((place, number))
                    new = unmet.intersection(found)
                    if new:
                        brought[place, number] = new
                        answered |= new
            for found in answers:
                met.update(found)
            brought_at.update(dict.fromkeys(answered, place))
            met |= output
            unmet -= answered
            unmet -= output
        return WordPlaces(brought_at, brought, repeats, outputs)

    def is_failure(self, message: Message) -> bool:
        """Whether a tool answer reports a failure, judged once."""
        known = self._failures.get(id(message))
        if known is None:
            known = self._failures[id(message)] = is_failure(message)
        return known


def _output_words(output: Message) -> frozenset[str]:
    texts = [output.text, output.reasoning]
    texts += [call.arguments_text or str(call.arguments or "") for call in output.calls]
    return words("\n".join(texts))


def _answered(waiting: Sequence[tuple[int, ToolCall]], call_id: str) -> int | None:
    """Which of the waiting calls an answer is to: the one of its id; without an id the first; a
    call without an id where none fits."""
    if call_id:
        for place, (_, call) in enumerate(waiting):
            if call.id == call_id:
                return place
    elif waiting:
        return 0
    return next((place for place, (_, call) in enumerate(waiting) if not call.id), None)
