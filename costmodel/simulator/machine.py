"""The machine that the simulator runs on: workers, what each model needs there, tool lanes, links.

A worker is one accelerator, or a tensor-parallel group of them that acts as one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from costmodel.errors import ProfileError
from costmodel.simulator.timer import StepTimer


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """One model on one kind of worker.

    Attributes:
        timer: seconds of a step.
        weight_bytes, kv_bytes_per_token: memory.
        load_s: from cold storage until it answers. wake_s: from host memory, once it was loaded
            here. sleep_s: to give its memory back.
        max_running: requests in one decode batch.
        chunk_tokens: prompt tokens of one prefill step.
        mixed: whether running requests decode in prefill steps (SGLang: --enable-mixed-chunk);
            otherwise prefill goes first and decoding waits.
        shares_in_batch: whether requests admitted together share a prefix that nobody has
            computed before (a runtime that primes prefixes makes it so).
        block_tokens: granularity of prefix reuse.
        host_reload_s_per_token: price of a token from the host tier.
    """

    timer: StepTimer
    weight_bytes: float
    kv_bytes_per_token: float
    load_s: float = 0.0
    wake_s: float = 0.0
    sleep_s: float = 0.0
    max_running: int = 256
    chunk_tokens: int = 8192
    mixed: bool = False
    shares_in_batch: bool = True
    block_tokens: int = 1
    host_reload_s_per_token: float = 3.5e-6

    def __post_init__(self) -> None:
        for name in ("weight_bytes", "kv_bytes_per_token", "load_s", "wake_s", "sleep_s"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise ProfileError(f"{name} of an engine is {value}; it must be finite and >= 0")
        for name in ("max_running", "chunk_tokens", "block_tokens"):
            if getattr(self, name) < 1:
                raise ProfileError(f"{name} of an engine is {getattr(self, name)}; at least 1")


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """One worker.

    Attributes:
        engines: by model name, the models that it may run. A model that is absent cannot run here.
        memory_bytes: usable for weights and KV cache.
        resident: models that are loaded when the run starts, as far as they fit together.
        co_run_throughput: work done a second by two or more models side by side, one alone being 1.
        host_cache_tokens: prefix tokens kept in host memory when the device evicts them.
        power_w, idle_power_w, price_per_h: for energy and money.
        devices: accelerators in the group.
    """

    name: str
    engines: Mapping[str, EngineSpec]
    memory_bytes: float
    resident: tuple[str, ...] = ()
    co_run_throughput: float = 1.18
    host_cache_tokens: int = 0
    power_w: float = 0.0
    idle_power_w: float = 0.0
    price_per_h: float = 0.0
    devices: int = 1

    def __post_init__(self) -> None:
        if self.memory_bytes < 0 or self.co_run_throughput <= 0 or self.devices < 1:
            raise ProfileError(
                f"worker {self.name!r}: memory_bytes must be >= 0, co_run_throughput > 0, "
                "devices >= 1"
            )

    def fits(self, models: frozenset[str] | set[str] | tuple[str, ...], kv_tokens: int = 0) -> bool:
        """Whether `models` can be resident together, each with room for `kv_tokens`."""
        need = 0.0
        for model in models:
            engine = self.engines.get(model)
            if engine is None:
                return False
            need += engine.weight_bytes + kv_tokens * engine.kv_bytes_per_token
        return need <= self.memory_bytes


@dataclass(frozen=True, slots=True)
class ToolLaneSpec:
    """A class of tools (SQL, HTTP, Python) that share a limit of calls at once."""

    name: str
    limit: int = 32

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise ProfileError(f"tool lane {self.name!r} has limit {self.limit}; at least 1")


@dataclass(frozen=True, slots=True)
class LinkSpec:
    """What moves KV cache between workers: effective bytes a second and a latency."""

    bytes_per_s: float
    latency_s: float = 0.0

    def __post_init__(self) -> None:
        if self.bytes_per_s <= 0 or self.latency_s < 0:
            raise ProfileError("a link needs bytes_per_s > 0 and latency_s >= 0")

    def transfer_s(self, size_bytes: float) -> float:
        return self.latency_s + size_bytes / self.bytes_per_s


@dataclass(frozen=True)
class Machine:
    """Workers, tool lanes and the link between workers (None: KV cache cannot move)."""

    workers: tuple[WorkerSpec, ...]
    lanes: tuple[ToolLaneSpec, ...] = ()
    link: LinkSpec | None = None
    lane_index: Mapping[str, int] = field(init=False, default_factory=dict[str, int])

    def __post_init__(self) -> None:
        if len({w.name for w in self.workers}) != len(self.workers):
            raise ProfileError("two workers of a machine have one name; rename one")
        index = {lane.name: i for i, lane in enumerate(self.lanes)}
        object.__setattr__(self, "lane_index", index)

    def workers_for(self, model: str) -> list[int]:
        """Positions of the workers that can hold `model` alone."""
        return [i for i, worker in enumerate(self.workers) if worker.fits((model,))]
