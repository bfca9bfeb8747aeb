"""HTTP tools: a request for each call, to the host that the tool's author wrote and no other."""

from __future__ import annotations

import email.utils
import json
import re
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import SplitResult, quote, urlencode, urljoin, urlsplit

from planner.logical import Effect, Json, render_value
from runtime.clock import Clock
from runtime.deadline import finish_within
from runtime.errors import ToolError
from runtime.json_value import NotJson, to_json
from runtime.python_tool import timeout_error
from runtime.tools import ToolSpec

if TYPE_CHECKING:
    from aiohttp import ClientResponse, ClientSession

MAX_BODY_BYTES = 10_000_000
_MAX_REDIRECTS = 5
_PLACEHOLDER = re.compile(r"\{([A-Za-z_]\w*)\}")


class HttpTools:
    """Calls HTTP tools. Connections are kept between calls, except for writes: the server may be
    closing a kept one, and a write that breaks is not tried again. Use it in one event loop."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._sessions: dict[bool, ClientSession] = {}

    async def call(
        self, spec: ToolSpec, arguments: Mapping[str, Json], idempotency_key: str
    ) -> Json:
        """The answer of one request: its JSON value, or its text when it is not JSON.

        Arguments named in the URL (`{name}`) go there, the others into the query (GET; lists and
        objects as JSON text) or a JSON body. The key travels as `Idempotency-Key`, except with GET.
        Raises `ToolError`, retryable for 429, 5xx and failed connections, with the seconds of
        `Retry-After`; `ToolTimeoutError`.
        """
        url, rest = fill(spec, arguments)
        import aiohttp

        writes = spec.effect is Effect.WRITE
        session = self._sessions.get(writes)
        if session is None:
            # Time limits are set here, in real time: `finish_within`. How many calls there are at
            # once is the tool's own limit.
            session = self._sessions[writes] = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, force_close=writes),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        try:
            return await finish_within(
                self._request(session, spec, url, rest, idempotency_key),
                spec.timeout_s,
                self._clock,
                partial(timeout_error, spec.name, spec.timeout_s),
            )
        except (aiohttp.ClientError, OSError) as error:
            raise ToolError(
                f"tool {spec.name!r} could not reach {_origin(url)}: "
                f"{type(error).__name__}: {error}",
                tool=spec.name,
                retryable=True,
            ) from error

    async def close(self) -> None:
        """Close the connections."""
        sessions, self._sessions = self._sessions, {}
        for session in sessions.values():
            await session.close()

    async def _request(
        self,
        session: ClientSession,
        spec: ToolSpec,
        url: str,
        arguments: Mapping[str, Json],
        idempotency_key: str,
    ) -> Json:
        from yarl import URL

        method = spec.method.upper()
        body: Mapping[str, Json] | None = arguments
        headers = {"Idempotency-Key": idempotency_key}
        if method == "GET":
            headers, body = {}, None
            url = _with_query(url, arguments)
        for _ in range(_MAX_REDIRECTS + 1):
            async with session.request(
                method, URL(url, encoded=True), json=body, headers=headers, allow_redirects=False
            ) as response:
                location = response.headers.get("Location")
                if response.status in (301, 302, 303, 307, 308) and location is not None:
                    url = _redirected(spec, url, location)
                    if response.status < 307 and method not in ("GET", "HEAD"):
                        method, body = "GET", None
                    continue
                return await _answer(spec, response)
        raise ToolError(
            f"tool {spec.name!r} was redirected more than {_MAX_REDIRECTS} times", tool=spec.name
        )


def fill(spec: ToolSpec, arguments: Mapping[str, Json]) -> tuple[str, dict[str, Json]]:
    """The URL with its `{name}` places filled, and the arguments that have no place in it."""
    parts = _split(spec.url)
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
        _fail(spec, f"has the URL {spec.url!r}; it must begin with http:// or https:// and a host")
    if _PLACEHOLDER.search(parts.netloc):
        _fail(spec, "has an argument in the host of its URL; arguments may only be in the path")
    rest = dict(arguments)

    def place(match: re.Match[str]) -> str:
        name = match[1]
        if name not in arguments:
            _fail(spec, f"needs the argument {name!r} for its URL {spec.url}")
        rest.pop(name, None)
        text = render_value(arguments[name])
        # Quoting leaves dots alone, and as path segments they would leave the written path.
        if text in ("", ".", ".."):
            _fail(spec, f"got {text!r} for {name!r}, which cannot be part of a URL path")
        return quote(text, safe="")

    path = _PLACEHOLDER.sub(place, quote(parts.path, safe="/%{}:@!$&'()*+,;=~"))
    query = _PLACEHOLDER.sub(place, parts.query)
    return parts._replace(path=path, query=query, fragment="").geturl(), rest


def _with_query(url: str, arguments: Mapping[str, Json]) -> str:
    pairs = [(name, render_value(value)) for name, value in arguments.items() if value is not None]
    if not pairs:
        return url
    return f"{url}{'&' if '?' in url else '?'}{urlencode(pairs)}"


def _redirected(spec: ToolSpec, url: str, location: str) -> str:
    before, after = urlsplit(url), _split(location, url)
    if after is None:
        _fail(spec, "was redirected to what is no URL")
    ports = (_port(before), _port(after))
    upgraded = (before.scheme, after.scheme, *ports) == ("http", "https", 80, 443)
    same = (before.scheme, ports[0]) == (after.scheme, ports[1])
    if after.hostname != before.hostname or not (upgraded or same):
        _fail(
            spec, f"was redirected to {_origin(after.geturl())}; only {_origin(url)} may answer it"
        )
    return after._replace(fragment="").geturl()


def _split(url: str, base: str = "") -> SplitResult | None:
    """The parts of a URL, relative to `base`; None when it is malformed."""
    try:
        parts = urlsplit(urljoin(base, url))
        _port(parts)
    except ValueError:
        return None
    return parts


def _port(parts: SplitResult) -> int | None:
    return parts.port or {"http": 80, "https": 443}.get(parts.scheme)


async def _answer(spec: ToolSpec, response: ClientResponse) -> Json:
    body = bytearray()
    async for chunk in response.content.iter_chunked(65536):
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            _fail(spec, f"answered with more than {MAX_BODY_BYTES:,} bytes")
    charset = response.charset or "utf-8"
    try:
        text = body.decode(charset, errors="replace")
    except (LookupError, UnicodeError):
        _fail(spec, f"answered in the unknown encoding {charset!r}")
    status = response.status
    if status >= 400:
        error = ToolError(
            f"tool {spec.name!r} got {status} {response.reason} from {_origin(spec.url)}: "
            f"{text[:500]}",
            tool=spec.name,
            retryable=status == 429 or status >= 500,
        )
        error.retry_after_s = retry_after_s(response.headers)
        raise error
    if response.content_type != "application/json" and not response.content_type.endswith("+json"):
        return text
    try:
        # NaN and 1e999 are read as floats, and refused as values.
        return to_json(json.loads(text.removeprefix("\ufeff") or "null"))
    except (ValueError, RecursionError) as error:
        _fail(spec, f"answered with a body that is not the JSON it is said to be: {error}")
    except NotJson as error:
        _fail(spec, f"answered with {error}")


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """The seconds that `Retry-After` asks for, None without a readable one. A date is compared to
    the server's own `Date`, so that its clock need not agree with ours."""
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        until = email.utils.parsedate_to_datetime(text)
        now = email.utils.parsedate_to_datetime(headers.get("Date", ""))
        return max(0.0, (until - now).total_seconds())
    except (ValueError, TypeError):  # no date, or one of the two without a zone
        return None


def _origin(url: str) -> str:
    # Without path and query: they may hold what the workflow keeps private.
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")


def _fail(spec: ToolSpec, what: str) -> NoReturn:
    raise ToolError(f"tool {spec.name!r} {what}", tool=spec.name)
