"""What every front end makes of a workflow: a logical plan with the tools that it names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from planner.logical import Compare, Filter, Limit, LogicalPlan, Op, Relation, Scan
from planner.relations import ALL_ROWS
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


def kept_rows(
    scan: Scan, predicates: Iterable[Op], limit: int | None = None, offset: int = 0
) -> Relation:
    """The rows of `scan` for which all predicates hold, and of those the first `limit` behind
    `offset`. Each part of a conjunction is a filter of its own, so that the planner may order them.
    Raises `PlanError` for a negative limit or offset."""
    rows: Relation = scan
    for predicate in predicates:
        for part in _conjuncts(predicate):
            rows = Filter((rows, part), label=part.label)
    if limit is not None or offset:
        rows = Limit((rows,), ALL_ROWS if limit is None else limit, offset)
    return rows


def _conjuncts(predicate: Op) -> Iterator[Op]:
    stack = [predicate]
    while stack:
        op = stack.pop()
        if isinstance(op, Compare) and op.operator == "and" and not op.nulls and not op.after:
            stack.extend(reversed(op.inputs))
        else:
            yield op
