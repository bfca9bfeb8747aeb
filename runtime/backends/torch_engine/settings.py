"""How an engine is set up when nobody says: device, numbers, threads and the size of its cache."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from runtime.backends.base import Capabilities
from runtime.models.gguf_file import read_gguf
from runtime.models.memory import read_memory
from runtime.models.store import ModelStore

MAX_IN_FLIGHT = 64
LARGEST_CACHE_TOKENS = 65_536
SMALLEST_CACHE_TOKENS = 2_048

CACHE_SHARE = 8
"""An eighth of the machine's memory goes to the pool, and at most as much again to what decoding
keeps beside it."""

KV_BYTES = 4
"""Bytes of a value of the cache in float32: sizes are planned for the larger of the two types."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What can be known of a model without loading it."""

    context_tokens: int
    kv_values_per_token: int


def read_facts(name: str, models_dir: Path | None) -> ModelFacts:
    """Facts of a model by name or path, which need not have been fetched. Raises `BackendError`."""
    path = Path(name).expanduser()
    if (path / "config.json").is_file():
        from runtime.backends.torch_engine.weights import read_config

        shape = read_config(path)
        values = 2 * shape.n_layers * shape.n_kv_heads * shape.head_dim
        return ModelFacts(shape.context_tokens, values)
    store = ModelStore(models_dir)
    stored = None if path.suffix == ".gguf" else store.find(name)
    if stored is None and path.suffix != ".gguf":
        entry = store.entry(name)
        if entry is None:
            raise store.unknown(name)
        return ModelFacts(entry.context_tokens, entry.kv_values_per_token)
    header = read_gguf(path if stored is None else stored.weights)
    return ModelFacts(header.context_tokens or 2_048, header.kv_values_per_token or 1)


def cache_tokens(facts: ModelFacts) -> int:
    """Slots of the KV pool: a share of the machine's memory, within limits."""
    total = read_memory().total_bytes or 8 << 30
    fit = total // CACHE_SHARE // (facts.kv_values_per_token * KV_BYTES)
    return max(SMALLEST_CACHE_TOKENS, min(LARGEST_CACHE_TOKENS, fit))


def capabilities(
    facts: ModelFacts,
    max_in_flight: int | None,
    *,
    deterministic: bool,
    open_prompts: bool = True,
) -> Capabilities:
    """What the engine offers with a model."""
    return Capabilities(
        max_in_flight=max_in_flight or MAX_IN_FLIGHT,
        context_tokens=min(facts.context_tokens, cache_tokens(facts)),
        prefix_cache=True,
        prime_prefix=False,
        prefix_block_tokens=1,
        reports_cached_tokens=True,
        deterministic=deterministic,
        cache_tokens=cache_tokens(facts),
        techniques=("fastkv", "swiftkv"),
        open_prompts=open_prompts,
    )


def usable_cores() -> int:
    """Processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class TorchOptions:
    """What the torch engine may be told beyond `EngineOptions`.

    Attributes:
        precision: float32, bfloat16 or int8; None for float32 when exact answers are asked for,
            and otherwise for the faster of float32 and bfloat16 on this processor.
        device: as torch names it; None for CUDA where torch sees it.
        max_kv_tokens: slots of the KV pool; None for a share of memory.
        layer_groups, swiftkv: see `SchedulerConfig` and `SwiftKV` (keep_layers, group).
        selection: FastKV for the prompts of all requests: (layer or None for the middle one, rate,
            retain), see `TokenSelection`.
    """

    precision: str | None = None
    device: str | None = None
    max_kv_tokens: int | None = None
    max_step_tokens: int | None = None
    chunk_tokens: int | None = None
    layer_groups: int | None = None
    swiftkv: tuple[int, int] | None = None
    selection: tuple[int | None, float, float] | None = None
    cascade: bool = True
