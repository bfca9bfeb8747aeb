"""HTTP tools against a server on the loopback interface."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

from planner.logical import Effect, Json
from runtime import http_tool
from runtime.clock import LoopClock, new_event_loop
from runtime.errors import ToolError, ToolTimeoutError
from runtime.http_tool import HttpTools, fill, retry_after_s
from runtime.tools import ToolSpec

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def tool(url: str, method: str = "GET", **options: Any) -> ToolSpec:
    return ToolSpec("fetch", None, url=url, method=method, effect=Effect.PURE, **options)


def call(
    handler: Handler,
    path: str,
    arguments: dict[str, Json] | None = None,
    method: str = "GET",
    virtual: bool = False,
    **options: Any,
) -> Json:
    """The answer of a tool at `path` of a server whose every path is `handler`."""

    async def main() -> Json:
        app = web.Application()
        app.router.add_route("*", "/{rest:.*}", handler)
        # With no access log and no grace period, nothing outlives the test.
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.01)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        tools = HttpTools(LoopClock())
        try:
            host, port = runner.addresses[0][:2]
            spec = tool(f"http://{host}:{port}{path}", method, **options)
            return await tools.call(spec, arguments or {}, "key-1")
        finally:
            await tools.close()
            await runner.cleanup()

    with asyncio.Runner(loop_factory=lambda: new_event_loop(virtual)) as runner:
        return runner.run(main())


async def echo(request: web.Request) -> web.Response:
    return web.json_response(
        {
            "method": request.method,
            "path": request.raw_path.partition("?")[0],
            "query": dict(request.query),
            "body": await request.json() if request.can_read_body else None,
            "key": request.headers.get("Idempotency-Key"),
        }
    )


def answering(response: Callable[[], web.Response]) -> Handler:
    async def handler(request: web.Request) -> web.Response:
        return response()

    return handler


@pytest.mark.parametrize("virtual", [False, True])
def test_arguments_of_get_travel_in_path_and_query(virtual: bool) -> None:
    arguments: dict[str, Json] = {
        "city": "a/b?c#d %2e é", "n": 3, "tags": ["x", "y"], "none": None, "q": "a&b=c",
    }  # fmt: skip
    assert call(echo, "/weather/{city}/now?units=c", arguments, virtual=virtual) == {
        "method": "GET",
        "path": "/weather/a%2Fb%3Fc%23d%20%252e%20%C3%A9/now",
        "query": {"units": "c", "n": "3", "tags": '["x", "y"]', "q": "a&b=c"},
        "body": None,
        "key": None,
    }


def test_arguments_of_post_travel_as_json_with_an_idempotency_key() -> None:
    got = call(echo, "/orders/{id}", {"id": 7, "item": {"n": [1]}}, "POST")
    assert got == {
        "method": "POST",
        "path": "/orders/7",
        "query": {},
        "body": {"item": {"n": [1]}},
        "key": "key-1",
    }


def test_an_answer_that_is_not_json_is_text() -> None:
    assert call(answering(lambda: web.Response(text="héllo")), "/") == "héllo"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("{", "not the JSON"),
        ("[" * 100_000, "not the JSON"),
        ("1" * 5000, "not the JSON"),
        ('{"a": NaN}', "nan at a, which JSON cannot hold"),
        ("[1e999]", r"inf at \[0\], which JSON cannot hold"),
    ],
)
def test_broken_json_is_an_error(body: str, says: str) -> None:
    handler = answering(lambda: web.Response(text=body, content_type="application/json"))
    with pytest.raises(ToolError, match=says):
        call(handler, "/")


def test_json_may_begin_with_a_byte_order_mark() -> None:
    body = b'\xef\xbb\xbf{"a": 1}'
    handler = answering(lambda: web.Response(body=body, content_type="application/json"))
    assert call(handler, "/") == {"a": 1}


@pytest.mark.parametrize("charset", ["nonsense", "hex", "idna", "undefined"])
def test_an_unknown_encoding_is_an_error(charset: str) -> None:
    headers = {"Content-Type": f"text/plain; charset={charset}"}
    handler = answering(lambda: web.Response(body=b"abc", headers=headers))
    with pytest.raises(ToolError, match=f"unknown encoding '{charset}'"):
        call(handler, "/")


@pytest.mark.parametrize(
    ("status", "retryable"), [(404, False), (400, False), (429, True), (503, True)]
)
def test_error_statuses_say_what_the_server_said(status: int, retryable: bool) -> None:
    handler = answering(lambda: web.Response(status=status, text="because"))
    with pytest.raises(ToolError, match=f"(?s)'fetch' got {status} .*because") as caught:
        call(handler, "/")
    assert caught.value.retryable is retryable


_DATE = "Wed, 21 Oct 2015 07:28:00 GMT"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "120"}, 120.0),
        ({"Retry-After": " 0 "}, 0.0),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:30 GMT", "Date": _DATE}, 30.0),
        ({"Retry-After": "Wed, 21 Oct 2015 07:00:00 GMT", "Date": _DATE}, 0.0),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:30 GMT"}, None),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:30", "Date": _DATE}, None),
        ({"Retry-After": "-3"}, None),
        ({"Retry-After": "\u0661\u0662"}, None),
        ({"Retry-After": "soon", "Date": _DATE}, None),
    ],
)
def test_retry_after_is_seconds_or_a_date(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_s(headers) == seconds


def test_an_error_carries_the_seconds_of_retry_after() -> None:
    handler = answering(lambda: web.Response(status=429, headers={"Retry-After": "7"}))
    with pytest.raises(ToolError) as caught:
        call(handler, "/")
    assert caught.value.retry_after_s == 7.0


def test_a_redirect_on_the_same_host_is_followed() -> None:
    async def handler(request: web.Request) -> web.Response:
        if request.path == "/old":
            return web.Response(status=302, headers={"Location": "/new"})
        return web.json_response(request.path)

    assert call(handler, "/old") == "/new"


@pytest.mark.parametrize(
    "location",
    [
        "http://example.invalid/",
        "//example.invalid/x",
        "http://127.0.0.1:1/",
        "https://127.0.0.1:1/",
        "file:///etc/hosts",
        "http://[",
        "http://127.0.0.1:99999/",
    ],
)
def test_a_redirect_elsewhere_is_refused(location: str) -> None:
    handler = answering(lambda: web.Response(status=302, headers={"Location": location}))
    with pytest.raises(ToolError, match="was redirected to"):
        call(handler, "/")


def test_endless_redirects_end() -> None:
    handler = answering(lambda: web.Response(status=307, headers={"Location": "/"}))
    with pytest.raises(ToolError, match="more than 5 times"):
        call(handler, "/")


def test_a_body_has_a_size_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_tool, "MAX_BODY_BYTES", 1000)
    with pytest.raises(ToolError, match="more than 1,000 bytes"):
        call(answering(lambda: web.Response(text="x" * 1001)), "/")


@pytest.mark.parametrize("virtual", [False, True])
def test_a_server_that_does_not_answer_times_out(virtual: bool) -> None:
    async def handler(request: web.Request) -> web.Response:
        await asyncio.Event().wait()
        raise AssertionError

    with pytest.raises(ToolTimeoutError, match=r"'fetch' did not answer within 0\.2 s"):
        call(handler, "/", timeout_s=0.2, virtual=virtual)


def test_a_host_that_cannot_be_reached_is_worth_another_try() -> None:
    async def main() -> None:
        tools = HttpTools(LoopClock())
        try:
            await tools.call(tool("http://127.0.0.1:1/x?secret=1"), {}, "")
        finally:
            await tools.close()

    with pytest.raises(ToolError, match=r"could not reach http://127\.0\.0\.1:1") as caught:
        asyncio.run(main())
    assert caught.value.retryable
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["file:///etc/hosts", "ftp://a/b", "gopher://a", "//a/b", "a", "http://[/", "http://a:99999/"],
)
def test_other_schemes_and_malformed_urls_are_refused(url: str) -> None:
    with pytest.raises(ToolError, match="http:// or https://"):
        fill(tool(url), {})


def test_arguments_stay_in_their_place() -> None:
    with pytest.raises(ToolError, match="host"):
        fill(tool("http://{host}/x"), {"host": "evil"})
    for value in ("..", ".", ""):
        with pytest.raises(ToolError, match="cannot be part of a URL path"):
            fill(tool("http://a/x/{p}/y"), {"p": value})
    with pytest.raises(ToolError, match="needs the argument 'p'"):
        fill(tool("http://a/x/{p}"), {})
    assert fill(tool("http://a/x/{p}"), {"p": "../y"}) == ("http://a/x/..%2Fy", {})


def test_as_many_calls_run_at_once_as_a_tool_may_make() -> None:
    n, inside, all_inside = 120, 0, asyncio.Event()

    async def handler(request: web.Request) -> web.Response:
        nonlocal inside
        inside += 1
        if inside == n:
            all_inside.set()
        await all_inside.wait()
        return web.json_response(1)

    async def main() -> list[Json]:
        app = web.Application()
        app.router.add_get("/", handler)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.01)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=2 * n).start()
        tools = HttpTools(LoopClock())
        host, port = runner.addresses[0][:2]
        spec = tool(f"http://{host}:{port}/", timeout_s=20, max_concurrency=n)
        try:
            return await asyncio.gather(*(tools.call(spec, {}, "") for _ in range(n)))
        finally:
            await tools.close()
            await runner.cleanup()

    assert asyncio.run(main()) == [1] * n


def test_a_write_is_sent_over_no_connection_that_the_server_may_be_closing() -> None:
    """The server ends a connection when another request comes on it, as one does whose limit for
    idle connections has passed at that moment. A write is not tried again, so it must not fail."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split()[0])
        await reader.readexactly(length)
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1\r\n\r\n1"
        )
        await reader.read(1)
        writer.close()

    async def main() -> list[Json]:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        spec = ToolSpec(
            "send", None, url=f"http://127.0.0.1:{port}/", method="POST", effect=Effect.WRITE
        )
        tools = HttpTools(LoopClock())
        try:
            return [await tools.call(spec, {"n": i}, str(i)) for i in range(3)]
        finally:
            await tools.close()
            server.close()

    assert asyncio.run(main()) == [1, 1, 1]
