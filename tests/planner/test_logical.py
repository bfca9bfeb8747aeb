"""The logical plan: what equality means, and walks that do not depend on depth."""

from __future__ import annotations

from dataclasses import replace

import pytest
import strategies
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_plans import ask, chain, column, everything, headline, query, scan

from planner.errors import PlanError
from planner.logical import (
    Body,
    Choose,
    Column,
    Const,
    Effect,
    Field,
    Format,
    Generate,
    LogicalPlan,
    Map,
    Op,
    Param,
    Prompt,
    Ref,
    Tool,
    ToolRef,
    close_body,
    transform,
    walk,
)


def test_equal_operators_are_equal_whoever_built_them() -> None:
    first, second = headline(), headline()
    assert first == second
    assert len(set(first.walk()) | set(second.walk())) == len(list(first.walk()))


def test_labels_are_for_people_and_take_no_part_in_identity() -> None:
    rows = scan()
    assert ask("Hi ", column(rows), label="a") == ask("Hi ", column(rows), label="b")


@pytest.mark.parametrize(
    "changed",
    [
        {"model": "other"},
        {"max_tokens": 17},
        {"top_p": 0.5},
        {"stop": ("\n",)},
        {"schema_json": "{}"},
        {"system": Prompt(("Be brief.",))},
        {"prompt": Prompt(("Hi", Ref(0)))},
        {"temperature": 0.5, "call_id": "x"},
    ],
)
def test_every_field_that_changes_the_call_changes_the_identity(changed: dict[str, object]) -> None:
    call = ask("Hi ", column(scan()))
    assert replace(call, **changed).fingerprint != call.fingerprint


def test_a_reference_is_never_a_literal() -> None:
    value = column(scan())
    literal = Format((value,), Prompt(("[0]",)))
    reference = Format((value,), Prompt((Ref(0),)))
    assert literal != reference


def test_order_alone_is_part_of_the_identity() -> None:
    write = Tool((), tool=ToolRef("w"), call_id="1")
    later = Tool((), tool=ToolRef("w"), call_id="2")
    assert replace(later, after=(write,)) != later
    assert replace(later, after=(write,)).inputs == ()


def test_walk_gives_inputs_before_users_each_once() -> None:
    seen: set[Op] = set()
    for op in everything().walk():
        assert op not in seen
        assert seen.issuperset(op.dependencies)
        seen.add(op)


def test_walk_all_reaches_bodies_inside_bodies() -> None:
    labels = {op.label for op in everything().walk_all()}
    assert {"expand", "merged", "improved", "again"} <= labels
    assert "again" not in {op.label for op in everything().walk()}


def test_a_chain_of_5000_calls_is_walked_transformed_and_compared() -> None:
    plan = chain(5000)
    assert plan == chain(5000)
    assert sum(isinstance(op, Generate) for op in plan.walk()) == 5000
    root = plan.outputs[0][1]

    def shorter(op: Op) -> Op:
        return replace(op, max_tokens=1) if isinstance(op, Generate) else op

    [changed] = transform([root], shorter)
    assert all(op.max_tokens == 1 for op in walk((changed,)) if isinstance(op, Generate))
    assert transform([root], lambda op: op) == [root]


def test_transform_makes_equal_results_one_object() -> None:
    rows = scan()
    pair = Format((ask("A ", column(rows)), ask("B ", column(rows))), Prompt((Ref(0), Ref(1))))

    def same_prompt(op: Op) -> Op:
        return replace(op, prompt=Prompt(("C ", Ref(0)))) if isinstance(op, Generate) else op

    [changed] = transform([pair], same_prompt)
    assert changed.inputs[0] is changed.inputs[1]


def test_users_tell_which_queries_need_an_operator() -> None:
    one, two = headline().outputs[0][1], query("x", column(scan()), scan()).outputs[0][1]
    plan = LogicalPlan((("one", one), ("two", two)))
    by_kind = {op.kind: queries for op, queries in plan.users.items()}
    assert by_kind["Column"] == ("one", "two")
    assert by_kind["Generate"] == ("one",)


def test_close_body_turns_outer_values_into_parameters() -> None:
    outer, element = column(scan()), Param((), 0, scope="body-7")
    inner = ask("Rate ", element, " for ", outer, " with ", Const.of("care"))
    local = {element, inner}
    body, captures = close_body(inner, [element], lambda op: op in local)
    assert captures == (outer,)
    assert body.n_params == 2
    assert [op.index for op in body.walk() if isinstance(op, Param)] == [0, 1]
    assert not any(isinstance(op, Column) for op in body.walk())
    assert all(op.scope == "" for op in body.walk() if isinstance(op, Param))


def test_close_body_gives_equal_bodies_whatever_the_tracing_scope_was() -> None:
    bodies = []
    for scope in ("first", "second"):
        element = Param((), 0, scope=scope)
        inner = ask("Rate ", element)
        local = (element, inner)
        bodies.append(close_body(inner, [element], lambda op, local=local: op in local)[0])
    assert bodies[0].fingerprint == bodies[1].fingerprint


def test_the_effect_of_a_body_is_the_effect_of_its_operator() -> None:
    sampled = ask("Draw ", Param((), 0), temperature=1.0, call_id="c")
    inner = Map((Param((), 0),), Body(1, sampled))
    assert Map((Const.of([1]),), Body(1, inner)).effect is Effect.SAMPLED
    write = Tool((Param((), 0),), tool=ToolRef("w"), params=("x",), call_id="w")
    assert Map((Const.of([1]),), Body(1, write)).effect is Effect.WRITE


def test_a_column_that_the_rows_have_not_is_named_with_those_they_have() -> None:
    with pytest.raises(PlanError, match=r"'answer'.*question, doc"):
        column(scan("question", "doc"), "answer")


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Generate((), "m", Prompt((Ref(0),))), "refers to an input"),
        (lambda: Generate((), "m", Prompt(("x",)), max_tokens=0), "max_tokens"),
        (lambda: Generate((), "m", Prompt(("x",)), temperature=1.0), "call_id"),
        (lambda: Choose((), "m", Prompt(("x",)), options=("one",)), "two different options"),
    ],
)
def test_fields_that_cannot_mean_anything_are_refused(build: object, words: str) -> None:
    assert callable(build)
    with pytest.raises(PlanError, match=words):
        build()


# --- prompts -------------------------------------------------------------------------------------


def test_rendered_data_is_never_read_as_a_prompt() -> None:
    prompt = Prompt(("Q: ", Ref(0), " {x} ", Ref(1)))
    assert prompt.render(["{x} {{y}} $0 [1]", {"a": [1, None]}]) == (
        'Q: {x} {{y}} $0 [1] {x} {"a": [1, null]}'
    )


segments = st.lists(st.text(max_size=8) | st.integers(0, 4).map(Ref), max_size=8).map(tuple)


@given(segments, st.lists(st.text(max_size=8), min_size=5, max_size=5))
def test_the_literal_prefix_starts_every_rendering(
    parts: tuple[str | Ref, ...], values: list[str]
) -> None:
    prompt = Prompt(parts)
    assert prompt.render([*values]).startswith(prompt.literal_prefix)


@given(segments, st.permutations(range(5)), st.lists(st.text(), min_size=5, max_size=5))
def test_reindexing_moves_inputs_and_keeps_the_text(
    parts: tuple[str | Ref, ...], order: list[int], values: list[str]
) -> None:
    prompt = Prompt(parts)
    moved = [""] * 5
    for old, new in enumerate(order):
        moved[new] = values[old]
    assert prompt.reindex(dict(enumerate(order))).render([*moved]) == prompt.render([*values])


@settings(max_examples=40)
@given(st.data())
def test_a_transform_that_changes_nothing_keeps_any_plan(data: st.DataObject) -> None:
    plan = data.draw(strategies.plans())
    roots = [op for _, op in plan.outputs]
    assert transform(roots, lambda op: op) == roots


def test_a_field_of_an_object_is_not_an_element_of_a_list() -> None:
    value = Const.of({"1": "a"})
    assert Field((value,), "1") != Field((value,), 1)
