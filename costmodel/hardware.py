"""What a device can do: peaks, what of them is reached, memory, power and price."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal

from costmodel.errors import ProfileError
from costmodel.evidence import Evidence, Grade
from costmodel.profile_file import (
    PROFILES,
    ProfileReader,
    nearest,
    profile_names,
    profile_path,
)

PeakKind = Literal["dense", "sparse"]
DeviceKind = Literal["gpu", "cpu", "npu", "cim"]

DEVICE_KINDS: tuple[DeviceKind, ...] = ("gpu", "cpu", "npu", "cim")
DTYPE_BYTES: Mapping[str, float] = {
    "fp32": 4.0, "tf32": 4.0, "fp16": 2.0, "bf16": 2.0, "fp8": 1.0, "int8": 1.0, "fp4": 0.5,
    "int4": 0.5,
}  # fmt: skip
"""Dtypes that a peak may be stated for, and the bytes of one element."""


@dataclass(frozen=True)
class HardwareProfile:
    """One device, as the cost model sees it.

    Attributes:
        kind: gpu, cpu, npu, or cim (compute in memory).
        peak_flops_per_s: arithmetic peak by (dtype, "dense" or "sparse"), multiply and add counted
            as two.
        memory_bytes: memory of the device; `usable_memory_share` of it may hold weights and KV.
        memory_bytes_per_s: peak bandwidth of that memory.
        compute_efficiency: share of the dense peak that linear layers reach, as points (tokens in
            the step, share), interpolated linearly and constant outside.
        attention_compute_efficiency: the same share for dense prefill attention.
        weight_read_efficiency, kv_read_efficiency: shares of the bandwidth reached when reading
            weights and KV cache.
        tile_tokens: above this, a step's tokens are rounded up to a multiple of it in linear
            layers.
        step_overhead_s, layer_overhead_s: time of a step and of one layer that no work explains.
        request_overhead_s: time of a step per request in it (scheduling, sampling).
        prefill_step_overhead_s: time that a step takes longer when it has prompt tokens at all.
        call_latency_s, call_overhead_s, prompt_token_overhead_s: time of calls outside their steps:
            of a batch as a whole, of each call, of each prompt token, hits included (transport,
            tokenizer, look-up).
        kernel_efficiency: compute efficiency of other attention kernels relative to dense ones.
        cache_copy_factor: passes over the KV cache per decode step; 1 for a paged cache.
        host_link_bytes_per_s: effective rate of copies between device and host memory.
        batch_scales_decode: whether sequences of a batch share one read of the weights.
        idle_power_w, power_w: power at rest and at full load.
        joule_per_flop, joule_per_byte: energy of work, if known; else energy is power times time.
        price_usd_per_h: price of the device; None when unknown.
        held_out_median_error, held_out_p90_error: how far predictions were off when the profile
            was calibrated; None for a profile that was not.
        evidence: grade and source of each number.
    """

    name: str
    title: str
    kind: DeviceKind
    peak_flops_per_s: Mapping[tuple[str, PeakKind], float]
    memory_bytes: float
    memory_bytes_per_s: float
    usable_memory_share: float
    compute_efficiency: tuple[tuple[float, float], ...]
    attention_compute_efficiency: float
    weight_read_efficiency: float
    kv_read_efficiency: float
    tile_tokens: int
    step_overhead_s: float
    layer_overhead_s: float
    request_overhead_s: float
    prefill_step_overhead_s: float
    call_latency_s: float
    call_overhead_s: float
    prompt_token_overhead_s: float
    kernel_efficiency: Mapping[str, float]
    cache_copy_factor: float
    host_link_bytes_per_s: float
    batch_scales_decode: bool
    power_w: float
    idle_power_w: float
    joule_per_flop: float | None = None
    joule_per_byte: float | None = None
    price_usd_per_h: float | None = None
    held_out_median_error: float | None = None
    held_out_p90_error: float | None = None
    aliases: tuple[str, ...] = ()
    evidence: Mapping[str, Evidence] = field(default_factory=dict[str, Evidence], repr=False)

    def peak(self, dtype: str = "bf16", kind: PeakKind = "dense") -> float:
        """Peak FLOP/s of a dtype. `bf16` falls back to `fp16` and back: tensor cores treat them
        alike. Raises `ProfileError` for a peak that the profile does not state."""
        twin = {"bf16": "fp16", "fp16": "bf16"}.get(dtype)
        for name in (dtype, twin):
            if name is not None and (name, kind) in self.peak_flops_per_s:
                return self.peak_flops_per_s[(name, kind)]
        stated = ", ".join(f"{d} ({k})" for d, k in self.peak_flops_per_s)
        raise ProfileError(
            f"hardware {self.name!r} states no {kind} peak for {dtype!r}; it has: {stated}",
            field=f"peak_flops_per_s.{dtype}.{kind}",
        )

    def grade_of(self, number: str) -> Grade:
        """The grade of a number, by field name; "assumed" for one without evidence."""
        known = self.evidence.get(number)
        return "assumed" if known is None else known.grade


def hardware_names() -> tuple[str, ...]:
    """Names of the shipped hardware profiles."""
    return profile_names("hardware")


def load_hardware(name: str | Path) -> HardwareProfile:
    """A shipped hardware profile by name or alias, or the profile in a `.toml` file.

    Raises `ProfileError` naming the file and the field, or the nearest known name.

    Example:
        >>> load_hardware("h200").memory_bytes_per_s
        4800000000000.0
    """
    return read_hardware(profile_path("hardware", name, _aliases()))


@lru_cache(maxsize=1)
def _aliases() -> Mapping[str, str]:
    found: dict[str, str] = {}
    for path in (PROFILES / "hardware").glob("*.toml"):
        found.update(dict.fromkeys(read_hardware(path).aliases, path.stem))
    return found


def read_hardware(path: Path) -> HardwareProfile:
    """The hardware profile in a TOML file. Raises `ProfileError`."""
    reader = ProfileReader.open(path)
    profile = HardwareProfile(
        name=path.stem,
        title=reader.text("title"),
        kind=_device_kind(reader),
        peak_flops_per_s=_peaks(reader),
        memory_bytes=reader.number("memory_bytes", above=0),
        memory_bytes_per_s=reader.number("memory_bytes_per_s", above=0),
        usable_memory_share=reader.number("usable_memory_share", 0.9, above=0, most=1),
        compute_efficiency=reader.curve("compute_efficiency"),
        attention_compute_efficiency=reader.number("attention_compute_efficiency", above=0, most=1),
        weight_read_efficiency=reader.number("weight_read_efficiency", above=0, most=1),
        kv_read_efficiency=reader.number("kv_read_efficiency", above=0, most=1),
        tile_tokens=reader.integer("tile_tokens", 1, least=1),
        step_overhead_s=reader.number("step_overhead_s", 0.0),
        layer_overhead_s=reader.number("layer_overhead_s", 0.0),
        request_overhead_s=reader.number("request_overhead_s", 0.0),
        prefill_step_overhead_s=reader.number("prefill_step_overhead_s", 0.0),
        call_latency_s=reader.number("call_latency_s", 0.0),
        call_overhead_s=reader.number("call_overhead_s", 0.0),
        prompt_token_overhead_s=reader.number("prompt_token_overhead_s", 0.0),
        kernel_efficiency=_kernels(reader),
        cache_copy_factor=reader.number("cache_copy_factor", 1.0, least=1),
        host_link_bytes_per_s=reader.number("host_link_bytes_per_s", above=0),
        batch_scales_decode=reader.boolean("batch_scales_decode", True),
        power_w=reader.number("power_w", above=0),
        idle_power_w=reader.number("idle_power_w", 0.0),
        joule_per_flop=reader.optional("joule_per_flop"),
        joule_per_byte=reader.optional("joule_per_byte"),
        price_usd_per_h=reader.optional("price_usd_per_h"),
        held_out_median_error=reader.optional("held_out_median_error"),
        held_out_p90_error=reader.optional("held_out_p90_error"),
        aliases=reader.texts("aliases"),
        evidence=reader.evidence,
    )
    reader.finish()
    if profile.idle_power_w > profile.power_w:
        raise reader.error("idle_power_w", f"is above power_w ({profile.power_w:g})")
    return profile


def _device_kind(reader: ProfileReader) -> DeviceKind:
    value = reader.text("kind")
    for kind in DEVICE_KINDS:
        if value == kind:
            return kind
    raise reader.error("kind", f"is {value!r}; the kinds are: {', '.join(DEVICE_KINDS)}")


def _peaks(reader: ProfileReader) -> Mapping[tuple[str, PeakKind], float]:
    table = reader.table("peak_flops_per_s")
    if table is None:
        raise reader.error("peak_flops_per_s", "is missing; state dense or sparse peaks by dtype")
    peaks: dict[tuple[str, PeakKind], float] = {}
    for dtype in table.fields():
        if dtype not in DTYPE_BYTES:
            near = nearest(dtype, DTYPE_BYTES)
            raise table.error(dtype, f"is no dtype{near or '; one is bf16'}")
        kinds = table.table(dtype)
        if kinds is None:
            continue
        if kinds.has("dense"):
            peaks[(dtype, "dense")] = kinds.number("dense", above=0)
        if kinds.has("sparse"):
            peaks[(dtype, "sparse")] = kinds.number("sparse", above=0)
            dense = peaks.get((dtype, "dense"))
            if dense is not None and peaks[(dtype, "sparse")] < dense:
                raise kinds.error("sparse", f"is below the dense peak of {dense:g}")
        kinds.finish()
    if not any(kind == "dense" for _, kind in peaks):
        raise reader.error("peak_flops_per_s", "states no dense peak; plans need one")
    return peaks


def _kernels(reader: ProfileReader) -> Mapping[str, float]:
    table = reader.table("kernel_efficiency")
    if table is None:
        return {}
    return {name: table.number(name, above=0, most=1) for name in table.fields()}
