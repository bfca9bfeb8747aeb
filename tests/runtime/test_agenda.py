"""The agenda: what a change costs, and the order in which stages start rows."""

from __future__ import annotations

import pytest
from sample_plans import column, scan
from simulated_run import run_plan

from planner.logical import Column, Flatten, LogicalPlan, Op, Result, Sort
from runtime.agenda import Agenda
from runtime.stages import Stage, StageRow, stages_of

ROWS = scan("id", "tags")


def sorted_tags(name: str) -> Sort:
    """Two stages: one for the tags, one for the tags in order."""
    tags = Flatten((ROWS, column(ROWS, "tags")), (name,))
    return Sort((tags, Column((tags,), name)), columns=(name,), by=(name,))


def plan_of(n_queries: int) -> LogicalPlan:
    """Two stages a query, over one scan."""
    results: list[tuple[str, Result]] = []
    for i in range(n_queries):
        rows = sorted_tags(f"tag{i}")
        value: Op = Column((rows,), f"tag{i}")
        results.append((f"q{i}", Result((value, rows))))
    return LogicalPlan(tuple(results))


def test_what_happens_in_one_stage_costs_nothing_in_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked_at: list[Stage] = []
    finish_if_done = Stage.finish_if_done

    def look(stage: Stage) -> bool:
        looked_at.append(stage)
        return finish_if_done(stage)

    monkeypatch.setattr(Stage, "finish_if_done", look)
    n_queries, n_rows = 40, 10
    rows = {"rows": [{"id": i, "tags": [f"t{9 - i}"]} for i in range(n_rows)]}
    ran = run_plan(plan_of(n_queries), rows)
    for i in range(n_queries):
        assert ran.answers[f"q{i}"] == [f"t{i}" for i in range(n_rows)]
    n_stages = 1 + 2 * n_queries
    rows_ended = n_rows * n_stages
    assert len(looked_at) <= 2 * (rows_ended + n_stages)


def test_later_stages_start_first_and_a_stage_waits_while_it_has_rows() -> None:
    stages = list(stages_of(plan_of(2)).values())
    agenda = Agenda(stages, start_query=lambda stage: None)
    assert agenda.next() is None
    scan_stage, *others = stages
    row = {"id": 1, "tags": []}
    scan_stage.fill([StageRow(0, "a", row), StageRow(1, "b", row)])
    assert agenda.next() is scan_stage
    others[-1].add([{"tag1": "x"}])
    others[0].add([{"tag0": "x"}])
    assert agenda.next() is others[-1]
    others[-1].pending.popleft()
    assert agenda.next() is others[0]
    others[0].pending.popleft()
    scan_stage.pending.popleft()
    assert agenda.next() is scan_stage
    scan_stage.pending.popleft()
    assert agenda.next() is None
    others[0].add([{"tag0": "y"}])
    assert agenda.next() is others[0]
