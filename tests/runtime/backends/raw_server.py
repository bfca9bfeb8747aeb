"""A server that answers with the bytes that a test writes, in the loop of the test."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Self

Reply = Callable[["Exchange"], Awaitable[None]]


class Exchange:
    """A request that has come, and the way back.

    Attributes:
        number: of the request, over all connections, from 0.
        nth: of the request on its connection, from 0.
        head: its first line and headers.
    """

    def __init__(
        self, number: int, nth: int, head: str, body: bytes, writer: asyncio.StreamWriter
    ) -> None:
        self.number, self.nth, self.head, self.body = number, nth, head, body
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def answer(self, body: bytes, *headers: str, status: str = "200 OK") -> None:
        """Send a whole answer."""
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
        self.send("".join(f"{line}\r\n" for line in lines).encode() + b"\r\n" + body)

    def close(self) -> None:
        """End the connection properly."""
        self.writer.close()

    def reset(self) -> None:
        """Break the connection."""
        self.writer.transport.abort()

    @property
    def closed(self) -> bool:
        return self.writer.transport.is_closing()


class RawServer:
    """Answers requests with `reply`. An asynchronous context manager.

    Attributes:
        connections: that were made so far.
        open: that are open now.
        exchanges: the requests so far.
    """

    def __init__(self, reply: Reply, *, tls: ssl.SSLContext | None = None) -> None:
        self.reply = reply
        self.connections = self.open = 0
        self.exchanges: list[Exchange] = []
        self.url = ""
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._handlers: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._handle, "127.0.0.1", 0, ssl=self._tls)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"http{'s' if self._tls else ''}://127.0.0.1:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for handler, writer in self._handlers.items():
            writer.transport.abort()
            handler.cancel()
        if self._handlers:
            await asyncio.wait(self._handlers)

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._handlers[task] = writer
        self.connections += 1
        self.open += 1
        try:
            nth = 0
            while not writer.transport.is_closing():
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = next(
                    (int(line[15:]) for line in head.split("\r\n")
                     if line.lower().startswith("content-length:")), 0,
                )  # fmt: skip
                body = await reader.readexactly(length)
                exchange = Exchange(len(self.exchanges), nth, head, body, writer)
                self.exchanges.append(exchange)
                await self.reply(exchange)
                nth += 1
        except (asyncio.IncompleteReadError, OSError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            self.open -= 1
            with suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()
            del self._handlers[task]
