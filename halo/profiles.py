"""Which hardware profile an engine's estimates use: the one that was calibrated here, or a shipped
one that says less."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from costmodel.hardware import HardwareProfile, load_hardware
from costmodel.models import ModelProfile, load_model
from costmodel.step import StepModel
from costmodel.step_timer import ModelTimer
from halo.errors import ProfileError
from planner.physical import Worker

DEFAULT_HARDWARE = {"local": "laptop-cpu", "torch": "laptop-cpu", "simulated": "laptop-cpu"}
"""Shipped profiles of engines that run where Halo runs."""


@dataclass(frozen=True)
class EngineProfile:
    """What prices an engine's calls; `calibrated` when it was measured on this engine."""

    hardware: HardwareProfile
    model: ModelProfile
    calibrated: bool


def profiles_dir(models_dir: Path | None = None) -> Path:
    """Where calibrated profiles are kept: beside the models."""
    from runtime.models.store import default_models_dir

    return (models_dir or default_models_dir()).parent / "profiles"


def calibrated_path(engine: str, model: str, models_dir: Path | None = None) -> Path:
    """The file of an engine's calibrated profile."""
    plain = re.sub(r"[^a-z0-9.]+", "-", f"{engine.split('=')[0]}-{Path(model).name}".lower())
    return profiles_dir(models_dir) / f"{plain.strip('-')}.toml"


def engine_profile(
    engine: str,
    model: str,
    *,
    hardware: str = "",
    shape: str = "",
    models_dir: Path | None = None,
) -> EngineProfile:
    """The profile for `engine` with `model`. `hardware` and `shape` (names or paths) win over what
    was calibrated and over the defaults. Raises `ProfileError`."""
    own = calibrated_path(engine, model, models_dir)
    calibrated = not hardware and own.exists()
    if calibrated:
        found = load_hardware(own)
    else:
        default = DEFAULT_HARDWARE.get(engine.split("=")[0])
        if not hardware and default is None:
            raise ProfileError(
                f"no hardware profile for engine {engine!r}: name the device (--hardware h200) or "
                f"run: halo calibrate --engine {engine}"
            )
        found = load_hardware(hardware or str(default))
        calibrated = found.held_out_median_error is not None
    return EngineProfile(found, model_shape(shape or model), calibrated)


def calibrated_timers(
    workers: Iterable[Worker], models_dir: Path | None = None
) -> dict[str, ModelTimer]:
    """Step timers by worker name, for workers whose engine was calibrated here and whose model's
    shape is known; the scheduler prices others by its own assumptions."""
    timers: dict[str, ModelTimer] = {}
    for worker in workers:
        if not calibrated_path(worker.engine, worker.model, models_dir).exists():
            continue
        try:
            found = engine_profile(worker.engine, worker.model, models_dir=models_dir)
        except ProfileError:
            continue  # a shape that no profile describes: estimates say so, planning goes on
        timers[worker.name] = ModelTimer(StepModel(found.model, found.hardware))
    return timers


def model_shape(name: str) -> ModelProfile:
    """The shape of an engine's model: a shipped profile by any of its names, quantisation suffixes
    and owners left out, or a path. Raises `ProfileError`."""
    if name == "simulated":
        return load_model("smollm2-135m")
    try:
        return load_model(name)
    except ProfileError:
        plain = re.sub(r"[-_.](q\d\w*|f16|f32|bf16|gguf|fp8|awq|gptq|int4|int8)$", "", name.lower())
        shorter = Path(plain).name
        if shorter == name:
            raise
        return load_model(shorter)
