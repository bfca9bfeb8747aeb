"""What a run did, read from its directory: rows, failures, calls, tokens and time by operator.

Every number of cached tokens says whether the engine measured it or Halo predicted it. `report`
gives the document, `halo.report_text` its rendering for people.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from costmodel.usage import OpMetrics, Usage
from halo.pte_of_run import pte_of_run
from halo.report_text import render_text
from halo.status import calling_metrics, counted, query_statuses, status, status_document, total
from runtime.journal_reader import ProcessRecord, read_metrics, read_progress
from runtime.journal_summary import calls_by_name, failures_by_reason, slowest_calls
from runtime.run_directory import RunDirectory

__all__ = ["render_text", "report"]


def report(path: Path, *, model: str | None = None, hardware: str | None = None) -> dict[str, Any]:
    """The report of the run directory `path` as a JSON-able object; docs/run-directory.md lists
    its entries. `model` and `hardware` price its PTE section as others than the run's own.
    Raises `RunDirectoryError`."""
    directory = RunDirectory.open(path)
    journal = directory.journal
    described = cast("Mapping[str, Mapping[str, str]]", directory.manifest.get("operators") or {})
    head = status_document(status(path))
    progress = read_progress(journal)
    metrics = calling_metrics(directory.manifest, read_metrics(journal))
    whole = total(metrics)
    names = [asdict(group) for group in calls_by_name(journal)]
    return {
        "path": head["path"],
        "state": head["state"],
        "rows": {
            **head["rows"],
            "queries": [asdict(query) for query in query_statuses(directory.manifest, progress)],
        },
        "failures": [
            {
                "type": group.type,
                "operator": _label(group.op, described),
                "rows": group.rows,
                "example": {
                    "query": group.example_query,
                    "row": group.example_row,
                    "message": group.example_message,
                },
            }
            for group in failures_by_reason(journal)
        ],
        "calls": {**head["calls"], "saved": whole.requested - whole.made},
        "tokens": {
            **asdict(whole.usage),
            "prefix_reuse": _prefix_reuse(whole.usage, counted(directory.manifest)),
        },
        "time": _times(progress.processes, whole),
        "operators": [
            _operator(op, found, described) for op, found in _in_plan_order(metrics, described)
        ],
        "models": [name for name in names if name["kind"] == "model"],
        "tools": [name for name in names if name["kind"] != "model"],
        "slowest_calls": [
            {**asdict(call), "operator": _label(call.op, described)}
            for call in slowest_calls(journal)
        ],
        "pte": pte_of_run(path, directory.manifest, model=model, hardware=hardware),
    }


def _in_plan_order(
    metrics: Mapping[str, OpMetrics], described: Mapping[str, Any]
) -> list[tuple[str, OpMetrics]]:
    place = {op: i for i, op in enumerate(described)}
    return sorted(metrics.items(), key=lambda item: (place.get(item[0], len(place)), item[0]))


def _operator(
    op: str, metrics: OpMetrics, described: Mapping[str, Mapping[str, str]]
) -> dict[str, Any]:
    description = described.get(op, {})
    return {
        "op": op,
        "label": _label(op, described),
        "kind": description.get("kind", ""),
        "model": description.get("model", ""),
        "requested": metrics.requested,
        "made": metrics.made,
        "shared": metrics.shared,
        "replayed": metrics.replayed,
        "retries": metrics.retries,
        "errors": metrics.errors,
        **asdict(metrics.usage),
        "busy_s": metrics.busy_s,
        "mean_latency_s": metrics.busy_s / metrics.made if metrics.made else None,
    }


def _label(op: str, described: Mapping[str, Mapping[str, str]]) -> str:
    description = described.get(op)
    if description is None:
        return op  # a label already, or an operator that the manifest does not describe
    return description["label"] or f"{description['kind']} {op[:8]}"


def _prefix_reuse(usage: Usage, counted_as: str) -> dict[str, Any]:
    """Prompt tokens that did not have to be computed, by the better of the two sources."""
    if usage.cached_tokens is not None:
        tokens, source = usage.cached_tokens, counted_as
    elif usage.predicted_cached_tokens is not None:
        tokens, source = usage.predicted_cached_tokens, "predicted"
    else:
        return {"tokens": None, "source": None, "share_of_input": None}
    share = tokens / usage.input_tokens if usage.input_tokens else None
    return {"tokens": tokens, "source": source, "share_of_input": share}


def _times(processes: Sequence[ProcessRecord], whole: OpMetrics) -> dict[str, Any]:
    """Seconds, summed over the processes that said (a killed one could not); the processor time a
    call needs all of them, and is over the calls requested."""
    walls = [wall for process in processes if (wall := _wall_s(process)) is not None]
    cpus = [process.cpu_s for process in processes if process.cpu_s is not None]
    complete = bool(cpus) and len(cpus) == len(processes)
    return {
        "wall_s": sum(walls) if walls else None,
        "run_clock_s": sum(process.last_s for process in processes),
        "cpu_s": sum(cpus) if cpus else None,
        "cpu_us_per_call": (
            1e6 * sum(cpus) / whole.requested if complete and whole.requested else None
        ),
        "processes": [asdict(process) for process in processes],
    }


def _wall_s(process: ProcessRecord) -> float | None:
    if process.ended_at is None:
        return None
    try:
        started = datetime.fromisoformat(process.started_at)
        return (datetime.fromisoformat(process.ended_at) - started).total_seconds()
    except (ValueError, TypeError):
        return None
