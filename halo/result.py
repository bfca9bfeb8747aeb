"""What a run returns: one outcome for every input row of every query."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from costmodel.usage import OpMetrics
from planner.explain import explain_physical
from planner.logical import Json
from planner.physical import PhysicalPlan
from planner.stats import PlanStats
from runtime.records import Outcome, Recovered


@dataclass(frozen=True)
class RunResult:
    """Outcomes by query in input row order, with the plan and what each operator did.

    Attributes:
        metrics: what this process did, by operator fingerprint.
        elapsed_s, cpu_s: real and processor seconds of this process.
        run_clock_s: seconds on the run's clock; they are simulated when the engine is.
        stopped: empty for a run that went through its rows, and otherwise the reason it stopped
            early: rows without an outcome wait for a resume.
        budget_reached: whether it stopped because of its budget.
        engine_requests: by worker, how often its engine says it was asked.
        cached_answers: calls that the answer cache answered; they count as replayed.
    """

    outcomes: Mapping[str, Sequence[Outcome]]
    plan: PhysicalPlan
    stats: PlanStats
    metrics: Mapping[str, OpMetrics]
    rows_total: int
    elapsed_s: float
    run_clock_s: float
    cpu_s: float
    warmed_tokens: int
    out: Path | None = None
    stopped: str = ""
    budget_reached: bool = False
    engine_requests: Mapping[str, int] = field(default_factory=dict[str, int])
    cached_answers: int = 0
    recovered: Sequence[Recovered] = ()

    def __iter__(self) -> Iterator[Outcome]:
        for outcomes in self.outcomes.values():
            yield from outcomes

    def values(self, query: str | None = None) -> list[Json]:
        """The answers of one query (of the only one, without a name); None where a row failed."""
        return [outcome.value for outcome in self._of(query)]

    @property
    def errors(self) -> list[Outcome]:
        """The rows that failed, each with its reason."""
        return [outcome for outcome in self if outcome.error is not None]

    @property
    def ok(self) -> bool:
        return not self.stopped and not self.errors

    def df(self, query: str | None = None) -> Any:
        """A pandas data frame: row, key, error, and the value's fields. Needs pandas installed."""
        from importlib import import_module

        pandas: Any = import_module("pandas")
        records: list[dict[str, Any]] = []
        for outcome in self._of(query):
            value = outcome.value if isinstance(outcome.value, dict) else {"value": outcome.value}
            message = outcome.error.message if outcome.error else None
            records.append({"row": outcome.row_index, **value, "error": message})
        return pandas.DataFrame(records)

    def explain(self, *, volatile: bool = True) -> str:
        """EXPLAIN ANALYZE: the plan with estimate beside actual."""
        return explain_physical(self.plan, self.stats, metrics=self.metrics, volatile=volatile)

    def summary(self) -> dict[str, Any]:
        """Counts as one JSON-able object; `halo run --json` prints it."""
        requested = sum(m.requested for m in self.call_metrics.values())
        made = sum(m.made for m in self.call_metrics.values())
        failed = len(self.errors)
        done = sum(len(o) for o in self.outcomes.values())
        return {
            "rows": {"total": self.rows_total, "done": done, "failed": failed},
            "calls": {
                "requested": requested,
                "made": made,
                "shared": sum(m.shared for m in self.call_metrics.values()),
                "replayed": sum(m.replayed for m in self.call_metrics.values()),
                "cached": self.cached_answers,
                "engine_requests": dict(self.engine_requests),
            },
            "elapsed_s": round(self.elapsed_s, 3),
            "run_clock_s": round(self.run_clock_s, 3),
            "cpu_s": round(self.cpu_s, 3),
            "cpu_us_per_call": round(1e6 * self.cpu_s / requested, 1) if requested else None,
            "stopped": self.stopped,
            "out": str(self.out) if self.out else None,
        }

    @property
    def call_metrics(self) -> dict[str, OpMetrics]:
        """Metrics of the operators that call an engine or a tool."""
        calling = {
            op.fingerprint
            for op in self.plan.logical.walk_all()
            if op.kind in ("Generate", "Choose", "Agent", "Tool", "Sql")
        }
        return {op: m for op, m in self.metrics.items() if op in calling}

    def report(self) -> str:
        """Summary and errors as text."""
        lines = [json.dumps(self.summary(), indent=2)]
        lines += [
            f"{o.query} row {o.row_index}: {o.error.type}: {o.error.message}"
            for o in self.errors
            if o.error
        ]
        return "\n".join(lines)

    def _of(self, query: str | None) -> Sequence[Outcome]:
        if query is None:
            if len(self.outcomes) != 1:
                raise ValueError(f"name one of the queries: {', '.join(self.outcomes)}")
            query = next(iter(self.outcomes))
        return self.outcomes[query]
