"""Real engines' raw samples, kept in docs/benchmarks: fitted again, they predict what they did."""

from __future__ import annotations

from pathlib import Path

import pytest

from costmodel.calibrate import calibrate
from costmodel.hardware import load_hardware
from costmodel.models import load_model
from costmodel.samples import read_samples

CALIBRATIONS = Path(__file__).parents[2] / "docs" / "benchmarks" / "calibration"


@pytest.mark.parametrize("path", sorted(CALIBRATIONS.glob("*smollm2*.json")), ids=lambda p: p.stem)
def test_processors(path: Path) -> None:
    samples = read_samples(path)
    result = calibrate(samples, load_model("smollm2-135m"), load_hardware("laptop-cpu"))
    result.require()
    print(result.summary())
    assert len(result.predictions) >= 45
    assert result.median_error <= 0.10
    assert result.rank_correlation >= 0.97


@pytest.mark.parametrize("path", sorted(CALIBRATIONS.glob("sglang-*.json")), ids=lambda p: p.stem)
def test_accelerators(path: Path) -> None:
    samples = read_samples(path)
    hardware = load_hardware("h100-sxm" if "h100" in path.stem else "h200")
    result = calibrate(samples, load_model("llama-3.1-8b"), hardware)
    result.require(largest_median=0.12)
    assert len(result.predictions) >= 60
    assert result.p90_error <= 0.25
    expected, reported = samples.cached_tokens or (0, 0)
    assert expected == pytest.approx(reported, rel=0.02)
