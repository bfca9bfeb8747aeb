"""Where a run stands, read from its directory; works while another process runs it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

from costmodel.usage import OpMetrics
from runtime.journal_reader import RecordedProgress, read_metrics, read_progress
from runtime.run_directory import RunDirectory
from runtime.run_lock import LockOwner

State = Literal["running", "interrupted", "finished", "finished_with_errors"]

CALLING_KINDS = ("Generate", "Choose", "Agent", "Tool", "Sql")
"""Operators whose metrics count calls of an engine or a tool."""


@dataclass(frozen=True, slots=True)
class QueryStatus:
    """Rows of one query. `total` is None when the run did not say; `done` includes `failed`."""

    query: str
    total: int | None
    done: int
    failed: int


@dataclass(frozen=True, slots=True)
class RunStatus:
    """Where a run stands.

    Attributes:
        state: "running" while a process holds the directory; "interrupted" when it can be resumed.
        metrics: calls and tokens of all calling operators and all processes of the run together.
        owner: who holds the directory now.
        processes: how many have worked on the run.
        counted: what the engine's own counts are: "measured", or "simulated" where the engine is.
    """

    path: Path
    state: State
    queries: tuple[QueryStatus, ...]
    metrics: OpMetrics
    owner: LockOwner | None
    processes: int
    counted: str = "measured"

    @property
    def rows_total(self) -> int | None:
        """Rows of all queries; None when the run did not say."""
        totals = [query.total for query in self.queries if query.total is not None]
        return sum(totals) if totals and len(totals) == len(self.queries) else None

    @property
    def rows_done(self) -> int:
        """Rows with a recorded outcome."""
        return sum(query.done for query in self.queries)

    @property
    def rows_failed(self) -> int:
        """Rows whose outcome is an error."""
        return sum(query.failed for query in self.queries)


def status(path: Path) -> RunStatus:
    """The status of the run directory `path`. Raises `RunDirectoryError`."""
    directory = RunDirectory.open(path)
    owner = directory.locked_by()
    if directory.journal.exists():
        progress, metrics = read_progress(directory.journal), read_metrics(directory.journal)
    else:  # killed, or looked at, before the first process opened it
        progress, metrics = RecordedProgress({}, 0, 0, ()), dict[str, OpMetrics]()
    queries = query_statuses(directory.manifest, progress)
    return RunStatus(
        path=path,
        state=_state(owner, progress, any(query.failed for query in queries)),
        queries=queries,
        metrics=total(calling_metrics(directory.manifest, metrics)),
        owner=owner,
        processes=len(progress.processes),
        counted=counted(directory.manifest),
    )


def counted(manifest: Mapping[str, Any]) -> str:
    """What the token counts of a run's engine are: measured, or simulated where the engine is."""
    config = cast("Mapping[str, Any]", manifest.get("config") or {})
    engines = config.get("workers") or [config.get("engine", "")]
    return "simulated" if all(engine == "simulated" for engine in engines) else "measured"


def query_statuses(
    manifest: Mapping[str, Any], progress: RecordedProgress
) -> tuple[QueryStatus, ...]:
    """Rows by query, in the manifest's order."""
    totals = cast("Mapping[str, int]", manifest.get("rows") or {})
    named = cast("list[str]", manifest.get("queries") or [])
    found: list[QueryStatus] = []
    for query in dict.fromkeys([*named, *totals, *sorted(progress.queries)]):
        recorded = progress.queries.get(query)
        done, failed = (recorded.done, recorded.failed) if recorded else (0, 0)
        found.append(QueryStatus(query, totals.get(query), done, failed))
    return tuple(found)


def calling_metrics(
    manifest: Mapping[str, Any], metrics: Mapping[str, OpMetrics]
) -> dict[str, OpMetrics]:
    """Metrics of the operators that make calls; an operator that nothing describes counts."""
    described = cast("Mapping[str, Mapping[str, str]]", manifest.get("operators") or {})
    return {
        op: found
        for op, found in metrics.items()
        if op not in described or described[op]["kind"] in CALLING_KINDS
    }


def total(metrics: Mapping[str, OpMetrics]) -> OpMetrics:
    """The sum over operators."""
    whole = OpMetrics()
    for each in metrics.values():
        whole.requested += each.requested
        whole.made += each.made
        whole.shared += each.shared
        whole.replayed += each.replayed
        whole.retries += each.retries
        whole.errors += each.errors
        whole.busy_s += each.busy_s
        whole.usage += each.usage
    return whole


def render_status(found: RunStatus, *, json_out: bool = False) -> str:
    """The status as text, or as one JSON document."""
    if json_out:
        return json.dumps(status_document(found), ensure_ascii=False)
    metrics, usage = found.metrics, found.metrics.usage
    lines = [f"{found.path}: {found.state.replace('_', ' ')}"]
    if found.owner is not None:
        lines.append(f"held by {found.owner}")
    elif found.state == "interrupted":
        lines.append(f"continue with: halo resume {found.path}")
    for query in found.queries:
        of = "" if query.total is None else f" of {query.total:,}"
        lines.append(f"rows   {query.done:,}{of} done, {query.failed:,} failed  [{query.query}]")
    lines.append(
        f"calls  {metrics.requested:,} requested, {metrics.made:,} made, {metrics.shared:,} "
        f"shared, {metrics.replayed:,} replayed, {metrics.errors:,} failed"
    )
    tokens = f"tokens {usage.input_tokens:,} in, {usage.output_tokens:,} out"
    if usage.cached_tokens is not None:
        tokens += f", {usage.cached_tokens:,} read from the prefix cache ({found.counted})"
    elif usage.predicted_cached_tokens is not None:
        tokens += f", {usage.predicted_cached_tokens:,} reusable from prefixes (predicted)"
    return "\n".join([*lines, tokens])


def status_document(found: RunStatus) -> dict[str, Any]:
    """The status as a JSON-able object."""
    metrics, usage = found.metrics, found.metrics.usage
    return {
        "path": str(found.path),
        "state": found.state,
        "rows": {
            "total": found.rows_total,
            "done": found.rows_done,
            "failed": found.rows_failed,
            "queries": [asdict(query) for query in found.queries],
        },
        "calls": {
            "requested": metrics.requested,
            "made": metrics.made,
            "shared": metrics.shared,
            "replayed": metrics.replayed,
            "retries": metrics.retries,
            "errors": metrics.errors,
        },
        "tokens": asdict(usage),
        "owner": None if found.owner is None else asdict(found.owner),
        "processes": found.processes,
    }


def _state(owner: LockOwner | None, progress: RecordedProgress, failed: bool) -> State:
    if owner is not None:
        return "running"
    last = progress.processes[-1] if progress.processes else None
    if last is None or last.exit_reason != "finished":
        return "interrupted"
    return "finished_with_errors" if failed else "finished"
