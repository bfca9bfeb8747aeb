"""The OpenAI protocol against a server that misbehaves: dialects, choices, streams, limits."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from typing import Any, TypeVar

import pytest
from fault_server import FaultServer

from runtime.backends.base import Message, Request, ToolCall, ToolSchema
from runtime.backends.openai import OpenAIBackend, Served, find_models, open_backend
from runtime.backends.openai_wire import (
    Dialect,
    StreamedAnswer,
    chat_payload,
    defused,
    read_completion,
)
from runtime.clock import LoopClock, new_event_loop
from runtime.errors import (
    BackendError,
    ContextOverflowError,
    EngineUnreachableError,
    ModelNotFoundError,
    TruncatedAnswerError,
)

T = TypeVar("T")
ASK = Request("k", "tiny", (Message("user", "Hello"),), max_tokens=8)
CHOOSE = replace(ASK, options=("yes", "no"))


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        yield running


def on(
    server: FaultServer,
    check: Callable[[OpenAIBackend], Coroutine[Any, Any, T]],
    *,
    virtual: bool = True,
    **settings: Any,
) -> T:
    async def main() -> T:
        backend = OpenAIBackend(Served(f"{server.url}/v1", "tiny", 4096), LoopClock(), **settings)
        try:
            return await check(backend)
        finally:
            await backend.close()

    with asyncio.Runner(loop_factory=lambda: new_event_loop(virtual)) as runner:
        return runner.run(main())


def test_an_answer_has_text_and_usage(server: FaultServer) -> None:
    async def check(backend: OpenAIBackend) -> None:
        assert not backend.capabilities.reports_cached_tokens
        answer = await backend.generate(ASK)
        assert answer.text.startswith("ä€") and answer.finish_reason == "stop"
        assert answer.usage.output_tokens == 3 and answer.usage.cached_tokens == 1
        assert backend.capabilities.reports_cached_tokens
        streamed = await backend.generate(ASK, lambda: None)
        assert (streamed.text, streamed.usage) == (answer.text, answer.usage)
        assert streamed.first_token_s is not None

    on(server, check)


def test_requests_are_spelled_in_the_protocol() -> None:
    tool = ToolSchema("add", "Adds.", '{"type": "object"}')
    asked = replace(
        ASK, temperature=0.5, top_p=0.9, seed=3, stop=("x",), tools=(tool,), schema_json="{}",
        messages=(
            Message("user", "<|im_end|>"),
            Message("assistant", "", (ToolCall("1", "add", "{}"),)),
            Message("tool", "4", tool_call_id="1", name="add"),
        ),
    )  # fmt: skip
    body = chat_payload(asked, Dialect(), stream=True)
    assert body["seed"] == 3 and body["stop"] == ["x"] and body["top_p"] == 0.9
    assert body["tools"][0]["function"]["name"] == "add"
    assert body["stream_options"] == {"include_usage": True}
    user, assistant, answer = body["messages"]
    assert user["content"] == "<\u200b|im_end|>"
    assert assistant["content"] is None and assistant["tool_calls"][0]["id"] == "1"
    assert answer == {"role": "tool", "content": "4", "tool_call_id": "1"}
    old = chat_payload(asked, Dialect(max_completion_tokens=True, seeds=False), stream=False)
    assert old["max_completion_tokens"] == 8 and "max_tokens" not in old and "seed" not in old


@pytest.mark.parametrize(
    "text",
    ["<|im_start|>", "<|eot_id|>", "</s>", "[INST]", "<start_of_turn>", "<<SYS>>", "<tool_call>",
     "<｜User｜>"],
)  # fmt: skip
def test_chat_markup_in_data_is_broken_up(text: str) -> None:
    assert text not in defused(f"a {text} b") and defused("a < b | c > d") == "a < b | c > d"


# --- dialects ------------------------------------------------------------------------------------


def test_an_option_is_chosen_under_a_schema(server: FaultServer) -> None:
    async def check(backend: OpenAIBackend) -> None:
        assert (await backend.generate(CHOOSE)).text == "no"

    on(server, check)
    schema = server.calls[0]["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["choice"]["enum"] == ["yes", "no"]


def test_without_schemas_an_option_is_read_from_the_first_token(server: FaultServer) -> None:
    def behave(number: int, body: dict[str, Any]) -> str | None:
        return "refuse:response_format is not supported" if "response_format" in body else None

    server.behave = behave

    async def check(backend: OpenAIBackend) -> None:
        for _ in range(2):
            answer = await backend.generate(CHOOSE)
            assert answer.text == "no" and answer.finish_reason == "stop"

    on(server, check)
    # Refused once, learned, never tried again.
    assert [("response_format" in b, "top_logprobs" in b) for b in server.calls] == [
        (True, False), (False, True), (False, True)
    ]  # fmt: skip


def test_without_either_the_words_are_asked_for(server: FaultServer) -> None:
    def behave(number: int, body: dict[str, Any]) -> str | None:
        if "response_format" in body:
            return "refuse:json_schema unknown"
        return "refuse:logprobs are not offered" if "logprobs" in body else "free"

    server.behave = behave

    async def check(backend: OpenAIBackend) -> None:
        assert (await backend.generate(CHOOSE)).text.startswith("ä€")

    on(server, check)
    assert len(server.calls) == 3


def test_options_with_a_common_beginning_are_not_told_apart_by_one_token() -> None:
    dialect = Dialect(json_schema=False)
    assert dialect.choosing(replace(ASK, options=("support-a", "support-b"))) == "free"
    assert dialect.choosing(CHOOSE) == "logprobs"


@pytest.mark.parametrize(
    "words",
    ["use max_completion_tokens instead", "stream_options is unknown", "seed is not allowed"],
)
def test_small_differences_are_learned(server: FaultServer, words: str) -> None:
    server.behave = lambda number, body: f"refuse:{words}" if number == 0 else None
    hot = replace(ASK, temperature=1.0, seed=1)

    async def check(backend: OpenAIBackend) -> None:
        assert (await backend.generate(hot, lambda: None)).text

    on(server, check)
    assert server.calls[0] != server.calls[1] and len(server.calls) == 2


def test_a_refusal_that_teaches_nothing_is_final(server: FaultServer) -> None:
    server.behave = lambda number, body: "refuse:the moon is full"

    async def check(backend: OpenAIBackend) -> None:
        with pytest.raises(BackendError, match="moon") as caught:
            await backend.generate(ASK)
        assert not caught.value.retryable

    on(server, check)
    assert len(server.calls) == 1


# --- faults --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("429", BackendError), ("500", BackendError), ("503", BackendError),
        ("reset", EngineUnreachableError), ("truncated", TruncatedAnswerError),
        ("garbage", BackendError), ("html", BackendError), ("empty", BackendError),
        ("abort", TruncatedAnswerError),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_every_fault_can_be_tried_again(
    server: FaultServer, fault: str, kind: type[BackendError], stream: bool
) -> None:
    server.behave = lambda number, body: fault

    async def check(backend: OpenAIBackend) -> None:
        with pytest.raises(kind) as caught:
            await backend.generate(ASK, (lambda: None) if stream else None)
        assert caught.value.retryable

    on(server, check)


def test_a_stream_cut_at_any_byte_is_never_an_answer(server: FaultServer) -> None:
    async def check(backend: OpenAIBackend) -> None:
        whole = await backend.generate(ASK, lambda: None)
        end = server.complete_at
        for at in (*range(0, end, 9), *range(end - 30, end + 30)):
            server.cut_at = at
            try:
                answer = await backend.generate(ASK, lambda: None)
            except TruncatedAnswerError as error:
                assert error.retryable and at < end
            else:
                assert answer.text == whole.text and at >= end

    on(server, check)


def test_what_a_document_or_stream_reports_is_raised() -> None:
    def read(choice: dict[str, Any]) -> Any:
        return read_completion({"choices": [choice], "usage": {}}, ASK, "u")

    message = {"content": "x"}
    with pytest.raises(BackendError, match="content filter"):
        read({"message": message, "finish_reason": "content_filter"})
    with pytest.raises(BackendError, match="refused: no"):
        read({"message": {"refusal": "no"}, "finish_reason": "stop"})
    with pytest.raises(TruncatedAnswerError):
        read({"message": message, "finish_reason": None})
    with pytest.raises(ContextOverflowError):
        read_completion(
            {"error": {"message": "maximum context length is 8 tokens", "code": 400}}, ASK, "u"
        )
    streamed = StreamedAnswer(ASK, "u")
    with pytest.raises(BackendError, match="overloaded"):
        streamed.add({"error": {"message": "overloaded", "code": 503}})


def test_streamed_tool_calls_are_put_together() -> None:
    streamed = StreamedAnswer(ASK, "u")
    parts: list[dict[str, Any]] = [
        {"index": 0, "id": "a", "function": {"name": "add", "arguments": '{"x"'}},
        {"index": 0, "function": {"arguments": ": 1}"}},
        {"index": 1, "id": "b", "function": {"name": "sub", "arguments": "{}"}},
    ]
    for part in parts:
        streamed.add({"choices": [{"delta": {"tool_calls": [part]}}]})
    streamed.add({"choices": [{"delta": {}, "finish_reason": "tool_calls"}]})
    assert streamed.end().tool_calls == (
        ToolCall("a", "add", '{"x": 1}'), ToolCall("b", "sub", "{}")
    )  # fmt: skip


# --- limits --------------------------------------------------------------------------------------


def test_a_pause_that_the_server_asks_for_is_kept(server: FaultServer) -> None:
    server.behave = lambda number, body: "429-after" if number == 0 else None

    async def check(backend: OpenAIBackend) -> None:
        loop = asyncio.get_running_loop()
        with pytest.raises(BackendError) as caught:
            await backend.generate(ASK)
        assert caught.value.retry_after_s == 2 and backend.in_flight_limit == 32
        refused_s = loop.time()
        await backend.generate(ASK)
        assert loop.time() - refused_s >= 2

    on(server, check)


def test_limits_that_a_server_announces_are_kept(server: FaultServer) -> None:
    server.headers = {"x-ratelimit-limit-requests": "60"}

    async def check(backend: OpenAIBackend) -> None:
        loop = asyncio.get_running_loop()
        await backend.generate(ASK)
        started_s = loop.time()
        await asyncio.gather(*(backend.generate(ASK) for _ in range(10)))
        # 60 a minute and two at once: the tenth goes 8 seconds after the second.
        assert loop.time() - started_s == pytest.approx(8, abs=0.01)

    on(server, check)


# --- servers -------------------------------------------------------------------------------------


def test_models_are_found_by_name(server: FaultServer) -> None:
    assert find_models(f"{server.url}/v1", "tiny") == [Served(f"{server.url}/v1", "tiny", 4096)]
    assert find_models(f"{server.url}/v1/", "")[0].model == "tiny"
    with pytest.raises(ModelNotFoundError, match="tiny"):
        find_models(f"{server.url}/v1", "huge")
    with pytest.raises(BackendError, match="/v1"):
        find_models(server.url, "tiny")
    with pytest.raises(BackendError, match="not the address"):
        find_models("localhost:80", "tiny")


def test_an_engine_is_opened_from_an_address(server: FaultServer) -> None:
    async def main() -> None:
        backend = await open_backend(f"{server.url}/v1", "tiny", LoopClock())
        assert (await backend.generate(ASK)).text
        await backend.close()

    asyncio.run(main())
    assert json.loads(json.dumps(server.calls[0]))["model"] == "tiny"
