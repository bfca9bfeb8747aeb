"""Plan documents: what is written is read back as the same plan, and damage is named."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.errors import PlanError
from planner.logical import (
    OPS,
    Body,
    Column,
    Const,
    Generate,
    LogicalPlan,
    Map,
    Op,
    Param,
    Prompt,
    Ref,
    Result,
    Scan,
)
from planner.serialize import from_json, to_json
from planner.verify import verify


def _strategies() -> Any:
    path = Path(__file__).with_name("strategies.py")
    spec = importlib.util.spec_from_file_location("planner_strategies", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PLANS: st.SearchStrategy[LogicalPlan] = _strategies().plans()


def round_trip(plan: LogicalPlan) -> LogicalPlan:
    return from_json(json.loads(json.dumps(to_json(plan))))


@settings(max_examples=150, deadline=None)
@given(PLANS)
def test_a_plan_survives_the_round_trip(plan: LogicalPlan) -> None:
    verify(plan)
    again = round_trip(plan)
    assert again.fingerprint == plan.fingerprint
    assert [op.fingerprint for op in again.walk()] == [op.fingerprint for op in plan.walk()]
    assert [op.label for op in again.walk()] == [op.label for op in plan.walk()]
    verify(again)


def test_random_plans_hold_every_operator() -> None:
    seen: set[str] = set()

    @settings(max_examples=400, deadline=None, derandomize=True, database=None)
    @given(PLANS)
    def collect(plan: LogicalPlan) -> None:
        seen.update(op.kind for op in plan.walk_all())

    collect()
    assert sorted(seen) == sorted(op.kind for op in OPS)


def test_a_chain_of_five_thousand_calls() -> None:
    scan = Scan((), "rows", ("q",))
    op: Op = Column((scan,), "q")
    for number in range(5000):
        op = Generate((op,), "", Prompt((f"{number}: ", Ref(0))), label=f"step{number}")
    plan = LogicalPlan((("chain", Result((op, scan))),))
    again = round_trip(plan)
    assert again == plan
    assert len(to_json(plan)["nodes"]) == 5003


def test_shared_work_is_written_once() -> None:
    """Doubling at each level: a tree would have 2**60 nodes."""
    scan = Scan((), "rows", ("q",))
    op: Op = Column((scan,), "q")
    for _ in range(60):
        op = Generate((op, op), "", Prompt((Ref(0), Ref(1))))
    plan = LogicalPlan((("a", Result((op, scan))), ("b", Result((op, scan)))))
    document = to_json(plan)
    assert len(document["nodes"]) == 63
    again = from_json(document)
    assert again.outputs[0][1] is again.outputs[1][1]


def test_nested_bodies_that_are_used_twice_are_written_once() -> None:
    body = Body(1, Param((), 0))
    for _ in range(30):
        inner = Map((Param((), 0),), body)
        body = Body(1, Generate((inner, Map((inner,), body)), "", Prompt((Ref(0), Ref(1)))))
    scan = Scan((), "rows", ("q",))
    plan = LogicalPlan((("deep", Result((Map((Column((scan,), "q"),), body), scan))),))
    document = to_json(plan)
    assert len(document["bodies"]) == 31
    assert from_json(document) == plan


def small_document() -> dict[str, Any]:
    scan = Scan((), "rows", ("q",))
    column = Column((scan,), "q")
    mapped = Map((column,), Body(1, Generate((Param((), 0),), "", Prompt((Ref(0),)))))
    answer = Generate((mapped, Const.of(1)), "", Prompt(("Sum ", Ref(0), Ref(1))))
    document: dict[str, Any] = json.loads(
        json.dumps(to_json(LogicalPlan((("main", Result((answer, scan))),))))
    )
    return document


def _node(document: dict[str, Any], kind: str) -> dict[str, Any]:
    return next(node for node in document["nodes"] if node["kind"] == kind)


Damage = Callable[[dict[str, Any]], Any]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda d: d.update(format="other"), ["'format'", "'other'"]),
        (lambda d: d.update(version=99), ["version 99", "version 1"]),
        (lambda d: d.pop("outputs"), ["'outputs'", "missing"]),
        (lambda d: d.update(extra=1), ["'extra'", "unknown field"]),
        (lambda d: _node(d, "Column").update(kind="Colum"), ["node 1", "'kind'", "'Colum'"]),
        (lambda d: _node(d, "Column").pop("name"), ["node 1", "'name'", "missing"]),
        (lambda d: _node(d, "Column").update(nam="q"), ["node 1", "'nam'", "unknown field"]),
        (lambda d: _node(d, "Column").update(name=7), ["node 1", "'name'", "a text"]),
        (lambda d: _node(d, "Column").update(name="w"), ["node 1", "unknown column 'w'"]),
        (lambda d: _node(d, "Column").update(inputs=[5]), ["node 1", "'inputs'", "node 5"]),
        (lambda d: _node(d, "Column").update(inputs=[1]), ["node 1", "does not come before"]),
        (lambda d: _node(d, "Column").update(inputs=[-1]), ["node 1", "'inputs'", "-1"]),
        (lambda d: _node(d, "Column").update(inputs=[True]), ["node 1", "an integer"]),
        (lambda d: _node(d, "Map").update(body=1), ["node 2", "'body'", "body 1"]),
        (lambda d: _node(d, "Generate").update(max_tokens=0), ["node 4", "at least 1"]),
        (lambda d: _node(d, "Generate").update(prompt=[{"input": 2}]), ["node 4", "refers to"]),
        (lambda d: _node(d, "Generate").update(prompt=[{"input": -1}]), ["node 4", "'prompt'"]),
        (lambda d: _node(d, "Generate").update(schema_json=3), ["node 4", "'schema_json'"]),
        (lambda d: d["bodies"][0].update(result=9), ["body 0", "'result'", "9"]),
        (lambda d: d["bodies"][0]["nodes"][1].update(inputs=[1]), ["body 0, node 1", "'inputs'"]),
        (lambda d: d.update(outputs=[["main", 1]]), ["output 0", "not a Result"]),
        (lambda d: d.update(outputs=[["main"]]), ["output 0", "[name, node]"]),
        (lambda d: d.update(nodes={}), ["nodes", "a list"]),
    ],
)
def test_damage_is_named(damage: Damage, words: list[str]) -> None:
    document = small_document()
    from_json(document)
    damage(document)
    with pytest.raises(PlanError) as caught:
        from_json(document)
    for word in words:
        assert word in str(caught.value)
