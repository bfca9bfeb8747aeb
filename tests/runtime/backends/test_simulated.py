"""The simulated engine: deterministic answers that fit what was asked, and the time it says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, TypeVar

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.backends.base import Completion, Message, Request, ToolSchema
from runtime.backends.instance import InstanceMaker
from runtime.backends.simulated import SimulatedBackend, describe
from runtime.clock import LoopClock, new_event_loop
from runtime.errors import BackendError, ContextOverflowError

T = TypeVar("T")


def run(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    with asyncio.Runner(loop_factory=lambda: new_event_loop(True)) as runner:
        return runner.run(main())


def answer(request: Request, **options: Any) -> Completion:
    async def main() -> Completion:
        return await SimulatedBackend("m", LoopClock(), **options).generate(request)

    return run(main)


def ask(text: str, **changes: Any) -> Request:
    return Request("k", "m", (Message("user", text),), **changes)


# --- answers -------------------------------------------------------------------------------------


def test_equal_requests_get_equal_answers_and_others_do_not() -> None:
    texts = {answer(ask(f"question {i % 10}")).text for i in range(30)}
    assert len(texts) == 10
    assert answer(ask("x"), seed=1).text != answer(ask("x"), seed=2).text


def test_the_seed_counts_for_sampled_requests_alone() -> None:
    sampled = ask("x", temperature=1.0, seed=1)
    assert answer(sampled).text == answer(sampled).text
    assert answer(sampled).text != answer(replace(sampled, seed=2)).text
    assert answer(ask("x", seed=1)).text == answer(ask("x", seed=2)).text


@given(max_tokens=st.integers(1, 60))
@settings(max_examples=20)
def test_answers_end_at_max_tokens(max_tokens: int) -> None:
    full, cut = answer(ask("x")), answer(ask("x", max_tokens=max_tokens))
    assert full.text.startswith(cut.text)
    assert cut.usage.output_tokens <= max_tokens
    assert (cut.finish_reason == "length") is (cut.text != full.text)


def test_a_stop_text_ends_the_answer_before_it() -> None:
    assert answer(ask("x", stop=(" the ",))).text == answer(ask("x")).text.split(" the ")[0]


def test_a_choice_is_one_of_the_options_and_depends_on_the_prompt() -> None:
    chosen = {answer(ask(f"{i}", options=("yes", "no", "maybe"))).text for i in range(40)}
    assert chosen == {"yes", "no", "maybe"}


TOOLS = (
    ToolSchema(
        "add",
        "Add numbers.",
        '{"type":"object","properties":{"a":{"type":"integer"},"b":{"type":"integer"}},'
        '"required":["a","b"]}',
    ),
)


def test_a_tool_is_called_once_and_then_the_answer_comes() -> None:
    question = ask("how much?", tools=TOOLS)
    called = answer(question)
    assert called.finish_reason == "tool_calls"
    (call,) = called.tool_calls
    assert call.name == "add"
    jsonschema_rs.validate(json.loads(TOOLS[0].parameters_json), json.loads(call.arguments_json))
    turns = (
        Message("assistant", called.text, called.tool_calls),
        Message("tool", "42", tool_call_id=call.id, name="add"),
    )
    final = answer(replace(question, messages=question.messages + turns))
    assert final.tool_calls == () and final.text and final.finish_reason == "stop"
    other = replace(turns[1], content="43")
    assert (
        answer(replace(question, messages=(*question.messages, turns[0], other))).text != final.text
    )


# --- schemas -------------------------------------------------------------------------------------

SCHEMAS: list[dict[str, Any]] = [
    {},
    {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "number"}}},
    {"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a", "b"]},
    {"type": "object", "additionalProperties": {"type": "integer"}},
    {"type": "array", "items": {"enum": ["x", "y", 3, None]}, "minItems": 2, "maxItems": 3},
    {"type": "array", "items": {"type": "integer"}, "minItems": 4, "uniqueItems": True},
    {"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}], "items": False},
    {"type": "array", "maxItems": 0},
    {"const": {"fixed": [1, 2]}},
    {"type": "string", "minLength": 30, "maxLength": 33},
    {"type": "string", "maxLength": 3},
    {"type": "integer", "minimum": -3, "maximum": -1},
    {"type": "integer", "exclusiveMinimum": 1, "exclusiveMaximum": 3},
    {"type": "integer", "multipleOf": 7, "minimum": 50},
    {"type": "integer", "maximum": -1000},
    {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
    {"type": "number", "multipleOf": 0.5, "maximum": 2},
    {"type": ["string", "null"]},
    {"type": "boolean"},
    {"anyOf": [{"type": "integer"}, {"type": "null"}]},
    {"oneOf": [{"type": "integer", "minimum": 0}, {"type": "integer", "maximum": 5}]},
    {"anyOf": [{"type": "string", "pattern": "^a+$"}, {"type": "number"}]},
    {
        "allOf": [
            {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
            {"properties": {"b": {"const": 1}, "a": {"minimum": 200}}, "required": ["b"]},
        ]
    },
    {
        "$defs": {
            "Item": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
        },
        "type": "object",
        "properties": {"items": {"type": "array", "items": {"$ref": "#/$defs/Item"}}},
        "required": ["items"],
        "additionalProperties": False,
    },
    {
        "$defs": {
            "Tree": {
                "type": "object",
                "properties": {
                    "value": {"type": "string"},
                    "left": {"anyOf": [{"$ref": "#/$defs/Tree"}, {"type": "null"}]},
                    "right": {"anyOf": [{"$ref": "#/$defs/Tree"}, {"type": "null"}]},
                },
                "required": ["value", "left", "right"],
            }
        },
        "$ref": "#/$defs/Tree",
    },
    {"type": "string", "format": "date-time"},
]  # fmt: skip


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda s: json.dumps(s)[:60])
def test_values_are_valid_and_vary_with_the_prompt_where_they_can(schema: dict[str, Any]) -> None:
    validator = jsonschema_rs.validator_for(schema)
    maker = InstanceMaker(json.dumps(schema))
    for seed in range(50):
        for small in (False, True):
            validator.validate(maker.make(seed, small=small))
    assert maker.make(3) == maker.make(3)


def test_a_schema_gives_json_text_that_differs_by_prompt() -> None:
    schema = json.dumps({"type": "object", "properties": {"x": {"type": "string"}}})
    texts = {answer(ask(f"{i}", schema_json=schema)).text for i in range(10)}
    assert len(texts) == 10
    assert all(isinstance(json.loads(t)["x"], str) for t in texts)


numbers = st.integers(-50, 50)


@st.composite
def schemas(draw: st.DrawFn, depth: int = 0) -> dict[str, Any]:
    kinds = ["string", "integer", "number", "boolean", "null", "enum"]
    kind = draw(
        st.sampled_from(kinds + (["object", "array", "anyOf", "allOf"] if depth < 3 else []))
    )
    match kind:
        case "object":
            properties = draw(
                st.dictionaries(st.sampled_from("abcd"), schemas(depth + 1), max_size=3)
            )
            required = (
                draw(st.lists(st.sampled_from(sorted(properties)), unique=True))
                if properties
                else []
            )
            closed = {"additionalProperties": False} if draw(st.booleans()) else {}
            return {"type": kind, "properties": properties, "required": required, **closed}
        case "array":
            least = draw(st.integers(0, 3))
            return {
                "type": kind,
                "items": draw(schemas(depth + 1)),
                "minItems": least,
                "maxItems": least + 1,
            }
        case "anyOf":
            return {"anyOf": draw(st.lists(schemas(depth + 1), min_size=1, max_size=3))}
        case "allOf":
            return {"allOf": [draw(schemas(depth + 1))]}
        case "enum":
            return {"enum": draw(st.lists(numbers | st.text(max_size=3) | st.none(), min_size=1))}
        case "integer" | "number":
            low = draw(numbers)
            return {"type": kind, "minimum": low, "exclusiveMaximum": low + draw(st.integers(1, 9))}
        case "string":
            least = draw(st.integers(0, 20))
            return {"type": kind, "minLength": least, "maxLength": least + draw(st.integers(0, 9))}
        case _:
            return {"type": kind}


@given(schema=schemas(), seed=st.integers(0, 2**64))
@settings(deadline=None)
def test_any_supported_schema_has_a_valid_value(schema: dict[str, Any], seed: int) -> None:
    value = InstanceMaker(json.dumps(schema)).make(seed)
    jsonschema_rs.validate(schema, value)


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "string", "pattern": "^[0-9]+$"}, "'pattern' is not supported"),
        ({"not": {"type": "string"}}, "'not' is not supported"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "between 3.0 and 2.0"),
        ({"$ref": "https://example.org/x.json"}, "not local|not a JSON Schema"),
        ({"$ref": "#"}, "circle"),
        ({"type": "array", "items": {"const": 1}, "minItems": 2, "uniqueItems": True}, "different"),
        ({"type": "no such type"}, "not a JSON Schema"),
    ],
)
def test_what_cannot_be_made_is_refused_by_name(schema: dict[str, Any], reason: str) -> None:
    with pytest.raises(BackendError, match=reason) as caught:
        answer(ask("x", schema_json=json.dumps(schema)))
    assert not caught.value.retryable


# --- time, cache and limits ----------------------------------------------------------------------


def test_time_is_prefill_plus_decoding() -> None:
    completion = answer(ask("x" * 4000), prefill_s_per_token=0.001, decode_s_per_step=0.1)
    usage = completion.usage
    assert usage.input_tokens == pytest.approx(1000, abs=10)
    assert completion.first_token_s == pytest.approx(usage.input_tokens * 0.001)
    decode_s = completion.end_s - (completion.first_token_s or 0)
    assert decode_s == pytest.approx(usage.output_tokens * 0.1)


def test_prefills_queue_and_decoding_overlaps() -> None:
    async def main() -> list[Completion]:
        engine = SimulatedBackend(
            "m", LoopClock(), prefill_s_per_token=0.01, decode_s_per_step=1.0,
            capabilities=describe(8, prefix_cache=False),
        )  # fmt: skip
        return await asyncio.gather(*(engine.generate(ask(f"{i} {'x' * 397}")) for i in range(4)))

    completions = run(main)
    firsts = [c.first_token_s or 0 for c in completions]
    prefill_s = completions[0].usage.input_tokens * 0.01
    assert firsts == pytest.approx([prefill_s * (i + 1) for i in range(4)])
    longest = max(c.usage.output_tokens for c in completions)
    assert max(c.end_s for c in completions) <= firsts[-1] + longest


def test_without_latency_answers_take_no_time() -> None:
    completion = answer(ask("x" * 4000), latency=False)
    assert (completion.start_s, completion.end_s) == (0, 0)
    assert completion.text == answer(ask("x" * 4000)).text


def test_cached_tokens_are_the_whole_blocks_of_the_common_prefix() -> None:
    async def main() -> list[int | None]:
        engine = SimulatedBackend("m", LoopClock(), capabilities=describe(prefix_block_tokens=8))
        shared = "s" * 1000
        texts = [shared + "a" * 100, shared + "b" * 100, shared + "a" * 100, "other" * 50]
        return [(await engine.generate(ask(t))).usage.cached_tokens for t in texts]

    first, second, third, other = run(main)
    head = len("[user]")
    assert (first, other) == (0, 0)
    assert second == (head + 1000) // 32 * 8
    assert third == (head + 1100) // 32 * 8


def test_a_cache_without_room_or_absent_reports_no_reuse() -> None:
    async def main(**options: Any) -> int | None:
        engine = SimulatedBackend("m", LoopClock(), **options)
        await engine.generate(ask("x" * 1000))
        return (await engine.generate(ask("x" * 1000))).usage.cached_tokens

    assert run(lambda: main(cache_tokens=0)) == 0
    assert run(lambda: main(capabilities=describe(prefix_cache=False))) is None


def test_only_so_many_requests_are_worked_on_at_once() -> None:
    async def main() -> list[float]:
        engine = SimulatedBackend("m", LoopClock(), capabilities=describe(2))
        completions = await asyncio.gather(*(engine.generate(ask(f"{i}")) for i in range(6)))
        spans = [(c.start_s, c.end_s) for c in completions]
        return [sum(a <= start < b for a, b in spans) for start, _ in spans]

    assert max(run(main)) == 2


def test_a_prompt_beyond_the_context_is_refused_with_both_numbers() -> None:
    capabilities = describe(context_tokens=100)
    assert answer(ask("x" * 320, max_tokens=10), capabilities=capabilities).text
    with pytest.raises(ContextOverflowError, match=r"8\d tokens .* 30: more than the 100"):
        answer(ask("x" * 320, max_tokens=30), capabilities=capabilities)


def test_injected_failures_are_raised_and_counted() -> None:
    async def main() -> tuple[int, str]:
        errors = [BackendError("overloaded", backend="simulated", retryable=True)]
        engine = SimulatedBackend("m", LoopClock(), fail=lambda _: errors.pop() if errors else None)
        with pytest.raises(BackendError, match="overloaded"):
            await engine.generate(ask("x"))
        return engine.requests_seen, (await engine.generate(ask("x"))).text

    seen, text = run(main)
    assert seen == 1 and text == answer(ask("x")).text
