"""`halo calibrate`: measure an engine, fit a profile, and refuse one that predicts badly."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from costmodel.calibrate import calibrate as fit
from costmodel.calibration import Calibration
from costmodel.hardware import load_hardware
from costmodel.profile_writer import write_hardware
from costmodel.samples import SampleSet, read_samples
from halo.calibrate import measure
from halo.config import Config, load_config
from halo.engines import engine_options
from halo.errors import CalibrationError, ConfigError, ProfileError
from halo.processor_clock import ProcessorClock
from halo.profiles import DEFAULT_HARDWARE, calibrated_path, model_shape
from runtime.backends.create import create_backend, default_model
from runtime.clock import LoopClock, new_event_loop


def calibrate(
    *,
    samples_file: Path | None,
    save_samples: Path | None,
    out: Path | None,
    hardware: str | None,
    shape: str | None,
    budget_s: float,
    held_out: int,
    processor_time: bool,
    config_file: Path | None,
    flags: dict[str, Any],
    json_out: bool,
) -> int:
    """Measure (or read samples), fit, judge, write; returns the exit code."""
    config, _ = load_config(flags, file=config_file)
    if samples_file is not None:
        samples = read_samples(samples_file)
    else:
        samples = _measured(config, hardware, budget_s, held_out, processor_time=processor_time)
    if save_samples is not None:
        save_samples.parent.mkdir(parents=True, exist_ok=True)
        save_samples.write_text(json.dumps(samples.to_json()) + "\n", "utf-8")
    if not (hardware or samples.device):
        raise ProfileError(
            f"name the device that {samples.engine} runs on: --hardware h200, or a .toml file"
        )
    base = load_hardware(hardware or samples.device)
    model = model_shape(shape or samples.model)
    result = fit(samples, model, base)
    engine = samples.engine.split()[0]
    target = out or calibrated_path(engine, samples.model, config.models_dir)
    refused: CalibrationError | None = None
    try:
        result.require()
    except CalibrationError as error:
        refused = error
    if refused is None:
        time = samples.facts.get("time", "wall-clock seconds")
        source = f"halo calibrate: {samples.engine}, {samples.model}, {time}; {result.summary()}"
        write_hardware(result.profile(), target, source)
    if json_out:
        print(json.dumps(_document(samples, result, None if refused else target), indent=2))
        return 1 if refused else 0
    if refused is not None:
        raise refused
    print(result.table())
    if (cached := samples.cached_tokens) is not None:
        print(f"cached tokens: expected {cached[0]:,}, reported by the engine {cached[1]:,}")
    print(f"profile: {target}")
    return 0


def _measured(
    config: Config,
    hardware: str | None,
    budget_s: float,
    held_out: int,
    *,
    processor_time: bool,
) -> SampleSet:
    if processor_time and (config.engine not in ("local", "torch") or config.threads != 1):
        raise ConfigError("--processor-time needs an engine of this machine and --threads 1")
    name = _default_model(config)
    device = hardware or DEFAULT_HARDWARE.get(config.engine.split("=")[0], "")

    async def run() -> SampleSet:
        clock = ProcessorClock() if processor_time else LoopClock()
        backend = await create_backend(config.engine, name, clock, engine_options(config))
        try:
            found = await measure(
                backend,
                clock,
                name,
                engine=config.engine,
                device=device,
                budget_s=budget_s,
                held_out=held_out,
                seed=config.seed,
                announce=lambda line: print(line, file=sys.stderr),
            )
            time = "processor seconds" if processor_time else "wall-clock seconds"
            return replace(found, facts={**found.facts, "time": time})
        finally:
            await backend.close()

    loop = new_event_loop(virtual=config.engine == "simulated")
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(run())


def _default_model(config: Config) -> str:
    if config.model:
        return config.model
    if config.engine in ("local", "torch"):
        from runtime.models.choice import choose_default

        return choose_default()[0]
    return default_model(config.engine, engine_options(config))


def _document(samples: SampleSet, result: Calibration, path: Path | None) -> dict[str, Any]:
    return {
        "engine": samples.engine,
        "model": samples.model,
        "profile": None if path is None else str(path),
        "refused": path is None,
        "n_fit": result.n_fit,
        "n_held_out": len(result.predictions),
        "median_error": result.median_error,
        "p90_error": result.p90_error,
        "rank_correlation": result.rank_correlation,
        "batching": {
            "chunk_tokens": result.batching.chunk_tokens,
            "fuse_decodes": result.batching.fuse_decodes,
        },
        "cached_tokens": samples.cached_tokens,
        "held_out": [
            {"batch": p.name, "predicted_s": p.predicted_s, "measured_s": p.measured_s}
            for p in result.predictions
        ],
    }
