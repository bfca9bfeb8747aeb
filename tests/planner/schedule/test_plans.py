"""From logical plans to workloads, from schedules to physical plans, and planning again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import pytest
from small_problems import ticking

from costmodel.simulator import ModelWork, ToolWork
from costmodel.usage import OpMetrics, Usage
from planner.errors import PlanError
from planner.logical import (
    Agent,
    Body,
    Column,
    Const,
    Effect,
    Format,
    Generate,
    LogicalPlan,
    Loop,
    Map,
    Op,
    Param,
    Prompt,
    Ref,
    Result,
    Scan,
    Sql,
    Tool,
    ToolRef,
)
from planner.physical import PhysicalPlan, Worker, place
from planner.schedule.adapt import Replanner, corrected, drifts
from planner.schedule.assign import ScheduledPlan, schedule_plan
from planner.schedule.chart import assignment_of, simulate_plan
from planner.schedule.from_plan import machine_for, planned_workload
from planner.schedule.to_plan import without_worker
from planner.stats import PlanStats, estimate

SCAN = Scan((), "rows", ("q", "topic"))
Q = Column((SCAN,), "q")


def tokens(text: str) -> int:
    return max(1, len(text) // 4)


def ask(name: str, *inputs: Op, text: str = "", **options: int) -> Generate:
    segments = (f"{name}: {text}", *(Ref(i) for i in range(len(inputs))))
    return Generate(inputs, "m", Prompt(segments), label=name, max_tokens=40, **options)  # type: ignore[arg-type]


def rows(n: int) -> list[dict[str, str]]:
    return [{"q": f"question number {i} in some words", "topic": "x"} for i in range(n)]


def stats_of(plan: LogicalPlan, n: int) -> PlanStats:
    return estimate(plan, {"rows": rows(n)}, tokens)


def of(op: Op) -> LogicalPlan:
    return LogicalPlan((("query", Result((op, SCAN))),))


def workers(n: int, model: str = "m") -> dict[str, list[Worker]]:
    return {model: [Worker(f"w{i}", "simulated", model, 8, prefix_cache=True) for i in range(n)]}


def diamond() -> LogicalPlan:
    first = ask("first", Q)
    return of(ask("last", ask("left", first, Q), ask("right", first, Q)))


def scheduled(n_workers: int, n_rows: int = 64) -> ScheduledPlan:
    logical = diamond()
    stats = stats_of(logical, n_rows)
    those = workers(n_workers)
    physical = place(logical, stats, {"m": those["m"][0]})
    return schedule_plan(physical, stats, tokens, those, now=ticking(), budget_s=None, max_steps=20)


class TestWorkloads:
    def test_calls_depend_on_the_calls_behind_their_inputs(self) -> None:
        lookup = Tool((Q,), ToolRef("lookup", "d", Effect.PURE), ("q",), label="lookup")
        fmt = Format((lookup, Q), prompt=Prompt((Ref(0), " about ", Ref(1))))
        answer = ask("answer", fmt)
        rows_ = Sql((answer,), "db", "SELECT 1", ("a",), label="query")
        plan = of(ask("final", rows_, answer))
        planned = planned_workload(plan, stats_of(plan, 20), tokens, n_groups=4)
        ops = planned.workload.operations
        assert [op.name for op in ops] == ["lookup", "answer", "query", "final"]
        assert [op.inputs for op in ops] == [(), (0,), (1,), (1, 2)]
        assert isinstance(ops[0].work, ToolWork) and ops[0].work.lane == "tool lookup"
        assert isinstance(ops[2].work, ToolWork) and ops[2].work.lane == "sql"
        assert planned.workload.group_rows == (5, 5, 5, 5)

    def test_each_tool_has_its_own_lane_and_limit(self) -> None:
        one = Tool((Q,), ToolRef("one", "d", Effect.PURE), ("q",))
        two = Tool((Q,), ToolRef("two", "d", Effect.PURE), ("q",))
        rows_ = Sql((one, two), "db", "SELECT 1", ("a", "b"))
        plan = of(ask("final", rows_))
        planned = planned_workload(plan, stats_of(plan, 20), tokens)
        machine = machine_for(planned.workload, workers(1), tool_limits={"two": 3})
        assert {lane.name: lane.limit for lane in machine.lanes} == {
            "tool one": 8, "tool two": 3, "sql": 32,
        }  # fmt: skip

    def test_tokens_are_those_of_the_statistics(self) -> None:
        plan = diamond()
        stats = stats_of(plan, 30)
        planned = planned_workload(plan, stats, tokens)
        by_print = {op.fingerprint: op for op in plan.walk()}
        for op, fingerprint in zip(planned.workload.operations, planned.fingerprints, strict=True):
            expected = stats.of(by_print[fingerprint])
            assert isinstance(op.work, ModelWork)
            per_call = expected.input_tokens / expected.calls
            assert op.work.prompt_tokens == pytest.approx(per_call, abs=2)
            assert op.work.output_tokens == round(expected.output_tokens / expected.calls)

    def test_equal_texts_and_values_are_equal_pieces(self) -> None:
        system = "You are a careful reader of long documents. " * 10
        first = ask("one", Q, text=system)
        plan = of(ask("two", first, Q, text=system))
        ops = planned_workload(plan, stats_of(plan, 5), tokens).workload.operations
        works = [op.work for op in ops if isinstance(op.work, ModelWork)]
        values = [{p.key for p in work.prompt if p.per_row} for work in works]
        assert values[0] < values[1]

    def test_constants_are_part_of_the_text(self) -> None:
        plan = of(ask("x", Const.of("a fixed instruction"), Q))
        work = planned_workload(plan, stats_of(plan, 3), tokens).workload.operations[0].work
        assert isinstance(work, ModelWork)
        assert [part.per_row for part in work.prompt] == [False, False, True]

    def test_calls_in_bodies_are_counted_and_loops_are_one_long_call(self) -> None:
        item = ask("each", Param((), 0))
        listed = Tool((Q,), ToolRef("split", "d", Effect.PURE), ("q",), label="split")
        mapped = Map((listed,), body=Body(1, item))
        step = ask("step", Param((), 0))
        loop = Loop((mapped,), condition=Body(1, Param((), 0)), step=Body(1, step), max_rounds=8)
        plan = of(loop)
        stats = stats_of(plan, 10)
        planned = planned_workload(plan, stats, tokens)
        ops = {op.name: op for op in planned.workload.operations}
        by_name = dict(zip(ops, planned.fingerprints, strict=True))
        each = stats.ops[by_name["each"]]
        assert ops["each"].calls_per_row == pytest.approx(each.calls / 10)
        assert ops["each"].inputs == (0,)
        # Eight rounds at most, four expected: one call of four answers.
        work = ops["step"].work
        per_call = stats.ops[by_name["step"]]
        assert isinstance(work, ModelWork)
        answer = per_call.output_tokens / per_call.calls
        assert work.output_tokens == round(4 * answer)
        assert set(ops["step"].inputs) == {0, 1}

    def test_agents_are_long_calls_too(self) -> None:
        agent = Agent(
            (Q,), "m", Prompt((Ref(0),)), label="agent", max_tokens=40, max_turns=6,
            tools=(ToolRef("lookup", "d", Effect.PURE),),
        )  # fmt: skip
        plan = of(agent)
        stats = stats_of(plan, 10)
        op = planned_workload(plan, stats, tokens).workload.operations[0]
        assert isinstance(op.work, ModelWork)
        assert op.calls_per_row == pytest.approx(1.0)
        assert op.work.output_tokens == 3 * 20


class TestPlans:
    def test_rows_are_split_and_the_shares_cover_them(self) -> None:
        found = scheduled(3)
        physical = found.physical
        assert {w.name for w in physical.workers} == {"w0", "w1", "w2"}
        for op in physical.placements:
            runs = physical.shares[op]
            assert sum(n for _, n in runs) == 64
            assert len({name for name, _ in runs}) > 1
        assert set(physical.priority) >= set(physical.placements)
        assert PhysicalPlan.from_json(physical.to_json()) == physical

    def test_one_worker_needs_no_shares(self) -> None:
        assert scheduled(1).physical.shares == {}

    def test_the_simulator_sees_the_physical_plan_as_it_was_scheduled(self) -> None:
        found = scheduled(2)
        stats = stats_of(found.physical.logical, 64)
        run, planned = simulate_plan(found.physical, stats, tokens)
        assert run.calls == 4 * 64
        names = [spec.name for spec in found.machine.workers]
        again = assignment_of(found.physical, found.planned, names)
        assert list(again.worker) == list(found.schedule.assignment.worker)
        assert planned.fingerprints == found.planned.fingerprints

    def test_a_lost_worker_gives_its_rows_to_the_others(self) -> None:
        physical = scheduled(3).physical
        fewer, note = without_worker(physical, "w1", "connection refused")
        assert "w1" not in {w.name for w in fewer.workers}
        assert "w1" not in {n for runs in fewer.shares.values() for n, _ in runs}
        assert "w1" not in fewer.placements.values()
        assert "'w1' is lost (connection refused)" in note and "'w0', 'w2'" in note
        for op, runs in fewer.shares.items():
            assert sum(n for _, n in runs) == sum(n for _, n in physical.shares[op])
        last, _ = without_worker(fewer, "w2", "gone")
        assert set(last.placements.values()) == {"w0"}
        assert last.shares == {}
        with pytest.raises(PlanError, match=r"'w0' is lost .gone. and no other worker has model"):
            without_worker(last, "w0", "gone")

    def test_a_worker_that_the_plan_does_not_use_may_be_lost(self) -> None:
        physical = scheduled(2).physical
        assert without_worker(physical, "other", "gone")[0] is physical


@dataclass
class Seen:
    """Measurements as the runtime reports them."""

    rows_started: int
    rows_ended: int
    rows_total: int
    metrics: Mapping[str, OpMetrics] = field(default_factory=dict[str, OpMetrics])


def measured(
    found: ScheduledPlan, started: int, answer: Mapping[str, float], ended: int | None = None
) -> Seen:
    """Metrics of `started` rows in which answers are `answer` times as long as expected."""
    metrics: dict[str, OpMetrics] = {}
    for op, fingerprint in zip(
        found.planned.workload.operations, found.planned.fingerprints, strict=True
    ):
        assert isinstance(op.work, ModelWork)
        out = round(op.work.output_tokens * answer.get(op.name, 1.0)) * started
        metrics[fingerprint] = OpMetrics(
            requested=started, made=started, usage=Usage(100 * started, out)
        )
    return Seen(started, started if ended is None else ended, 64, metrics)


class TestPlanningAgain:
    def test_a_plan_whose_estimates_hold_stays(self) -> None:
        found = scheduled(2)
        replan = Replanner(found, ticking(), budget_s=None, max_steps=10)
        assert replan(measured(found, 24, {"left": 1.3})) is None
        assert replan.notes == []

    def test_what_left_its_interval_is_named_and_corrected(self) -> None:
        found = scheduled(2)
        seen = measured(found, 24, {"left": 4.0})
        operations = found.planned.workload.operations
        drift = drifts(operations, found.planned.fingerprints, seen)
        assert [(d.operation, d.what) for d in drift] == [("left", "answer tokens")]
        new = corrected(operations, drift)
        assert {op.name: op.work.output_tokens for op in new if isinstance(op.work, ModelWork)}[
            "left"
        ] == 80

    def test_pass_rates_count_rows_under_way_for_neither_side(self) -> None:
        found = scheduled(2)
        operations, prints = found.planned.workload.operations, found.planned.fingerprints
        seen = measured(found, 40, {}, ended=30)
        assert drifts(operations, prints, seen) == []
        # A filter lets a third through: twenty calls of forty rows that have ended.
        last = prints[-1]
        fewer = {**seen.metrics, last: OpMetrics(made=16, usage=Usage(1600, 16 * 20))}
        found_drifts = drifts(operations, prints, replace(seen, metrics=fewer, rows_ended=40))
        assert [(d.what, round(d.measured, 2)) for d in found_drifts] == [("calls a row", 0.4)]

    def test_rows_that_have_started_keep_their_workers(self) -> None:
        found = scheduled(2)
        # A bad plan, so that there is something to gain: everything behind row 32 on one worker.
        lopsided = dict.fromkeys(found.physical.placements, (("w0", 60), ("w1", 4)))
        physical = replace(found.physical, shares=lopsided)
        replan = Replanner(
            replace(found, physical=physical), ticking(), budget_s=None, max_steps=30
        )
        plan = replan(measured(found, 24, {"left": 4.0, "right": 0.3}))
        assert plan is not None
        assert plan.row_block == physical.row_block
        assert max(plan.priority.values()) <= max(physical.priority.values())
        for op in plan.placements:
            runs = plan.shares[op]
            assert runs[0][0] == "w0" and runs[0][1] >= 24
            assert sum(n for _, n in runs) == 64
        on_w1 = sum(n for runs in plan.shares.values() for name, n in runs if name == "w1")
        assert on_w1 > 4 * 4
        assert (
            "planned 40 rows again" in replan.notes[0] and "left: answer tokens" in replan.notes[0]
        )

    def test_near_the_end_nothing_is_planned_again(self) -> None:
        found = scheduled(2)
        replan = Replanner(found, ticking(), budget_s=None, max_steps=10)
        assert replan(measured(found, 60, {"left": 9.0})) is None
