"""What every engine promises the dispatcher, asked of each engine that is there."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
from sglang_server import ANSWER_S

from runtime.backends.base import Backend, Message, Request, ToolSchema
from runtime.backends.create import EngineOptions, create_backend, describe_backend
from runtime.clock import Clock, LoopClock, new_event_loop
from runtime.errors import BackendError, ContextOverflowError
from runtime.models.store import ModelStore

T = TypeVar("T")
Check = Callable[[Backend, Clock], Coroutine[Any, Any, T]]

TINY = "tiny-random"
ENGINES = [
    pytest.param(("simulated", "any"), id="simulated"),
    pytest.param(("local", TINY), id="local-tiny"),
    pytest.param(("local", "smollm2-135m-instruct"), id="local", marks=pytest.mark.live),
    pytest.param(("torch", "checkpoint"), id="torch"),
    pytest.param(("torch", "smollm2-135m-instruct"), id="torch-135m", marks=pytest.mark.live),
    pytest.param(("openai=", "halo_server"), id="openai-halo"),
    pytest.param(("openai=", "vllm_server"), id="openai-vllm", marks=pytest.mark.vllm),
    pytest.param(("openai=", "sglang_server"), id="openai-sglang", marks=pytest.mark.live),
    pytest.param(("sglang=", "sglang_server"), id="sglang", marks=pytest.mark.live),
]


@pytest.fixture(scope="session")
def tiny_options(tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> EngineOptions:
    """For the local engine: a store that has the tiny model."""
    models_dir = tmp_path_factory.mktemp("models")
    ModelStore(models_dir).add_file(tiny_gguf, TINY)
    return EngineOptions(models_dir=models_dir, threads=1, max_in_flight=4)


@pytest.fixture(params=ENGINES)
def run(request: pytest.FixtureRequest) -> Callable[[Check[Any]], Any]:
    """Runs a check on an engine that is opened and closed around it."""
    engine, model = request.param
    options = EngineOptions(exact=engine == "torch", threads=1)
    if model == TINY:
        options = request.getfixturevalue("tiny_options")
    elif model == "checkpoint":
        model = str(request.getfixturevalue("checkpoint"))
    elif engine.endswith("="):
        server = request.getfixturevalue(model)
        # SGLang's own routes, and the OpenAI protocol, of one server.
        url = server if isinstance(server, str) else server.url
        engine += url if engine == "sglang=" else f"{url.removesuffix('/v1')}/v1"
        model = ""
    # A server may hang; virtual time has no such limit.
    limit_s = ANSWER_S if engine.endswith("/v1") or engine.startswith("sglang=") else None

    def on_engine(check: Check[Any]) -> Any:
        async def main() -> Any:
            async with asyncio.timeout(limit_s):
                return await checked()

        async def checked() -> Any:
            clock = LoopClock()
            backend = await create_backend(engine, model, clock, options)
            try:
                return await check(backend, clock)
            finally:
                await backend.close()
                await backend.close()  # twice is allowed

        with asyncio.Runner(loop_factory=lambda: new_event_loop(engine == "simulated")) as runner:
            return runner.run(main())

    return on_engine


Run = Callable[[Check[Any]], Any]
GREEDY = Request("k", "m", (Message("user", "Name a river of Europe."),), max_tokens=12)
# Bounded: a small model may write digits until its tokens are spent.
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Rome", "Oslo"]},
        "rank": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["city", "rank"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("engine", "model"),
    [("simulated", "any"), ("local", TINY), ("torch", "checkpoint")],
    ids=["simulated", "local-tiny", "torch"],
)
def test_what_is_described_is_what_is_opened(
    engine: str, model: str, request: pytest.FixtureRequest
) -> None:
    options = EngineOptions()
    if model == TINY:
        options = request.getfixturevalue("tiny_options")
    elif model == "checkpoint":
        model = str(request.getfixturevalue("checkpoint"))

    async def main() -> None:
        described = describe_backend(engine, model, options)
        backend = await create_backend(engine, model, LoopClock(), options)
        try:
            assert backend.capabilities == described
        finally:
            await backend.close()

    asyncio.run(main())


def test_an_answer_says_what_it_used_and_when(run: Run) -> None:
    async def check(backend: Backend, clock: Clock) -> None:
        before_s = clock.now_s()
        completion = await backend.generate(GREEDY)
        usage = completion.usage
        assert completion.finish_reason in ("stop", "length")
        assert usage.input_tokens > 0 and 0 < usage.output_tokens <= GREEDY.max_tokens
        assert (usage.cached_tokens is not None) is backend.capabilities.reports_cached_tokens
        assert before_s <= completion.start_s <= completion.end_s <= clock.now_s()
        if completion.first_token_s is not None:
            assert completion.start_s <= completion.first_token_s <= completion.end_s
        assert completion.tool_calls == ()

    run(check)


def test_equal_greedy_requests_get_equal_answers(run: Run) -> None:
    async def check(backend: Backend, clock: Clock) -> None:
        alone = await backend.generate(GREEDY)
        others = [replace(GREEDY, messages=(Message("user", f"Count to {i}."),)) for i in range(4)]
        together = await asyncio.gather(*(backend.generate(r) for r in [GREEDY, *others, GREEDY]))
        texts = {alone.text, together[0].text, together[-1].text}
        assert (len(texts) == 1) or not backend.capabilities.deterministic

    run(check)


def test_sampled_answers_follow_their_seeds(run: Run) -> None:
    async def check(backend: Backend, clock: Clock) -> None:
        hot = replace(GREEDY, temperature=1.2)
        seeds = [1, 2, 3, 4, 1]
        texts = [(await backend.generate(replace(hot, seed=s))).text for s in seeds]
        assert texts[0] == texts[-1] or not backend.capabilities.seeded
        assert len(set(texts)) > 1

    run(check)


def test_a_schema_is_kept(run: Run) -> None:
    async def check(backend: Backend, clock: Clock) -> None:
        request = replace(GREEDY, schema_json=json.dumps(SCHEMA), max_tokens=64)
        value = json.loads((await backend.generate(request)).text)
        assert value["city"] in ("Rome", "Oslo") and type(value["rank"]) is int
        assert set(value) == {"city", "rank"} and 1 <= value["rank"] <= 9

    run(check)


def test_a_choice_is_one_of_its_options(run: Run) -> None:
    async def check(backend: Backend, clock: Clock) -> None:
        options = ("billing", "technical support", "other: ?")
        completion = await backend.generate(replace(GREEDY, options=options))
        assert completion.text in options

    run(check)


def test_a_prefill_is_told_before_the_answer_comes(run: Run) -> None:
    async def check(backend: Backend, clock: Clock) -> None:
        loop = asyncio.get_running_loop()
        told: list[asyncio.AbstractEventLoop] = []
        await backend.generate(GREEDY, lambda: told.append(asyncio.get_running_loop()))
        if backend.capabilities.prime_prefix:
            assert told
        assert all(t is loop for t in told)

    run(check)


def test_a_prefix_that_was_prefilled_is_reused(run: Run) -> None:
    async def check(backend: Backend, clock: Clock) -> None:
        document = "The river rises in the hills and runs to the sea. " * 30
        first, second = (
            replace(GREEDY, messages=(Message("user", f"{document}\nQuestion {i}"),)) for i in "ab"
        )
        await backend.generate(first)
        usage = (await backend.generate(second)).usage
        if backend.capabilities.prefix_cache and backend.capabilities.reports_cached_tokens:
            assert usage.cached_tokens is not None
            assert usage.input_tokens // 2 < usage.cached_tokens < usage.input_tokens

    run(check)


def test_a_tool_is_offered_and_its_answer_is_read(run: Run) -> None:
    tool = ToolSchema("weather", "Weather of a city.", json.dumps(SCHEMA))

    async def check(backend: Backend, clock: Clock) -> None:
        request = replace(GREEDY, tools=(tool,), max_tokens=64)
        completion = await backend.generate(request)
        assert (completion.finish_reason == "tool_calls") is bool(completion.tool_calls)
        assert all(c.name == "weather" and c.id for c in completion.tool_calls)
        turns = (
            Message("assistant", completion.text, completion.tool_calls),
            Message("tool", "sunny", tool_call_id="1", name="weather"),
        )
        await backend.generate(replace(request, messages=request.messages + turns))

    run(check)


def test_a_prompt_beyond_the_context_is_refused_with_both_numbers(run: Run) -> None:
    async def check(backend: Backend, clock: Clock) -> None:
        context_tokens = backend.capabilities.context_tokens
        assert context_tokens is not None
        request = replace(GREEDY, messages=(Message("user", "word " * context_tokens),))
        with pytest.raises(ContextOverflowError, match=str(context_tokens)) as caught:
            await backend.generate(request)
        assert isinstance(caught.value, BackendError) and not caught.value.retryable

    run(check)


def test_a_cancelled_request_leaves_room_for_others(run: Run) -> None:
    async def check(backend: Backend, clock: Clock) -> None:
        count = backend.capabilities.max_in_flight
        long = replace(GREEDY, max_tokens=200)
        tasks = [asyncio.create_task(backend.generate(long)) for _ in range(count)]
        for _ in range(10):
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert all(t.cancelled() for t in tasks)
        assert (await backend.generate(GREEDY)).text

    run(check)


def test_an_open_prompt_is_answered_as_a_whole_one_or_refused(run: Run) -> None:
    async def check(backend: Backend, clock: Clock) -> None:
        (message,) = GREEDY.messages
        begun = replace(GREEDY, messages=(replace(message, content="Name"),))
        if not backend.capabilities.open_prompts:
            with pytest.raises(BackendError, match="open prompts"):
                await backend.open_prompt(begun)
            return
        whole = await backend.generate(GREEDY)
        prompt = await backend.open_prompt(begun)
        await prompt.replace("Name a river")
        grown = await prompt.close(GREEDY)
        assert (grown.text, grown.finish_reason) == (whole.text, whole.finish_reason)
        assert grown.usage.output_tokens == whole.usage.output_tokens
        given_up = await backend.open_prompt(begun)
        await given_up.abandon()

    run(check)


def test_text_is_counted_in_tokens(run: Run) -> None:
    async def check(backend: Backend, clock: Clock) -> None:
        assert backend.count_tokens("") == 0
        assert 0 < backend.count_tokens("one") < backend.count_tokens("one two three " * 10)

    run(check)
