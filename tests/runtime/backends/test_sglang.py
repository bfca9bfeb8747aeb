"""The SGLang engine against a server that misbehaves: answers, faults, aborts, load, control."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
from byte_tokenizer import write_tokenizer
from fault_server import FaultServer, reply
from hypothesis import given
from hypothesis import strategies as st

from runtime.backends.base import Completion, Message, Request, ToolSchema
from runtime.backends.sglang import SglangBackend, capabilities_of
from runtime.backends.sglang_info import choose_servers, probe, read_info
from runtime.backends.sglang_open import describe, open_backend, split_urls
from runtime.backends.sglang_wire import (
    WireOptions,
    choice_regex,
    generate_payload,
    read_answer,
    read_load,
)
from runtime.chat.format import ChatFormat
from runtime.clock import LoopClock, new_event_loop
from runtime.errors import (
    BackendError,
    ContextOverflowError,
    EngineUnreachableError,
    ModelNotFoundError,
    TruncatedAnswerError,
)
from runtime.fleet.admission import Load
from runtime.fleet.replicas import FleetBackend

T = TypeVar("T")
ASK = Request("a" * 64, "tiny", (Message("user", "Hello"),), max_tokens=8)
PROMPT = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def server(folder: Path) -> Iterator[FaultServer]:
    with FaultServer(str(folder)) as running:
        yield running


def on(
    server: FaultServer,
    folder: Path,
    check: Callable[[SglangBackend], Coroutine[Any, Any, T]],
    *,
    virtual: bool = False,
    **settings: Any,
) -> T:
    """Runs `check` with the server as an engine."""

    async def main() -> T:
        backend = SglangBackend(
            probe(server.url), ChatFormat(folder, backend="sglang"), LoopClock(), **settings
        )
        try:
            return await check(backend)
        finally:
            await backend.close()
            await backend.close()

    with asyncio.Runner(loop_factory=lambda: new_event_loop(virtual)) as runner:
        return runner.run(main())


# --- answers -------------------------------------------------------------------------------------


def test_an_answer_has_its_text_usage_and_times(server: FaultServer, folder: Path) -> None:
    async def check(backend: SglangBackend) -> None:
        answer = await backend.generate(ASK)
        assert answer.text == reply(PROMPT) and answer.finish_reason == "stop"
        assert answer.usage.cached_tokens == 1 and answer.usage.output_tokens == 3
        assert answer.first_token_s is not None
        assert answer.start_s <= answer.first_token_s <= answer.end_s

    on(server, folder, check)
    body = server.calls[0]
    assert body["text"] == PROMPT and body["sampling_params"]["temperature"] == 0.0
    assert body["priority"] == 0 and body["rid"].startswith("aaaa") and "stream" not in body


def test_a_prefill_is_told_by_the_first_event(server: FaultServer, folder: Path) -> None:
    told: list[str] = []

    async def check(backend: SglangBackend) -> None:
        answer = await backend.generate(ASK, lambda: told.append(threading.current_thread().name))
        assert answer.text == reply(PROMPT) and answer.first_token_s is not None

    on(server, folder, check)
    assert told == ["MainThread"]
    assert server.calls[0]["stream"] and server.calls[0]["sampling_params"]["stream_interval"] > 1e5


def test_warming_sends_the_open_prefix_and_decodes_nothing(
    server: FaultServer, folder: Path
) -> None:
    computed = on(server, folder, lambda backend: backend.warm(ASK))
    assert server.calls[0]["text"] == "<|im_start|>user\nHello"
    assert server.calls[0]["sampling_params"]["max_new_tokens"] == 0
    assert computed == len("<|im_start|>user\nHello") - 1


@given(st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=4, unique=True))
def test_a_choice_is_an_expression_for_its_options_alone(options: list[str]) -> None:
    pattern = choice_regex(tuple(options))
    assert all(re.fullmatch(pattern, option) for option in options)
    assert all(
        not re.fullmatch(pattern, wrong)
        for wrong in (f"{options[0]}!", options[0][1:], "")
        if wrong not in options
    )


def info(**described: Any) -> Any:
    return read_info("http://e", described, {"model_path": "/m/tiny"}, [])


def test_requests_carry_what_the_server_understands() -> None:
    sampled = replace(
        ASK, temperature=0.7, top_p=0.9, seed=5, stop=("\n",), priority=7, model="law",
        schema_json='{"type": "object"}',
    )  # fmt: skip
    server = info(enable_deterministic_inference=False)
    plain = generate_payload(sampled, [1, 2], "r", server, WireOptions(), stream=False)
    assert plain["input_ids"] == [1, 2] and "priority" not in plain and "lora_path" not in plain
    assert plain["sampling_params"] == {
        "max_new_tokens": 8, "temperature": 0.7, "top_p": 0.9, "sampling_seed": 5, "stop": ["\n"],
        "json_schema": '{"type": "object"}',
    }  # fmt: skip
    # Of a release that knows no seeds: it would refuse them.
    old = generate_payload(sampled, "p", "r", info(), WireOptions(), stream=False)
    assert "sampling_seed" not in old["sampling_params"]
    rich = replace(info(enable_priority_scheduling=True), adapters=("law",))
    asked = generate_payload(sampled, "p", "r", rich, WireOptions("tenant"), stream=False)
    assert asked["priority"] == -7 and asked["lora_path"] == "law"
    assert asked["extra_key"] == "tenant"
    low = replace(rich, low_first=True)
    assert generate_payload(sampled, "p", "r", low, WireOptions(), stream=False)["priority"] == 7
    gauged = info(enable_priority_scheduling=True, enable_metrics=True)
    assert "priority" not in generate_payload(
        sampled, "p", "r", gauged, WireOptions(), stream=False
    )
    assert any("--enable-metrics" in note for note in capabilities_of(gauged, None, 1).notes)
    chosen = replace(ASK, options=("a", "b"))
    regex = generate_payload(chosen, "p", "r", low, WireOptions(), stream=False)
    assert regex["sampling_params"]["regex"] == "(a|b)"


def test_tool_calls_are_read_from_the_text(server: FaultServer, folder: Path) -> None:
    tool = ToolSchema("add", "Adds.", "{}")

    async def check(backend: SglangBackend) -> None:
        answer = await backend.generate(replace(ASK, tools=(tool,)))
        assert answer.tool_calls == () and answer.finish_reason == "stop"

    on(server, folder, check)
    assert server.calls[0]["sampling_params"]["skip_special_tokens"] is False


# --- faults --------------------------------------------------------------------------------------

FAULTS: dict[str, type[BackendError]] = {
    "429": BackendError,
    "500": BackendError,
    "503": BackendError,
    "reset": EngineUnreachableError,
    "truncated": TruncatedAnswerError,
    "garbage": BackendError,
    "html": BackendError,
    "empty": BackendError,
    "abort": BackendError,
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("stream", [False, True])
def test_every_fault_is_an_error_that_can_be_tried_again(
    server: FaultServer, folder: Path, fault: str, stream: bool
) -> None:
    server.behave = lambda number, body: fault

    async def check(backend: SglangBackend) -> None:
        with pytest.raises(FAULTS[fault]) as caught:
            await backend.generate(ASK, (lambda: None) if stream else None)
        assert caught.value.retryable and server.url in str(caught.value)

    on(server, folder, check)


def test_what_is_wrong_with_the_request_is_not_tried_again(
    server: FaultServer, folder: Path
) -> None:
    faults = iter(["overflow", "400", "404"])
    server.behave = lambda number, body: next(faults)

    async def check(backend: SglangBackend) -> None:
        for kind in (ContextOverflowError, BackendError, BackendError):
            with pytest.raises(kind) as caught:
                await backend.generate(ASK)
            assert not caught.value.retryable

    on(server, folder, check)


def test_a_stream_that_ends_anywhere_before_its_end_is_truncated(
    server: FaultServer, folder: Path
) -> None:
    """Cut at every byte: an answer is complete only once its final event is whole."""

    async def check(backend: SglangBackend) -> None:
        whole = await backend.generate(ASK, lambda: None)
        end = server.complete_at
        for at in (*range(0, end, 11), *range(end - 40, end + 40)):
            server.cut_at = at
            try:
                answer = await backend.generate(ASK, lambda: None)
            except TruncatedAnswerError as error:
                assert error.retryable and at < server.complete_at
            else:
                assert (
                    answer.text == whole.text
                    and answer.usage == whole.usage
                    and at >= server.complete_at
                )

    on(server, folder, check)


def test_a_server_that_is_not_there_is_named(folder: Path) -> None:
    with FaultServer(str(folder)) as gone:
        url = gone.url
    with pytest.raises(EngineUnreachableError, match=url):
        probe(url)
    with pytest.raises(BackendError, match="not the address"):
        split_urls("localhost:30000")
    with pytest.raises(BackendError, match="halo engine start"):
        split_urls(" ")


def test_another_kind_of_server_is_told_apart(server: FaultServer) -> None:
    with pytest.raises(BackendError, match="no SGLang server"):
        probe(f"{server.url}/elsewhere")


def test_cancelling_tells_the_server(server: FaultServer, folder: Path) -> None:
    server.behave = lambda number, body: "stall"

    async def check(backend: SglangBackend) -> None:
        task = asyncio.create_task(backend.generate(ASK))
        await asyncio.to_thread(server.asked.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    on(server, folder, check)
    assert server.aborted == [server.calls[0]["rid"]]


def test_aborting_a_call_means_no_other(server: FaultServer, folder: Path) -> None:
    """SGLang aborts every request whose id begins with the given one."""

    async def check(backend: SglangBackend) -> None:
        await asyncio.gather(*(backend.generate(ASK) for _ in range(12)))

    on(server, folder, check)
    on(server, folder, check)  # another run, with the same keys in the same order
    ids = [call["rid"] for call in server.calls]
    assert len(ids) == 24
    assert not [(a, b) for a in ids for b in ids if a is not b and b.startswith(a)]


def test_a_server_that_hangs_gives_its_calls_back(server: FaultServer, folder: Path) -> None:
    server.behave = lambda number, body: "stall"
    server.loads_hang = True

    async def check(backend: SglangBackend) -> None:
        calls = [asyncio.create_task(backend.generate(ASK)) for _ in range(3)]
        errors = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(e, EngineUnreachableError) and e.retryable for e in errors)
        assert not asyncio.current_task().cancelling()  # type: ignore[union-attr]

    on(server, folder, check, stall_s=0.2)


def test_a_call_that_begins_when_others_are_given_up_changes_nothing_for_them(
    server: FaultServer, folder: Path
) -> None:
    server.behave = lambda number, body: "stall" if not number else None

    async def check(backend: SglangBackend) -> None:
        later: list[asyncio.Task[Completion]] = []
        told = backend.read_load

        async def no_load() -> Load:
            backend.read_load = told  # type: ignore[method-assign]
            later.append(asyncio.create_task(backend.generate(ASK)))
            raise EngineUnreachableError("no load", backend="sglang", retryable=True)

        backend.read_load = no_load  # type: ignore[method-assign]
        (given_up,) = await asyncio.gather(backend.generate(ASK), return_exceptions=True)
        assert isinstance(given_up, EngineUnreachableError)
        assert (await later[0]).text == reply(PROMPT)

    on(server, folder, check)


def test_a_load_that_is_not_told_names_its_own_deadline(server: FaultServer, folder: Path) -> None:
    server.loads_hang = True

    async def check(backend: SglangBackend) -> None:
        with pytest.raises(EngineUnreachableError, match=r"within 0\.2 s"):
            await backend.read_load()

    on(server, folder, check, stall_s=0.2)


def test_one_call_that_hangs_ends_at_its_deadline(server: FaultServer, folder: Path) -> None:
    server.behave = lambda number, body: "stall"

    async def check(backend: SglangBackend) -> None:
        with pytest.raises(BackendError, match=r"within 0\.3 s") as caught:
            await backend.generate(ASK)
        assert caught.value.retryable

    on(server, folder, check, timeout_s=0.3)


# --- load and control ----------------------------------------------------------------------------


def test_the_number_of_calls_follows_the_servers_queue(server: FaultServer, folder: Path) -> None:
    server.behave = lambda number, body: "stall"
    server.load = {
        "num_running_reqs": 3, "num_waiting_reqs": 40, "num_waiting_uncached_tokens": 400_000,
        "token_usage": 0.95,
    }  # fmt: skip
    changes: list[int] = []
    changed = asyncio.Event()

    async def check(backend: SglangBackend) -> None:
        backend.on_limit_change(lambda: changes.append(backend.in_flight_limit))
        backend.on_limit_change(changed.set)
        before = backend.in_flight_limit
        task = asyncio.create_task(backend.generate(ASK))
        await changed.wait()
        server.release()
        await task
        assert backend.in_flight_limit == changes[-1] < before
        assert backend.load is not None and backend.load.waiting == 40

    server._info["max_running_requests"] = 400
    on(server, folder, check)


def test_as_many_calls_are_in_flight_as_the_server_runs_or_as_was_asked_for() -> None:
    info = read_info("u", {"max_running_requests": 600}, {"model_path": "/m"}, [])
    assert capabilities_of(info, None, None).max_in_flight == 600
    assert capabilities_of(info, None, 32).max_in_flight == 32


def test_loads_of_several_ranks_add_up() -> None:
    ranks = [
        {"num_running_reqs": 1, "num_waiting_reqs": 2, "num_waiting_uncached_tokens": 10},
        {"num_running_reqs": 3, "num_waiting_reqs": 0, "num_waiting_uncached_tokens": 5},
    ]
    load = read_load({"loads": ranks}, "u")
    assert (load.running, load.waiting, load.waiting_tokens) == (4, 2, 15)
    old = read_load([{"num_reqs": 5, "num_waiting_reqs": 2}], "u")
    assert (old.running, old.waiting, old.waiting_tokens) == (3, 2, None)
    assert [read_load({"load": n}, "u").running for n in (0, 31)] == [0, 1]
    with pytest.raises(BackendError):
        read_load({"loads": []}, "u")


def test_an_older_server_tells_its_load_elsewhere(server: FaultServer, folder: Path) -> None:
    server.load_route = "/get_load"
    server.load = {"dp_rank": 0, "num_reqs": 7, "num_waiting_reqs": 3, "num_tokens": 90}

    async def check(backend: SglangBackend) -> None:
        for _ in range(2):
            load = await backend.read_load()
            assert (load.running, load.waiting, load.waiting_tokens) == (4, 3, None)
        server.load_route = "/v1/loads"  # it was updated and started again
        assert (await backend.read_load()).waiting == 3
        server.load_route = "/nowhere"
        with pytest.raises(BackendError, match="404"):
            await backend.read_load()

    on(server, folder, check)
    assert server.paths.count("/v1/loads") == 3


@pytest.mark.parametrize("fields", [None, ["rid", "text", "extra_key"], ["rid", "text"]])
def test_tenants_are_refused_where_the_cache_cannot_keep_them_apart(
    server: FaultServer, folder: Path, fields: list[str] | None
) -> None:
    server.fields = fields

    async def tenants() -> None:
        backend = await open_backend(server.url, "", LoopClock(), tokenizer=folder, tenant="a")
        await backend.generate(ASK)
        await backend.close()

    if fields == ["rid", "text"]:
        with pytest.raises(BackendError, match="tenant"):
            asyncio.run(tenants())
        assert not server.calls
    else:
        asyncio.run(tenants())
        assert server.calls[0]["extra_key"] == "a"


def test_control_routes_succeed_or_say_why(server: FaultServer, folder: Path) -> None:
    async def check(backend: SglangBackend) -> None:
        assert await backend.health()
        await backend.flush_cache()
        await backend.release_memory()
        with pytest.raises(BackendError, match="nothing was released"):
            await backend.resume_memory()
        await backend.load_adapter("law", "/adapters/law")
        await backend.generate(replace(ASK, model="law"))
        server.healthy = False
        assert not await backend.health()

    on(server, folder, check)
    assert server.calls[0]["lora_path"] == "law"


def test_a_server_may_need_a_step_to_see_that_an_answer_has_ended(
    server: FaultServer, folder: Path
) -> None:
    async def check(backend: SglangBackend) -> None:
        server.flushes_refused = 3
        await backend.flush_cache()
        server.flushes_refused = 2
        await backend.reload_weights("/models/other")
        # Emptying the cache while requests run ends the server: it comes first.
        routes = [p for p in server.paths if p in ("/flush_cache", "/update_weights_from_disk")]
        assert routes == ["/flush_cache"] * 7 + ["/update_weights_from_disk"]
        server.flushes_refused = 10**6
        with pytest.raises(BackendError, match="400"):
            await backend.reload_weights("/models/other")
        assert server.paths.count("/update_weights_from_disk") == 1

    on(server, folder, check, virtual=True)


def test_a_cache_in_use_is_not_emptied(server: FaultServer, folder: Path) -> None:
    server.behave = lambda number, body: "stall"
    server.flushes_refused = 10**6

    async def check(backend: SglangBackend) -> None:
        call = asyncio.create_task(backend.generate(ASK))
        await asyncio.to_thread(server.asked.wait)
        with pytest.raises(BackendError, match="400"):
            await backend.flush_cache()
        server.release()
        await call

    on(server, folder, check)
    assert server.paths.count("/flush_cache") == 1


def test_memory_is_not_released_where_that_is_switched_off(
    server: FaultServer, folder: Path
) -> None:
    server._info["enable_memory_saver"] = False

    async def check(backend: SglangBackend) -> None:
        with pytest.raises(BackendError, match="--enable-memory-saver"):
            await backend.release_memory()

    on(server, folder, check)


def test_features_are_read_from_what_a_server_says_of_itself() -> None:
    old = info(max_total_num_tokens=100, max_req_input_len=50)
    assert old.context_tokens == 50 and old.prefix_cache and not old.priorities and old.grammars
    new = info(
        disable_radix_cache=True, grammar_backend="none", enable_hicache=True,
        enable_deterministic_inference=True, context_length=9,
    )  # fmt: skip
    assert not new.prefix_cache and not new.grammars and new.host_cache and new.seeded
    cards = [{"id": "base", "max_model_len": 7}, {"id": "law", "parent": "base"}]
    listed = read_info("u", {}, {"model_path": "/m/llama-8b"}, cards)
    assert listed.models == ("base", "/m/llama-8b") and listed.adapters == ("law",)
    assert listed.serves("llama-8b") and listed.serves("base") and not listed.serves("law-2")


def test_servers_are_chosen_by_model() -> None:
    a, b = replace(info(), models=("big",)), replace(info(), models=("small",))
    assert choose_servers([a, b, a], "big") == [a, a]
    with pytest.raises(ModelNotFoundError, match="big, small"):
        choose_servers([a, b], "huge")
    with pytest.raises(BackendError, match="say which one"):
        choose_servers([a, b], "")


def test_what_is_described_is_what_is_opened(server: FaultServer) -> None:
    described = describe(server.url, "tiny")

    async def main() -> None:
        backend = await open_backend(server.url, "tiny", LoopClock())
        assert isinstance(backend, FleetBackend) and backend.capabilities == described
        assert (await backend.generate(ASK)).text
        await backend.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    "document",
    [{}, {"text": 1}, {"text": "a", "meta_info": {"finish_reason": {"type": "stop"}}}],
)
def test_what_is_no_answer_is_not_taken_for_one(document: dict[str, Any]) -> None:
    with pytest.raises(BackendError):
        read_answer(document, "u")
    with pytest.raises(BackendError):
        read_answer({"error": {"message": json.dumps(document), "code": 400}}, "u")
