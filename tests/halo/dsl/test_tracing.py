"""What the tracer makes of an ordinary function, and what it refuses, naming the remedy."""

from __future__ import annotations

import copy
import re
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel

import halo
from halo.dsl.workflow import Workflow
from halo.errors import PlanError, WorkflowError
from planner.logical import (
    Column,
    Compare,
    Const,
    Field,
    Format,
    Generate,
    Op,
    Project,
    Ref,
    Result,
)
from planner.verify import verify

lm = halo.Model("m")


class Verdict(BaseModel):
    winner: Literal["for", "against"]
    reason: str
    scores: list[int] = []


def result_of(function: Callable[..., Any], *columns: str) -> Op:
    """The operator of a workflow's value over rows with these columns."""
    flow = function if isinstance(function, Workflow) else halo.workflow(function)
    plan = flow.trace("rows", columns).plan
    verify(plan)
    result = plan.outputs[0][1]
    assert isinstance(result, Result)
    return result.value


def prompt_of(op: Op) -> tuple[Any, ...]:
    assert isinstance(op, Generate)
    return op.prompt.segments


def refused(function: Callable[..., Any], *columns: str) -> str:
    with pytest.raises(WorkflowError) as caught:
        result_of(function, *columns)
    message = str(caught.value)
    assert message.startswith(str(Path(__file__))), "the error names the user's line"
    return message


# --- f-strings ------------------------------------------------------------------------------------


def test_an_f_string_splits_into_literals_and_references() -> None:
    op = result_of(lambda q, k: lm.gen(f"Q: {q}\nK: {k}\nAgain: {q}"), "q", "k")
    assert prompt_of(op) == ("Q: ", Ref(0), "\nK: ", Ref(1), "\nAgain: ", Ref(0))
    assert [i.name for i in op.inputs if isinstance(i, Column)] == ["q", "k"]


@pytest.mark.parametrize(
    "build",
    [
        lambda q: f"Q: {q}!",
        lambda q: "Q: " + q + "!",
        lambda q: "Q: %s!" % q,  # noqa: UP031
        lambda q: "Q: {}!".format(q),  # noqa: UP032
        lambda q: "".join(["Q: ", f"{q}", "!"]),
        lambda q: string.Template("Q: $q!").substitute(q=q),
        lambda q: f"  Q: {q}!\n".strip(),
        lambda q: f"Q: {copy.deepcopy(q)}!",
    ],
)
def test_every_way_of_building_a_text_gives_the_same_prompt(build: Callable[[Any], str]) -> None:
    assert prompt_of(result_of(lambda q: lm.gen(build(q)), "q")) == ("Q: ", Ref(0), "!")


def test_system_prompts_share_the_inputs_of_the_prompt() -> None:
    op = result_of(lambda q, k: lm.gen(f"{q}", system=f"{k} {q}"), "q", "k")
    assert isinstance(op, Generate) and op.system is not None
    assert op.system.segments == (Ref(1), " ", Ref(0))


def test_a_lazy_value_alone_is_a_prompt() -> None:
    assert prompt_of(result_of(lambda q: lm.gen(q), "q")) == (Ref(0),)


def test_t_strings_are_prompts() -> None:
    """As `string.templatelib.Template` of Python 3.14 has it."""

    class Interpolation:
        def __init__(self, value: Any, conversion: str | None, format_spec: str) -> None:
            self.value, self.conversion, self.format_spec = value, conversion, format_spec

    class Template:
        def __init__(self, strings: tuple[str, ...], *interpolations: Interpolation) -> None:
            self.strings, self.interpolations = strings, interpolations

    def flow(q: str) -> str:
        count = Interpolation(3.14159, None, ".2f")
        return lm.gen(Template(("Q: ", " to ", "."), Interpolation(q, "s", ""), count))  # type: ignore[call-overload, no-any-return]

    assert prompt_of(result_of(flow, "q")) == ("Q: ", Ref(0), " to 3.14.")


@pytest.mark.parametrize(
    "damage",
    [
        lambda t: t.upper(),
        lambda t: t.lower(),
        lambda t: t.title(),
        lambda t: t.capitalize(),
        lambda t: t.swapcase(),
        lambda t: t.casefold(),
        lambda t: t[3:],
        lambda t: t[:9],
        lambda t: t[::-1],
        lambda t: t[12:20],
        lambda t: t.encode("ascii", "ignore").decode(),
        lambda t: t.encode("ascii", "replace").decode(),
        lambda t: t.encode("unicode_escape").decode(),
        lambda t: re.sub(r"\W", "", t),
        lambda t: repr(t),
        lambda t: " ".join(t),
    ],
)
def test_a_damaged_marker_raises_and_is_never_sent(damage: Callable[[str], str]) -> None:
    message = refused(lambda q: lm.gen("Say: " + damage(f"{q}, please")), "q")
    assert "f-strings" in message and "halo.tool" in message


@pytest.mark.parametrize(
    "text", [lambda q: f"{q!r}", lambda q: f"{[q]}", lambda q: f"{ {'a': q} }"]
)
def test_a_representation_is_no_text_for_a_model(text: Callable[[Any], str]) -> None:
    assert "!r" in refused(lambda q: lm.gen(text(q)), "q")


def test_a_digit_that_is_replaced_cannot_turn_one_reference_into_another() -> None:
    def flow(a: str, b: str) -> str:
        text = f"{a}"
        for digit in "0123456789":
            text = text.replace(digit, "1")
        return lm.gen(text + f"{b}")

    assert [i.label for i in result_of(flow, "a", "b").inputs] == ["a", "b"]


def test_a_format_of_a_lazy_value_is_refused() -> None:
    assert "'.2f'" in refused(lambda q: lm.gen(f"{q:.2f}"), "q")


def test_markers_differ_between_traces_and_one_trace_refuses_anothers() -> None:
    kept: list[str] = []

    def keeps(q: str) -> str:
        kept.append(f"{q}")
        return lm.gen(f"{q}")

    result_of(keeps, "q")
    result_of(keeps, "q")
    assert kept[0] != kept[1]
    assert "another trace" in refused(lambda q: lm.gen(f"{q} {kept[0]}"), "q")


def test_data_is_never_searched_for_markers() -> None:
    """A row that holds a real marker of the very trace stays a value of a column."""
    assert prompt_of(result_of(lambda q: lm.gen(f"{q}"), "q")) == (Ref(0),)
    forged = "\ufffd0{q} {{q}} ${q} %(q)s <q> [[ref:0]]"
    assert prompt_of(result_of(lambda q: lm.gen(forged + f"{q}"), "q")) == (forged, Ref(0))


def test_equal_workflows_with_other_names_are_equal() -> None:
    def one(question: str) -> str:
        facts = lm.gen(f"Facts: {question}", name="facts")
        return lm.gen(f"{facts}\n{question}")

    def other(question: str) -> str:
        x = lm.gen(f"Facts: {question}", name="x")
        y = x
        return lm.gen(f"{y}\n" + f"{question}", name="last")

    assert result_of(one, "question") == result_of(other, "question")


# --- control flow ---------------------------------------------------------------------------------


def test_a_for_over_a_known_count_unrolls() -> None:
    def flow(q: str, rounds: int = 3) -> str:
        text = "(nothing)"
        for _ in range(rounds):
            text = lm.gen(f"{q} {text}")
        return text

    plan = halo.workflow(flow).trace("rows", ["q"]).plan
    assert sum(isinstance(op, Generate) for op in plan.walk()) == 3


def test_a_column_wins_over_a_default_and_the_error_says_so() -> None:
    def flow(q: str, rounds: int = 3) -> str:
        for _ in range(rounds):
            q = lm.gen(f"{q}")
        return q

    message = refused(flow, "q", "rounds")
    assert "'rounds' is a column of the rows" in message and "halo.loop" in message


@pytest.mark.parametrize(
    ("body", "remedy"),
    [
        (lambda q: 1 if q == "yes" else 2, "halo.when"),
        (lambda q: q and "x", "halo.loop"),
        (lambda q: not q, "halo.when"),
        (lambda q: q in ["a", "b"], "(x == a) | (x == b)"),
        (lambda q: [x for x in q], "halo.map"),  # noqa: C416
        (lambda q: (lambda a, b: a)(*q), "halo.map"),
        (lambda q: ", ".join(q), "halo.map"),
        (lambda q: "a" in q, "halo.tool"),
        (lambda q: len(q), "halo.tool"),
        (lambda q: int(q), "halo.tool"),
        (lambda q: q * 2, "halo.tool"),
        (lambda q: 1 - q, "halo.tool"),
        (lambda q: -q, "halo.tool"),
        (lambda q: q.upper(), "f-strings"),
        (lambda q: q.strip().split(), "f-strings"),
        (lambda q: q[3:], "f-strings"),
        (lambda q: q[q], "halo.tool"),
        (lambda q: ", ".join([q, q]), "f-strings"),
        (lambda q: Verdict(winner=q, reason=""), "f-strings"),
        (lambda q: [q, q], "dict"),
        (lambda q: {q: 1}, "plain texts"),
        (lambda q: {f"{q}": 1}, "plain texts"),
        (lambda q: object(), "JSON"),
        (lambda q: lm.gen(7), 'f"..."'),  # type: ignore[call-overload]
        (lambda q: lm.gen(q, out=object()), "pydantic model"),
        (lambda q: lm.choose(q, ["a", q]), "fixed"),
    ],
)
def test_what_needs_the_value_names_the_remedy(body: Callable[[Any], Any], remedy: str) -> None:
    assert remedy in refused(body, "q")


def test_errors_of_the_plan_name_the_line_too() -> None:
    for body in (
        lambda q: lm.gen(q, max_tokens=0),
        lambda q: lm.choose(q, ["only"]),
        lambda q: lm.gen(q, temperature=-1.0),
    ):
        with pytest.raises(PlanError, match=r"test_tracing\.py:\d+: "):
            result_of(body, "q")


def test_attributes_are_not_set() -> None:
    def flow(q: Any) -> str:
        q.label = "x"
        return "x"

    assert "never changed" in refused(flow, "q")


# --- comparison -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "operator"),
    [
        (lambda q: q == "x", "=="),
        (lambda q: q != "x", "!="),
        (lambda q: q < 1, "<"),
        (lambda q: q >= 1, ">="),
        (lambda q: (q == 1) & (q == 2), "and"),
        (lambda q: True | (q == 2), "or"),
        (lambda q: ~(q == 2), "not"),
    ],
)
def test_comparisons_are_lazy(body: Callable[[Any], Any], operator: str) -> None:
    op = result_of(body, "q")
    assert isinstance(op, Compare) and op.operator == operator


def test_lazy_values_are_keys_by_identity() -> None:
    def flow(q: str, k: str) -> str:
        names = {q: "first", k: "second"}
        return lm.gen(f"{names[q]} {names[k]}")

    assert prompt_of(result_of(flow, "q", "k")) == ("first second",)


# --- results --------------------------------------------------------------------------------------


def test_what_a_workflow_may_return() -> None:
    assert result_of(lambda q: None, "q") == Const.of(None)
    assert result_of(lambda q: {"a": [1, 2]}, "q") == Const.of({"a": [1, 2]})
    text = result_of(lambda q: f"<{q}>", "q")
    assert isinstance(text, Format) and text.prompt.segments == ("<", Ref(0), ">")

    def record(q: str) -> dict[str, Any]:
        return {"q": q, "n": 1, "inner": {"t": f"{q}!"}}

    op = result_of(record, "q")
    assert isinstance(op, Project) and op.names == ("q", "n", "inner")
    assert isinstance(op.inputs[2], Project)


def test_a_text_that_is_one_lazy_text_is_that_text() -> None:
    assert isinstance(result_of(lambda q: f"{lm.gen(q)}", "q"), Generate)
    # A value that may be no text has to be made one.
    assert isinstance(result_of(lambda q: f"{q}", "q"), Format)


def test_a_model_with_lazy_texts_is_an_object() -> None:
    def flow(q: str) -> Verdict:
        return Verdict.model_construct(winner="for", reason=lm.gen(q), scores=[1])

    op = result_of(flow, "q")
    assert isinstance(op, Project) and op.names == ("winner", "reason", "scores")


# --- parameters, nesting, lifetime ----------------------------------------------------------------


def test_a_missing_column_names_those_that_exist() -> None:
    with pytest.raises(WorkflowError, match=r"needs the column 'question'.*have: id, text"):
        halo.workflow(lambda question: question, name="f").trace("rows", ["id", "text"])


def test_star_parameters_and_async_functions_are_refused_where_they_are_written() -> None:
    with pytest.raises(WorkflowError, match="Name every parameter"):
        halo.workflow(lambda *rows: rows)

    async def slow(q: str) -> str:
        return q

    with pytest.raises(WorkflowError, match="run concurrently"):
        halo.workflow(slow)


def test_keyword_only_parameters_are_columns_too() -> None:
    def flow(*, q: str) -> str:
        return lm.gen(q)

    assert isinstance(result_of(flow, "q"), Generate)


def test_a_workflow_inside_a_workflow_is_inlined() -> None:
    @halo.workflow
    def inner(text: str, style: str = "short") -> str:
        return lm.gen(f"{style}: {text}")

    @halo.workflow(name="outer")
    def outer(q: str) -> str:
        return inner(f"<{inner(q)}>", style="long")

    assert outer.name == "outer"
    op = result_of(outer, "q")
    assert prompt_of(op) == ("long: <", Ref(0), ">")
    assert prompt_of(op.inputs[0]) == ("short: ", Ref(0))


def test_lazy_values_end_with_their_trace() -> None:
    kept: list[Any] = []
    result_of(lambda q: kept.append(q), "q")
    (stale,) = kept
    for use in (
        lambda: f"{stale}",
        lambda: stale == 1,
        lambda: lm.gen(stale),
        lambda: halo.workflow(lambda q: q)(stale),
    ):
        with pytest.raises(WorkflowError, match="trace"):
            use()
    assert "after its trace ended" in refused(lambda q: {"a": q, "b": stale}, "q")


def test_threads_trace_on_their_own() -> None:
    from concurrent.futures import ThreadPoolExecutor

    def trace(n: int) -> Op:
        return result_of(lambda q: lm.gen(f"{n}: {lm.gen(q)}"), "q")

    with ThreadPoolExecutor(4) as pool:
        ops = list(pool.map(trace, range(20)))
    assert [prompt_of(op)[0] for op in ops] == [f"{n}: " for n in range(20)]


def test_a_long_unrolled_loop_traces() -> None:
    def flow(q: str) -> str:
        for _ in range(2000):
            q = lm.gen(f"Again: {q}")
        return q

    assert isinstance(result_of(flow, "q"), Generate)


def test_sampled_calls_are_numbered_and_greedy_ones_merge() -> None:
    def flow(q: str) -> dict[str, str]:
        return {
            "a": lm.gen(q),
            "b": lm.gen(q),
            "c": lm.gen(q, temperature=0.7),
            "d": lm.gen(q, temperature=0.7),
        }

    a, b, c, d = result_of(flow, "q").inputs
    assert a == b and c != d
    assert isinstance(c, Generate) and isinstance(d, Generate)
    assert (c.call_id, d.call_id) == ("flow/1", "flow/2")


def test_fields_of_a_typed_value() -> None:
    def flow(q: str) -> str:
        verdict = lm.gen(q, out=Verdict)
        return lm.gen(f"{verdict.winner} {verdict.scores[0]}")

    op = result_of(flow, "q")
    first, second = op.inputs
    assert isinstance(first, Field) and first.key == "winner"
    assert isinstance(second, Field) and second.key == 0


def test_a_wrong_field_fails_at_trace_time_and_lists_the_fields() -> None:
    message = refused(lambda q: lm.gen(q, out=Verdict).winer, "q")  # type: ignore[attr-defined]
    assert "no field 'winer'" in message and "winner, reason, scores" in message
