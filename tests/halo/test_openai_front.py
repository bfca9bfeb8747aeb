"""The OpenAI front, spoken to as clients do."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestClient, TestServer

from halo.openai_front import openai_app
from runtime.backends.base import Backend
from runtime.backends.create import EngineOptions, create_backend
from runtime.clock import LoopClock

Client = TestClient[Any, Any]
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Name a river."}]}


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch", reason="the extra `torch` is not installed")
    sys.path.insert(0, str(Path(__file__).parents[1] / "runtime" / "backends"))
    from tiny_checkpoint import write_checkpoint

    return write_checkpoint(tmp_path_factory.mktemp("served") / "tiny-llama")


@pytest.fixture
def ask(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Runs a check with a client of a server on the torch engine (or another)."""

    def run(check: Callable[[Client, Backend], Awaitable[None]], engine: str = "torch") -> None:
        async def main() -> None:
            model = str(request.getfixturevalue("checkpoint")) if engine == "torch" else "tiny"
            options = EngineOptions(exact=True, threads=1)
            backend = await create_backend(engine, model, LoopClock(), options)
            app = openai_app(backend, "tiny", random.Random(3))
            try:
                async with TestClient(TestServer(app)) as client:
                    await check(client, backend)
            finally:
                await backend.close()

        asyncio.run(main())

    return run


async def post(client: Client, path: str, body: Any, status: int = 200) -> Any:
    async with client.post(path, json=body) as response:
        document = await response.json()
        assert response.status == status, document
        return document


async def events(client: Client, path: str, body: Any) -> list[dict[str, Any]]:
    async with client.post(path, json={**body, "stream": True}) as response:
        assert response.content_type == "text/event-stream", await response.text()
        lines = [x for x in (await response.text()).split("\n\n") if x]
    assert lines.pop() == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def test_a_chat_is_answered_with_usage_and_cached_tokens(ask: Any) -> None:
    async def check(client: Client, backend: Backend) -> None:
        body = {**CHAT, "temperature": 0, "max_tokens": 8}
        first = await post(client, "/v1/chat/completions", body)
        second = await post(client, "/v1/chat/completions", body)
        assert first["object"] == "chat.completion" and first["id"] != second["id"]
        message = first["choices"][0]["message"]
        assert message["role"] == "assistant"
        assert message == second["choices"][0]["message"]
        usage = second["usage"]
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        assert usage["prompt_tokens_details"]["cached_tokens"] == usage["prompt_tokens"] - 1
        assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0

    ask(check)


def test_a_stream_spells_the_same_answer(ask: Any) -> None:
    async def check(client: Client, backend: Backend) -> None:
        body = {**CHAT, "temperature": 0, "max_tokens": 12}
        whole = await post(client, "/v1/chat/completions", body)
        body["stream_options"] = {"include_usage": True}
        chunks = await events(client, "/v1/chat/completions", body)
        *pieces, last, usage = chunks
        text = "".join(c["choices"][0]["delta"].get("content", "") for c in pieces)
        assert text == whole["choices"][0]["message"]["content"]
        assert pieces[0]["choices"][0]["delta"]["role"] == "assistant"
        assert len(pieces) > 1
        assert last["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
        assert usage["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]

    ask(check)


def test_completions_continue_texts_and_tokens(ask: Any) -> None:
    async def check(client: Client, backend: Any) -> None:
        body = {"model": "tiny", "prompt": ["The river", "The hill"], "temperature": 0}
        document = await post(client, "/v1/completions", body)
        assert [c["index"] for c in document["choices"]] == [0, 1]
        ids = backend.tokenizer.encode(["The river"])
        same = await post(client, "/v1/completions", {**body, "prompt": ids})
        assert same["choices"][0]["text"] == document["choices"][0]["text"]
        assert same["usage"]["prompt_tokens"] == len(ids)
        chunks = await events(client, "/v1/completions", body)
        texts = ["", ""]
        for chunk in chunks:
            texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
        assert texts == [c["text"] for c in document["choices"]]

    ask(check)


def test_a_schema_and_several_sampled_answers(ask: Any) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"],
              "additionalProperties": False}  # fmt: skip
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}

    async def check(client: Client, backend: Backend) -> None:
        body = {**CHAT, "response_format": form, "n": 3, "seed": 5, "max_tokens": 40}
        first = await post(client, "/v1/chat/completions", body)
        again = await post(client, "/v1/chat/completions", body)
        texts = [c["message"]["content"] for c in first["choices"]]
        assert all(isinstance(json.loads(t)["ok"], bool) for t in texts)
        assert texts == [c["message"]["content"] for c in again["choices"]]
        free = {**CHAT, "n": 4, "max_tokens": 12}
        answers = (await post(client, "/v1/chat/completions", free))["choices"]
        assert len({a["message"]["content"] for a in answers}) > 1

    ask(check)


def test_an_engine_without_streams_or_raw_prompts_is_served_too(ask: Any) -> None:
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}

    async def check(client: Client, backend: Backend) -> None:
        models = await (await client.get("/v1/models")).json()
        assert models["data"][0]["id"] == "tiny"
        whole = await post(client, "/v1/chat/completions", {**CHAT, "temperature": 0})
        chunks = await events(client, "/v1/chat/completions", {**CHAT, "temperature": 0})
        assert (
            chunks[0]["choices"][0]["delta"]["content"] == whole["choices"][0]["message"]["content"]
        )
        call = await post(client, "/v1/chat/completions", {**CHAT, "tools": [tool]})
        assert call["choices"][0]["finish_reason"] == "tool_calls"
        assert call["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "look"
        refused = await post(client, "/v1/completions", {"model": "tiny", "prompt": "a"}, 400)
        assert "takes chats" in refused["error"]["message"]

    ask(check, "simulated")


BAD: dict[str, tuple[dict[str, Any], int, str]] = {
    "another model": ({"model": "gpt-9"}, 404, "has the model 'tiny'"),
    "no messages": ({"messages": []}, 400, "messages"),
    "a picture": (
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "image_url"
    ),
    "logprobs": ({"logprobs": True}, 400, "log probabilities"),
    "too hot": ({"temperature": 3}, 400, "temperature"),
    "another format": ({"response_format": {"type": "xml"}}, 400, "response_format"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_done_is_refused(ask: Any, name: str) -> None:
    change, status, message = BAD[name]

    async def check(client: Client, backend: Backend) -> None:
        document = await post(client, "/v1/chat/completions", {**CHAT, **change}, status)
        assert message in document["error"]["message"]

    ask(check, "simulated")


def test_a_prompt_too_long_is_refused_before_a_stream_begins(ask: Any) -> None:
    long = [{"role": "user", "content": "word " * 2_000}]

    async def check(client: Client, backend: Backend) -> None:
        for stream in (False, True):
            body = {**CHAT, "messages": long, "stream": stream}
            document = await post(client, "/v1/chat/completions", body, 400)
            assert document["error"]["code"] == "context_length_exceeded"

    ask(check)


def test_pages_of_a_browser_are_kept_out(ask: Any) -> None:
    async def check(client: Client, backend: Backend) -> None:
        text = json.dumps(CHAT)
        async with client.post("/v1/chat/completions", data=text) as response:
            assert response.status == 415
        headers = {"Host": "evil.example"}
        async with client.post("/v1/chat/completions", json=CHAT, headers=headers) as response:
            assert response.status == 403

    ask(check, "simulated")


def test_a_client_that_leaves_frees_the_engine(ask: Any) -> None:
    async def check(client: Client, backend: Any) -> None:
        body = {**CHAT, "max_tokens": 1_500, "temperature": 0, "stream": True}
        async with client.post("/v1/chat/completions", json=body) as response:
            await response.content.readline()
            response.close()
        for _ in range(10_000):
            if await backend.call(lambda e: e.scheduler.idle):
                return
        raise AssertionError("the request of the client that left is still running")

    ask(check)


def test_the_command_serves_until_it_is_interrupted() -> None:
    start = "from halo.cli import main; main()"
    command = [sys.executable, "-P", "-c", start, "models", "serve", "tiny",
               "--engine", "simulated", "--port", "0"]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        address = process.stdout.readline().split()[-1]

        async def talk() -> Any:
            async with (
                aiohttp.ClientSession() as session,
                session.post(f"{address}/chat/completions", json=CHAT) as response,
            ):
                return await response.json()

        document = asyncio.run(talk())
        assert document["choices"][0]["message"]["content"]
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
