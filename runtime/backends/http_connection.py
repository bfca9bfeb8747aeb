"""One HTTP/1.1 connection, and the answer that comes over it.

A connection carries one exchange at a time. Bytes are parsed where they arrive, in the loop's
callback, and whoever waits is woken when what it waits for is there: once for a whole answer, at
each arrival for a stream.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from runtime.backends.http_deadlines import OverdueError

MAX_HEAD_BYTES = 256 * 1024
MOST_UNREAD_BYTES = 1024 * 1024
"""Of a stream: what nobody reads is left in the server from here on."""
FRAMING = 8
"""The bytes of a chunked body are at most this many times those of its contents: one byte a chunk
is six."""

_BEGUN, _PART, _WHOLE = 1, 2, 3


class CutOffError(Exception):
    """The connection broke, or spoke no HTTP any more, inside an answer."""


class TooLargeError(Exception):
    """An answer is larger than was agreed."""


class Answer:
    """What comes back to one request.

    Who waits for it gets what broke it: `CutOffError` inside the answer, `OSError` before it,
    `TooLargeError`, or what `fail` was given.

    Attributes:
        status: 0 until the headers are there.
        headers: names and values in turn, as they came.
        touched: whether any byte has come.
        complete: whether the last byte has.
        last: whether the server closes the connection after it.
        error: what broke it.
    """

    __slots__ = (
        "_awaited", "_connection", "_most_bytes", "_n_body", "_n_received", "_parts", "_waiter",
        "complete", "error", "headers", "last", "status", "touched",
    )  # fmt: skip

    def __init__(self) -> None:
        self._waiter: asyncio.Future[None] | None = None
        self._awaited = 0
        self._connection: Connection | None = None
        self._most_bytes: int | None = None
        self._parts: list[bytes] = []
        self._n_body = self._n_received = 0
        self.status = 0
        self.headers: list[bytes] = []
        self.touched = self.complete = self.last = False
        self.error: BaseException | None = None

    # --- for who waits ---------------------------------------------------------------------------

    async def begun(self) -> None:
        """Until status and headers are there."""
        if not self.status:
            await self._woken(_BEGUN)

    async def ended(self, most_bytes: int) -> None:
        """Until the body is there, of which so many bytes may come."""
        self._most_bytes = most_bytes
        if not self.complete:
            if self._n_body > MOST_UNREAD_BYTES:
                self._pause(False)
            await self._woken(_WHOLE)
        if self._n_body > most_bytes:
            raise TooLargeError

    async def part(self) -> bytes:
        """What has come of the body since it was taken last; empty at its end."""
        if not self._parts and not self.complete:
            await self._woken(_PART)
        return self.take()

    def take(self) -> bytes:
        """What has come of the body since it was taken last."""
        parts = self._parts
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        if self._n_body > MOST_UNREAD_BYTES:
            self._pause(False)
        self._n_body = 0
        return data

    def header(self, name: bytes) -> bytes:
        """The first header of this name, which is in lower case; empty for none."""
        headers = self.headers
        for at in range(0, len(headers), 2):
            if headers[at].lower() == name:
                return headers[at + 1]
        return b""

    def restart(self) -> None:
        """Another connection is tried: forget what came over the first one."""
        self.leave()
        self.status = self._n_body = self._n_received = 0
        self.touched = self.complete = self.last = False
        self.error = None
        self.headers.clear()
        self._parts.clear()

    def leave(self) -> None:
        """Nobody waits any more: unless it is complete, its connection is closed, which tells the
        server."""
        if self._connection is not None:
            self._connection.abort()
            self._connection = None

    def rest(self, most_bytes: int) -> Answer | None:
        """What is left of it, at most so many bytes, for nobody to read: if that comes to its end,
        the connection can be used again. None when nothing is left."""
        connection, self._connection = self._connection, None
        if connection is None:
            return None
        rest = Answer()
        rest.touched, rest.status, rest.headers = self.touched, self.status, self.headers
        rest._most_bytes = most_bytes
        connection.tell(rest)
        return rest

    def fail(self, error: BaseException) -> None:
        """End it by `error`, unless it has ended."""
        if not self.complete and (self.error is None or isinstance(error, OverdueError)):
            self.error = error
            self.leave()
            self._wake()

    async def _woken(self, awaited: int) -> None:
        if self.error is None:
            self._awaited = awaited
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if self.error is not None:
            raise self.error

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _pause(self, pause: bool) -> None:
        if self._connection is not None:
            self._connection.pause(pause)

    # --- for the connection ----------------------------------------------------------------------

    def comes_over(self, connection: Connection) -> None:
        self._connection = connection

    def add(self, part: bytes) -> None:
        """A part of the body."""
        self._parts.append(part)
        self._n_body += len(part)

    def end(self, *, last: bool) -> None:
        """The last byte has come."""
        self.complete, self.last = True, last
        self._connection = None

    def arrived(self, n_bytes: int) -> None:
        """So many bytes have come and were read."""
        self._n_received += n_bytes
        if self.complete:
            self._wake()
            return
        self._check_size()
        awaited = self._awaited
        if (awaited == _BEGUN and self.status) or (awaited == _PART and self._parts):
            self._wake()

    def _check_size(self) -> None:
        if not self.status:
            if self._n_received > MAX_HEAD_BYTES:
                self.fail(ConnectionError(f"more than {MAX_HEAD_BYTES} bytes of headers"))
        elif self._most_bytes is None:
            if self._n_body > MOST_UNREAD_BYTES:
                self._pause(True)
        elif self._n_body > self._most_bytes or self._n_received > FRAMING * self._most_bytes:
            self.fail(TooLargeError())


class Connection(asyncio.Protocol):
    """A connection to a server.

    Args:
        on_free: told when it can carry another exchange.
        on_lost: told when it is gone.
    """

    def __init__(
        self, on_free: Callable[[Connection], None], on_lost: Callable[[Connection], None]
    ) -> None:
        self._on_free = on_free
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._parser: HttpResponseParser | None = HttpResponseParser(self)
        self._answer: Answer | None = None
        self._stray = False

    @property
    def usable(self) -> bool:
        """Whether a request can be sent, as far as is known: the server may have closed it."""
        return self._transport is not None and not self._transport.is_closing()

    def send(self, request: bytes, answer: Answer) -> None:
        """Send a request; `answer` is told what comes back."""
        assert self._transport is not None
        self.tell(answer)
        self._transport.write(request)

    def tell(self, answer: Answer) -> None:
        """What comes from here on is for `answer`."""
        self._answer = answer
        answer.comes_over(self)

    def pause(self, pause: bool) -> None:
        """Stop reading, or go on. Safe to call twice."""
        transport = self._transport
        if transport is not None and not transport.is_closing():
            if pause:
                transport.pause_reading()
            else:
                transport.resume_reading()

    def abort(self) -> None:
        """Close it at once, whatever is under way."""
        self._answer = None
        if self._transport is not None:
            self._transport.abort()

    def give_up(self, error: Exception) -> None:
        """Close it at once; the answer under way ends by `error`."""
        if self._answer is not None:
            self._answer.fail(error)
        self.abort()

    # --- asyncio.Protocol ------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        connected: socket.socket | None = transport.get_extra_info("socket")
        if connected is not None:
            # A call may wait for minutes: a server that is gone is to be noticed before.
            with suppress(OSError):
                connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def data_received(self, data: bytes) -> None:
        answer = self._answer
        if answer is None or self._parser is None:
            self.abort()  # nobody has asked: a server that speaks first says that it will close
            return
        answer.touched = True
        broken: Exception | None = None
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            broken = error
        if broken is not None and not answer.complete:
            problem = f"what it sends is no HTTP: {broken or type(broken).__name__}"
            answer.fail(CutOffError(problem) if answer.status else ConnectionError(problem))
            return
        answer.arrived(len(data))
        if answer.complete:
            self._answer = None
            assert self._transport is not None
            # A server that answers before it has read the whole request may not read the rest.
            unsent = self._transport.get_write_buffer_size()
            if answer.last or broken is not None or self._stray or unsent:
                self.abort()
            elif not self._transport.is_closing():
                self._on_free(self)

    def connection_lost(self, exc: Exception | None) -> None:
        answer, self._answer = self._answer, None
        self._transport = self._parser = None  # which refers back to here
        self._on_lost(self)
        if answer is None:
            return
        if answer.status and exc is None and not _has_length(answer):
            answer.end(last=True)
            answer.arrived(0)
        elif answer.status:
            answer.fail(CutOffError(str(exc or "the server closed the connection")))
        else:
            answer.fail(exc or ConnectionResetError("the server closed the connection"))

    # --- httptools -------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._answer is None or self._answer.complete:
            # Another answer, which nobody has asked for.
            self._stray = True
            self._answer = Answer()

    def on_header(self, name: bytes, value: bytes) -> None:
        assert self._answer is not None
        self._answer.headers += (name, value)

    def on_headers_complete(self) -> None:
        assert self._answer is not None and self._parser is not None
        status = self._parser.get_status_code()
        if status >= 200:
            self._answer.status = status

    def on_body(self, body: bytes) -> None:
        assert self._answer is not None
        self._answer.add(body)

    def on_message_complete(self) -> None:
        assert self._answer is not None and self._parser is not None
        if self._answer.status:
            self._answer.end(last=not self._parser.should_keep_alive())
        else:
            self._answer.headers.clear()  # only news of progress (1xx): the answer follows


def _has_length(answer: Answer) -> bool:
    """Whether an answer says where it ends, other than by the end of its connection."""
    codings = answer.header(b"transfer-encoding").lower().split(b",")
    return bool(answer.header(b"content-length")) or codings[-1].strip() == b"chunked"
