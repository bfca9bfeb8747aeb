"""The HTTP side of engines: JSON in, JSON or an event stream out, every failure a
`BackendError`."""

from __future__ import annotations

import asyncio
import json
import zlib
from base64 import b64encode
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from functools import partial
from typing import Any, cast

from yarl import URL

from runtime.backends.event_stream import DONE, EventReader
from runtime.backends.http_connection import Answer, Connection, CutOffError, TooLargeError
from runtime.backends.http_deadlines import Deadlines, OverdueError
from runtime.backends.http_errors import not_an_answer, status_error, unreachable
from runtime.backends.http_pool import ConnectionPool
from runtime.clock import Clock
from runtime.errors import BackendError, EngineUnreachableError, TruncatedAnswerError

CONNECT_TIMEOUT_S = 10.0
MAX_BODY_BYTES = 64 * 1024 * 1024

REST_BYTES = 64 * 1024
REST_S = 1.0
"""How much may still come after the event that a reader wanted, and for how long, before its
connection is closed instead of kept."""

_encode: Callable[[object], str] = json.JSONEncoder(separators=(",", ":")).encode


class HttpClient:
    """Connections to one engine. Opened on first use, in the running loop.

    A server may close a connection that is kept at any moment, also when a request is on its way.
    So a request whose kept connection ends before any byte of an answer is sent once more, over a
    new one.

    Args:
        url: of the engine, without a slash at its end.
        timeout_s: of a whole call, waiting in the engine's queue included.
    """

    def __init__(
        self,
        url: str,
        clock: Clock,
        *,
        backend: str,
        api_key: str = "",
        timeout_s: float = 600.0,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
    ) -> None:
        self.url = url
        self.timeout_s = timeout_s
        self._backend = backend
        self._clock = clock
        self._api_key = api_key
        self._connect_timeout_s = connect_timeout_s
        self._pool: ConnectionPool | None = None
        self._deadlines = Deadlines()
        self._heads: dict[tuple[str, str], bytes] = {}
        self._last_headers: list[bytes] = []

    @property
    def last_headers(self) -> Mapping[str, str]:
        """Of the latest answer, by names in lower case; limits are announced there."""
        return _by_name(self._last_headers)

    async def get(self, route: str, *, timeout_s: float | None = None) -> Any:
        """The JSON document of a GET."""
        return self._document(await self._text("GET", route, None, timeout_s), route)

    async def post(
        self, route: str, payload: Any, *, timeout_s: float | None = None, once: bool = False
    ) -> Any:
        """The JSON document of a POST; None when the answer has no body. `once`: it must not reach
        the server twice, so it is sent over a new connection."""
        text = await self._text("POST", route, payload, timeout_s, once=once)
        return self._document(text, route)

    async def post_text(self, route: str, payload: Any, *, timeout_s: float | None = None) -> str:
        """The body of a POST as text, for routes that answer in words."""
        return await self._text("POST", route, payload, timeout_s)

    async def stream(self, route: str, payload: Any) -> AsyncGenerator[dict[str, Any] | None, None]:
        """The events of a POST as JSON objects, and None for the mark that ends a stream.

        A connection that closes properly ends the generator whether or not the mark was seen: the
        caller knows what makes an answer complete. One that breaks raises `TruncatedAnswerError`.
        A caller that has what it wants closes the generator.
        """
        reader = EventReader()
        limit_s = self.timeout_s
        with self._exchange(route, limit_s) as answer, self._clock.outside():
            try:
                request = self._request("POST", route, payload)
                await self._ask(request, answer, answer.begun, limit_s)
                if answer.status != 200 or _is_json(answer):
                    # Errors found before the first token come as plain JSON from some engines.
                    await answer.ended(MAX_BODY_BYTES)
                    yield self._object(self._body(answer, route), route)
                    return
                self._last_headers = answer.headers
                decoded = _decoder(answer)
                while part := await answer.part():
                    for data in reader.feed(decoded(part)):
                        yield None if data.strip() == DONE else self._object(data, route)
            except GeneratorExit:
                # The few bytes that come after the last event are cheaper than another connection.
                if (rest := answer.rest(REST_BYTES)) is not None:
                    self._deadlines.add(rest, REST_S)
                raise

    async def close(self) -> None:
        """Close the connections. Safe to call twice."""
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.close()
        self._deadlines.clear()

    # --- exchanges -------------------------------------------------------------------------------

    async def _text(
        self, method: str, route: str, payload: Any, timeout_s: float | None, *, once: bool = False
    ) -> str:
        """The body of a whole answer."""
        limit_s = self.timeout_s if timeout_s is None else timeout_s
        with self._exchange(route, limit_s) as answer, self._clock.outside():
            request = self._request(method, route, payload)
            ended = partial(answer.ended, MAX_BODY_BYTES)
            await self._ask(request, answer, ended, limit_s, once=once)
            return self._body(answer, route)

    def _exchange(self, route: str, limit_s: float) -> _Exchange:
        return _Exchange(self._deadlines, limit_s, partial(self._fault, route=route))

    async def _ask(
        self,
        request: bytes,
        answer: Answer,
        wait: Callable[[], Awaitable[None]],
        limit_s: float,
        *,
        once: bool = False,
    ) -> None:
        """Send a request, and `wait` for its answer."""
        if self._pool is None:
            self._pool = ConnectionPool(self._url(""))
        kept = None if once else self._pool.take()
        if kept is not None:
            kept.send(request, answer)
            try:
                await wait()
                if answer.status != 408 or not answer.last:
                    return
                # The server waited for a request, and gave up when this one was on its way.
            except OSError:
                if answer.touched or isinstance(answer.error, OverdueError):
                    raise
            answer.restart()
        connection = await self._connected(self._pool, limit_s)
        connection.send(request, answer)
        await wait()

    async def _connected(self, pool: ConnectionPool, limit_s: float) -> Connection:
        within_s = min(self._connect_timeout_s, limit_s)
        limit = asyncio.timeout(within_s)
        try:
            async with limit:
                return await pool.connect()
        except TimeoutError as error:
            if limit.expired():
                raise ConnectionError(f"no connection within {within_s:g} s") from error
            raise

    def _request(self, method: str, route: str, payload: Any) -> bytes:
        head = self._heads.get((method, route))
        if head is None:
            head = self._heads[method, route] = self._head(method, route)
        if method == "GET":
            return head + b"\r\n"
        body = _encode(payload).encode()
        return b"%bContent-Length: %d\r\n\r\n%b" % (head, len(body), body)

    def _head(self, method: str, route: str) -> bytes:
        """What is the same for every request of a route. A redirect is not followed: it would send
        prompts and the key to an address that nobody configured."""
        url = self._url(route)
        lines = [
            f"{method} {url.raw_path_qs} HTTP/1.1",
            f"Host: {url.host_port_subcomponent}",
            "Accept: */*",
            "Accept-Encoding: identity",
            "Content-Type: application/json",
        ]
        if self._api_key:
            lines.append(f"Authorization: Bearer {self._api_key}")
        elif url.user is not None:
            user = b64encode(f"{url.user}:{url.password or ''}".encode()).decode()
            lines.append(f"Authorization: Basic {user}")
        if any(set(line) & _BREAKS for line in lines):
            raise BackendError(
                f"the address {self.url} or its key contains a line break", backend=self._backend
            )
        return "".join(f"{line}\r\n" for line in lines).encode()

    def _url(self, route: str) -> URL:
        try:
            url = URL(self.url + route)
            if url.host is None:
                raise ValueError("it names no host")
        except ValueError as error:
            raise unreachable(self.url + route, error, backend=self._backend) from error
        return url

    # --- answers ---------------------------------------------------------------------------------

    def _body(self, answer: Answer, route: str) -> str:
        """The text of a whole answer. Raises what its status means."""
        self._last_headers = answer.headers
        data = answer.take()
        if answer.header(b"content-encoding"):
            data = _decoder(answer)(data)
        text = data.decode("utf-8", errors="replace")
        if answer.status != 200:
            raise status_error(
                answer.status,
                _by_name(answer.headers),
                text,
                backend=self._backend,
                url=self.url + route,
            )
        return text

    def _document(self, text: str, route: str) -> Any:
        if not text or text.isspace():
            return None
        try:
            return json.loads(text)
        except ValueError as error:
            raise not_an_answer(self.url + route, text, backend=self._backend) from error

    def _object(self, text: str, route: str) -> dict[str, Any]:
        document = self._document(text, route)
        if not isinstance(document, dict):
            raise not_an_answer(self.url + route, text, backend=self._backend)
        return cast("dict[str, Any]", document)

    def _fault(self, error: Exception, limit_s: float, route: str) -> BackendError:
        """What a failed exchange means."""
        url = self.url + route
        match error:
            case CutOffError():
                return TruncatedAnswerError(
                    f"the answer of {url} was cut off: {error}",
                    backend=self._backend,
                    retryable=True,
                )
            case OverdueError():
                return EngineUnreachableError(
                    f"{url} did not answer within {limit_s:g} s",
                    backend=self._backend,
                    retryable=True,
                )
            case TooLargeError():
                return BackendError(
                    f"{url} answered with more than {MAX_BODY_BYTES} bytes", backend=self._backend
                )
            case OSError():
                return unreachable(url, error, backend=self._backend)
            case _:
                return not_an_answer(url, str(error), backend=self._backend)


class _Exchange:
    """An answer that is waited for within a limit. What fails is a `BackendError`, of which `fault`
    makes those that are not. A class and no generator, since every call needs one."""

    __slots__ = ("_answer", "_deadlines", "_fault", "_limit_s")

    def __init__(
        self,
        deadlines: Deadlines,
        limit_s: float,
        fault: Callable[[Exception, float], BackendError],
    ) -> None:
        self._deadlines = deadlines
        self._limit_s = limit_s
        self._fault = fault
        self._answer = Answer()

    def __enter__(self) -> Answer:
        self._deadlines.add(self._answer, self._limit_s)
        return self._answer

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._deadlines.discard(self._answer, self._limit_s)
        self._answer.leave()
        if isinstance(error, Exception) and not isinstance(error, BackendError):
            raise self._fault(error, self._limit_s) from error


_BREAKS = frozenset("\r\n\0")


def _by_name(headers: list[bytes]) -> dict[str, str]:
    """The first header of each name, in lower case."""
    texts = [each.decode("utf-8", errors="surrogateescape") for each in headers]
    return dict(zip((name.lower() for name in texts[-2::-2]), texts[::-2], strict=True))


def _is_json(answer: Answer) -> bool:
    kind = answer.header(b"content-type").partition(b";")[0]
    return kind.strip().lower() == b"application/json"


def _decoder(answer: Answer) -> Callable[[bytes], bytes]:
    """Takes the compression away that nobody has asked for, and some proxies apply all the same.
    Raises `ValueError` for one that is not known."""
    coding = answer.header(b"content-encoding").strip().lower()
    if coding in (b"", b"identity"):
        return lambda data: data
    if coding not in (b"gzip", b"x-gzip", b"deflate"):
        raise ValueError(f"its content is encoded: {coding!r}")
    inflater = zlib.decompressobj(wbits=47)  # either header

    def decode(data: bytes) -> bytes:
        try:
            whole = inflater.decompress(data, MAX_BODY_BYTES)
        except zlib.error as error:
            raise ValueError(str(error)) from error
        if inflater.unconsumed_tail:
            raise TooLargeError
        return whole

    return decode
