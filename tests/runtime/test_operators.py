"""What operators mean: cheap ones, bodies, and answers of a declared type."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest
from executor_setup import SCAN, Q, Records, gen, run
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodel.usage import OpMetrics, Usage
from planner.logical import (
    Body,
    Choose,
    Compare,
    Const,
    Effect,
    Field,
    Format,
    Generate,
    Json,
    LogicalPlan,
    Loop,
    Map,
    ModelOp,
    Op,
    Ordered,
    Param,
    Project,
    Prompt,
    Reduce,
    Ref,
    Result,
    Sql,
    Tool,
    ToolRef,
    When,
)
from planner.physical import PhysicalPlan, Worker
from runtime.backends.base import Backend, Capabilities, Completion, Request
from runtime.clock import LoopClock
from runtime.dispatch import Dispatcher
from runtime.errors import BackendError, ContextOverflowError
from runtime.executor import Executor
from runtime.records import CallRecord, CallSite, Outcome
from runtime.sharing import CallTable

P0, P1 = Param((), 0), Param((), 1)
SCORE = '{"type":"object","properties":{"score":{"type":"integer"}},"required":["score"]}'


def tool(name: str, *inputs: Op, effect: Effect = Effect.PURE) -> Tool:
    params = tuple(f"p{i}" for i in range(len(inputs)))
    return Tool(tuple(inputs), ToolRef(name, "", effect), params, "id", label=name)


Answer = str | Completion | BackendError


def cut(text: str) -> Completion:
    return Completion(text, "length", Usage(1, 1))


class Engine(Backend):
    """Gives scripted answers in turn, or echoes the prompt when there is no script."""

    name = "test"

    def __init__(self, script: Iterable[Answer]) -> None:
        self._script = list(script)
        self.requests: list[Request] = []

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(64)

    async def generate(
        self, request: Request, on_prefilled: Callable[[], None] | None = None
    ) -> Completion:
        self.requests.append(request)
        await asyncio.sleep(1)
        if not self._script:
            return Completion(f"<{request.messages[-1].content}>", "stop", Usage(1, 1))
        answer = self._script.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return Completion(answer, "stop", Usage(1, 1)) if isinstance(answer, str) else answer


class Tools:
    """`grow` appends to a list; `slow` waits for its argument in seconds; `sum` adds."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, list[Json]]] = []
        self.sites: list[CallSite] = []
        self.queries: list[tuple[str, Mapping[str, Json]]] = []

    async def call(
        self, name: str, arguments: Mapping[str, Json], site: CallSite, listener: object = None
    ) -> CallRecord:
        values: list[Any] = list(arguments.values())
        self.begun.append((name, values))
        self.sites.append(site)
        value: Json = None
        match name:
            case "slow":
                await asyncio.sleep(values[0])
                value = values[0]
            case "sum":
                await asyncio.sleep(1)
                value = sum(values[0])
            case "grow":
                value = values[0] + 1
            case _:
                raise BackendError(f"no tool {name} for {values}", backend="test")
        return CallRecord("", "tool", name, site.op, site.query, site.row_key, value)

    async def query(
        self,
        op: Sql,
        text: str,
        params: Mapping[str, Json],
        site: CallSite,
        listener: object = None,
    ) -> CallRecord:
        self.queries.append((text, params))
        return CallRecord("", "sql", "db", site.op, site.query, site.row_key, [{"n": 1}])

    def stop(self) -> None: ...


class Ran:
    """One row, run: its outcome, what was asked, the metrics, and the time it took."""

    def __init__(self, root: Op, script: Iterable[Answer] = (), q: Json = "q") -> None:
        self.metrics: dict[str, OpMetrics] = {}
        self.engine = Engine(script)
        self.tools = Tools()
        self.outcome = run(lambda: self._run(root, q))

    async def _run(self, root: Op, q: Json) -> Outcome:
        clock, store = LoopClock(), Records()
        self.calls = store.calls
        plan = LogicalPlan((("main", Result((root, SCAN))),))
        table = CallTable(store, self.metrics)
        placements = {op.fingerprint: "w" for op in plan.walk_all() if isinstance(op, ModelOp)}
        executor = Executor(
            PhysicalPlan(plan, placements, (Worker("w", "test", "engine-model"),), {}, {}, 4),
            dispatcher=Dispatcher({"w": self.engine}, table, store, clock, max_attempts=1),
            tools=self.tools,
            tool_schemas={},
            store=store,
            clock=clock,
            metrics=self.metrics,
        )
        (outcome,) = (await executor.run({"rows": [{"q": q}]}))["main"]
        self.seconds = clock.now_s()
        return outcome

    @property
    def value(self) -> Json:
        assert self.outcome.error is None, self.outcome.error
        return self.outcome.value

    @property
    def error(self) -> str:
        assert self.outcome.error is not None
        return f"{self.outcome.error.type}: {self.outcome.error.message}"


# --- cheap operators -----------------------------------------------------------------------------


def test_cheap_operators() -> None:
    row: Json = {"a": [1, {"b": "text"}], "none": None}
    root = Project(
        (
            Field((Field((Field((Q,), "a"),), 1),), "b"),
            Field((Field((Q,), "a"),), -2),
            Format((Q, Const.of(2)), Prompt(("<", Ref(1), "|", Ref(0), ">"))),
            Ordered((Const.of("kept"),), after=(Field((Q,), "none"),)),
        ),
        ("deep", "last", "text", "ordered"),
    )
    assert Ran(root, q=row).value == {
        "deep": "text",
        "last": 1,
        "text": '<2|{"a": [1, {"b": "text"}], "none": null}>',
        "ordered": "kept",
    }


@pytest.mark.parametrize(
    ("left", "operator", "right", "value"),
    [
        (1, "==", 1.0, True),
        ("a", "!=", "b", True),
        (2, "<", 10, True),
        ("2", "<", "10", False),
        ([1, 2], ">=", [1], True),
        ("b", "in", ["a", "b"], True),
        ("key", "in", {"key": None}, True),
        ("x", "in", "text", True),
        ([], "or", "", False),
        ("x", "and", "y", True),
    ],
)
def test_compare(left: Json, operator: str, right: Json, value: bool) -> None:
    ran = Ran(Compare((Q, Const.of(right)), operator), q=left)
    assert ran.value is value


@pytest.mark.parametrize(
    "value", [None, False, 0, 0.0, "", [], {}, True, -1, "false", [0], {"": 0}]
)
def test_truth_is_that_of_python(value: Json) -> None:
    branches = Body(0, Const.of("yes")), Body(0, Const.of("no"))
    assert Ran(Compare((Q,), "truthy"), q=value).value is bool(value)
    assert Ran(Compare((Q,), "not"), q=value).value is (not value)
    assert Ran(When((Q,), *branches), q=value).value == ("yes" if value else "no")


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=8,
    )
)
@settings(max_examples=50, deadline=None)
def test_every_json_value_passes_through_a_row(value: Any) -> None:
    assert Ran(Project((Q,), ("v",)), q=value).value == {"v": value}


# --- bodies --------------------------------------------------------------------------------------


def test_map_keeps_order_and_runs_elements_side_by_side() -> None:
    body = Body(2, Project((tool("slow", P0), P1), ("waited", "capture")))
    ran = Ran(Map((Q, Const.of("c")), body), q=[5, 1, 3])
    assert ran.value == [{"waited": n, "capture": "c"} for n in (5, 1, 3)]
    assert ran.seconds == 5
    assert [site.path for site in ran.tools.sites] == ["map[0]", "map[1]", "map[2]"]


def test_map_of_nothing_is_an_empty_list() -> None:
    assert Ran(Map((Q,), Body(1, gen("", P0))), q=[]).value == []


@pytest.mark.parametrize("op", [Map((Q,), Body(1, P0)), Reduce((Q,), Body(1, P0))])
def test_map_and_reduce_need_a_list(op: Op) -> None:
    ran = Ran(op, q="text")
    assert ran.error.startswith("ValueTypeError")
    assert "needs a list, got a text" in ran.error


def test_the_first_failing_element_is_the_error_and_its_place_is_told() -> None:
    body = Body(1, When((P0, P0), Body(1, tool("broken", P0)), Body(1, P0)))
    op = Map((Q,), body)
    ran = Ran(op, q=[0, 1, 2])
    assert "no tool broken for [1] (at map[1]/then)" in ran.error
    assert ran.outcome.error is not None and ran.outcome.error.op == "broken"
    assert (ran.metrics[op.fingerprint].requested, ran.metrics[op.fingerprint].errors) == (1, 1)


@pytest.mark.parametrize(
    ("n", "fan_in", "calls"), [(1, 4, 1), (2, 2, 1), (4, 4, 1), (5, 4, 3), (9, 2, 9), (16, 4, 5)]
)
@pytest.mark.parametrize("effect", [Effect.PURE, Effect.WRITE])
def test_reduce_merges_all_elements_in_a_tree(
    n: int, fan_in: int, calls: int, effect: Effect
) -> None:
    # 9 by 2: 5 merges of the list (one of a single element), then 2, 1 and 1 of what they gave.
    ran = Ran(Reduce((Q,), Body(1, tool("sum", P0, effect=effect)), fan_in), q=list(range(n)))
    assert ran.value == sum(range(n))
    assert len(ran.tools.begun) == calls
    assert ran.seconds >= (calls if effect is Effect.WRITE else 1), "writes go one at a time"
    for _, (group,) in ran.tools.begun:
        assert isinstance(group, list)
        assert len(group) <= fan_in


@given(st.lists(st.text("abc", max_size=3), min_size=1, max_size=40), st.integers(2, 6))
@settings(max_examples=60, deadline=None)
def test_reduce_keeps_the_order_of_the_elements(items: list[str], fan_in: int) -> None:
    body = Body(1, Format((P0,), Prompt((Ref(0),))))
    merged: Json = Ran(Reduce((Q,), body, fan_in), q=list(items)).value

    def leaves(text: str) -> list[str]:
        parts = json.loads(text)
        if any(isinstance(p, str) and p.startswith("[") for p in parts):
            return [leaf for p in parts for leaf in (leaves(p) if p.startswith("[") else [p])]
        return list(parts)

    assert isinstance(merged, str)
    assert leaves(merged) == items


def test_reduce_of_nothing_is_an_error() -> None:
    assert "got an empty list" in Ran(Reduce((Q,), Body(1, P0)), q=[]).error


def test_groups_of_a_reduction_do_not_wait_for_their_level() -> None:
    body = Body(1, tool("slow", Field((P0,), 0)))
    # The second half is slow; the first half is merged meanwhile.
    ran = Ran(Reduce((Q,), body, 2), q=[1, 0, 1, 0, 9, 0, 9, 0])
    assert ran.seconds == 9 + 9 + 1
    assert [site.path for site in ran.tools.sites][4] == "reduce[1.0]"


def test_when_runs_one_branch() -> None:
    op = When((Q, Const.of("x")), Body(1, gen("yes ", P0)), Body(1, gen("no ", P0)))
    ran = Ran(op, q=0)
    assert ran.value == "<no x>"
    assert [r.messages[-1].content for r in ran.engine.requests] == ["no x"]
    assert ran.metrics[op.fingerprint].requested == 1


def test_loop_ends_early_and_makes_no_further_calls() -> None:
    op = Loop(
        (Q, Const.of(3)),
        Body(2, Compare((P0, P1), "<")),
        Body(2, tool("grow", P0)),
        max_rounds=10,
    )
    ran = Ran(op, q=0)
    assert ran.value == 3
    assert len(ran.tools.begun) == 3
    assert [site.path for site in ran.tools.sites] == ["loop[0]", "loop[1]", "loop[2]"]


def test_loop_ends_after_its_rounds_with_the_last_state() -> None:
    op = Loop((Q,), Body(1, Const.of(True)), Body(1, tool("grow", P0)), max_rounds=4)
    assert Ran(op, q=0).value == 4


def test_bodies_inside_bodies_have_paths() -> None:
    branch = When((P0, P0), Body(1, tool("grow", P0)), Body(1, P0))
    loop = Loop((P0,), Body(1, Compare((P0, Const.of(3)), "<")), Body(1, branch), max_rounds=9)
    ran = Ran(Map((Q,), Body(1, loop)), q=[1, 2])
    assert ran.value == [3, 3]
    assert {site.path for site in ran.tools.sites} == {
        "map[0]/loop[0]/then",
        "map[0]/loop[1]/then",
        "map[1]/loop[0]/then",
    }


# --- calls ---------------------------------------------------------------------------------------


def test_a_model_call_is_made_as_the_plan_says() -> None:
    op = Generate(
        (Q,), "plan-model", Prompt(("Say ", Ref(0))), Prompt(("Be kind to ", Ref(0))),
        max_tokens=7, temperature=0.5, top_p=0.9, call_id="id", stop=("END",),
    )  # fmt: skip
    (request,) = Ran(op).engine.requests
    assert [(m.role, m.content) for m in request.messages] == [
        ("system", "Be kind to q"),
        ("user", "Say q"),
    ]
    assert request.model == "engine-model", "the engine's own name for the model"
    assert (request.max_tokens, request.temperature, request.top_p) == (7, 0.5, 0.9)
    assert request.stop == ("END",)
    assert request.seed is not None


def test_a_free_text_may_be_cut() -> None:
    ran = Ran(gen(""), [cut("half an ans")])
    assert ran.value == "half an ans"
    assert len(ran.engine.requests) == 1


def test_sql_has_a_text_of_its_own_or_an_input() -> None:
    own = Ran(Sql((Q,), "db", "select $x", ("x",)), q=5)
    assert own.value == [{"n": 1}]
    assert own.tools.queries == [("select $x", {"x": 5})]
    given_text = Ran(Sql((Q, Const.of(2)), "db", None, ("y",)), q="select $y")
    assert given_text.tools.queries == [("select $y", {"y": 2})]
    assert "needs a query text, got a number" in Ran(Sql((Q,), "db"), q=5).error


# --- typed answers -------------------------------------------------------------------------------


def test_a_fitting_answer_is_its_value() -> None:
    ran = Ran(gen("", schema_json=SCORE), ['{"score": 3}'])
    assert ran.value == {"score": 3}
    assert ran.engine.requests[0].schema_json == SCORE


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("not json", "it is not JSON"),
        ('{"score": "high"}', 'is not of type "integer" (at /score)'),
        ("{}", "required"),
        ('{"score": NaN}', "NaN is not JSON"),
        ('{"score": 1e999}', "too large"),
        ("[" * 100_000, "it is not JSON"),
    ],
)
def test_an_answer_that_does_not_fit_is_asked_for_again_with_the_reason(
    text: str, reason: str
) -> None:
    op = gen("ask", schema_json=SCORE)
    ran = Ran(op, [text, '{"score": 3}'])
    assert ran.value == {"score": 3}
    first, second = ran.engine.requests
    assert [m.role for m in second.messages] == ["user", "assistant", "user"]
    assert second.messages[:1] == first.messages
    assert second.messages[1].content == text
    assert reason in second.messages[2].content
    assert [record.turn for record in ran.calls.values()] == [0, 1]
    assert ran.metrics[op.fingerprint].made == 2
    assert ran.metrics[op.fingerprint].errors == 0


def test_an_answer_that_was_cut_is_asked_for_again_with_twice_the_room() -> None:
    # A number that was cut in half is a number, and must not be taken for the whole.
    ran = Ran(gen("ask", schema_json='{"type":"integer"}', max_tokens=8), [cut("12"), "123"])
    assert ran.value == 123
    first, second = ran.engine.requests
    assert (first.max_tokens, second.max_tokens) == (8, 16)
    assert second.messages == first.messages


@pytest.mark.parametrize(
    ("script", "says"),
    [
        (["no", "x" * 500], "it is not JSON"),
        ([cut('{"sc'), cut('{"score":')], "cut at 16 tokens"),
        ([cut('{"sc'), '{"score": null}'], "not of type"),
    ],
)
def test_a_second_misfit_is_the_error_of_the_row(script: list[Answer], says: str) -> None:
    op = gen("ask", schema_json=SCORE, max_tokens=8)
    ran = Ran(op, script)
    assert ran.error.startswith("OutputTypeError") and says in ran.error
    assert len(ran.error) < 600, "a long answer is not repeated"
    assert len(ran.engine.requests) == 2
    assert ran.metrics[op.fingerprint].errors == 1


def test_no_room_for_a_longer_answer_is_told_as_such() -> None:
    overflow = ContextOverflowError("8 + 16 > 20", backend="test")
    ran = Ran(gen("ask", schema_json=SCORE, max_tokens=8), [cut('{"sc'), overflow])
    assert ran.error.startswith("OutputTypeError")
    assert "cut at 8 tokens" in ran.error and "no room" in ran.error


def test_a_schema_that_is_none_is_an_error_of_the_plan() -> None:
    ran = Ran(gen("", schema_json='{"type": "nonsense"}'), ["1"])
    assert ran.error.startswith("PlanError: not a JSON Schema")


def choose(*options: str) -> Choose:
    return Choose((), "m", Prompt(("?",)), options=options)


@pytest.mark.parametrize("text", ["yes", " yes\n"])
def test_a_choice_is_one_of_its_options(text: str) -> None:
    ran = Ran(choose("yes", "no"), [text])
    assert ran.value == "yes"
    assert ran.engine.requests[0].options == ("yes", "no")


def test_a_choice_that_is_none_of_its_options_is_asked_for_again() -> None:
    ran = Ran(choose("yes", "no"), ["maybe", "no"])
    assert ran.value == "no"
    assert "none of 'yes', 'no'" in ran.engine.requests[1].messages[-1].content
    assert "none of" in Ran(choose("yes", "no"), ["maybe", "perhaps"]).error


def test_a_cut_choice_counts_when_it_can_mean_nothing_else() -> None:
    assert Ran(choose("yes", "no"), [cut("yes")]).value == "yes"
    assert Ran(choose("no", "no idea"), [cut("no"), "no idea"]).value == "no idea"
