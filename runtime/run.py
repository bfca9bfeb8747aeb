"""One run: opens the store, wires dispatcher, tools and executor, writes the results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from costmodel.usage import OpMetrics
from planner.logical import Json
from planner.physical import PhysicalPlan
from planner.stats import PlanStats
from runtime.executor import Executor, Progress
from runtime.records import Outcome
from runtime.tools import ToolSpec


@dataclass(frozen=True)
class RunInputs:
    """What a run needs besides its engines. `manifest` says how to rebuild it on resume."""

    plan: PhysicalPlan
    stats: PlanStats
    rows: Mapping[str, Sequence[Mapping[str, Json]]]
    tools: Mapping[str, ToolSpec]
    database: Path | None = None
    seed: int = 0
    tenant: str = ""
    prime: bool = True
    out: Path | None = None
    resume: bool = False
    manifest: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Finished:
    """How a run ended. `stopped` is empty unless rows were left for a resume."""

    outcomes: Mapping[str, Sequence[Outcome]]
    metrics: Mapping[str, OpMetrics]
    rows_total: int
    elapsed_s: float
    cpu_s: float
    stopped: str
    engine_requests: Mapping[str, int]


class RunHandle:
    """A run under way: `stop` and `progress` from outside, `run` in the loop."""

    def __init__(self, inputs: RunInputs) -> None:
        self._inputs = inputs
        self._executor: Executor | None = None
        self._stopped = ""

    @property
    def progress(self) -> Progress | None:
        """Where the run stands; None until it has started."""
        return self._executor.progress if self._executor else None

    def stop(self, reason: str = "interrupted") -> None:
        """Drain: nothing new starts, calls in flight finish. Call it in the loop's thread."""
        self._stopped = reason
        if self._executor is not None:
            self._executor.stop()
