"""A card that computes nothing, shared by servers."""

from __future__ import annotations

from pathlib import Path

import pytest

from workloads.gpu import emulated_card
from workloads.gpu.emulated_card import TIMES, from_words


@pytest.mark.parametrize(("others_compute", "times"), [(False, 1), (True, 2)])
def test_a_step_takes_its_time_and_twice_that_beside_another_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others_compute: bool, times: int
) -> None:
    shared = tmp_path / "card"
    card = from_words(f"8b:3:{shared}")
    other = from_words(f"1b:3:{shared}")
    now_s = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now_s
        now_s += seconds
        # Whoever computes has its seat; the other one's is set here.
        assert list(shared.read_bytes()) == [1, int(others_compute)]

    monkeypatch.setattr(emulated_card.time, "sleep", sleep)
    monkeypatch.setattr(emulated_card.time, "perf_counter", lambda: now_s)
    other._seats[1] = int(others_compute)
    card.step(prefilled_tokens=8192, requests=0, context_tokens=0)
    expected_s = TIMES["8b"].seconds(prefilled_tokens=8192, requests=0, context_tokens=0)
    assert now_s == pytest.approx(times * 3 * expected_s)
    assert shared.read_bytes()[0] == 0


@pytest.mark.parametrize(
    ("model", "prefilled_per_s", "decoded_per_s"),
    [("8b", 41e3, {256: 25e3, 1024: 30.9e3}), ("1b", 25e4, {256: 77e3, 512: 95.5e3})],
)
def test_the_rates_are_the_measured_peaks(
    model: str, prefilled_per_s: float, decoded_per_s: dict[int, float]
) -> None:
    times = TIMES[model]
    prefill_s = times.seconds(prefilled_tokens=65_536, requests=0, context_tokens=0)
    assert 65_536 / prefill_s == pytest.approx(prefilled_per_s, rel=0.01)
    for batch, per_s in decoded_per_s.items():
        # As they are measured: short prompts.
        decode_s = times.seconds(prefilled_tokens=0, requests=batch, context_tokens=batch * 90)
        assert batch / decode_s == pytest.approx(per_s, rel=0.1)
