"""A queue of functions in front of a few threads, which go from one function to the next without
the event loop in between.

A function of microseconds costs the loop a hand-over of the interpreter, which takes milliseconds
while the loop is busy. Threads that take the next function themselves do many of them in one
hand-over.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TypeVar

from runtime.deadline import real_timer
from runtime.threads import ThreadJob, start_in_thread

T = TypeVar("T")


class NoThreadError(RuntimeError):
    """No thread could be started."""


class _Job(ThreadJob[T]):
    """A function on its way. `started_s` is on the loop's clock; `began_s` and `took_s` are real
    time, which a virtual loop's clock does not follow."""

    def __init__(self, function: Callable[[], T]) -> None:
        super().__init__(function)
        self.started_s: float | None = None
        self.began_s = 0.0
        self.took_s = 0.0
        self.abandoned = False
        self.ended = False

    def start(self) -> None:
        """A thread has taken it."""
        self.began_s = time.perf_counter()
        self.started_s = self.loop.time()

    def end(self, result: T | None, error: BaseException | None) -> None:
        self.took_s = time.perf_counter() - self.began_s
        super().end(result, error)


class ThreadLane:
    """Runs functions in the order in which they come, `most` at once.

    A function that is given up (its time is over, or nobody waits for it any more) runs on in its
    thread, which no longer counts: another takes its place.
    """

    def __init__(self, most: int, name: str) -> None:
        self._most = most
        self._name = name
        self._lock = threading.Lock()
        self._jobs: deque[_Job[object]] = deque()
        self._threads = 0

    async def run(
        self,
        function: Callable[[], T],
        limit_s: float,
        late: Callable[[], Exception],
        on_end: Callable[[float, float], None] | None = None,
    ) -> T:
        """The result of `function`, or what it raises; `late()` is raised after it has run for
        `limit_s` seconds of real time, not counting the time in the queue. `on_end` is told when it
        started, on the loop's clock, and how many seconds it ran. Hold `clock.outside()` around
        this. Raises `NoThreadError`."""
        job: _Job[T] = _Job(function)
        with self._lock:
            self._jobs.append(job)  # type: ignore[arg-type]
        self._start_threads()
        given_up: Exception | None = None

        def look() -> float | None:
            nonlocal given_up
            if job.started_s is None:
                return limit_s
            left_s = job.began_s + limit_s - time.perf_counter()
            if left_s > 0 and not job.future.done():
                return left_s
            given_up = late()
            job.future.cancel()
            return None

        try:
            with real_timer(limit_s, look):
                return await job.outcome()
        except asyncio.CancelledError:
            self._give_up(job)
            current = asyncio.current_task()
            if given_up is not None and not (current and current.cancelling()):
                raise given_up from None
            raise
        finally:
            over = job.future.done() and not job.future.cancelled()
            if over and on_end is not None and job.started_s is not None:
                on_end(job.started_s, job.took_s)

    def refuse(self, error: Callable[[], Exception]) -> None:
        """Functions that wait for a thread are not run: `error()` is raised for each."""
        with self._lock:
            jobs = tuple(self._jobs)
            self._jobs.clear()
        for job in jobs:
            job.end(None, error())

    def _start_threads(self) -> None:
        with self._lock:
            n = min(len(self._jobs), self._most - self._threads)
            self._threads += n
        for i in range(n):
            try:
                start_in_thread(self._work, self._name)
            except RuntimeError as refused:
                self._refused(n - i, refused)
                return

    def _refused(self, n_threads: int, refused: RuntimeError) -> None:
        """Without any thread, nobody would ever take what waits."""
        with self._lock:
            self._threads -= n_threads
            if self._threads:
                return
        self.refuse(lambda: NoThreadError(str(refused)))

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._jobs:
                    self._threads -= 1
                    return
                job = self._jobs.popleft()
                job.start()
            job.run()
            with self._lock:
                if job.abandoned:
                    return
                job.ended = True

    def _give_up(self, job: _Job[T]) -> None:
        with self._lock:
            if job.started_s is None:
                with contextlib.suppress(ValueError):
                    self._jobs.remove(job)  # type: ignore[arg-type]
                return
            if job.ended:
                return
            job.abandoned = True
            self._threads -= 1
        self._start_threads()
