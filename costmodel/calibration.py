"""A hardware profile fitted to one engine, and how wrong it is: what plans on that engine read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from costmodel.batching import Batching
from costmodel.errors import CalibrationError
from costmodel.evidence import Evidence
from costmodel.hardware import HardwareProfile

LARGEST_MEDIAN_ERROR = 0.15
"""A profile whose held-out median error is above this is refused."""

FITTED = (
    "memory_bytes_per_s", "compute_efficiency", "attention_compute_efficiency",
    "weight_read_efficiency", "kv_read_efficiency", "tile_tokens", "step_overhead_s",
    "layer_overhead_s", "request_overhead_s", "prefill_step_overhead_s", "call_latency_s",
    "call_overhead_s", "prompt_token_overhead_s",
)  # fmt: skip
"""Numbers of a hardware profile that a calibration replaces, beside the peak of the dtype."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """A held-out batch: seconds predicted and measured."""

    name: str
    predicted_s: float
    measured_s: float

    @property
    def error(self) -> float:
        """Relative error, signed: above 0 when the prediction is too long."""
        return self.predicted_s / self.measured_s - 1


@dataclass(frozen=True)
class Calibration:
    """The result of one calibration.

    Attributes:
        engine, model: what was measured, in words.
        hardware: the fitted profile.
        batching: how the engine fills its steps, as stated or as fits best.
        predictions: the held-out batches.
        n_fit: samples behind the fit.
    """

    engine: str
    model: str
    hardware: HardwareProfile
    batching: Batching
    predictions: tuple[Prediction, ...]
    n_fit: int

    @property
    def median_error(self) -> float:
        """Median of the absolute relative errors on held-out batches."""
        return quantile([abs(p.error) for p in self.predictions], 0.5)

    @property
    def p90_error(self) -> float:
        return quantile([abs(p.error) for p in self.predictions], 0.9)

    @property
    def rank_correlation(self) -> float:
        """Spearman's, predicted against measured, on held-out batches."""
        return rank_correlation(
            [p.predicted_s for p in self.predictions], [p.measured_s for p in self.predictions]
        )

    def profile(self) -> HardwareProfile:
        """The fitted profile with its errors noted in it: what is written to a file."""
        how = Evidence("measured", f"{len(self.predictions)} held-out batches of {self.engine}")
        names = ("held_out_median_error", "held_out_p90_error")
        return replace(
            self.hardware,
            held_out_median_error=self.median_error,
            held_out_p90_error=self.p90_error,
            evidence={**self.hardware.evidence, **dict.fromkeys(names, how)},
        )

    def applied(self, hardware: HardwareProfile) -> HardwareProfile:
        """`hardware` with the fitted numbers in place of its own."""
        fitted = {name: getattr(self.hardware, name) for name in FITTED}
        evidence = {
            name: self.hardware.evidence[name] for name in FITTED if name in self.hardware.evidence
        }
        return replace(
            hardware,
            peak_flops_per_s=self.hardware.peak_flops_per_s,
            evidence={**hardware.evidence, **evidence},
            **fitted,
        )

    def summary(self) -> str:
        """One line: the errors."""
        return (
            f"{len(self.predictions)} held-out batches: median error {self.median_error:.1%}, "
            f"p90 {self.p90_error:.1%}, rank correlation {self.rank_correlation:.3f}"
        )

    def table(self) -> str:
        """Predicted against measured, one line a held-out batch, and the summary."""
        width = max([len(p.name) for p in self.predictions] + [5])
        lines = [f"{'batch':{width}}  predicted   measured    error"]
        lines += [
            f"{p.name:{width}}  {p.predicted_s:8.3f} s {p.measured_s:8.3f} s {p.error:+8.1%}"
            for p in self.predictions
        ]
        return "\n".join([*lines, self.summary()])

    def require(self, largest_median: float = LARGEST_MEDIAN_ERROR) -> None:
        """Refuse a profile that is too far off: raises `CalibrationError` with the table."""
        if not self.predictions:
            raise CalibrationError("no held-out batches: nothing says how good this profile is")
        if self.median_error > largest_median:
            raise CalibrationError(
                f"the profile of {self.engine} with {self.model} is refused: its median error on "
                f"held-out batches is {self.median_error:.1%}, above {largest_median:.0%}. Measure "
                f"again on a quiet machine.\n{self.table()}"
            )


def quantile(values: Sequence[float], share: float) -> float:
    """A quantile by linear interpolation; nan for no values.

    Example:
        >>> quantile([4, 1, 2], 0.5), quantile([0, 10], 0.9)
        (2.0, 9.0)
    """
    ordered = sorted(values)
    if not ordered:
        return float("nan")
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return float(ordered[low] + (place - low) * (ordered[high] - ordered[low]))


def rank_correlation(left: Sequence[float], right: Sequence[float]) -> float:
    """Spearman's rank correlation; ties get their mean rank, constants give nan.

    Example:
        >>> rank_correlation([1, 2, 3], [10, 20, 15])
        0.5
    """
    a, b = _ranks(left), _ranks(right)
    mean = (len(a) + 1) / 2
    covariance = sum((x - mean) * (y - mean) for x, y in zip(a, b, strict=True))
    spread = sum((x - mean) ** 2 for x in a) * sum((y - mean) ** 2 for y in b)
    return covariance / spread**0.5 if spread > 0 else float("nan")


def _ranks(values: Sequence[float]) -> list[float]:
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks = [0.0] * len(values)
    start = 0
    while start < len(order):
        end = start
        while end < len(order) and values[order[end]] == values[order[start]]:
            end += 1
        for i in range(start, end):
            ranks[order[i]] = (start + end + 1) / 2
        start = end
    return ranks
