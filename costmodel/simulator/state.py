"""The state of a simulated run: engines and workers."""

from __future__ import annotations

from costmodel.simulator.machine import EngineSpec, WorkerSpec
from costmodel.simulator.segment_cache import SegmentCache

ABSENT, LOADING, RESIDENT = 0, 1, 2
IDLE, PREFILL, DECODE = 0, 1, 2


class EngineState:
    """One model on one worker."""

    __slots__ = (
        "activity", "batch", "cache", "capacity_tokens", "context", "counted", "finish", "free",
        "locked_tokens", "model", "outputs_tokens", "pending", "planned_steps",
        "queue", "rate", "since_s", "spec", "state", "step_s", "steps", "version", "was_loaded",
        "work_s", "worker",
    )  # fmt: skip

    def __init__(self, worker: WorkerState, model: str, spec: EngineSpec) -> None:
        self.worker = worker
        self.model = model
        self.spec = spec
        self.state = ABSENT
        self.was_loaded = False
        self.queue: list[tuple[float, int]] = []
        self.pending = 0
        self.finish: list[tuple[int, int, int, int, int, float, float, float, float]] = []
        self.steps = 0
        self.batch = 0
        self.context = 0.0
        self.free = spec.max_running
        self.capacity_tokens = 0.0
        self.locked_tokens = 0.0
        self.outputs_tokens = 0.0
        self.cache = SegmentCache(0)
        self.activity = IDLE
        self.counted = False
        self.work_s = 0.0
        self.since_s = 0.0
        self.rate = 1.0
        self.version = 0
        self.planned_steps = 0
        self.step_s = 0.0


class WorkerState:
    """One worker and what it has done."""

    __slots__ = (
        "active", "busy_s", "busy_since_s", "calls", "engines", "evicted", "hit", "index", "load_s",
        "loading", "loads", "order", "order_at", "output", "prompt", "shared", "spec",
    )  # fmt: skip

    def __init__(self, index: int, spec: WorkerSpec) -> None:
        self.index = index
        self.spec = spec
        self.engines: dict[str, EngineState] = {}
        self.active = 0
        self.busy_s = 0.0
        self.busy_since_s = 0.0
        self.load_s = 0.0
        self.loads = 0
        self.loading = 0
        self.calls = 0
        self.prompt = 0.0
        self.hit = 0.0
        self.output = 0.0
        self.evicted = 0.0
        self.order: list[int] = []
        self.order_at = 0
        self.shared = False
