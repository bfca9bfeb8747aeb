"""A hardware profile fitted to one engine: what `halo calibrate` writes and plans read."""

from __future__ import annotations

from dataclasses import dataclass, replace

from costmodel.evidence import Evidence
from costmodel.hardware import HardwareProfile


@dataclass(frozen=True)
class Calibration:
    """Efficiencies and overheads of one engine on one machine.

    Attributes:
        engine, model: what was measured.
        compute_efficiency and the rest: as in `HardwareProfile`, which they replace.
        call_latency_s: time of a call outside its steps (transport, tokenizer, scheduling).
        median_error, p90_error: relative errors on held-out mixed batches.
        n_fit, n_held_out: samples behind the fit and behind the errors.
    """

    engine: str
    model: str
    compute_efficiency: tuple[tuple[float, float], ...]
    attention_compute_efficiency: float
    weight_read_efficiency: float
    kv_read_efficiency: float
    step_overhead_s: float
    request_overhead_s: float
    call_latency_s: float
    tile_tokens: int
    peak_flops_per_s: float
    median_error: float
    p90_error: float
    n_fit: int
    n_held_out: int

    def applied(self, hardware: HardwareProfile) -> HardwareProfile:
        """`hardware` with the fitted numbers in place of its own."""
        source = f"halo calibrate: {self.engine}, {self.model}, {self.n_fit} samples"
        names = (
            "compute_efficiency", "attention_compute_efficiency", "weight_read_efficiency",
            "kv_read_efficiency", "step_overhead_s", "request_overhead_s", "tile_tokens",
        )  # fmt: skip
        fitted = dict.fromkeys(names, Evidence("fitted", source))
        return replace(
            hardware,
            compute_efficiency=self.compute_efficiency,
            attention_compute_efficiency=self.attention_compute_efficiency,
            weight_read_efficiency=self.weight_read_efficiency,
            kv_read_efficiency=self.kv_read_efficiency,
            step_overhead_s=self.step_overhead_s,
            layer_overhead_s=0.0,
            request_overhead_s=self.request_overhead_s,
            tile_tokens=self.tile_tokens,
            evidence={**hardware.evidence, **fitted},
        )
