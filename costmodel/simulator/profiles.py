"""Engines and workers of the simulator from hardware and model profiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from costmodel.calibration import Calibration
from costmodel.hardware import HardwareProfile, load_hardware
from costmodel.links import LinkProfile
from costmodel.models import ModelProfile, load_model
from costmodel.simulator.machine import EngineSpec, LinkSpec, WorkerSpec
from costmodel.step import StepModel
from costmodel.step_timer import ModelTimer

START_S = 15.0
LOAD_BYTES_PER_S = 2e9
"""A new SGLang server on an H200 took 18 to 46 s until it answered (measured). Taken as a fixed
start and a rate of reading weights: an assumption about how that splits."""

WAKE_S = 0.25
WAKE_BYTES_PER_S = 25e9
"""Release and resume of memory took 0.25 s together (measured, contents lost); weights come back
from host memory at half of what PCIe 5.0 x16 carries (assumed)."""


def engine_from_profiles(
    model: ModelProfile | str,
    hardware: HardwareProfile | str,
    *,
    calibration: Calibration | None = None,
    devices: int = 1,
    link: LinkProfile | None = None,
    max_running: int = 256,
    chunk_tokens: int = 8192,
    mixed: bool = False,
    kv_context_tokens: int = 1024,
) -> EngineSpec:
    """The engine of `model` on `devices` accelerators, priced by the step formula.

    `kv_context_tokens` is the length at which KV bytes a token are taken (they are not linear for
    models with windows or states). Raises `ProfileError` for unknown profiles.
    """
    profile = load_model(model) if isinstance(model, str) else model
    machine = load_hardware(hardware) if isinstance(hardware, str) else hardware
    step = StepModel(profile, machine, calibration=calibration, devices=devices, link=link)
    weights = profile.weight_bytes
    return EngineSpec(
        ModelTimer(step),
        weights,
        step.kv_bytes(kv_context_tokens) / kv_context_tokens,
        load_s=START_S + weights / devices / LOAD_BYTES_PER_S,
        wake_s=WAKE_S + weights / devices / WAKE_BYTES_PER_S,
        sleep_s=0.0,
        max_running=max_running,
        chunk_tokens=chunk_tokens,
        mixed=mixed,
    )


def worker_from_profiles(
    name: str,
    hardware: HardwareProfile | str,
    models: Sequence[str] | Mapping[str, EngineSpec],
    *,
    devices: int = 1,
    resident: tuple[str, ...] = (),
    host_cache_tokens: int = 0,
    max_running: int = 256,
) -> WorkerSpec:
    """A worker of `devices` accelerators that may run `models` (names of profiles, or engines by
    name), with memory, power and price of the hardware profile."""
    machine = load_hardware(hardware) if isinstance(hardware, str) else hardware
    if isinstance(models, Mapping):
        engines = dict(models)
    else:
        engines = {
            model: engine_from_profiles(model, machine, devices=devices, max_running=max_running)
            for model in models
        }
    return WorkerSpec(
        name,
        engines,
        machine.memory_bytes * machine.usable_memory_share * devices,
        resident=resident,
        host_cache_tokens=host_cache_tokens,
        power_w=machine.power_w * devices,
        idle_power_w=machine.idle_power_w * devices,
        price_per_h=(machine.price_usd_per_h or 0.0) * devices,
        devices=devices,
    )


def link_from_profile(link: LinkProfile) -> LinkSpec:
    """A link between workers at what the profile says it carries."""
    return LinkSpec(link.bytes_per_s, link.latency_s)
