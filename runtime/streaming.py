"""Prompts that grow while a tool still returns rows: retrieval overlaps prefill (Stream2LLM).

A model call waits for all that its prompt names. Where it waits for nothing but a tool or a query
that gives rows one by one, and its engine takes open prompts (`Capabilities.open_prompts`), the
prompt is opened with the first rows and grows with the others. The call itself is made as ever,
when the value is whole: its key, its record and its answer are those of a prompt that came at once,
whatever rows came before. An open prompt that nobody needs any more, because the tool failed or the
call was answered from elsewhere, is given up.

    RowStream    the rows of one call in flight, for all who wait for it
    Growth       one operator of one frame, and the prompts that grow with its rows
    OpenCall     one prompt, open in an engine
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from planner.logical import Json, Op
from runtime.backends.base import Backend, Completion, OpenPrompt, Request
from runtime.errors import BackendError
from runtime.records import CallSite
from runtime.scope import Frame
from runtime.tools import OnRows

FEWEST_CHARS = 256
GROWTH = 8
"""A prompt grows when `FEWEST_CHARS` have come, and an eighth of what it has of the rows: each time
it is tokenized again, so that this costs a constant factor."""


class RowStream:
    """The rows that a call in flight has given so far, as the beginning of the text that its value
    will have inside a prompt (`planner.logical.render_value`)."""

    def __init__(self) -> None:
        self.n_chars = 0
        self._parts: list[str] = []
        self._attempt = 0
        self._listeners: list[Listener] = []

    @property
    def text(self) -> str:
        return "".join(self._parts)

    def attempt(self) -> OnRows:
        """Begin again: the rows so far are those of an attempt that failed. Returns what takes the
        rows of the new one, in any thread."""
        loop = asyncio.get_running_loop()
        self._attempt += 1
        self._parts, self.n_chars = [], 0
        number = self._attempt

        def push(rows: Sequence[Json]) -> None:
            texts = [json.dumps(row, ensure_ascii=False) for row in rows]
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(self._add, number, texts)

        return push

    def _add(self, number: int, texts: list[str]) -> None:
        if number != self._attempt or not texts:
            return  # of a thread that was given up
        for text in texts:
            part = (", " if self._parts else "[") + text
            self._parts.append(part)
            self.n_chars += len(part)
        for listener in self._listeners:
            listener(self)

    def join(self, listener: Listener) -> None:
        """Tell `listener` whenever rows have come, and at once if some have."""
        self._listeners.append(listener)
        if self._parts:
            listener(self)

    def leave(self, listener: Listener) -> bool:
        """Tell it no more. Whether nobody listens any longer."""
        self._listeners.remove(listener)
        return not self._listeners


Listener = Callable[[RowStream], None]


class RowStreams:
    """The streams of calls in flight, by call key."""

    def __init__(self) -> None:
        self._streams: dict[str, RowStream] = {}

    @contextlib.contextmanager
    def listening(self, key: str, listener: Listener | None) -> Generator[None, None, None]:
        """Around the wait for a call."""
        if listener is None:
            yield
            return
        stream = self._streams.setdefault(key, RowStream())
        stream.join(listener)
        try:
            yield
        finally:
            if stream.leave(listener):
                del self._streams[key]

    def attempt(self, key: str) -> OnRows | None:
        """What takes the rows of an attempt that begins; None when nobody listens."""
        stream = self._streams.get(key)
        return None if stream is None else stream.attempt()


# --- the executor's side --------------------------------------------------------------------------


class PromptOpener(Protocol):
    """Opens prompts: `runtime.dispatch.Dispatcher`."""

    def open(
        self, worker: str, request: Request, site: CallSite, *, priority: int = 0
    ) -> OpenCall | None:
        """Begin a call whose last message is not whole. None when the engine takes no open prompts
        or has no place to spare."""
        ...


@runtime_checkable
class GrowingStep(Protocol):
    """A model call whose prompt can begin before it is whole."""

    def opening(self, frame: Frame, position: int) -> str | None:
        """The last message up to where the value at `position` comes first; None when another part
        of the conversation needs that value."""
        ...

    def open(self, frame: Frame, query: str, text: str, opener: PromptOpener) -> OpenCall | None:
        """Open the prompt with `text` as the beginning of its last message."""
        ...


@dataclass(slots=True)
class _Reader:
    """A model call of the frame that reads the rows. `sent_chars` is how much of their text there
    was when its prompt was last told of them, after `begin`."""

    position: int
    step: GrowingStep
    begin: str = ""
    sent_chars: int = 0


class Growth:
    """The prompts of `frame` that grow with the rows of its operator at `position`. It listens to
    a `RowStream`."""

    def __init__(self, frame: Frame, position: int, opener: PromptOpener) -> None:
        self._frame, self._position, self._opener = frame, position, opener
        scope = frame.scope
        self._readers: list[_Reader] = []
        for dependent in scope.dependents[position]:
            step = scope.calls.get(dependent)
            if isinstance(step, GrowingStep):
                self._readers.append(_Reader(dependent, step))

    def __bool__(self) -> bool:
        return bool(self._readers)

    def __call__(self, stream: RowStream) -> None:
        for reader in self._readers:
            self._grow(reader, stream)

    def _grow(self, reader: _Reader, stream: RowStream) -> None:
        frame, call = self._frame, self._frame.early.get(reader.position)
        if call is None and not frame.waits_for_one(reader.position):
            return
        if stream.n_chars < reader.sent_chars:
            reader.sent_chars = 0  # another attempt
        least = max(FEWEST_CHARS, reader.sent_chars // GROWTH) if reader.sent_chars else 0
        if stream.n_chars - reader.sent_chars < least:
            return
        reader.sent_chars = stream.n_chars
        if call is not None:
            call.grow(reader.begin + stream.text)
            return
        begin = reader.step.opening(frame, self._position)
        if begin is None:
            return
        reader.begin, query = begin, frame.query_of(reader.position)
        call = reader.step.open(frame, query, begin + stream.text, self._opener)
        if call is not None:
            frame.early[reader.position] = call

    def abandon(self) -> None:
        """The rows will never be whole."""
        for reader in self._readers:
            call = self._frame.early.pop(reader.position, None)
            if call is not None:
                call.abandon()


@contextlib.contextmanager
def growing(
    frame: Frame, op: Op, opener: PromptOpener | None
) -> Generator[Listener | None, None, None]:
    """Around the call of `op` in `frame`: what is to hear of its rows, if any prompt can grow with
    them. When the call fails, such prompts are given up."""
    growth = None
    if opener is not None:
        growth = Growth(frame, frame.scope.position_of(op), opener)
    if not growth:
        yield None
        return
    try:
        yield growth
    except BaseException:
        growth.abandon()
        raise


# --- the engine's side ----------------------------------------------------------------------------


class OpenCall:
    """A prompt that is open in `engine`, from its first rows until its call is made or given up.

    One task speaks to the engine, so that texts arrive in order; of those that come while it is
    busy, the last one counts. When the engine will not go on, the call is made as without it.
    """

    def __init__(
        self, worker: str, engine: Backend, request: Request, on_end: Callable[[OpenCall], None]
    ) -> None:
        self.worker = worker
        self._engine = engine
        self._text: str | None = None
        self._whole: Request | None = None
        self._changed = asyncio.Event()
        self._taken = False
        self._task = asyncio.create_task(self._run(request))
        self._task.add_done_callback(lambda _: on_end(self))

    def grow(self, text: str) -> None:
        """`text` is what there is of the last message now."""
        self._text = text
        self._changed.set()

    def take(self) -> bool:
        """Claim the prompt for its call: who has it calls `answer` or `abandon`. False when it was
        claimed or given up before."""
        free = not (self._taken or self._task.cancelling() or self._task.cancelled())
        self._taken = True
        return free

    def drop(self) -> None:
        """Give the prompt up, unless a call has claimed it."""
        if not self._taken:
            self.abandon()

    def abandon(self) -> None:
        """Give the prompt up, unless it has been answered. What was prefilled stays as cache."""
        self._task.cancel()

    async def answer(
        self, request: Request, on_prefilled: Callable[[], None] | None = None
    ) -> Completion:
        """Answer `request`, which is what was opened with its last message whole. As
        `Backend.generate`."""
        self._whole = request
        self._changed.set()
        completion = await self._task
        if completion is None:
            completion = await self._engine.generate(request, on_prefilled)
        return completion

    async def ended(self) -> None:
        """Wait until the engine has been told that the prompt was given up."""
        await asyncio.wait((self._task,))

    async def _run(self, request: Request) -> Completion | None:
        """Pass texts on, then the whole; None when the engine did not keep the prompt open."""
        session: OpenPrompt | None = None
        try:
            session = await self._engine.open_prompt(request)
            while self._whole is None:
                text, self._text = self._text, None
                if text is not None:
                    await session.replace(text)
                else:
                    await self._changed.wait()
                    self._changed.clear()
        except BackendError:
            return None  # the call itself will tell what is wrong, if it still is
        except asyncio.CancelledError:
            if session is not None:
                with contextlib.suppress(BackendError):
                    await session.abandon()
            raise
        return await session.close(self._whole)
