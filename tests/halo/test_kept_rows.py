"""Which rows of its input a workflow is for: `where`, `limit` and `offset` in both languages."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import pytest

import halo
from halo.dsl.workflow import Workflow
from halo.errors import WorkflowError
from halo.spec import dump_spec, load_spec_text
from planner.logical import Compare, Filter, Relation, Scan

lm = halo.Model()
ROWS: list[dict[str, Any]] = [{"text": f"text {i}", "stars": i % 5} for i in range(20)]
COLUMNS = ("text", "stars")


def urgent(text: str) -> Any:
    return lm.choose(f"Is this urgent? {text}", ["yes", "no"]) == "yes"


@halo.workflow(where=[urgent, lambda stars: stars <= 2])
def reply(text: str) -> str:
    return lm.gen(f"Reply to: {text}", max_tokens=8)


@halo.workflow
def every_reply(text: str) -> dict[str, str]:
    kind = lm.choose(f"Is this urgent? {text}", ["yes", "no"])
    return {"kind": kind, "reply": lm.gen(f"Reply to: {text}", max_tokens=8)}


YAML = """
name: reply
columns: [text, stars]
steps:
  reply: {prompt: "Reply to: {{ text }}", max_tokens: 8}
  kind: {choose: ["yes", "no"], prompt: "Is this urgent? {{ text }}"}
where: kind == 'yes' and stars <= 2
return: reply
"""


def filters(rows: Relation) -> list[Filter]:
    found: list[Filter] = []
    while not isinstance(rows, Scan):
        if isinstance(rows, Filter):
            found.append(rows)
        rows = rows.inputs[0]  # type: ignore[assignment]
    return found


def test_rows_are_kept_whose_conditions_hold_and_nothing_is_asked_for_others() -> None:
    whole = halo.run(every_reply, ROWS, engine="simulated")
    kept = halo.run(reply, ROWS, engine="simulated")
    wanted = {
        i: value["reply"]  # type: ignore[index,call-overload]
        for i, value in enumerate(whole.values())
        if ROWS[i]["stars"] <= 2 and value["kind"] == "yes"  # type: ignore[index,call-overload]
    }
    assert {outcome.row_index: outcome.value for outcome in kept} == wanted
    assert 0 < len(wanted) < 12
    # The cheap condition goes first; answers are made for what both keep.
    assert kept.summary()["calls"]["made"] == 12 + len(wanted)


def test_the_planner_orders_the_conditions_and_a_merged_batch_shares_them() -> None:
    with halo.Session(engine="simulated") as session:
        plan = session.prepare(reply, ROWS).plan.logical
        inner, outer = filters(plan.outputs[0][1].rows)[::-1]
        assert isinstance(inner.predicate, Compare) and inner.predicate.operator == "<="
        assert isinstance(outer.predicate, Compare) and outer.predicate.operator == "=="
        both = session.run([(reply, ROWS), (every_reply, ROWS)])
    assert both.summary()["calls"]["made"] == 2 * len(ROWS)


def test_yaml_and_python_are_one_plan() -> None:
    written = load_spec_text(YAML, "reply.yaml").trace("rows", COLUMNS)
    assert written.plan.fingerprint == reply_by_choice().trace("rows", COLUMNS).plan.fingerprint


def reply_by_choice() -> Workflow[..., str]:
    @halo.workflow(name="reply", where=lambda text, stars: urgent(text) & (stars <= 2))
    def again(text: str) -> str:
        return lm.gen(f"Reply to: {text}", max_tokens=8)

    return again


@pytest.mark.parametrize(
    ("settings", "written"),
    [
        ({"where": urgent}, "where:"),
        (
            {"where": [urgent, lambda stars: stars > 1], "limit": 3},
            "where: [choose == 'yes', stars > 1]",
        ),
        ({"limit": 3, "offset": 2}, "limit: 3\noffset: 2"),
        ({"offset": 2}, "offset: 2"),
    ],
    ids=["where", "several and limit", "limit and offset", "offset"],
)
def test_python_to_yaml_and_back(settings: dict[str, Any], written: str) -> None:
    traced = halo.workflow(**settings)(every_reply.function).trace("rows", COLUMNS)
    text = dump_spec(traced)
    assert written in text
    assert load_spec_text(text).trace("rows", COLUMNS).plan.fingerprint == traced.plan.fingerprint


def test_a_limit_stops_early_and_counts_in_input_order() -> None:
    flow = halo.workflow(where=urgent, limit=2, offset=1)(every_reply.function)
    asked = [v["kind"] for v in halo.run(every_reply, ROWS, engine="simulated").values()]  # type: ignore[index,call-overload]
    urgent_rows = [i for i, kind in enumerate(asked) if kind == "yes"]
    result = halo.run(flow, ROWS, engine="simulated", max_in_flight=1)
    assert [outcome.row_index for outcome in result] == urgent_rows[1:3]
    assert result.summary()["calls"]["made"] < 2 * len(ROWS)


def test_a_condition_that_fails_keeps_the_row_as_a_failed_one() -> None:
    @halo.tool(pure=True)
    def positive(stars: int) -> bool:
        if stars == 3:
            raise ValueError("three")
        return stars > 1

    flow = halo.workflow(where=lambda stars: positive(stars))(every_reply.function)
    result = halo.run(flow, ROWS, engine="simulated")
    assert {outcome.row_index % 5 for outcome in result.errors} == {3}
    assert {outcome.row_index % 5 for outcome in result if not outcome.error} == {2, 4}


def test_an_equal_condition_of_several_engines_and_a_finished_directory(tmp_path: Path) -> None:
    with halo.Session(engine="simulated") as session:
        first = session.run(reply, ROWS, out=tmp_path / "run")
        again = session.run(reply, ROWS, out=tmp_path / "run", resume=True)
    assert again.summary()["calls"]["made"] == 0
    lines = (tmp_path / "run" / "results.jsonl").read_text().splitlines()
    kept = [outcome.row_index for outcome in first]
    assert [json.loads(line)["row"] for line in lines] == kept
    two = halo.run(reply, ROWS, engine="simulated", workers=("simulated", "simulated"))
    assert [outcome.row_index for outcome in two] == kept


def test_a_workflow_called_at_once_computes_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    with halo.Session(engine="simulated") as session:
        monkeypatch.setattr("halo.session.default_session", lambda: session)
        assert isinstance(reply("text 1"), str)


@halo.tool
def publish(text: str) -> bool:
    """Publishes."""
    return True


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: halo.workflow(where=lambda missing: missing), "needs the column 'missing'"),
        (lambda: halo.workflow(where=lambda text: publish(text)), "writes"),
        (lambda: halo.workflow(where=lambda stars: stars < 1 and stars > 0), "the truth was asked"),
        (lambda: halo.workflow(limit=-1), "must not be negative"),
        (lambda: halo.workflow(limit=2.5), "limit of a workflow is 2.5"),  # type: ignore[call-overload]
        (lambda: halo.workflow(offset=True), "offset of a workflow is True"),
        (lambda: halo.workflow(where="stars > 2"), "where of a workflow is 'stars > 2'"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_a_condition_is_refused(make: Any, words: str) -> None:
    with pytest.raises(WorkflowError, match=words):
        make()(every_reply.function).trace("rows", COLUMNS)


def test_a_workflow_that_keeps_some_rows_is_not_called_inside_another() -> None:
    @halo.workflow
    def outer(text: str) -> str:
        return reply(text)

    with pytest.raises(WorkflowError, match="called inside another"):
        outer.trace("rows", COLUMNS)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("where: kind = 'yes'", "reply.yaml:7: where: equality is written =="),
        ("where: [stars > 1, kid == 'yes']", "reply.yaml:7: where[1]: there is no step or column"),
        ("limit: -1", "reply.yaml:7: limit: "),
        ("limit: many", "reply.yaml:7: limit: expected an integer, got 'many'"),
        ("where: sent", "reply.yaml:7: where: a condition on rows must not write"),
    ],
)
def test_mistakes_in_yaml_are_told_with_their_line(lines: str, message: str) -> None:
    text = textwrap.dedent(
        """\
        name: reply
        columns: [text, stars]
        tools: {publish: {python: "tools.py:publish"}}
        steps:
          kind: {choose: ["yes", "no"], prompt: "Is this urgent? {{ text }}"}
          sent: {tool: publish, args: {text: "{{ text }}"}}
        """
    )
    with pytest.raises(WorkflowError) as caught:
        load_spec_text(text + lines, "reply.yaml", tools={"publish": publish.spec})
    assert message in str(caught.value)
