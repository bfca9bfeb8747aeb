"""Replicas: routing by prefix, breakers, recovery; on simulated time, with engines that obey."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodel.usage import OpMetrics, Usage
from runtime.backends.base import Backend, Capabilities, Completion, Message, Request
from runtime.clock import Clock, LoopClock, new_event_loop
from runtime.dispatch import Dispatcher
from runtime.errors import BackendError, ContextOverflowError, EngineUnreachableError, PromptError
from runtime.fleet.admission import LEAST_IN_FLIGHT, MOST_WAITING, Admission, Load
from runtime.fleet.breaker import FAILURES_TO_OPEN, REFUSALS_TO_OPEN, CircuitBreaker
from runtime.fleet.rate_limit import RateLimit, TokenBucket
from runtime.fleet.replicas import FleetBackend
from runtime.fleet.routing import PrefixRouter
from runtime.memory_store import MemoryStore
from runtime.records import CallSite
from runtime.sharing import CallTable

T = TypeVar("T")


def run(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    async def bounded() -> T:
        async with asyncio.timeout(100_000):  # of simulated time
            return await main()

    with asyncio.Runner(loop_factory=lambda: new_event_loop(True)) as runner:
        return runner.run(bounded())


class Engine(Backend):
    """A replica under the test's control."""

    def __init__(self, clock: Clock, name: str = "engine", slots: int = 8) -> None:
        self.name = name
        self.requests_seen = 0
        self.up = True
        self.answers: list[str] = []
        self.error: BackendError | None = None
        self.closed = False
        self._clock = clock
        self._slots = slots

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(self._slots, context_tokens=100, cache_tokens=1000)

    async def generate(
        self, request: Request, on_prefilled: Callable[[], None] | None = None
    ) -> Completion:
        self.requests_seen += 1
        await self._clock.sleep_s(1.0)
        if not self.up:
            raise EngineUnreachableError("gone", backend="x", retryable=True)
        if self.error is not None:
            raise self.error
        self.answers.append(request.messages[0].content)
        return Completion(self.name, "stop", Usage(1, 1))

    async def health(self) -> bool:
        return self.up

    async def close(self) -> None:
        self.closed = True


def ask(text: str) -> Request:
    return Request(text, "m", (Message("user", text),))


# --- routing -------------------------------------------------------------------------------------


def test_rows_with_one_prefix_go_to_one_replica_and_load_is_even() -> None:
    async def main() -> None:
        clock = LoopClock()
        engines = [Engine(clock, str(i), 100) for i in range(2)]
        fleet = FleetBackend(engines, clock)
        documents = [f"{i} " * 400 for i in range(8)]
        rows = [f"{document}question {k}" for k in range(6) for document in documents]
        await asyncio.gather(*(fleet.generate(ask(row)) for row in rows))
        homes = [{row[:1] for row in engine.answers} for engine in engines]
        assert not homes[0] & homes[1] and len(homes[0] | homes[1]) == 8
        assert abs(len(engines[0].answers) - len(engines[1].answers)) <= 12

    run(main)


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), min_size=1, max_size=60),
    st.integers(2, 4),
)
def test_no_replica_is_flooded_for_its_cache(picks: list[tuple[int, int]], n: int) -> None:
    """Calls never end here: however prefixes repeat, loads stay within the promised bounds."""
    router = PrefixRouter([1000] * n)
    busy = [0] * n
    for group, tail in picks:
        busy[router.choose([group, group * 10, 100 + tail], busy)] += 1
        assert max(busy) <= max(min(busy) + 9, int(min(busy) * 1.5) + 1)


def test_an_unusable_replica_is_never_chosen() -> None:
    router = PrefixRouter([1000, 1000])
    assert router.choose([1, 2], [0, 5]) == 0
    assert router.choose([1, 2], [0, 5], [False, True]) == 1


# --- breakers ------------------------------------------------------------------------------------


def test_a_breaker_opens_for_the_right_reasons() -> None:
    row_faults = [
        ContextOverflowError("long", backend="x"), PromptError("template", backend="x"),
    ]  # fmt: skip
    breaker = CircuitBreaker()
    for _ in range(1000):
        for fault in row_faults:
            breaker.failed(fault, 0)
    assert breaker.closed
    busy = BackendError("429", backend="x", retryable=True)
    for _ in range(FAILURES_TO_OPEN - 1):
        breaker.failed(busy, 0)
    breaker.succeeded()
    for _ in range(FAILURES_TO_OPEN - 1):
        breaker.failed(busy, 0)
    assert breaker.closed
    breaker.failed(busy, 0)
    assert not breaker.closed and not breaker.refuses_all


def test_checks_come_at_growing_distances() -> None:
    breaker = CircuitBreaker()
    breaker.open("gone", 0.0)
    dues: list[float] = []
    now_s = 0.0
    while len(dues) < 9:
        now_s += 0.25
        if breaker.check_due(now_s):
            dues.append(now_s)
            breaker.check_failed(now_s)
    gaps = [b - a for a, b in itertools.pairwise(dues)]
    assert gaps == sorted(gaps) and gaps[0] == 1 and gaps[-1] == 30


def test_one_bad_row_in_a_hundred_opens_nothing() -> None:
    async def main() -> None:
        engine = Engine(LoopClock())
        fleet = FleetBackend([engine], LoopClock())
        failed = 0
        for i in range(1000):
            engine.error = None if i % 100 else BackendError("bad row", backend="x")
            try:
                await fleet.generate(ask(f"{i}"))
            except BackendError:
                failed += 1
        assert failed == 10 and engine.requests_seen == 1000

    run(main)


def test_when_every_row_is_refused_the_server_is_soon_left_alone() -> None:
    async def main() -> None:
        engine = Engine(LoopClock())
        engine.error = BackendError("wrong key", backend="x")
        fleet = FleetBackend([engine], LoopClock())
        for i in range(500):
            with pytest.raises(BackendError, match="wrong key"):
                await fleet.generate(ask(f"{i}"))
        assert engine.requests_seen == REFUSALS_TO_OPEN <= 50
        await fleet.close()

    run(main)


# --- recovery ------------------------------------------------------------------------------------


async def complete_all(fleet: FleetBackend, clock: Clock, n: int) -> list[Any]:
    metrics: dict[str, OpMetrics] = {}
    store = MemoryStore()
    dispatcher = Dispatcher({"w": fleet}, CallTable(store, metrics), store, clock)
    sites = [CallSite("op", "q", i, str(i)) for i in range(n)]
    return await asyncio.gather(
        *(dispatcher.complete("w", ask(f"row {i}"), site) for i, site in enumerate(sites)),
        return_exceptions=True,
    )


def test_the_rows_of_a_dead_replica_move() -> None:
    async def main() -> None:
        clock = LoopClock()
        engines = [Engine(clock, "a"), Engine(clock, "b")]
        fleet = FleetBackend(engines, clock)

        async def kill() -> None:
            await clock.sleep_s(2.5)
            engines[0].up = False

        killer = asyncio.create_task(kill())
        records = await complete_all(fleet, clock, 100)
        await killer
        assert all(not isinstance(r, BaseException) for r in records)
        assert sorted(engines[0].answers + engines[1].answers) == sorted(
            f"row {i}" for i in range(100)
        )
        # What was inside when it died failed once; after that it was asked nothing.
        assert engines[0].requests_seen - len(engines[0].answers) <= 8
        await fleet.close()
        assert all(engine.closed for engine in engines)

    run(main)


def test_calls_wait_for_a_server_that_restarts() -> None:
    async def main() -> None:
        clock = LoopClock()
        engine = Engine(clock)
        fleet = FleetBackend([engine], clock)

        async def restart() -> None:
            await clock.sleep_s(3.5)
            engine.up = False
            await clock.sleep_s(60)
            engine.up = True

        restarting = asyncio.create_task(restart())
        records = await complete_all(fleet, clock, 60)
        await restarting
        assert all(not isinstance(r, BaseException) for r in records)
        assert engine.requests_seen <= 60 + 8
        await fleet.close()

    run(main)


class Resetting(Engine):
    """Breaks the connection of some calls, the first time that they come."""

    def __init__(self, clock: Clock, *reset: str) -> None:
        super().__init__(clock)
        self.reset = set(reset)

    async def generate(
        self, request: Request, on_prefilled: Callable[[], None] | None = None
    ) -> Completion:
        if request.messages[0].content not in self.reset:
            return await super().generate(request, on_prefilled)
        self.reset.discard(request.messages[0].content)
        raise EngineUnreachableError("reset", backend="x", retryable=True)


def test_an_answer_to_another_call_ends_the_wait_for_a_server() -> None:
    """One connection of several breaks: the server lives, as the answers on the others tell."""

    async def main() -> None:
        clock = LoopClock()
        fleet = FleetBackend([Resetting(clock, "reset")], clock)
        others = asyncio.create_task(fleet.generate(ask("other")))
        await clock.sleep_s(0.9)
        with pytest.raises(EngineUnreachableError):
            await fleet.generate(ask("reset"))
        again = asyncio.create_task(fleet.generate(ask("reset")))
        await others
        await again
        assert clock.now_s() < 5  # not until nobody waits for a recovery any more
        await fleet.close()

    run(main)


def test_a_server_that_comes_and_goes_is_waited_for() -> None:
    """It is back for a moment, and gone before those who wait have noticed."""

    async def main() -> None:
        clock = LoopClock()
        engine = Engine(clock)
        fleet = FleetBackend([engine], clock, recovery_s=30)
        gone = EngineUnreachableError("gone", backend="x", retryable=True)
        engine.up = False
        with pytest.raises(EngineUnreachableError):
            await fleet.generate(ask("first"))
        waits = asyncio.create_task(fleet.generate(ask("waits")))
        await clock.sleep_s(3)
        fleet._note_success(fleet.replicas[0])
        fleet._note_failure(fleet.replicas[0], gone)
        await clock.sleep_s(3)
        engine.up = True
        assert (await waits).text == "engine" and clock.now_s() < 20
        await fleet.close()

    run(main)


def test_a_server_that_stays_away_ends_rows_with_its_name() -> None:
    async def main() -> None:
        clock = LoopClock()
        engine = Engine(clock)
        engine.up = False
        fleet = FleetBackend([engine], clock, recovery_s=30)
        records = await complete_all(fleet, clock, 20)
        assert all(isinstance(r, EngineUnreachableError) for r in records)
        assert {str(r) for r in records} == {"no server has answered for 30 s: gone"}
        assert engine.requests_seen <= 8
        await fleet.close()

    run(main)


def test_replicas_offer_what_the_weakest_does() -> None:
    clock = LoopClock()
    fleet = FleetBackend([Engine(clock, slots=3), Engine(clock, slots=4)], clock)
    assert fleet.capabilities.max_in_flight == 7 == fleet.in_flight_limit
    assert fleet.capabilities.cache_tokens == 2000 and fleet.capabilities.context_tokens == 100


# --- admission -----------------------------------------------------------------------------------


@given(
    st.lists(
        st.builds(
            Load,
            running=st.integers(0, 600),
            waiting=st.integers(0, 600),
            waiting_tokens=st.none() | st.integers(0, 10**7),
        ),
        max_size=30,
    ),
    st.integers(1, 1000),
)
def test_admission_stays_within_its_bounds(loads: list[Load], most: int) -> None:
    admission = Admission(most=most)
    for load in loads:
        limit = admission.observe(load, admission.limit)
        assert 1 <= limit <= most
        if load.waiting:
            assert limit <= max(LEAST_IN_FLIGHT, load.running + MOST_WAITING)


@pytest.mark.parametrize("prompt_tokens", [50, 500, 5000])
def test_admission_keeps_a_server_full_and_its_queue_short(prompt_tokens: int) -> None:
    """A server that prefills 8,192 tokens a step and has room for 200 running requests, one step
    between two looks: after a while its batch is full and its queue within two steps' work."""
    admission = Admission(most=512)
    in_flight = running = waiting = 0
    for step in range(500):
        new = admission.limit - in_flight
        in_flight += max(0, new)
        waiting += max(0, new)
        started = min(waiting, 8192 // prompt_tokens, 200 - running)
        waiting, running = waiting - started, running + started
        ended = running // 20
        running, in_flight = running - ended, in_flight - ended
        admission.observe(Load(running, waiting, waiting * prompt_tokens), in_flight)
        if step > 400:  # the first guess has drained
            assert (
                started == min(8192 // prompt_tokens, started + waiting) or running + ended >= 190
            )
            assert waiting <= MOST_WAITING


# --- rates ---------------------------------------------------------------------------------------


@given(st.floats(30, 6000), st.lists(st.integers(1, 400), min_size=5, max_size=60))
def test_a_bucket_gives_no_more_than_its_rate(per_minute: float, amounts: list[int]) -> None:
    bucket = TokenBucket(per_minute, 0.0)
    at_s = [bucket.take(amount, 0.0) for amount in amounts]
    assert at_s == sorted(at_s)
    sent = sum(amounts[:-1])
    # By the time the last goes, everything before it fits rate times time, plus one bucket.
    room = max(1.0, per_minute / 60 * 2)
    assert sent <= at_s[-1] * per_minute / 60 + room + max(amounts) + 1e-6


def test_calls_at_once_follow_what_a_server_bears() -> None:
    """A server that refuses more than 10 at once: within 30 s the limit is within twice of that."""

    async def main() -> None:
        clock = LoopClock()
        limit = RateLimit(clock, most=64)
        inside = 0
        refused = 0
        late: list[int] = []

        async def call() -> None:
            nonlocal inside, refused
            inside += 1
            try:
                if inside > 10:
                    refused += 1
                    limit.refused(1.0, {})
                    return
                await clock.sleep_s(0.2)
                limit.succeeded({}, 0)
            finally:
                inside -= 1

        async def worker(index: int) -> None:
            while clock.now_s() < 60:
                if index < limit.at_once:
                    await limit.wait(1)
                    await call()
                    if clock.now_s() > 30:
                        late.append(limit.at_once)
                await clock.sleep_s(0.05)

        await asyncio.gather(*(worker(i) for i in range(64)))
        assert refused and 5 <= max(late) <= 20

    run(main)


@given(st.lists(st.floats(0.1, 20), min_size=1, max_size=8))
def test_nothing_is_sent_before_the_moment_a_server_named(pauses: list[float]) -> None:
    async def main() -> None:
        clock = LoopClock()
        limit = RateLimit(clock)
        for pause_s in pauses:
            now_s = clock.now_s()
            limit.refused(pause_s, {})
            await limit.wait(1)
            assert clock.now_s() >= now_s + pause_s - 1e-9

    run(main)


def test_a_server_that_keeps_the_plans_order_may_have_a_long_queue_until_its_cache_is_full() -> (
    None
):
    admission = Admission(most=800, keeps_order=True)
    assert admission.limit == 800
    roomy = Load(running=300, waiting=400, waiting_tokens=400_000, cache_usage=0.5)
    assert admission.observe(roomy, in_flight=700) == 800
    full = Load(running=300, waiting=400, waiting_tokens=400_000, cache_usage=0.95)
    assert admission.observe(full, in_flight=700) == 300 + 17
