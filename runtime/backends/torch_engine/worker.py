"""The thread that drives an engine, and the event loop's way to it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from runtime.backends.torch_engine.engine import Engine
from runtime.backends.torch_engine.errors import ENGINE
from runtime.backends.torch_engine.sequence import GenerationRequest, Result, SequenceState
from runtime.errors import BackendError

T = TypeVar("T")


class EngineThread:
    """Runs steps while there is work. Everything that touches the engine happens in its thread.

    Opened in the event loop whose tasks use it.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._orders: deque[Callable[[], object]] = deque()
        self._wake = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="halo-torch", daemon=True)
        self._thread.start()

    async def generate(self, request: GenerationRequest) -> Result:
        """Answer `request`. Cancelling frees what it holds. Raises `BackendError`."""
        answer: asyncio.Future[Result] = self._loop.create_future()
        place: list[SequenceState] = []

        def submit() -> None:
            try:
                place.append(self._engine.submit(request, self.deliver_to(answer)))
            except BackendError as error:
                self._post(answer, error)

        self._order(submit)
        return await self.settle(answer, place)

    async def settle(self, answer: asyncio.Future[Result], place: list[SequenceState]) -> Result:
        """Wait for an answer; when the wait is cancelled, so is the request."""
        try:
            return await answer
        except asyncio.CancelledError:
            self.post(lambda engine: engine.cancel(place[0]) if place else None)
            raise

    def deliver_to(self, answer: asyncio.Future[Result]) -> Callable[[SequenceState], None]:
        """A callback for the engine's thread that settles `answer` in the loop."""

        def deliver(sequence: SequenceState) -> None:
            outcome = sequence.error if sequence.result is None else sequence.result
            assert outcome is not None
            self._post(answer, outcome)

        return deliver

    async def call(self, function: Callable[[Engine], T]) -> T:
        """`function` of the engine, run between two steps."""
        answer: asyncio.Future[T] = self._loop.create_future()

        def run() -> None:
            try:
                self._post(answer, function(self._engine))
            except Exception as error:  # the caller's to handle, not the thread's
                self._post(answer, error)

        self._order(run)
        return await answer

    def post(self, function: Callable[[Engine], object]) -> None:
        """As `call`, for nobody who waits. Nothing when closed: all has been given up then."""
        with contextlib.suppress(BackendError):
            self._order(partial(function, self._engine))

    def tell_loop(self, callback: Callable[[], None]) -> Callable[[], None]:
        """`callback`, made safe to be called in the engine's thread."""
        return lambda: self._in_loop(callback)

    async def close(self) -> None:
        """End the thread after the step at hand; what is unanswered gets an error."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        await asyncio.to_thread(self._thread.join)

    # ---- in the engine's thread

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._orders or self._closed or self._engine.has_work):
                    self._wake.wait()
                orders = list(self._orders)
                self._orders.clear()
                closed = self._closed
            for order in orders:
                order()
            if closed:
                self._engine.stop("the engine has been closed")
                return
            self._step()

    def _step(self) -> None:
        try:
            metrics = self._engine.step()
        except Exception:
            return  # the engine has told every request of it
        if metrics is None and self._engine.has_work:
            with self._wake:  # open prompts that wait for more
                if not (self._orders or self._closed):
                    self._wake.wait()

    # ---- between the two

    def _order(self, order: Callable[[], object]) -> None:
        with self._wake:
            if self._closed:
                raise BackendError("the engine has been closed", backend=ENGINE)
            self._orders.append(order)
            self._wake.notify()

    def _post(self, answer: asyncio.Future[T], outcome: T | Exception) -> None:
        def settle() -> None:
            if answer.done():
                return
            if isinstance(outcome, Exception):
                answer.set_exception(outcome)
            else:
                answer.set_result(outcome)

        self._in_loop(settle)

    def _in_loop(self, callback: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:
            return  # the loop is gone, and with it whoever waited
