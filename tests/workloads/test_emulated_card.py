"""A card that computes nothing, shared by servers."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from workloads.gpu import emulated_card
from workloads.gpu.emulated_card import TIMES, from_words


def test_a_step_holds_the_card_for_its_time_and_gives_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = tmp_path / "card"
    card = from_words(f"8b:3:{lock}")
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        with lock.open("a") as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)

    monkeypatch.setattr(emulated_card.time, "sleep", sleep)
    card.step(prefilled_tokens=8192, requests=0, context_tokens=0)
    with lock.open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    expected_s = TIMES["8b"].seconds(prefilled_tokens=8192, requests=0, context_tokens=0)
    assert slept == [3 * expected_s]


@pytest.mark.parametrize(
    ("model", "prefilled_per_s", "decoded_per_s"), [("8b", 41e3, 24.5e3), ("1b", 25e4, 85e3)]
)
def test_the_rates_are_the_measured_peaks(
    model: str, prefilled_per_s: float, decoded_per_s: float
) -> None:
    times = TIMES[model]
    prefill_s = times.seconds(prefilled_tokens=65_536, requests=0, context_tokens=0)
    # As they are measured: 256 short prompts.
    decode_s = times.seconds(prefilled_tokens=0, requests=256, context_tokens=256 * 90)
    assert 65_536 / prefill_s == pytest.approx(prefilled_per_s, rel=0.05)
    assert 256 / decode_s == pytest.approx(decoded_per_s, rel=0.12)
