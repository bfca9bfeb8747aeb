"""Hints against looking for one word after another."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from halo.trace_report.hints import Hints

WORDS = ("error", "not found", "http")
TEXTS = st.lists(st.sampled_from([*"erohnftup \n\u212a\u017f\ud800\u00e9", *WORDS, "ERROR", "Not"]))


@given(st.text() | TEXTS.map("".join))
def test_a_hint_is_any_of_its_words(text: str) -> None:
    assert Hints(*WORDS).any_in(text) is any(word in text.lower() for word in WORDS)
