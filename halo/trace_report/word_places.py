"""Where the words of a trace come from: its prompts, its tool answers, or the model itself."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass

from halo.trace_report.words import words
from halo.traces.record import Message, Turn


@dataclass(frozen=True, slots=True)
class WordPlaces:
    """What tool answers brought into a trace.

    Attributes:
        outputs: words of each turn's answer, calls included, with or without repeats.
        brought_at: of the words that the model writes, the turn with whose tool answers they came
            in. Words that a prompt had, or that the model wrote first, are missing.
        brought: those words by turn and place among its inputs, for each answer that brought any:
            the model writes them, then or later, and nothing before this turn's answers had them.
        repeats: turn and place of the answers without any word that is new to the context, whether
            the model writes it or not.
    """

    outputs: Sequence[Collection[str]]
    brought_at: Mapping[str, int]
    brought: Mapping[tuple[int, int], Set[str]]
    repeats: Set[tuple[int, int]]


def find_word_places(turns: Sequence[Turn]) -> WordPlaces:
    """Cut the texts of a trace into words, once: they can be long, so their words meet those of
    others as whole sets and not one by one."""
    outputs = [words(_output_text(turn.output)) for turn in turns]
    met: set[str] = set()
    unmet = set[str]().union(*outputs)  # written by the model, and met nowhere yet
    brought_at: dict[str, int] = {}
    brought: dict[tuple[int, int], Set[str]] = {}
    repeats: set[tuple[int, int]] = set()
    for place, (turn, output) in enumerate(zip(turns, outputs, strict=True)):
        for message in turn.inputs:
            if message.role != "tool":
                found = words(message.text)
                met.update(found)
                unmet.difference_update(found)
        # Answers of one turn are side by side: none of them is before another.
        answers: list[Collection[str]] = []
        answered: set[str] = set()
        for number, message in enumerate(turn.inputs):
            if message.role == "tool":
                found = words(message.text)
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
        met.update(output)
        unmet.difference_update(answered, output)
    return WordPlaces(outputs, brought_at, brought, repeats)


def _output_text(output: Message) -> str:
    """All that the model wrote in a turn: its answer, its thinking, and arguments of calls."""
    texts = [output.text, output.reasoning]
    texts += [call.arguments_text or str(call.arguments or "") for call in output.calls]
    return "\n".join(texts)
