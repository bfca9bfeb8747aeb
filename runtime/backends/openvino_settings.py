"""How the OpenVINO engine is set up: threads, numbers, the sizes of its batches and KV cache."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from runtime.models.memory import Memory

MAX_IN_FLIGHT = 32
"""Decoding gets faster up to about this many requests at once on a CPU."""

BLOCK_TOKENS = 32
"""Tokens in a block of the engine's KV cache on a CPU: the unit of prefix reuse."""

PREFERRED_TOKENS_PER_REQUEST = 1_024
CACHE_SHARE = 4
"""A quarter of the free memory, at most, goes to the KV cache."""

USUAL_KV_BYTES = 2.0
"""Bytes for each value of the KV cache. Where the engine keeps 8 bits, it takes about half."""

EXACT_KV_BYTES = 4.0


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """All that the engine's process is told when it starts.

    Attributes:
        weights: the GGUF file.
        derived: folder where the engine keeps what it derives from the weights.
        context_tokens: longest prompt and answer together that are accepted.
        cache_tokens: size of the KV cache.
        batch_tokens: tokens that one step computes at most, over all requests.
        exact: float32 throughout instead of the engine's fast defaults.
    """

    weights: str
    derived: str
    threads: int
    context_tokens: int
    cache_tokens: int
    max_in_flight: int
    batch_tokens: int = 256
    exact: bool = False

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> EngineSettings:
        return cls(**json.loads(text))

    @property
    def properties(self) -> dict[str, object]:
        """OpenVINO's own names for these."""
        properties: dict[str, object] = {"INFERENCE_NUM_THREADS": self.threads}
        if self.exact:
            properties |= {
                "INFERENCE_PRECISION_HINT": "f32",
                "KV_CACHE_PRECISION": "f32",
                "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
            }
        return properties


def context_limit(model_context_tokens: int, kv_values_per_token: int, memory: Memory) -> int:
    """Tokens of context that this machine can hold: the model's, or fewer where a KV cache of that
    length would take more than a quarter of all memory. It does not depend on what is free at the
    moment, nor on `exact`: what a plan was told must hold when the engine is opened."""
    if memory.total_bytes is None:
        return model_context_tokens
    room = int(memory.total_bytes / CACHE_SHARE / (kv_values_per_token * USUAL_KV_BYTES))
    return min(model_context_tokens, max(BLOCK_TOKENS, room // BLOCK_TOKENS * BLOCK_TOKENS))


def cache_size(
    context_tokens: int,
    max_in_flight: int,
    kv_values_per_token: int,
    weights_bytes: int,
    memory: Memory,
    *,
    exact: bool,
) -> int:
    """Tokens in the KV cache: enough for a full batch and for prefixes to stay, out of a quarter of
    what is free beside the weights; never less than one whole context."""
    token_bytes = kv_values_per_token * (EXACT_KV_BYTES if exact else USUAL_KV_BYTES)
    wanted = max_in_flight * PREFERRED_TOKENS_PER_REQUEST
    if memory.available_bytes is not None:
        free = max(0, memory.available_bytes - weights_bytes)
        wanted = min(wanted, int(free / CACHE_SHARE / token_bytes))
    tokens = max(wanted, context_tokens + BLOCK_TOKENS)
    return -(-tokens // BLOCK_TOKENS) * BLOCK_TOKENS


def usable_cores(root: Path = Path("/")) -> int:
    """Physical cores that this process may use: hyper-threads count once, affinity and a control
    group's quota are obeyed."""
    try:
        cpus = sorted(os.sched_getaffinity(0))
    except AttributeError:
        cpus = list(range(os.cpu_count() or 1))
    cores: set[tuple[str, str]] = set()
    for cpu in cpus:
        topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
        try:
            package = (topology / "physical_package_id").read_text("ascii")
            cores.add((package, (topology / "core_id").read_text("ascii")))
        except OSError:
            cores.add(("", str(cpu)))
    quota = _cpu_quota(root)
    return max(1, len(cores) if quota is None else min(len(cores), round(quota)))


def _cpu_quota(root: Path) -> float | None:
    """CPUs that the control group grants; None without a limit."""
    try:
        line = (root / "proc/self/cgroup").read_text("utf-8").splitlines()[-1]
        folder = root / "sys/fs/cgroup" / line.split(":", 2)[2].lstrip("/")
        quota, period = (folder / "cpu.max").read_text("ascii").split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, IndexError):
        return None
