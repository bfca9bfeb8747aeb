"""What a simulation returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class Span:
    """Something that took time on a worker or a tool lane.

    Attributes:
        place: name of the worker or lane.
        kind: calls, load, sleep or tool.
        label: operation or model.
        group: of rows; -1 for loads.
        calls: how many calls.
        hit_tokens, prompt_tokens: of those calls together.
    """

    place: str
    kind: Literal["calls", "load", "sleep", "tool"]
    label: str
    group: int
    start_s: float
    end_s: float
    calls: int = 0
    hit_tokens: float = 0.0
    prompt_tokens: float = 0.0


@dataclass(frozen=True)
class WorkerUse:
    """One worker over a run. `busy_s` is time in which the worker ran steps of any model."""

    name: str
    busy_s: float
    load_s: float
    calls: int
    prompt_tokens: float
    hit_tokens: float
    output_tokens: float
    evicted_tokens: float
    loads: int


@dataclass(frozen=True)
class Simulation:
    """The outcome of one simulated run. Times are seconds of virtual time.

    Attributes:
        makespan_s: when the last call ended.
        group_end_s: when each group had all its calls.
        prompt_tokens: of all model calls; the sum of computed, hit, host and moved tokens.
        computed_tokens: prefilled.
        hit_tokens: found in the worker's prefix cache.
        host_tokens: fetched from the host tier. moved_tokens: fetched from another worker.
        lane_busy_s: for each tool lane, call seconds.
        switches: model loads and wakes.
        events: simulated.
        energy_j, money: by the workers' powers and prices; whole run, idle time included.
        timeline: spans, when asked for.
    """

    makespan_s: float
    group_end_s: tuple[float, ...]
    prompt_tokens: float
    computed_tokens: float
    hit_tokens: float
    host_tokens: float
    moved_tokens: float
    output_tokens: float
    calls: int
    workers: tuple[WorkerUse, ...]
    lane_busy_s: tuple[float, ...]
    switches: int
    events: int
    energy_j: float
    money: float
    timeline: Sequence[Span] = field(default=(), repr=False)

    @property
    def hit_share(self) -> float:
        """Prompt tokens that no worker computed, of all."""
        return 1 - self.computed_tokens / self.prompt_tokens if self.prompt_tokens else 0.0

    @property
    def utilisation(self) -> float:
        """Mean share of the makespan in which workers ran steps."""
        if not self.makespan_s or not self.workers:
            return 0.0
        return sum(w.busy_s for w in self.workers) / (self.makespan_s * len(self.workers))
