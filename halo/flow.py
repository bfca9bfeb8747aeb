"""What every front end makes of a workflow: a logical plan with the tools that it names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from planner.logical import LogicalPlan
from runtime.tools import ToolSpec


@dataclass(frozen=True)
class Traced:
    """One query. `plan` has one output, named after the workflow; `tools` are those it names."""

    plan: LogicalPlan
    tools: Mapping[str, ToolSpec] = field(default_factory=dict[str, ToolSpec])


class Flow(Protocol):
    """A workflow of any front end (Python, YAML)."""

    @property
    def name(self) -> str: ...

    def trace(self, source: str, columns: Sequence[str]) -> Traced:
        """The plan over rows named `source` that have `columns`. Raises `WorkflowError` when a
        needed column is missing, naming it and those that exist."""
        ...
