"""Write a hardware profile as TOML that `load_hardware` reads, evidence number by number."""

from __future__ import annotations

import json
from pathlib import Path

from costmodel.evidence import Evidence
from costmodel.hardware import HardwareProfile

_NUMBERS = (
    "memory_bytes", "memory_bytes_per_s", "usable_memory_share", "compute_efficiency",
    "attention_compute_efficiency", "weight_read_efficiency", "kv_read_efficiency", "tile_tokens",
    "step_overhead_s", "layer_overhead_s", "request_overhead_s", "prefill_step_overhead_s",
    "call_latency_s", "call_overhead_s", "prompt_token_overhead_s", "cache_copy_factor",
    "host_link_bytes_per_s", "power_w", "idle_power_w", "joule_per_flop", "joule_per_byte",
    "price_usd_per_h", "held_out_median_error", "held_out_p90_error",
)  # fmt: skip


def hardware_toml(profile: HardwareProfile, source: str) -> str:
    """The profile as TOML text; `source` covers numbers without evidence of their own.

    Example:
        >>> from costmodel.hardware import load_hardware
        >>> "memory_bytes = { value = 141000000000.0" in hardware_toml(load_hardware("h200"), "x")
        True
    """
    lines = [
        f"title = {json.dumps(profile.title)}",
        f"kind = {json.dumps(profile.kind)}",
        f"source = {json.dumps(source)}",
        'grade = "fitted"',
        f"batch_scales_decode = {json.dumps(profile.batch_scales_decode)}",
        "",
    ]
    for name in _NUMBERS:
        value = getattr(profile, name)
        if value is None:
            continue
        points = [list(point) for point in value] if name == "compute_efficiency" else value
        lines.append(_line(name, points, profile.evidence.get(name)))
    for (dtype, kind), peak in profile.peak_flops_per_s.items():
        header = f"[peak_flops_per_s.{dtype}]"
        if header not in lines:
            lines += ["", header]
        evidence = profile.evidence.get(f"peak_flops_per_s.{dtype}.{kind}")
        lines.append(_line(kind, peak, evidence))
    if profile.kernel_efficiency:
        lines += ["", "[kernel_efficiency]"]
        for name, value in profile.kernel_efficiency.items():
            lines.append(_line(name, value, profile.evidence.get(f"kernel_efficiency.{name}")))
    return "\n".join(lines) + "\n"


def write_hardware(profile: HardwareProfile, path: Path, source: str) -> None:
    """Write the profile, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".new")
    draft.write_text(hardware_toml(profile, source), "utf-8")
    draft.replace(path)


def _line(name: str, value: object, evidence: Evidence | None) -> str:
    number = json.dumps(value)
    if evidence is None:
        return f"{name} = {number}"
    return (
        f"{name} = {{ value = {number}, grade = {json.dumps(evidence.grade)}, "
        f"source = {json.dumps(evidence.source)} }}"
    )
