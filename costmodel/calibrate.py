"""Fit a hardware profile to measured batches.

The time of a batch is a sum over its steps (`batch_steps`), and the time of a step is linear in a
few unknowns once the linear layers' time is a curve over the tokens of a step:

    T(n) = t_0 + sum of t_k ramp_k(n)      rising, piecewise linear, knots at powers of two
         + a pairs + b context + r sequences + p [has a prompt]
    batch = sum of T + latency + c calls + h prompt tokens

All unknowns are times and cannot be negative, so non-negative least squares on relative errors
finds them; the curve then reads as compute efficiency at each knot, `a` as the attention
kernel's, `b` as the bandwidth that KV reads reach. What the fit leaves out (a maximum instead of a
sum, tiles) shows in the errors on held-out batches, which the finished profile predicts, not the
fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from costmodel.batching import Batching, Call, batch_s, batch_steps
from costmodel.calibration import FITTED, Calibration, Prediction, quantile
from costmodel.errors import CalibrationError
from costmodel.evidence import Evidence
from costmodel.hardware import HardwareProfile
from costmodel.least_squares import robust_non_negative_least_squares
from costmodel.models import ModelProfile
from costmodel.samples import Sample, SampleSet
from costmodel.step import StepModel

FEWEST_SAMPLES = 12
"""A fit has about this many unknowns that matter."""

CANDIDATES = (
    Batching(chunk_tokens=256, fuse_decodes=True),
    Batching(chunk_tokens=512, fuse_decodes=True),
    Batching(chunk_tokens=2048, fuse_decodes=True),
    Batching(chunk_tokens=512),
    Batching(chunk_tokens=2048),
    Batching(chunk_tokens=8192),
)
"""Rules tried when an engine does not state its own."""


def calibrate(samples: SampleSet, model: ModelProfile, hardware: HardwareProfile) -> Calibration:
    """The profile of the engine behind `samples`, with its errors on the held-out ones.

    `hardware` gives what is not measured: peaks, memory, power, the kernels of other techniques.
    Nothing is refused here: `Calibration.require` does that. Raises `CalibrationError` for too few
    samples.
    """
    fit, held_out = samples.fit, samples.held_out
    if len(fit) < FEWEST_SAMPLES:
        raise CalibrationError(f"{len(fit)} samples to fit; at least {FEWEST_SAMPLES} are needed")
    rules = (samples.batching,) if samples.batching is not None else CANDIDATES
    source = Evidence(
        "fitted", f"halo calibrate: {samples.engine}, {model.name}, {len(fit)} samples"
    )
    best: tuple[float, HardwareProfile, Batching] | None = None
    for batching in rules:
        fitted = fit_hardware(fit, model, hardware, batching, source)
        errors = [abs(p.error) for p in predict(fit, model, fitted, batching)]
        error = quantile(errors, 0.5)
        if best is None or error < best[0]:
            best = (error, fitted, batching)
    assert best is not None
    _, fitted, batching = best
    return Calibration(
        engine=samples.engine,
        model=model.name,
        hardware=fitted,
        batching=batching,
        predictions=predict(held_out, model, fitted, batching),
        n_fit=len(fit),
    )


def predict(
    samples: Sequence[Sample], model: ModelProfile, hardware: HardwareProfile, batching: Batching
) -> tuple[Prediction, ...]:
    """What a profile says of samples, beside what was measured."""
    step = StepModel(model, hardware)
    return tuple(
        Prediction(sample.name, batch_s(step, sample.calls, batching), sample.seconds)
        for sample in samples
    )


@dataclass(frozen=True)
class _Unknowns:
    """The fitted times, by name."""

    latency: float
    call: float
    prompt_token: float
    prefill_step: float
    sequence: float
    pair: float
    context_token: float
    ramps: tuple[float, ...]


_FIXED = 7
"""Unknowns before the ramps."""
_ROUNDS = 6
"""Fits in a row: the head's time is taken from the profile that the fit before it gave. Six settle
it, from a profile eight times too slow, to under 1 %."""


def fit_hardware(
    samples: Sequence[Sample],
    model: ModelProfile,
    hardware: HardwareProfile,
    batching: Batching,
    source: Evidence,
) -> HardwareProfile:
    """`hardware` with efficiencies and overheads that explain `samples`."""
    knots = _knots(samples, batching)
    counted = [_counts(sample.calls, batching, knots) for sample in samples]
    rows = [counts for counts, _ in counted]
    base = hardware
    for _ in range(_ROUNDS):
        step = StepModel(model, base)
        targets: list[float] = []
        for sample, (_, logits) in zip(samples, counted, strict=True):
            head_s = sum(times * step.head_s(n) for n, times in logits.items())
            # A head that takes nearly all of the time is a sign of a profile far too slow.
            targets.append(max(sample.seconds - head_s, 0.2 * sample.seconds))
        x = robust_non_negative_least_squares(rows, targets)
        latency, call, token, prefill, sequence, pair, context = x[:_FIXED]
        unknowns = _Unknowns(
            latency, call, token, prefill, sequence, pair, context, tuple(x[_FIXED:])
        )
        base = _profile(hardware, step, unknowns, knots, source)
    return base


def _knots(samples: Sequence[Sample], batching: Batching) -> tuple[int, ...]:
    """Powers of two that the samples' steps reach, from 1."""
    most = max(
        sum(tokens for tokens, _ in step.prefills) + step.n_decodes
        for sample in samples
        for step in batch_steps(sample.calls, batching)
    )
    knots = [1]
    while knots[-1] < most:
        knots.append(knots[-1] * 2)
    return tuple(knots)


def _counts(
    calls: Sequence[Call], batching: Batching, knots: Sequence[int]
) -> tuple[list[float], dict[int, int]]:
    """How often a batch pays each unknown, and how often a step gives how many logits."""
    counts = [0.0] * (_FIXED + len(knots))
    counts[0] = 1.0
    counts[1] = len(calls)
    counts[2] = sum(call.prompt_tokens for call in calls)
    logits: dict[int, int] = {}
    for one in batch_steps(calls, batching):
        tokens = one.n_decodes
        for n, context in one.prefills:
            tokens += n
            counts[5] += n * (context + (n + 1) / 2)
        counts[3] += 1 if one.prefills else 0
        counts[4] += one.n_decodes + len(one.prefills)
        counts[6] += one.decode_context_tokens
        counts[_FIXED] += 1
        for k in range(1, len(knots)):
            low, high = knots[k - 1], knots[k]
            if tokens <= low:
                break
            # The last ramp goes on, so that longer steps are extrapolated.
            rise = (tokens - low) / (high - low)
            counts[_FIXED + k] += rise if k == len(knots) - 1 else min(1.0, rise)
        n_logits = one.n_decodes + len(one.prefills)
        logits[n_logits] = logits.get(n_logits, 0) + 1
    return counts, logits


def _profile(
    hardware: HardwareProfile,
    step: StepModel,
    x: _Unknowns,
    knots: Sequence[int],
    source: Evidence,
) -> HardwareProfile:
    """Times turned into the numbers of a profile."""
    model = step.model
    flops_per_token = 2 * sum(layer.params_kv + layer.params_rest for layer in step.layers)
    curve: list[float] = []
    for ramp in x.ramps:
        curve.append(ramp + (curve[-1] if curve else 0.0))
    # One sequence reads all weights; what is not reading is overhead, taken from the profile.
    first = max(curve[0], 1e-9)
    weights = step.weight_bytes_of_one_token
    overhead = hardware.step_overhead_s
    if first - overhead < weights / hardware.memory_bytes_per_s:
        overhead = 0.0
    bandwidth = max(hardware.memory_bytes_per_s, weights / (first - overhead))
    rates = [
        flops_per_token * n / max(seconds - overhead, 1e-9)
        for n, seconds in zip(knots, curve, strict=True)
    ]
    dtype_peak = max(hardware.peak(model.dtype), max(rates))
    points = tuple(
        (float(n), min(1.0, rate / dtype_peak)) for n, rate in zip(knots, rates, strict=True)
    )
    pair_flops = sum(layer.attention_flops_per_pair for layer in step.layers)
    attention = hardware.attention_compute_efficiency
    if x.pair > 0 and pair_flops:
        attention = min(1.0, pair_flops / x.pair / dtype_peak)
    kv_bytes = sum(layer.kv_decode_bytes_per_token for layer in step.layers)
    kv_efficiency = hardware.kv_read_efficiency
    if x.context_token > 0 and kv_bytes:
        kv_efficiency = min(1.0, kv_bytes / x.context_token / bandwidth)
    peaks = dict(hardware.peak_flops_per_s)
    peaks[(model.dtype, "dense")] = dtype_peak
    changed = dtype_peak > hardware.peak(model.dtype)
    peak_evidence = {f"peak_flops_per_s.{model.dtype}.dense": source} if changed else {}
    return replace(
        hardware,
        peak_flops_per_s=peaks,
        memory_bytes_per_s=bandwidth,
        compute_efficiency=points,
        attention_compute_efficiency=attention,
        weight_read_efficiency=min(1.0, weights / (first - overhead) / bandwidth),
        kv_read_efficiency=kv_efficiency,
        cache_copy_factor=1.0,
        tile_tokens=1,
        step_overhead_s=overhead,
        layer_overhead_s=0.0,
        request_overhead_s=x.sequence,
        prefill_step_overhead_s=x.prefill_step,
        call_latency_s=x.latency,
        call_overhead_s=x.call,
        prompt_token_overhead_s=x.prompt_token,
        evidence={**hardware.evidence, **dict.fromkeys(FITTED, source), **peak_evidence},
    )
