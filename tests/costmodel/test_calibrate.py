"""Calibration: a fit finds what made the samples, and one that predicts badly is refused."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodel.batching import Batching, Call, batch_s
from costmodel.calibrate import CANDIDATES, calibrate
from costmodel.calibration import Prediction, quantile, rank_correlation
from costmodel.errors import CalibrationError, ProfileError
from costmodel.hardware import HardwareProfile, load_hardware
from costmodel.least_squares import non_negative_least_squares
from costmodel.models import ModelProfile, load_model
from costmodel.samples import Sample, SampleSet, read_samples
from costmodel.sampling import (
    Limits,
    PlannedBatch,
    mixed_batches,
    planned_tokens,
    sweep_batches,
)
from costmodel.step import StepModel

LLAMA, H200 = load_model("llama-3.1-8b"), load_hardware("h200")
GPU = replace(
    H200,
    compute_efficiency=((1, 0.01), (64, 0.2), (256, 0.45), (2048, 0.66)),
    attention_compute_efficiency=0.5,
    kv_read_efficiency=0.6,
    weight_read_efficiency=0.66,
    step_overhead_s=0.0006,
    prefill_step_overhead_s=0.004,
    request_overhead_s=5e-6,
    call_latency_s=0.01,
    prompt_token_overhead_s=5e-7,
    tile_tokens=128,
)
"""A machine unlike the shipped profile in every number that a calibration finds."""


def measured(
    truth: HardwareProfile,
    model: ModelProfile,
    batching: Batching,
    limits: Limits,
    *,
    noise: float = 0.03,
    held_out: int = 40,
    stated: bool = True,
) -> SampleSet:
    """Samples as an engine of this profile gives them, with random errors."""
    rng = random.Random(3)
    step = StepModel(model, truth)

    def sample(batch: PlannedBatch) -> Sample:
        calls = tuple(
            Call(
                c.new_tokens + (0 if c.prefix is None else batch.prefixes[c.prefix]),
                c.answer_tokens,
                0 if c.prefix is None else batch.prefixes[c.prefix],
            )
            for c in batch.calls
        )
        seconds = batch_s(step, calls, batching) * max(0.1, rng.gauss(1, noise))
        return Sample(batch.name, calls, seconds, batch.held_out)

    plans = (*sweep_batches(limits), *mixed_batches(held_out, limits, rng), *sweep_batches(limits))
    return SampleSet(
        "test", model.name, "h200", tuple(map(sample, plans)), batching if stated else None
    )


def test_a_fit_predicts_what_it_has_not_seen() -> None:
    batching = Batching(8192, 1024)
    limits = Limits(max_calls=128, context_tokens=32_768, tokens=16_384, answer_tokens=128)
    result = calibrate(measured(GPU, LLAMA, batching, limits), LLAMA, H200)
    result.require()
    assert result.median_error < 0.05
    assert result.p90_error < 0.15
    assert result.rank_correlation > 0.97
    found = result.hardware
    assert found.grade_of("compute_efficiency") == "fitted"
    assert found.kv_read_efficiency == pytest.approx(0.6, rel=0.35)
    assert dict(found.compute_efficiency)[8192] == pytest.approx(0.66, rel=0.15)
    # The shipped profile is much further off on the same batches.
    step = StepModel(LLAMA, H200)
    shipped = [
        abs(batch_s(step, s.calls, batching) / s.seconds - 1)
        for s in measured(GPU, LLAMA, batching, limits).held_out
    ]
    assert quantile(shipped, 0.5) > 3 * result.median_error
    # Applied to another description of the device, the fitted numbers win and the rest stays.
    other = result.applied(replace(H200, power_w=1234.0))
    assert other.compute_efficiency == found.compute_efficiency
    assert other.power_w == 1234.0
    assert StepModel(LLAMA, H200, calibration=result).hardware.tile_tokens == 1


def test_a_processor_of_unknown_speed_and_an_engine_that_does_not_say_how_it_batches() -> None:
    model, base = load_model("smollm2-135m"), load_hardware("laptop-cpu")
    fast = replace(
        base,
        peak_flops_per_s={k: 8 * v for k, v in base.peak_flops_per_s.items()},
        memory_bytes_per_s=4 * base.memory_bytes_per_s,
    )
    limits = Limits(max_calls=32, context_tokens=4096, tokens=4096, answer_tokens=32)
    truth = CANDIDATES[0]
    samples = measured(fast, model, truth, limits, stated=False)
    result = calibrate(samples, model, base)
    result.require()
    assert result.median_error < 0.06
    assert result.batching in CANDIDATES
    # Faster than the profile's peaks: they are raised, and say so.
    assert result.hardware.peak("bf16") > base.peak("bf16")
    assert result.hardware.memory_bytes_per_s > base.memory_bytes_per_s


def test_a_profile_that_predicts_badly_is_refused_with_its_table() -> None:
    limits = Limits(max_calls=16, context_tokens=8192, tokens=2048, answer_tokens=16)
    noisy = measured(GPU, LLAMA, Batching(), limits, noise=0.8)
    result = calibrate(noisy, LLAMA, H200)
    with pytest.raises(CalibrationError, match=r"is refused.*above 15%") as raised:
        result.require()
    assert "predicted   measured" in str(raised.value)
    assert "mixed 0" in str(raised.value)


def test_too_few_samples_are_refused() -> None:
    limits = Limits(max_calls=8, tokens=512)
    samples = measured(GPU, LLAMA, Batching(), limits)
    with pytest.raises(CalibrationError, match="at least 12"):
        calibrate(replace(samples, samples=samples.samples[:5]), LLAMA, H200)
    alone = calibrate(replace(samples, samples=samples.fit), LLAMA, H200)
    with pytest.raises(CalibrationError, match="no held-out batches"):
        alone.require()


# --- samples as a file ---------------------------------------------------------------------------


def test_samples_read_back(tmp_path: Path) -> None:
    calls = (Call(100, 5, 40), Call(7, 1))
    samples = SampleSet(
        "sglang 0.5.17", "llama-3.1-8b", "h200",
        (Sample("a", calls, 0.5, held_out=True, reported_cached_tokens=(39, None)),),
        Batching(8192, 64), {"command": "x"},
    )  # fmt: skip
    path = tmp_path / "samples.json"
    path.write_text(json.dumps(samples.to_json()), "utf-8")
    read = read_samples(path)
    assert read == samples
    assert read.cached_tokens == (40, 39)
    assert (len(read.fit), len(read.held_out)) == (0, 1)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"format": "x"}, "format"),
        ({"samples": []}, "samples"),
        ({"samples": [{"seconds": 1, "calls": [[5, 1, 6]]}]}, "samples[0]"),
        ({"samples": [{"seconds": -1, "calls": [[5, 1, 0]]}]}, "samples[0]"),
        ({"samples": [{"seconds": 1, "calls": []}]}, "samples[0]"),
        ({"samples": [{"calls": [[5, 1, 0]]}]}, "samples[0]"),
        ({"samples": [7]}, "samples[0]"),
        ({"batching": {"chunk_tokens": 0}}, "batching"),
        ({"batching": {"chunks": 0}}, "batching"),
    ],
)
def test_wrong_samples_name_file_and_field(
    tmp_path: Path, change: dict[str, object], field: str
) -> None:
    good = {
        "format": "halo-calibration-samples-1",
        "samples": [{"seconds": 1.0, "calls": [[5, 1, 0]]}],
    }
    path = tmp_path / "samples.json"
    path.write_text(json.dumps({**good, **change}), "utf-8")
    with pytest.raises(ProfileError) as raised:
        read_samples(path)
    assert (raised.value.file, raised.value.field) == (str(path), field)
    for text in ("[]", "{"):
        path.write_text(text, "utf-8")
        with pytest.raises(ProfileError, match="JSON"):
            read_samples(path)


# --- plans and statistics ------------------------------------------------------------------------


@given(
    limits=st.builds(
        Limits,
        max_calls=st.integers(1, 200),
        context_tokens=st.integers(128, 40_000),
        tokens=st.integers(64, 40_000),
        answer_tokens=st.integers(1, 64),
    ),
    seed=st.integers(0, 99),
)
def test_planned_batches_respect_the_limits(limits: Limits, seed: int) -> None:
    mixed = mixed_batches(5, limits, random.Random(seed))
    assert len(mixed) == 5
    for batch in (*sweep_batches(limits), *mixed):
        assert 1 <= len(batch.calls) <= limits.max_calls
        for call in batch.calls:
            prefix = 0 if call.prefix is None else batch.prefixes[call.prefix]
            assert call.new_tokens >= 1
            assert prefix + call.new_tokens <= max(limits.longest_prompt, 128)
            assert call.answer_tokens <= limits.answer_tokens
    assert all(batch.held_out for batch in mixed)
    prompts, steps = planned_tokens(mixed)
    assert prompts > 0 < steps


def test_impossible_limits_are_refused() -> None:
    with pytest.raises(ProfileError, match="max_calls"):
        Limits(max_calls=0)


@given(
    st.lists(st.tuples(st.floats(0, 5), st.floats(0, 5), st.floats(0.1, 5)), min_size=4, max_size=9)
)
def test_non_negative_least_squares_beats_its_neighbours(
    data: list[tuple[float, float, float]],
) -> None:
    rows = [[a, b] for a, b, _ in data]
    targets = [c for _, _, c in data]
    x = non_negative_least_squares(rows, targets, [1.0] * len(rows))

    def loss(point: list[float]) -> float:
        return sum(
            (row[0] * point[0] + row[1] * point[1] - t) ** 2
            for row, t in zip(rows, targets, strict=True)
        )

    assert min(x) >= 0
    for change in ([0.01, 0.0], [-0.01, 0.0], [0.0, 0.01], [0.0, -0.01]):
        near = [max(0.0, v + d) for v, d in zip(x, change, strict=True)]
        assert loss(x) <= loss(near) + 1e-3


def test_statistics_by_hand() -> None:
    assert quantile([3.0], 0.9) == 3.0
    assert rank_correlation([1, 2, 2, 3], [1, 2, 2, 9]) == 1.0
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == -1.0
    assert rank_correlation([1, 1], [1, 2]) != rank_correlation([1, 2], [1, 2])
    assert Prediction("a", 3.0, 2.0).error == 0.5
