"""Prompts that grow while they are prefilled (Stream2LLM): retrieval overlaps prefill.

What a session has of its prompt is prefilled as it comes; the answer begins when it is closed. A
replaced end costs what comes after the longest common prefix.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from runtime.backends.base import Completion, Request
from runtime.backends.torch_engine.engine import Engine
from runtime.backends.torch_engine.errors import RequestRefusedError
from runtime.backends.torch_engine.sequence import Result, SequenceState
from runtime.backends.torch_engine.worker import EngineThread

if TYPE_CHECKING:
    from runtime.backends.torch_engine.backend import TorchBackend

T = TypeVar("T")


class PromptSession:
    """A request whose last message is still coming in.

    Attributes:
        invalidated_tokens: computed tokens that replacing the text made useless.
    """

    def __init__(self, backend: TorchBackend, thread: EngineThread, request: Request) -> None:
        if not request.messages:
            raise RequestRefusedError("an open prompt needs a message that can grow")
        self._backend, self._thread, self._request = backend, thread, request
        self._text = request.messages[-1].content
        self._answer: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        # A step that breaks down may end it before anybody waits.
        self._answer.add_done_callback(lambda answer: answer.cancelled() or answer.exception())
        self._place: list[SequenceState] = []
        self.invalidated_tokens = 0

    @classmethod
    async def open(
        cls, backend: TorchBackend, thread: EngineThread, request: Request
    ) -> PromptSession:
        session = cls(backend, thread, request)
        first = backend.to_generation(request, session._stable_ids())
        deliver = thread.deliver_to(session._answer)
        await session._tell(
            lambda engine: session._place.append(engine.submit(first, deliver, is_open=True))
        )
        return session

    async def append(self, text: str) -> None:
        """More of the last message."""
        await self.replace(self._text + text)

    async def replace(self, text: str) -> None:
        """Another text of the last message. Raises `BackendError` when it no longer fits."""
        self._text = text
        self.invalidated_tokens += await self._tell(self._update(self._stable_ids()))

    async def close(self, request: Request | None = None) -> Completion:
        """The message is whole, as it is here or in `request`: wait for the answer."""
        start_s = self._backend.now_s()
        request = request or self._current(self._text)
        update = self._update(self._backend.encode(request))

        def finish(engine: Engine) -> int:
            dropped = update(engine)
            engine.close_prompt(self._place[0])
            return dropped

        self.invalidated_tokens += await self._tell(finish)
        with self._backend.outside():
            result = await self._thread.settle(self._answer, self._place)
        return self._backend.to_completion(request, result, start_s)

    async def abandon(self) -> None:
        """Give the prompt up; what was prefilled stays as cache."""
        self._answer.cancel()
        await self._tell(self._cancel)

    async def _tell(self, function: Callable[[Engine], T]) -> T:
        """`function` of the engine, between two steps. When the wait is cancelled, so is the
        prompt."""
        with self._backend.outside():
            try:
                return await self._thread.call(function)
            except asyncio.CancelledError:
                self._thread.post(self._cancel)
                raise

    def _cancel(self, engine: Engine) -> None:
        for sequence in self._place:
            engine.cancel(sequence)

    def _update(self, ids: list[int]) -> Callable[[Engine], int]:
        return lambda engine: engine.update_prompt(self._place[0], ids)

    def _current(self, text: str) -> Request:
        *before, last = self._request.messages
        return replace(self._request, messages=(*before, replace(last, content=text)))

    def _stable_ids(self) -> list[int]:
        """The prompt's tokens up to where more text may change them: what two different
        continuations have in common. Guessing wrong costs a token or two, never an answer."""
        one, other = (self._backend.encode(self._current(self._text + t)) for t in (" a", "\n\n"))
        same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
        return [token for token, _ in same]
