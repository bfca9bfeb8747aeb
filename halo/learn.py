"""What earlier runs have taught, read from their directories for the planner."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from costmodel.usage import OpMetrics
from planner.learnt import Learnt
from planner.logical import LogicalPlan
from runtime.journal_reader import read_metrics
from runtime.kept_plan import read_plan
from runtime.run_directory import RunDirectory


def learnt_from(directories: Iterable[Path]) -> Learnt:
    """Measurements of the operators of all runs in `directories`, finished or not. Raises
    `RunDirectoryError` for one that holds no run."""
    return Learnt.from_runs(_runs(directories))


def _runs(directories: Iterable[Path]) -> Iterator[tuple[LogicalPlan, Mapping[str, OpMetrics]]]:
    for path in directories:
        directory = RunDirectory.open(path)
        plan = read_plan(directory).plan
        if directory.journal.exists():
            yield plan.logical, read_metrics(directory.journal)
