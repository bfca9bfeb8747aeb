"""Markers: texts split exactly, whatever they hold, and nothing forged is a reference."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halo.dsl import markers

TEXT = st.text(st.characters(exclude_characters=[chr(c) for c in range(0xFDD0, 0xFDF0)]))


@given(st.lists(TEXT, min_size=1, max_size=6))
def test_splitting_gives_back_what_was_joined(literals: list[str]) -> None:
    nonce = markers.new_nonce()
    tags = [markers.new_tag() for _ in literals[1:]]
    text = literals[0]
    for tag, literal in zip(tags, literals[1:], strict=True):
        text += markers.marker(nonce, tag) + literal
    parts = markers.split(text, nonce)
    assert [p.text for p in parts if isinstance(p, markers.Tag)] == tags
    assert "".join(p for p in parts if isinstance(p, str)) == "".join(literals)
    assert "" not in parts


@given(st.integers(0, 40), st.integers(0, 40), TEXT)
def test_a_cut_marker_is_an_error(start: int, end: int, around: str) -> None:
    nonce = markers.new_nonce()
    whole = markers.marker(nonce, markers.new_tag())
    cut = whole[min(start, len(whole)) : len(whole) - end if end else None]
    if cut in ("", whole) or (start and end and len(cut) < 24):
        return
    with pytest.raises(markers.MarkerError):
        markers.split(around + cut + around, nonce)


def test_a_marker_of_another_trace_is_an_error_that_says_so() -> None:
    text = markers.marker(markers.new_nonce(), markers.new_tag())
    assert markers.holds_marker(text)
    with pytest.raises(markers.MarkerError, match="another trace"):
        markers.split(text, markers.new_nonce())


def test_a_forged_marker_is_never_a_reference() -> None:
    nonce = markers.new_nonce()
    real = markers.marker(nonce, markers.new_tag())
    forged = real[0] + "aBcDfGhJ" * 4 + real[-1]
    assert not markers.holds_marker(forged)
    with pytest.raises(markers.MarkerError):
        markers.split(forged, nonce)
