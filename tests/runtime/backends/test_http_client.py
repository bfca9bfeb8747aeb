"""The HTTP client against servers that answer with given bytes: framing, faults, limits, TLS."""

from __future__ import annotations

import asyncio
import base64
import datetime
import gzip
import ipaddress
import json
import ssl
import zlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from raw_server import Exchange, RawServer, Reply

import runtime.backends.http_client as http_client
import runtime.backends.http_connection as http_connection
from runtime.backends.http_client import HttpClient
from runtime.backends.http_deadlines import Deadlines
from runtime.backends.http_pool import ConnectionPool
from runtime.clock import LoopClock, new_event_loop
from runtime.errors import BackendError, EngineUnreachableError, TruncatedAnswerError

T = TypeVar("T")
Check = Callable[[HttpClient, RawServer], Awaitable[T]]
JSON = "Content-Type: application/json"
EVENTS = "Content-Type: text/event-stream"


def on(reply: Reply, check: Check[T], *, tls: ssl.SSLContext | None = None, **settings: Any) -> T:
    """Runs `check` with a client of a server that replies so."""

    async def main() -> T:
        async with RawServer(reply, tls=tls) as server:
            client = HttpClient(server.url, LoopClock(), backend="test", **settings)
            try:
                return await check(client, server)
            finally:
                await client.close()
                await client.close()

    return asyncio.run(main())


def always(data: bytes, *, close: bool = False) -> Reply:
    async def reply(exchange: Exchange) -> None:
        exchange.send(data)
        if close:
            exchange.close()

    return reply


async def answer_ok(exchange: Exchange) -> None:
    exchange.answer(b'{"ok": true}', JSON)


async def ask(client: HttpClient, _: RawServer) -> Any:
    return await client.post("/r", {"a": 1})


async def events(client: HttpClient, _: RawServer) -> list[Any]:
    return [event async for event in client.stream("/r", {"a": 1})]


# --- framing -------------------------------------------------------------------------------------

DOCUMENT = json.dumps({"text": "ä€" * 20}).encode()
PARTS = [DOCUMENT[i : i + 7] for i in range(0, len(DOCUMENT), 7)]
CHUNKED = b"".join(b"%x;note=1\r\n%b\r\n" % (len(part), part) for part in PARTS)
HEAD = b"HTTP/1.1 200 OK\r\nX-A: 1\r\n"
WAYS = {
    "length": HEAD + b"Content-Length: %d\r\n\r\n%b" % (len(DOCUMENT), DOCUMENT),
    "chunks": HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKED + b"0\r\nX-Late: 1\r\n\r\n",
    "close": HEAD + b"\r\n" + DOCUMENT,
    "old": b"HTTP/1.0 200 OK\r\n\r\n" + DOCUMENT,
    "progress": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    + HEAD + b"Content-Length: %d\r\n\r\n%b" % (len(DOCUMENT), DOCUMENT),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@given(cuts=st.lists(st.integers(0, 800), max_size=6))
def test_an_answer_is_read_however_it_is_framed_and_cut(way: str, cuts: list[int]) -> None:
    data = WAYS[way]

    async def reply(exchange: Exchange) -> None:
        at = 0
        for cut in (*sorted(cuts), len(data)):
            exchange.send(data[at:cut])
            at = max(at, cut)
            await asyncio.sleep(0)
        if way in ("close", "old"):
            exchange.close()

    assert on(reply, ask) == json.loads(DOCUMENT)


@pytest.mark.parametrize("way", ["length", "chunks"])
def test_an_answer_that_is_cut_off_anywhere_is_an_error(way: str) -> None:
    data = WAYS[way]
    body_at = data.index(b"\r\n\r\n") + 4

    async def reply(exchange: Exchange) -> None:
        exchange.send(data[: exchange.number + 1])
        exchange.close()

    async def check(client: HttpClient, server: RawServer) -> None:
        for n_sent in range(1, len(data)):
            kind = TruncatedAnswerError if n_sent >= body_at else EngineUnreachableError
            with pytest.raises(kind) as caught:
                await client.post("/r", {})
            assert caught.value.retryable and server.url in str(caught.value)

    on(reply, check)


def test_an_answer_without_a_body_is_none() -> None:
    assert on(always(b"HTTP/1.1 204 No Content\r\n\r\n"), check=_none_or_error) == "204"
    assert on(always(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n\n"), ask) is None


async def _none_or_error(client: HttpClient, _: RawServer) -> str:
    with pytest.raises(BackendError) as caught:
        await client.post("/r", {})
    return str(caught.value.status)


def test_events_come_one_by_one_and_end_with_the_stream() -> None:
    async def reply(exchange: Exchange) -> None:
        exchange.send(f"HTTP/1.1 200 OK\r\n{EVENTS}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        for text in ('data: {"a": 1}\n\n', ": ping\n\ndata: [DO", "NE]\n\n"):
            exchange.send(b"%x\r\n%b\r\n" % (len(text), text.encode()))
            await asyncio.sleep(0)
        exchange.send(b"0\r\n\r\n")

    assert on(reply, events) == [{"a": 1}, None]


def test_a_document_in_place_of_events_is_one_event() -> None:
    assert on(answer_ok, events) == [{"ok": True}]
    spelled = b"HTTP/1.1 200 OK\r\ncontent-type: Application/JSON; charset=utf-8\r\n"
    assert on(always(spelled + b"content-length: 2\r\n\r\n{}"), events) == [{}]


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_compression_that_nobody_asked_for_is_undone(coding: str) -> None:
    squeeze = gzip.compress if coding == "gzip" else zlib.compress

    async def reply(exchange: Exchange) -> None:
        data = b'data: {"a": 1}\n\n' if b'"stream"' in exchange.body else b'{"a": 1}'
        kind = EVENTS if b'"stream"' in exchange.body else JSON
        exchange.answer(squeeze(data), kind, f"Content-Encoding: {coding}")

    async def check(client: HttpClient, _: RawServer) -> None:
        assert await client.post("/r", {}) == {"a": 1}
        assert [e async for e in client.stream("/r", {"stream": True})] == [{"a": 1}]

    on(reply, check)


def test_a_request_says_whom_it_is_for_and_from(monkeypatch: pytest.MonkeyPatch) -> None:
    async def check(client: HttpClient, server: RawServer) -> list[str]:
        await client.post("/r?x=1", {"é": "€"})
        await client.get("/g")
        url = server.url.replace("://", "://me:p%40ss@") + "/base"
        other = HttpClient(url, LoopClock(), backend="test")
        await other.get("/g")
        await other.close()
        post, get, named = server.exchanges
        assert json.loads(post.body) == {"é": "€"} and get.body == b""
        assert f"Host: {server.url[7:]}\r\n" in post.head
        assert "Authorization: Bearer key\r\n" in post.head and "Bearer key" in get.head
        assert f"Basic {base64.b64encode(b'me:p@ss').decode()}\r\n" in named.head
        return [each.head.split("\r\n")[0] for each in server.exchanges]

    assert on(answer_ok, check, api_key="key") == [
        "POST /r?x=1 HTTP/1.1", "GET /g HTTP/1.1", "GET /base/g HTTP/1.1"
    ]  # fmt: skip
    with pytest.raises(BackendError, match="line break"):
        on(answer_ok, ask, api_key="key\r\nX-Evil: 1")


def test_the_headers_of_the_latest_answer_are_told_by_name() -> None:
    async def reply(exchange: Exchange) -> None:
        exchange.answer(b"{}", "X-RateLimit-Limit-Requests: 7", "X-A: first", "x-a: second")

    async def check(client: HttpClient, _: RawServer) -> None:
        assert client.last_headers == {}
        await client.post("/r", {})
        assert client.last_headers["x-ratelimit-limit-requests"] == "7"
        assert client.last_headers["x-a"] == "first"

    on(reply, check)


# --- faults --------------------------------------------------------------------------------------


def test_statuses_are_errors_with_what_the_headers_say() -> None:
    async def reply(exchange: Exchange) -> None:
        exchange.answer(b"busy", "retry-AFTER: 2.5", status="429 Too Many Requests")

    async def check(client: HttpClient, server: RawServer) -> None:
        for asked in (ask, events):
            with pytest.raises(BackendError, match="busy") as caught:
                await asked(client, server)
            assert caught.value.status == 429 and caught.value.retry_after_s == 2.5

    on(reply, check)


def test_a_redirect_is_not_followed() -> None:
    async def reply(exchange: Exchange) -> None:
        exchange.answer(b"", "Location: http://127.0.0.1:1/", status="307 Temporary Redirect")

    async def check(client: HttpClient, server: RawServer) -> None:
        with pytest.raises(BackendError, match="307") as caught:
            await client.post("/r", {})
        assert not isinstance(caught.value, EngineUnreachableError) and len(server.exchanges) == 1

    on(reply, check)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", EngineUnreachableError),
        (b"HTTP/1.1 200 OK\r\nX" + b"x" * 300_000, EngineUnreachableError),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nx",
         EngineUnreachableError),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", TruncatedAnswerError),
        (HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab", EngineUnreachableError),
        (HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\nab",
         EngineUnreachableError),
    ],
)  # fmt: skip
def test_what_is_no_http_is_an_error(data: bytes, kind: type[BackendError]) -> None:
    async def check(client: HttpClient, server: RawServer) -> None:
        for asked in (ask, events):
            with pytest.raises(kind) as caught:
                await asked(client, server)
            assert caught.value.retryable

    on(always(data), check)


def test_a_server_that_is_not_there_is_named() -> None:
    async def check(client: HttpClient, server: RawServer) -> None:
        for url in ("http://127.0.0.1:1", "http://nobody.invalid", "http://h:99999", "http://"):
            gone = HttpClient(url, LoopClock(), backend="test")
            with pytest.raises(EngineUnreachableError, match=url):
                await gone.get("/r")
            await gone.close()

    on(answer_ok, check)


# --- limits --------------------------------------------------------------------------------------


async def _never(exchange: Exchange) -> None:
    await asyncio.Event().wait()


def test_a_call_ends_at_its_deadline() -> None:
    async def check(client: HttpClient, server: RawServer) -> None:
        with pytest.raises(EngineUnreachableError, match=r"within 0\.02 s"):
            await client.get("/r", timeout_s=0.02)
        for asked in (ask, events):
            with pytest.raises(EngineUnreachableError, match=r"within 0\.05 s"):
                await asked(client, server)

    on(_never, check, timeout_s=0.05)


def test_a_stream_ends_at_its_deadline_with_what_came_before() -> None:
    async def reply(exchange: Exchange) -> None:
        exchange.send(f"HTTP/1.1 200 OK\r\n{EVENTS}\r\n\r\ndata: {{}}\n\n".encode())
        await asyncio.Event().wait()

    async def check(client: HttpClient, _: RawServer) -> None:
        stream = client.stream("/r", {})
        assert await anext(stream) == {}
        with pytest.raises(EngineUnreachableError, match=r"within 0\.05 s"):
            await anext(stream)

    on(reply, check, timeout_s=0.05)


def test_a_connection_that_is_not_made_in_time_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def connect(self: ConnectionPool) -> Any:
        await asyncio.Event().wait()

    monkeypatch.setattr(ConnectionPool, "connect", connect)
    with pytest.raises(EngineUnreachableError, match=r"no connection within 0\.02 s"):
        on(answer_ok, ask, connect_timeout_s=0.02)


@pytest.mark.parametrize("framing", ["Content-Length: 3000", "Transfer-Encoding: chunked"])
def test_a_body_is_not_larger_than_agreed(monkeypatch: pytest.MonkeyPatch, framing: str) -> None:
    monkeypatch.setattr(http_client, "MAX_BODY_BYTES", 2000)
    body = b"x" * 3000 if "Length" in framing else b"1\r\nx\r\n" * 3000 + b"0\r\n\r\n"

    async def check(client: HttpClient, server: RawServer) -> None:
        with pytest.raises(BackendError, match="more than 2000 bytes") as caught:
            await client.post("/r", {})
        assert not caught.value.retryable

    on(always(f"HTTP/1.1 200 OK\r\n{framing}\r\n\r\n".encode() + body), check)


def test_a_body_is_not_larger_than_agreed_once_it_is_inflated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_client, "MAX_BODY_BYTES", 2000)

    async def reply(exchange: Exchange) -> None:
        exchange.answer(gzip.compress(b"x" * 1_000_000), "Content-Encoding: gzip")

    with pytest.raises(BackendError, match="more than 2000 bytes"):
        on(reply, ask)


def test_what_nobody_reads_stays_in_the_server() -> None:
    event = b'data: {"text": "%b"}\n\n' % (b"x" * 100_000)

    async def reply(exchange: Exchange) -> None:
        exchange.send(f"HTTP/1.1 200 OK\r\n{EVENTS}\r\nConnection: close\r\n\r\n".encode())
        exchange.send(event * 400)
        exchange.close()

    async def check(client: HttpClient, server: RawServer) -> None:
        stream = client.stream("/r", {})
        await anext(stream)
        for _ in range(2000):
            await asyncio.sleep(0)
        assert server.exchanges[0].writer.transport.get_write_buffer_size() > 200 * len(event)
        assert len([event async for event in stream]) == 399

    on(reply, check)


def test_deadlines_of_one_limit_need_one_timer() -> None:
    ended: list[tuple[str, float]] = []

    class Waited:
        def __init__(self, name: str) -> None:
            self.name = name

        def fail(self, error: BaseException) -> None:
            ended.append((self.name, asyncio.get_running_loop().time()))

    async def main() -> None:
        loop = asyncio.get_running_loop()
        deadlines = Deadlines()
        a, b, c, d = (Waited(name) for name in "abcd")
        deadlines.add(a, 10.0)
        await asyncio.sleep(1.0)
        deadlines.add(b, 10.0)
        deadlines.add(c, 2.0)
        deadlines.add(d, 2.0)
        deadlines.discard(d, 2.0)
        deadlines.discard(d, 2.0)
        timers = [timer for timer in loop._scheduled if not timer.cancelled()]  # type: ignore[attr-defined]
        assert len(timers) == 2
        await asyncio.sleep(20.0)
        assert ended == [("c", 3.0), ("a", 10.0), ("b", 11.0)]
        deadlines.add(a, 5.0)
        deadlines.clear()
        await asyncio.sleep(20.0)
        assert len(ended) == 3

    with asyncio.Runner(loop_factory=lambda: new_event_loop(True)) as runner:
        runner.run(main())


# --- addresses and TLS ---------------------------------------------------------------------------


def test_a_name_is_looked_up_once_and_all_its_addresses_are_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked_up: list[str] = []

    async def check(client: HttpClient, server: RawServer) -> None:
        loop = asyncio.get_running_loop()
        port = int(server.url.rpartition(":")[2])
        resolve = loop.getaddrinfo

        async def getaddrinfo(host: str, *args: Any, **kwargs: Any) -> Any:
            looked_up.append(host)
            # Nobody listens at the first one.
            first = await resolve("127.0.0.2", *args, **kwargs)
            return [*first, *await resolve("127.0.0.1", *args, **kwargs)]

        monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
        named = HttpClient(f"http://engine.test:{port}", LoopClock(), backend="test")
        await asyncio.gather(*(named.get("/r") for _ in range(20)))
        await named.close()
        assert looked_up == ["engine.test"] and server.connections == 20

    on(answer_ok, check)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 and its key, which nobody trusts by default."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "halo test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    file = tmp_path_factory.mktemp("tls") / "certificate.pem"
    file.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return file


def test_a_trusted_server_is_spoken_to_over_tls(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate)

    async def reply(exchange: Exchange) -> None:
        if exchange.nth == 2:
            exchange.close()  # the connection, without an answer
        elif b'"stream"' in exchange.body:
            exchange.answer(b"data: {}\n\n" * 10_000, EVENTS)
        else:
            await answer_ok(exchange)

    async def check(client: HttpClient, server: RawServer) -> None:
        assert await client.post("/r", {}) == {"ok": True}
        assert len([e async for e in client.stream("/r", {"stream": True})]) == 10_000
        assert server.connections == 1
        assert await client.post("/r", {"text": "x" * 5_000_000}) == {"ok": True}
        assert server.connections == 2

    on(reply, check, tls=tls)


def test_a_server_that_nobody_vouches_for_gets_no_request(certificate: Path) -> None:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate)

    async def check(client: HttpClient, server: RawServer) -> None:
        with pytest.raises(EngineUnreachableError, match="certificate verify failed"):
            await client.post("/r", {})
        assert not server.exchanges

    on(answer_ok, check, tls=tls)


def test_heads_are_bounded() -> None:
    """A server that never ends its headers is given up, however slowly it sends them."""

    async def reply(exchange: Exchange) -> None:
        exchange.send(b"HTTP/1.1 200 OK\r\n")
        while not exchange.closed:
            exchange.send(b"X-A: " + b"x" * 1000 + b"\r\n")
            await asyncio.sleep(0)

    async def check(client: HttpClient, server: RawServer) -> None:
        with pytest.raises(BackendError, match=f"{http_connection.MAX_HEAD_BYTES} bytes"):
            await client.post("/r", {})

    on(reply, check)
