"""Placement, priorities, row order: what the executor is told."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from sample_plans import PUBLISH, ask, chain, column, everything, headline, objection, query, scan

from planner.errors import PlanError
from planner.logical import (
    Body,
    Column,
    Field,
    Flatten,
    Format,
    Json,
    LogicalPlan,
    Map,
    ModelOp,
    Op,
    Ordered,
    Param,
    Prompt,
    Ref,
    Result,
    Scan,
    Tool,
)
from planner.merge import merge
from planner.physical import PhysicalPlan, Worker, is_input_order, place
from planner.stats import estimate

SIM = Worker("simulated:m", "simulated", "m", 16, 4096, prefix_cache=True, prefix_block_tokens=16)


def placed(
    plan: LogicalPlan, rows: list[dict[str, Json]] | None = None, **workers: Worker
) -> PhysicalPlan:
    of_rows = {op.source: rows or [] for op in plan.walk() if isinstance(op, Scan)}
    stats = estimate(plan, of_rows, lambda text: len(text.split()))
    return place(plan, stats, workers or {"m": SIM})


def labelled(plan: LogicalPlan) -> dict[str, Op]:
    return {op.label: op for op in plan.walk_all() if op.label}


def test_every_model_call_of_every_scope_is_on_the_worker_of_its_model() -> None:
    plan = merge({"q": everything()})
    physical = placed(plan)
    calls = {op.fingerprint for op in plan.walk_all() if isinstance(op, ModelOp)}
    assert set(physical.placements) == calls
    assert set(physical.placements.values()) == {"simulated:m"}
    assert physical.worker_of(labelled(plan)["again"]) == SIM
    assert physical.worker_of(labelled(plan)["first"]) is None


def test_two_models_may_share_a_worker_and_unused_workers_are_left_out() -> None:
    rows = scan()
    small = ask("Draft ", column(rows), model="small")
    plan = query("q", ask("Improve ", small, model="large"), rows)
    spare = Worker("spare", "simulated", "spare")
    physical = placed(plan, small=SIM, large=SIM, spare=spare)
    assert physical.workers == (SIM,)


def test_a_model_without_a_worker_is_named_with_those_that_have_one() -> None:
    with pytest.raises(PlanError, match=r"'m'.*'large', 'small'"):
        placed(headline(), small=SIM, large=SIM)


def test_two_different_workers_of_one_name_are_refused() -> None:
    rows = scan()
    draft = ask("Draft ", column(rows), model="a")
    plan = query("q", ask(draft, model="b"), rows)
    with pytest.raises(PlanError, match="two different workers"):
        placed(plan, a=SIM, b=replace(SIM, max_in_flight=1))


# --- priority ------------------------------------------------------------------------------------


def test_an_operator_goes_before_everything_that_it_reads() -> None:
    plan = merge({"q": everything(), "h": headline()})
    priority = placed(plan).priority
    for op in plan.walk():
        for dependency in op.dependencies:
            assert priority[op.fingerprint] < priority[dependency.fingerprint]


def test_outputs_have_priority_0_and_chains_count_down_to_them() -> None:
    plan = chain(5000)
    priority = placed(plan).priority
    assert priority[plan.outputs[0][1].fingerprint] == 0
    calls = [priority[op.fingerprint] for op in plan.walk() if isinstance(op, ModelOp)]
    assert calls == list(range(5000, 0, -1))


def test_a_body_goes_before_what_feeds_it_and_after_what_reads_it() -> None:
    rows = scan()
    before = ask("Before ", column(rows), label="before")
    first = ask("First ", Param((), 0), label="first")
    last = ask("Last ", first, label="last")
    mapped = Map((before,), Body(1, last), label="map")
    plan = query("q", ask("After ", mapped, label="after"), rows)
    order = sorted(
        (placed(plan).priority[op.fingerprint], label) for label, op in labelled(plan).items()
    )
    assert [label for _, label in order] == ["after", "last", "map", "first", "before"]


def test_the_same_body_at_two_depths_is_ordered_by_its_place_nearer_to_the_end() -> None:
    rows = scan()
    body = Body(1, ask("Sum ", Param((), 0), label="sum"))
    outer = Map((column(rows),), Body(1, Map((Param((), 0),), body)))
    plan = query("q", Map((outer,), body), rows)
    physical = placed(plan)
    assert physical.priority[labelled(plan)["sum"].fingerprint] == 1


# --- rows ----------------------------------------------------------------------------------------

ROWS: list[dict[str, Json]] = [
    {"doc": doc, "question": question}
    for question, doc in zip("abcd", ["x y", "z", "x y", "z"], strict=True)
]


def reading() -> tuple[LogicalPlan, Op]:
    rows = scan("doc", "question")
    answer = ask("Read ", column(rows, "doc"), " and say ", column(rows))
    return query("q", answer, rows), answer


def test_rows_of_equal_leading_values_start_together() -> None:
    plan, _ = reading()
    assert placed(plan, ROWS).row_order == {"rows": (0, 2, 1, 3)}


def test_rows_keep_their_order_without_a_prefix_cache() -> None:
    plan, _ = reading()
    physical = placed(plan, ROWS, m=replace(SIM, prefix_cache=False))
    assert is_input_order(physical.row_order["rows"])


def test_rows_keep_their_order_when_the_plan_writes() -> None:
    plan, answer = reading()
    write = Tool((answer,), tool=PUBLISH, params=("text",), call_id="w")
    rows = plan.outputs[0][1].scan
    physical = placed(query("q", Ordered((answer,), after=(write,)), rows), ROWS)
    assert physical.row_order == {"rows": (0, 1, 2, 3)}


def test_a_write_in_a_body_keeps_the_order_too() -> None:
    plan, answer = reading()
    write = Tool((Param((), 0),), tool=PUBLISH, params=("text",), call_id="w")
    rows = plan.outputs[0][1].scan
    both = Format((answer, Map((answer,), Body(1, write))), Prompt((Ref(0), Ref(1))))
    assert placed(query("q", both, rows), ROWS).row_order == {"rows": (0, 1, 2, 3)}


@pytest.mark.parametrize(("slots", "rows"), [(1, 8), (16, 64), (1000, 512)])
def test_rows_in_flight_follow_the_slots_within_bounds(slots: int, rows: int) -> None:
    assert placed(headline(), m=replace(SIM, max_in_flight=slots)).rows_in_flight == rows


def test_a_plan_without_models_still_runs_rows() -> None:
    rows = scan()
    physical = placed(query("q", column(rows), rows))
    assert (physical.workers, physical.rows_in_flight > 1) == ((), True)


def test_a_physical_plan_survives_json() -> None:
    plan, _ = reading()
    for physical in (
        placed(plan, ROWS),
        placed(merge({"a": headline(), "b": objection(), "c": everything()}), ROWS),
    ):
        read = PhysicalPlan.from_json(json.loads(json.dumps(physical.to_json())))
        assert read == physical
        assert read.logical.fingerprint == physical.logical.fingerprint


def test_made_rows_are_grouped_by_what_their_prompts_begin_with() -> None:
    rows = scan("text", "tags")
    flat = Flatten((rows, column(rows, "tags"), column(rows, "text")), columns=("tag", "text"))
    tag, text = Column((flat,), "tag"), Column((flat,), "text")
    short = ask("Tag ", Field((tag,), "name"), ": ", text)
    long = ask("You are careful and read every word. ", text, " for ", tag, " and ", short)
    plan = LogicalPlan((("q", Result((long, flat))),))
    table: list[dict[str, Json]] = [{"text": "some text", "tags": [{"name": "a"}]}]
    cached = placed(plan, table)
    assert cached.stage_order == {flat.fingerprint: (("text",), ("tag",), ("tag", "name"))}
    assert PhysicalPlan.from_json(json.loads(json.dumps(cached.to_json()))) == cached
    assert placed(plan, table, m=replace(SIM, prefix_cache=False)).stage_order == {}
