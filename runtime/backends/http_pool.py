"""The connections to one server: opened when they are needed, kept while they may be used again."""

from __future__ import annotations

import asyncio
import socket
import ssl
from asyncio import TimerHandle
from collections.abc import Sequence
from typing import Any, TypeAlias

from aiohappyeyeballs import start_connection  # pyright: ignore[reportUnknownVariableType]
from yarl import URL

from runtime.backends.http_connection import Connection
from runtime.backends.http_deadlines import TIMER_SLACK_S

Addresses: TypeAlias = "Sequence[tuple[int, int, int, str, tuple[Any, ...]]]"
"""As `getaddrinfo` gives them."""

KEPT_S = 60.0
"""How long a connection is kept that nobody uses."""
RESOLVED_S = 10.0
"""How long the addresses of a name are remembered: a thousand calls that begin together look it up
once."""
NEXT_ADDRESS_S = 0.25
"""After which, of a host with several addresses, the next one is tried as well."""


class ConnectionPool:
    """Connections to the server of `url`, as many as there are calls at once. Use it in one event
    loop."""

    def __init__(self, url: URL) -> None:
        self._url = url
        self._host = url.raw_host or ""
        self._tls: ssl.SSLContext | None = None
        self._all: set[Connection] = set()
        self._kept_until_s: dict[Connection, float] = {}
        self._sweep: TimerHandle | None = None
        self._lookup: asyncio.Task[Addresses] | None = None
        self._looked_up_s = 0.0
        self._closed: asyncio.Future[None] | None = None

    def take(self) -> Connection | None:
        """A kept connection, the one that was used last; None when there is none. The server may
        have closed it in this moment."""
        while self._kept_until_s:
            connection, _ = self._kept_until_s.popitem()
            if connection.usable:
                return connection
        return None

    async def connect(self) -> Connection:
        """A new connection. Raises `OSError`."""
        if self._closed is not None:
            raise _closed_error()
        try:
            connected = await start_connection(
                await self._addresses(), happy_eyeballs_delay=NEXT_ADDRESS_S
            )
        except OSError:
            self._looked_up_s = float("-inf")  # it may have moved
            raise
        connection = Connection(self._keep, self._lost)
        self._all.add(connection)
        try:
            await self._begin(connection, connected)
        except BaseException:
            self._lost(connection)
            raise
        return connection

    async def close(self) -> None:
        """Close all connections, also those in use."""
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        if self._lookup is not None:
            self._lookup.cancel()
        self._kept_until_s.clear()
        self._closed = asyncio.get_running_loop().create_future()
        if self._all:
            for connection in self._all:
                connection.give_up(_closed_error())
            await self._closed

    async def _begin(self, connection: Connection, connected: socket.socket) -> None:
        """Speak over a socket that is connected."""
        secure = self._url.scheme == "https"
        await asyncio.get_running_loop().create_connection(
            lambda: connection,
            sock=connected,
            ssl=self._tls_context() if secure else None,
            server_hostname=self._host.rstrip(".") if secure else None,
        )
        if self._closed is not None:
            connection.abort()
            raise _closed_error()

    # --- keeping ---------------------------------------------------------------------------------

    def _keep(self, connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        until_s = self._kept_until_s[connection] = loop.time() + KEPT_S
        if self._sweep is None:
            self._sweep = loop.call_at(until_s, self._close_unused)

    def _lost(self, connection: Connection) -> None:
        self._kept_until_s.pop(connection, None)
        self._all.discard(connection)
        if not self._all and self._closed is not None and not self._closed.done():
            self._closed.set_result(None)

    def _close_unused(self) -> None:
        loop = asyncio.get_running_loop()
        soon_s = loop.time() + TIMER_SLACK_S
        for connection, until_s in list(self._kept_until_s.items()):
            if until_s > soon_s:
                self._sweep = loop.call_at(until_s, self._close_unused)
                return
            del self._kept_until_s[connection]
            connection.abort()
        self._sweep = None

    # --- connecting ------------------------------------------------------------------------------

    async def _addresses(self) -> Addresses:
        """Of the server, looked up once for all who ask at the same time."""
        loop = asyncio.get_running_loop()
        lookup = self._lookup
        if lookup is None or (lookup.done() and loop.time() - self._looked_up_s > RESOLVED_S):
            lookup = self._lookup = loop.create_task(self._resolve())
            self._looked_up_s = loop.time()
        return await asyncio.shield(lookup)

    async def _resolve(self) -> Addresses:
        return await asyncio.get_running_loop().getaddrinfo(
            self._host, self._url.port, type=socket.SOCK_STREAM
        )

    def _tls_context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context()
            self._tls.set_alpn_protocols(["http/1.1"])
        return self._tls


def _closed_error() -> OSError:
    return ConnectionAbortedError("the client was closed")
