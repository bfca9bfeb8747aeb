"""Flags of an SGLang server for batches: chosen from model and hardware, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from costmodel.hardware import HardwareProfile, load_hardware
from costmodel.model_config import model_from_config
from costmodel.models import ModelProfile
from halo.errors import ConfigError, HaloError, ProfileError

GIB = 2**30
FEWEST_KV_TOKENS = 16_384
"""A pool of fewer tokens cannot keep even a small batch; the start is refused."""


@dataclass(frozen=True)
class Wish:
    """What the user asked for. None leaves the choice here.

    Attributes:
        policy: "plan" keeps the order that Halo sends (priorities), "lpm" is SGLang's own order by
            longest cached prefix.
        share: of the device's memory that this server may use.
        mixed_chunk: whether answers are decoded in the steps in which prompts are read.
        host_cache_gib: host memory for prefixes that fall out of the device's cache; 0 for none.
        metrics: whether the server offers Prometheus metrics. It then keeps gauges for every
            priority it has seen, so that Halo sends none.
        seeded: whether sampled calls have to follow their seeds.
        extra: flags passed on as they are; they win.
    """

    model: str
    name: str = ""
    host: str = "127.0.0.1"
    port: int = 30000
    hardware: str | None = None
    cpu: bool = False
    policy: str = "plan"
    share: float = 1.0
    chunk_tokens: int | None = None
    mixed_chunk: bool | None = None
    host_cache_gib: float = 0.0
    memory_saver: bool = False
    metrics: bool = False
    seeded: bool = False
    adapters: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()


@dataclass
class Flags:
    """Flags in order, and why each was chosen."""

    values: list[str] = field(default_factory=list[str])
    reasons: list[str] = field(default_factory=list[str])

    def add(self, reason: str, *values: object) -> None:
        self.values += [str(value) for value in values]
        self.reasons.append(f"{' '.join(str(v) for v in values)}: {reason}")


def choose_flags(wish: Wish) -> Flags:
    """The flags for `wish`. Raises `ConfigError` for what cannot work."""
    if not 0 < wish.share <= 1:
        raise ConfigError(f"--share is {wish.share}; it is a part of the memory, 0 to 1")
    flags = Flags()
    flags.add("the model", "--model-path", wish.model)
    flags.add("its name in requests", "--served-model-name", wish.name or default_name(wish.model))
    flags.add("never reachable from outside", "--host", wish.host, "--port", wish.port)
    flags.add("cached tokens of each answer are reported", "--enable-cache-report")
    flags.add(
        "a schema cannot run into endless blanks", "--constrained-json-disable-any-whitespace"
    )
    _order(flags, wish)
    if wish.cpu:
        _cpu(flags)
    else:
        _memory(flags, wish)
    if wish.metrics:
        flags.add("for monitoring; Halo then sends no priorities", "--enable-metrics")
    # Not measured on processors, with batch-invariant kernels and with adapters.
    usual = not (wish.cpu or wish.seeded or wish.adapters)
    mixed = usual if wish.mixed_chunk is None else wish.mixed_chunk
    if mixed:
        flags.add("running answers go on while prompts are read", "--enable-mixed-chunk")
    if wish.host_cache_gib:
        flags.add(
            "prefixes that leave the device stay in host memory", "--enable-hierarchical-cache",
            "--hicache-size", round(wish.host_cache_gib), "--hicache-write-policy", "write_through",
        )  # fmt: skip
    if wish.memory_saver:
        flags.add("memory can be released between runs", "--enable-memory-saver")
    if wish.seeded:
        flags.add("sampled answers follow their seeds", "--enable-deterministic-inference")
    if wish.adapters:
        flags.add("LoRA adapters", "--enable-lora", "--lora-paths", *wish.adapters)
    if wish.extra:
        flags.add("as given", *wish.extra)
    return flags


def default_name(model: str) -> str:
    """The name of a model in requests: the last part of its path."""
    return model.rstrip("/").rpartition("/")[2] or model


def _order(flags: Flags, wish: Wish) -> None:
    if wish.policy == "plan":
        flags.add(
            "the plan's order holds; without preemption, which would compute things twice",
            "--schedule-policy", "fcfs", "--enable-priority-scheduling",
            "--schedule-low-priority-values-first", "--disable-priority-preemption",
        )  # fmt: skip
    elif wish.policy == "lpm":
        flags.add("longest cached prefix first", "--schedule-policy", "lpm")
    else:
        raise ConfigError(f"--policy is {wish.policy!r}; there are: plan, lpm")


def _cpu(flags: Flags) -> None:
    flags.add(
        "no accelerator", "--device", "cpu", "--attention-backend", "torch_native",
        "--disable-overlap-schedule", "--cuda-graph-backend-decode", "disabled",
        "--cuda-graph-backend-prefill", "disabled",
    )  # fmt: skip
    flags.add("its cores are wanted by others while nothing runs", "--sleep-on-idle")
    flags.add("small, as main memory is shared", "--max-total-tokens", 65_536)
    flags.add("more at once only wait for each other", "--max-running-requests", 64)


def _memory(flags: Flags, wish: Wish) -> None:
    hardware = load_hardware(wish.hardware) if wish.hardware else None
    model = _model(wish.model)
    if hardware is None:
        if wish.share < 1:
            flags.add("as asked", "--mem-fraction-static", round(0.88 * wish.share, 3))
        if wish.chunk_tokens:
            flags.add("as asked", "--chunked-prefill-size", wish.chunk_tokens)
        return
    chunk = wish.chunk_tokens or _chunk_tokens(hardware)
    batch = _graph_requests(hardware)
    static = _static_share(hardware, chunk, batch, model) * wish.share
    flags.add(
        f"room for activations of a chunk and for CUDA graphs on {hardware.title}",
        "--mem-fraction-static", round(static, 3),
    )  # fmt: skip
    flags.add(
        "one step computes this many prompt tokens: large enough to fill the device, small enough "
        "that answers which are decoded in it do not wait long",
        "--chunked-prefill-size", chunk,
    )  # fmt: skip
    if batch:
        flags.add(
            "as many requests as Halo sends at once are decoded with captured graphs",
            "--cuda-graph-max-bs-decode", batch,
        )  # fmt: skip
    if model is not None:
        _check_fit(hardware, model, static)


def _chunk_tokens(hardware: HardwareProfile) -> int:
    """Where devices of this size stop gaining from larger steps: with mixed chunks on 141 GB as
    measured (docs/benchmarks/sglang), SGLang's own choice for smaller ones."""
    return 4096 if hardware.memory_bytes / GIB >= 35 else 2048


def _graph_requests(hardware: HardwareProfile) -> int | None:
    """The largest batch with captured decode graphs; None for SGLang's own choice. Graphs for so
    many were measured on 141 GB; smaller devices have less room beside the pool."""
    return 1024 if hardware.memory_bytes / GIB >= 120 else None


def _static_share(
    hardware: HardwareProfile, chunk: int, batch: int | None, model: ModelProfile | None
) -> float:
    """Memory for weights and KV, as a share: the rest is for what comes and goes."""
    width, words = (model.d_model, model.vocab_size) if model is not None else (8192, 152_000)
    # Hidden states and MLP intermediates of one chunk, logits of a large batch twice in four
    # bytes, and about 3 GiB of graphs and library workspaces.
    passing = chunk * width * 2 * 12 + (batch or 0) * words * 4 * 2 + 3 * GIB
    return max(0.5, min(0.88, 1 - passing / hardware.memory_bytes - 0.04))


def _check_fit(hardware: HardwareProfile, model: ModelProfile, static: float) -> None:
    room = static * hardware.memory_bytes - model.weight_bytes
    if room < FEWEST_KV_TOKENS * model.kv_bytes_per_token:
        raise ConfigError(
            f"{model.title} does not fit {hardware.title}: its weights take "
            f"{model.weight_bytes / GIB:.1f} GiB, and {FEWEST_KV_TOKENS:,} tokens of KV cache "
            f"{FEWEST_KV_TOKENS * model.kv_bytes_per_token / GIB:.1f} GiB, of "
            f"{static * hardware.memory_bytes / GIB:.1f} GiB for both; choose a smaller or "
            "quantized model, a larger --share, or more devices (-- --tp-size 2)"
        )


def _model(model: str) -> ModelProfile | None:
    """The profile of a model folder; None when there is no folder or its family is not known."""
    if not (Path(model) / "config.json").is_file():
        return None
    try:
        return model_from_config(model)
    except (ProfileError, HaloError):
        return None
