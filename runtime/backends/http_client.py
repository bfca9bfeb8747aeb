"""The HTTP side of engines: JSON in, JSON or an event stream out, every failure a
`BackendError`."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Generator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import aiohttp
from yarl import URL

from runtime.backends.event_stream import DONE, EventReader
from runtime.backends.http_errors import not_an_answer, status_error, unreachable
from runtime.clock import Clock
from runtime.errors import BackendError, EngineUnreachableError, TruncatedAnswerError

CONNECT_TIMEOUT_S = 10.0
MAX_BODY_BYTES = 64 * 1024 * 1024


class HttpClient:
    """Connections to one engine. Opened on first use, in the running loop.

    Args:
        url: of the engine, without a slash at its end.
        timeout_s: of a whole call, waiting in the engine's queue included.

    Attributes:
        last_headers: of the latest answer; limits are announced there.
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
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=connect_timeout_s)
        self._session: aiohttp.ClientSession | None = None
        self._urls: dict[str, URL] = {}
        self.last_headers: Mapping[str, str] = {}

    async def get(self, route: str, *, timeout_s: float | None = None) -> Any:
        """The JSON document of a GET."""
        return await self._call("GET", route, None, timeout_s)

    async def post(self, route: str, payload: Any, *, timeout_s: float | None = None) -> Any:
        """The JSON document of a POST; None when the answer has no body."""
        return await self._call("POST", route, payload, timeout_s)

    async def post_text(self, route: str, payload: Any, *, timeout_s: float | None = None) -> str:
        """The body of a POST as text, for routes that answer in words."""
        with self._faults(route, timeout_s):
            async with self._request("POST", route, payload, timeout_s) as response:
                return await self._body(response, route)
        raise AssertionError  # `_faults` never swallows

    async def stream(self, route: str, payload: Any) -> AsyncGenerator[dict[str, Any] | None, None]:
        """The events of a POST as JSON objects, and None for the mark that ends a stream.

        A connection that closes properly ends the generator whether or not the mark was seen: the
        caller knows what makes an answer complete. One that breaks raises `TruncatedAnswerError`.
        """
        reader = EventReader()
        with self._faults(route):
            async with self._request("POST", route, payload, None) as response:
                if response.status != 200:
                    await self._body(response, route)
                if response.content_type == "application/json":
                    # Errors found before the first token come as plain JSON from some engines.
                    yield self._object(await self._body(response, route), route)
                    return
                async for chunk in response.content.iter_any():
                    for data in reader.feed(chunk):
                        yield None if data.strip() == DONE else self._object(data, route)

    async def close(self) -> None:
        """Close the connections. Safe to call twice."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _call(self, method: str, route: str, payload: Any, timeout_s: float | None) -> Any:
        with self._faults(route, timeout_s):
            async with self._request(method, route, payload, timeout_s) as response:
                body = await self._body(response, route)
            if not body.strip():
                return None
            try:
                return json.loads(body)
            except ValueError as error:
                raise not_an_answer(self.url + route, body, backend=self._backend) from error

    def _request(self, method: str, route: str, payload: Any, timeout_s: float | None) -> Any:
        if self._session is None:
            # What is the same for every call is set once: at a thousand calls a second it counts.
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={**self._headers, "Content-Type": "application/json"},
                skip_auto_headers=("Accept-Encoding", "User-Agent"),
                timeout=self._timeout,
            )
        url = self._urls.get(route)
        if url is None:
            url = self._urls[route] = URL(self.url + route)
        data = None if payload is None else json.dumps(payload, separators=(",", ":")).encode()
        # A redirect would send prompts and the key to an address that nobody configured.
        if timeout_s is None:
            return self._session.request(method, url, data=data, allow_redirects=False)
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_TIMEOUT_S)
        return self._session.request(method, url, data=data, allow_redirects=False, timeout=timeout)

    async def _body(self, response: aiohttp.ClientResponse, route: str) -> str:
        self.last_headers = response.headers
        data = await response.content.read(MAX_BODY_BYTES + 1)
        if len(data) <= MAX_BODY_BYTES and not response.content.at_eof():
            parts = [data]
            size = len(data)
            async for chunk in response.content.iter_any():
                size += len(chunk)
                parts.append(chunk)
                if size > MAX_BODY_BYTES:
                    break
            data = b"".join(parts)
        if len(data) > MAX_BODY_BYTES:
            raise BackendError(
                f"{self.url}{route} answered with more than {MAX_BODY_BYTES} bytes",
                backend=self._backend,
            )
        text = data.decode("utf-8", errors="replace")
        if response.status != 200:
            raise status_error(
                response.status,
                cast("Mapping[str, str]", response.headers),
                text,
                backend=self._backend,
                url=self.url + route,
            )
        return text

    def _object(self, text: str, route: str) -> dict[str, Any]:
        try:
            document: Any = json.loads(text)
        except ValueError as error:
            raise not_an_answer(self.url + route, text, backend=self._backend) from error
        if not isinstance(document, dict):
            raise not_an_answer(self.url + route, text, backend=self._backend)
        return cast("dict[str, Any]", document)

    @contextmanager
    def _faults(self, route: str, timeout_s: float | None = None) -> Generator[None, None, None]:
        url = self.url + route
        try:
            with self._clock.outside():
                yield
        except BackendError:
            raise
        except aiohttp.ClientPayloadError as error:
            raise TruncatedAnswerError(
                f"the answer of {url} was cut off: {error}", backend=self._backend, retryable=True
            ) from error
        except TimeoutError as error:
            raise EngineUnreachableError(
                f"{url} did not answer within {timeout_s or self.timeout_s:g} s",
                backend=self._backend,
                retryable=True,
            ) from error
        except (aiohttp.ClientError, OSError) as error:
            raise unreachable(url, error, backend=self._backend) from error
        except ValueError as error:
            raise not_an_answer(url, str(error), backend=self._backend) from error
