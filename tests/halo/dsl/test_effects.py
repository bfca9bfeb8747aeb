"""Effects at trace time: writes keep their order and are kept, pure work stays free."""

from __future__ import annotations

from typing import Any

import halo
from planner.logical import Effect, Generate, LogicalPlan, Map, Op, Ordered, Tool, When, walk
from planner.verify import verify

lm = halo.Model("m")


@halo.tool
def send(to: str, text: str) -> str:
    """Sends a message."""
    return to


@halo.tool(pure=True)
def look(key: str) -> str:
    """Looks something up."""
    return key


def plan_of(function: Any, *columns: str) -> LogicalPlan:
    plan: LogicalPlan = halo.workflow(function).trace("rows", columns).plan
    verify(plan)
    return plan


def sends(ops: Any) -> list[Tool]:
    return [op for op in ops if isinstance(op, Tool) and op.tool.name == "send"]


def test_an_undeclared_tool_is_a_write_with_an_identity() -> None:
    plan = plan_of(lambda q: {"a": send(q, "x"), "b": send(q, "x")}, "q")
    first, second = sends(plan.walk())
    assert first.effect is Effect.WRITE
    assert first.call_id != second.call_id and first != second


def test_equal_pure_calls_are_one_operator() -> None:
    plan = plan_of(lambda q: {"a": look(q), "b": look(q)}, "q")
    assert sum(isinstance(op, Tool) for op in plan.walk()) == 1


def test_writes_are_chained_in_the_order_written() -> None:
    def flow(q: str) -> dict[str, str]:
        c = send(q, "1")
        b = send(q, "2")
        return {"b": b, "c": c}

    first, second = sends(plan_of(flow, "q").walk())
    assert second.after == (first,) and first.after == ()


def test_a_write_that_nobody_reads_is_kept() -> None:
    def flow(q: str) -> str:
        send(q, "1")
        answer = lm.gen(q)
        send(q, answer)
        lm.gen(f"nobody reads {q}")
        return answer

    plan = plan_of(flow, "q")
    value = plan.outputs[0][1].value
    assert isinstance(value, Ordered) and isinstance(value.inputs[0], Generate)
    assert len(sends(plan.walk())) == 2
    assert sum(isinstance(op, Generate) for op in plan.walk()) == 1, "pure work nobody reads goes"


def test_a_write_that_the_result_reads_needs_no_keeping() -> None:
    plan = plan_of(lambda q: send(q, "1"), "q")
    assert isinstance(plan.outputs[0][1].value, Tool)


def test_a_workflow_that_only_writes() -> None:
    def flow(q: str) -> None:
        send(q, "1")

    assert len(sends(plan_of(flow, "q").walk())) == 1


def test_writes_in_a_body_stay_there_in_order_and_the_map_is_a_write() -> None:
    def flow(q: str, xs: list[str]) -> str:
        def each(x: str) -> str:
            send(x, "1")
            send(x, "2")
            return x

        send(q, "before")
        halo.map(each, xs)
        send(q, "after")
        return q

    plan = plan_of(flow, "q", "xs")
    before, after = sends(plan.walk())
    (mapped,) = (op for op in plan.walk() if isinstance(op, Map))
    assert mapped.effect is Effect.WRITE
    assert mapped.after == (before,) and after.after == (mapped,)
    one, two = sends(mapped.body.walk())
    assert two.after == (one,) and one.after == ()
    assert isinstance(mapped.body.result, Ordered)


def test_the_writes_of_a_branch_belong_to_the_branch() -> None:
    def flow(q: str) -> str:
        halo.when(q == "x", lambda: send(q, "1"))
        return q

    plan = plan_of(flow, "q")
    assert not sends(plan.walk())
    (branch,) = (op for op in plan.walk() if isinstance(op, When))
    assert len(sends(branch.then.walk())) == 1


def test_a_write_of_an_inlined_workflow_is_chained_with_the_others() -> None:
    @halo.workflow
    def inner(q: str) -> str:
        return send(q, "inner")

    def flow(q: str) -> str:
        send(q, "1")
        inner(q)
        return send(q, "3")

    ops = sends(plan_of(flow, "q").walk())
    assert [op.call_id for op in ops] == ["flow/1", "flow/2", "flow/3"]
    assert ops[2].after == (ops[1],) and ops[1].after == (ops[0],)


def test_a_sampled_tool_has_an_identity_and_no_order() -> None:
    @halo.tool(effect="sampled")
    def draw(q: str) -> int:
        """Draws."""
        return 1

    plan = plan_of(lambda q: {"a": draw(q), "b": draw(q)}, "q")
    drawn: list[Op] = [op for op in plan.walk() if isinstance(op, Tool)]
    assert len(drawn) == 2 and all(op.after == () for op in drawn)


def test_a_body_inside_a_body_keeps_its_writes() -> None:
    def flow(xs: list[list[str]]) -> int:
        halo.map(lambda ys: halo.map(lambda y: send(y, "1"), ys), xs)
        return 1

    plan = plan_of(flow, "xs")
    (outer,) = (op for op in plan.walk() if isinstance(op, Map))
    (inner,) = (op for op in outer.body.walk() if isinstance(op, Map))
    assert len(sends(walk((inner.body.result,)))) == 1
