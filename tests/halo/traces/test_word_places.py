"""Which words came from where, against a reading word by word."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from halo.trace_report.build import ReportOptions
from halo.trace_report.view import View
from halo.trace_report.words import words
from halo.traces.counting import fill_tokens
from halo.traces.openai_chat import conversation

RATES = ReportOptions().analyzer().book.rates("llama-3.1-8b")
TEXTS = st.lists(
    st.sampled_from(
        ["amber", "Order_7", "4711", "of", "1,234", "人口と東京", "Ünder", "\u212a9", "", "\n"]
    )
).map(" ".join)
TURNS = st.lists(
    st.tuples(
        st.lists(st.tuples(st.sampled_from(["user", "tool"]), TEXTS), max_size=4), TEXTS, TEXTS
    ),
    min_size=1,
    max_size=6,
)


def view_of(turns: list[tuple[list[tuple[str, str]], str, str]]) -> View:
    messages: list[dict[str, Any]] = []
    for inputs, thinking, said in turns:
        messages += [{"role": role, "content": text} for role, text in inputs]
        messages.append({"role": "assistant", "content": said, "reasoning_content": thinking})
    trace = conversation({"messages": messages}, "x")
    fill_tokens(trace)
    return View(trace, RATES)


@given(TURNS)
def test_words_come_from_where_they_are_met_first(
    turns: list[tuple[list[tuple[str, str]], str, str]],
) -> None:
    places = view_of(turns).word_places
    written: set[str] = set()
    for _, thinking, said in turns:
        written.update(words(f"{said}\n{thinking}"))
    met: set[str] = set()
    brought_at: dict[str, int] = {}
    brought: dict[tuple[int, int], set[str]] = {}
    repeats: set[tuple[int, int]] = set()
    for place, (inputs, thinking, said) in enumerate(turns):
        for role, text in inputs:
            if role != "tool":
                met.update(words(text))
        before = frozenset(met)
        for number, (role, text) in enumerate(inputs):
            if role == "tool":
                new = set(words(text)) - before
                if not new:
                    repeats.add((place, number))
                if new & written:
                    brought[place, number] = {*new & written}
                    brought_at |= dict.fromkeys(new & written, place)
                met |= new
        assert set(places.outputs[place]) == set(words(f"{said}\n{thinking}"))
        met.update(places.outputs[place])
    assert places.brought_at == brought_at
    assert places.brought == brought
    assert places.repeats == repeats


@given(st.text())
def test_words_are_cut_the_same_in_ascii_and_beside_other_scripts(text: str) -> None:
    ascii = "".join(character for character in text if character.isascii())
    beside = set(words(f"{ascii} \u00e9t\u00e9"))
    assert {word for word in words(ascii) if len(word) > 1} == beside - {"\u00e9t\u00e9"}


def test_words_of_long_texts_are_those_of_both_ends() -> None:
    assert {"first", "last"} <= set(words("first " + "x" * 30_000 + " last"))
