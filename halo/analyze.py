"""EXPLAIN ANALYZE of a run directory: the plan as it was run, with what the journal recorded."""

from __future__ import annotations

from pathlib import Path

from halo.gantt import explain_schedule, is_gantt
from planner.explain import explain_physical
from runtime.journal_reader import read_metrics
from runtime.kept_plan import read_plan
from runtime.run_directory import RunDirectory


def explain_analyze(path: Path, *, format: str = "text", verbose: bool = False) -> str:
    """The plan of the run in `path` with estimate beside actual, all processes of the run together;
    works while it runs. Raises `RunDirectoryError`, and `PlanError` for an unknown format."""
    directory = RunDirectory.open(path)
    kept = read_plan(directory)
    plan, stats = kept.plan, kept.stats
    if is_gantt(format):
        return explain_schedule(plan, stats, format, journal=directory.journal)
    metrics = read_metrics(directory.journal) if directory.journal.exists() else {}
    return explain_physical(plan, stats, metrics, format=format, verbose=verbose)
