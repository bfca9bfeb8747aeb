"""Connections that are kept between calls, and servers that close them at any moment."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest
from byte_tokenizer import write_tokenizer
from raw_server import Exchange, RawServer, Reply

import runtime.backends.http_client as http_client
import runtime.backends.http_pool as http_pool
from runtime.backends.base import Message, Request
from runtime.backends.http_client import HttpClient
from runtime.backends.openai import OpenAIBackend, Served
from runtime.backends.sglang import SglangBackend
from runtime.backends.sglang_info import read_info
from runtime.chat.format import ChatFormat
from runtime.clock import LoopClock, new_event_loop
from runtime.errors import BackendError, EngineUnreachableError, TruncatedAnswerError
from runtime.fleet.breaker import CircuitBreaker
from runtime.fleet.replicas import FleetBackend

T = TypeVar("T")
EVENTS = "Content-Type: text/event-stream"


def on(reply: Reply, check: Callable[[HttpClient, RawServer], Awaitable[T]]) -> T:
    """Runs `check` with a client of a server that replies so."""

    async def main() -> T:
        async with RawServer(reply) as server:
            client = HttpClient(server.url, LoopClock(), backend="test")
            try:
                return await check(client, server)
            finally:
                await client.close()

    return asyncio.run(main())


async def ok(exchange: Exchange) -> None:
    exchange.answer(b"{}")


async def turns(until: Callable[[], bool]) -> None:
    """Let the loop turn until something has happened."""
    while not until():  # noqa: ASYNC110
        await asyncio.sleep(0)


def kept(client: HttpClient) -> int:
    """Connections that wait for a call."""
    pool: Any = client._pool
    return len(pool._kept_until_s)


# --- keeping -------------------------------------------------------------------------------------


def test_calls_share_connections_one_at_a_time() -> None:
    async def check(client: HttpClient, server: RawServer) -> None:
        for _ in range(5):
            await client.post("/r", {})
        assert server.connections == 1
        await asyncio.gather(*(client.post("/r", {}) for _ in range(8)))
        assert server.connections == 8
        await asyncio.gather(*(client.post("/r", {}) for _ in range(8)))
        assert server.connections == 8
        await client.close()
        await turns(lambda: not server.open)

    on(ok, check)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        # Another answer behind it, which must not become that of the next call.
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
        b'HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"a": 13}',
        b'HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}{"a": 13}',
    ],
)  # fmt: skip
def test_a_connection_is_kept_only_where_that_is_safe(answer: bytes) -> None:
    async def reply(exchange: Exchange) -> None:
        exchange.send(answer)

    async def check(client: HttpClient, server: RawServer) -> None:
        for n_calls in (1, 2, 3):
            assert await client.post("/r", {}) == {}
            assert server.connections == n_calls

    on(reply, check)


def test_what_a_server_says_unasked_ends_its_connection() -> None:
    async def reply(exchange: Exchange) -> None:
        await ok(exchange)
        if not exchange.number:
            asyncio.get_running_loop().call_later(0, exchange.answer, b'{"a": 13}')

    async def check(client: HttpClient, server: RawServer) -> None:
        assert await client.post("/r", {}) == {}
        await turns(lambda: not server.open)
        assert await client.post("/r", {}) == {} and server.connections == 2

    on(reply, check)


def test_an_answer_to_half_a_request_ends_its_connection() -> None:
    async def main() -> None:
        async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
            with suppress(OSError):
                await reader.read(-1)
            writer.transport.abort()
            closed.append(True)

        closed: list[bool] = []
        async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            client = HttpClient(f"http://127.0.0.1:{port}", LoopClock(), backend="test")
            with pytest.raises(BackendError, match="413"):
                await client.post("/r", {"text": "x" * 30_000_000})
            await turns(lambda: bool(closed))
            await client.close()

    asyncio.run(main())


def test_unused_connections_are_closed_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_pool, "KEPT_S", 0.01)

    async def check(client: HttpClient, server: RawServer) -> None:
        await asyncio.gather(*(client.post("/r", {}) for _ in range(3)))
        await turns(lambda: not server.open)

    on(ok, check)


def test_unused_connections_are_closed_one_after_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On virtual time, at moments whose sums are not exact in floating point."""

    async def main() -> None:
        async with RawServer(ok) as server:
            client = HttpClient(server.url, LoopClock(), backend="test")
            loop = asyncio.get_running_loop()
            await asyncio.gather(*(client.post("/r", {}) for _ in range(50)))
            pool: Any = client._pool
            connections = list(pool._kept_until_s)
            pool._kept_until_s.clear()
            for number, connection in enumerate(connections):
                pool._keep(connection)
                await asyncio.sleep(0.1 + number / 7)
            began_s = loop.time()
            while pool._kept_until_s:  # noqa: ASYNC110
                await asyncio.sleep(1.0)
            assert loop.time() - began_s < http_pool.KEPT_S + 2.0
            await client.close()

    with asyncio.Runner(loop_factory=lambda: new_event_loop(True)) as runner:
        runner.run(main())


def test_a_stream_that_is_left_at_its_last_event_keeps_its_connection() -> None:
    async def reply(exchange: Exchange) -> None:
        exchange.send(f"HTTP/1.1 200 OK\r\n{EVENTS}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        exchange.send(b"a\r\ndata: {}\n\n\r\n")
        await left.wait()
        exchange.send(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")

    left = asyncio.Event()

    async def check(client: HttpClient, server: RawServer) -> None:
        for _ in range(3):
            left.clear()
            stream = client.stream("/r", {})
            assert await anext(stream) == {}
            await stream.aclose()
            left.set()
            await turns(lambda: kept(client) == 1)
        assert server.connections == 1

    on(reply, check)


@pytest.mark.parametrize("way", ["too much", "too late", "cancelled"])
def test_a_stream_that_is_left_goes_on_for_a_moment_at_most(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_client, "REST_BYTES", 10_000 if way == "too much" else 2**40)
    monkeypatch.setattr(http_client, "REST_S", 0.01 if way == "too late" else 1e9)

    async def reply(exchange: Exchange) -> None:
        exchange.send(f"HTTP/1.1 200 OK\r\n{EVENTS}\r\n\r\n".encode())
        exchange.send(b"data: {}\n\n")
        await left.wait()
        while way == "too much" and not exchange.closed:
            exchange.send(b"data: {}\n\n" * 100)
            await asyncio.sleep(0)

    left = asyncio.Event()

    async def check(client: HttpClient, server: RawServer) -> None:
        stream = client.stream("/r", {})
        assert await anext(stream) == {}
        if way == "cancelled":
            waiting = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        await stream.aclose()
        left.set()
        await turns(lambda: not server.open)

    on(reply, check)


@pytest.mark.parametrize("stream", [False, True])
def test_a_cancelled_call_closes_its_connection(stream: bool) -> None:
    async def reply(exchange: Exchange) -> None:
        asked.set()

    asked = asyncio.Event()

    async def check(client: HttpClient, server: RawServer) -> None:
        work: Any = anext(client.stream("/r", {})) if stream else client.post("/r", {})
        call = asyncio.ensure_future(work)
        await asked.wait()
        assert server.open == 1
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await turns(lambda: not server.open)

    on(reply, check)


def test_closing_ends_the_calls_under_way() -> None:
    async def reply(exchange: Exchange) -> None:
        asked.set()

    asked = asyncio.Event()

    async def check(client: HttpClient, server: RawServer) -> None:
        call = asyncio.ensure_future(client.post("/r", {}))
        await asked.wait()
        await client.close()
        with pytest.raises(EngineUnreachableError):
            await call
        await turns(lambda: not server.open)

    on(reply, check)


# --- servers that close ---------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("how", ["idle", "close", "reset", "408"])
def test_a_kept_connection_that_is_closed_costs_no_call(how: str, stream: bool) -> None:
    """Closed while nobody uses it, or in the moment in which the next request is on its way."""

    async def reply(exchange: Exchange) -> None:
        if not exchange.nth:
            exchange.answer(b"data: {}\n\n" if stream else b"{}", EVENTS)
            if how == "idle":
                exchange.close()
        elif how == "close":
            exchange.close()
        elif how == "408":
            exchange.answer(b"", "Connection: close", status="408 Request Timeout")
        else:
            exchange.reset()

    async def check(client: HttpClient, server: RawServer) -> None:
        for n_calls in range(1, 6):
            if stream:
                assert [event async for event in client.stream("/r", {})] == [{}]
            else:
                assert await client.post("/r", {}) == {}
            assert server.connections == n_calls

    on(reply, check)


def test_a_request_is_sent_again_once_and_only_over_a_new_connection() -> None:
    """Two connections are kept, and the server has closed both."""

    async def reply(exchange: Exchange) -> None:
        if exchange.number < 2:
            both.append(exchange)
            await turns(lambda: len(both) == 2)
            exchange.answer(b"{}")
        else:
            exchange.reset()

    both: list[Exchange] = []

    async def check(client: HttpClient, server: RawServer) -> None:
        await asyncio.gather(client.post("/r", {}), client.post("/r", {}))
        with pytest.raises(EngineUnreachableError):
            await client.post("/r", {})
        assert [e.nth for e in server.exchanges[2:]] == [1, 0] and server.connections == 3

    on(reply, check)


@pytest.mark.parametrize("sent", [b"H", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\n\r\n{"])
def test_a_request_is_not_sent_again_once_any_byte_has_come(sent: bytes) -> None:
    async def reply(exchange: Exchange) -> None:
        if not exchange.nth:
            exchange.answer(b"{}")
        else:
            exchange.send(sent)
            await exchange.writer.drain()
            exchange.writer.transport.write_eof()
            exchange.close()

    async def check(client: HttpClient, server: RawServer) -> None:
        await client.post("/r", {})
        kind = TruncatedAnswerError if b"\n\r\n" in sent else EngineUnreachableError
        # A body without a length ends with its connection: then only what it says is wrong.
        with pytest.raises(BackendError if sent.endswith(b"{") else kind):
            await client.post("/r", {})
        assert len(server.exchanges) == 2

    on(reply, check)


def test_what_must_not_be_sent_twice_gets_a_new_connection() -> None:
    async def reply(exchange: Exchange) -> None:
        if exchange.nth:
            exchange.reset()
        else:
            exchange.answer(b"{}")

    async def check(client: HttpClient, server: RawServer) -> None:
        for n_calls in (1, 2, 3):
            await client.post("/r", {}, once=True)
            assert len(server.exchanges) == server.connections == n_calls

    on(reply, check)


def test_a_deadline_holds_over_both_connections() -> None:
    async def reply(exchange: Exchange) -> None:
        if exchange.number == 0:
            exchange.answer(b"{}")
        elif exchange.number == 1:
            exchange.reset()

    async def check(client: HttpClient, server: RawServer) -> None:
        await client.post("/r", {})
        with pytest.raises(EngineUnreachableError, match=r"within 0\.05 s"):
            await client.post("/r", {}, timeout_s=0.05)
        assert len(server.exchanges) == 3

    on(reply, check)


# --- what the fleet sees of it --------------------------------------------------------------------

ANSWER = {
    "text": "yes",
    "meta_info": {
        "finish_reason": {"type": "stop"}, "prompt_tokens": 1, "completion_tokens": 1,
        "cached_tokens": 0,
    },
    "choices": [{"index": 0, "message": {"content": "yes"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1},
}  # fmt: skip


@pytest.mark.parametrize("engine", ["sglang", "openai"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_server_that_closes_kept_connections_costs_no_call_and_opens_no_breaker(
    engine: str, stream: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A third of all answers is followed by the end of the connection: at once, a moment later,
    or when the next request has come."""
    draw = random.Random(7)
    opened: list[str] = []
    monkeypatch.setattr(CircuitBreaker, "open", lambda self, reason, now_s: opened.append(reason))

    async def reply(exchange: Exchange) -> None:
        if exchange.nth and id(exchange.writer) in doomed:
            ended.append("when asked")
            draw.choice((exchange.close, exchange.reset))()
            return
        if b'"stream":true' in exchange.body and engine == "sglang":
            exchange.answer(b"data: %b\n\n" % json.dumps(ANSWER).encode(), EVENTS)
        else:
            exchange.answer(json.dumps(ANSWER).encode(), "Content-Type: application/json")
        match draw.randrange(9):
            case 0:
                ended.append("at once")
                exchange.close()
            case 1:
                ended.append("later")
                asyncio.get_running_loop().call_later(draw.random() / 200, exchange.close)
            case 2:
                doomed.add(id(exchange.writer))

    doomed: set[int] = set()
    ended: list[str] = []

    async def main() -> None:
        async with RawServer(reply) as server:
            if engine == "sglang":
                info = read_info(server.url, {}, {"model_path": "tiny"}, [])
                folder = write_tokenizer(tmp_path)
                backend: Any = SglangBackend(
                    info, ChatFormat(folder, backend="sglang"), LoopClock()
                )
            else:
                backend = OpenAIBackend(Served(server.url, "tiny", None), LoopClock())
            fleet = FleetBackend([backend], LoopClock())
            asked = Request("k" * 64, "tiny", (Message("user", "Hello"),), max_tokens=8)
            told = (lambda: None) if stream else None

            async def calls() -> None:
                for _ in range(50):
                    assert (await fleet.generate(asked, told)).text == "yes"

            try:
                await asyncio.gather(*(calls() for _ in range(12)))
            finally:
                await fleet.close()
            assert backend.requests_seen == 600 and fleet.replicas[0].answered == 600

    asyncio.run(main())
    assert not opened and set(ended) == {"at once", "later", "when asked"}
