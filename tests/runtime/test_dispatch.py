"""The dispatcher: keys, slots, priorities, retries, draining and priming, on simulated time."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import fields, replace
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodel.usage import OpMetrics, Usage
from planner.errors import InvariantError
from planner.logical import Effect
from runtime.backends.base import (
    Backend,
    Capabilities,
    Completion,
    Message,
    Request,
    ToolCall,
    ToolSchema,
)
from runtime.backends.simulated import SimulatedBackend, describe
from runtime.clock import LoopClock, new_event_loop
from runtime.dispatch import Dispatcher, request_key
from runtime.errors import BackendError, ContextOverflowError, DrainingError
from runtime.lane import Lane
from runtime.records import CallRecord, CallSite, Outcome
from runtime.sharing import CallTable

T = TypeVar("T")


def run(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    async def bounded() -> T:
        async with asyncio.timeout(100_000):  # of simulated time: what hangs fails
            return await main()

    with asyncio.Runner(loop_factory=lambda: new_event_loop(True)) as runner:
        return runner.run(bounded())


class Records:
    """A store in memory; with `hold`, records become durable when the test says so."""

    def __init__(self, *, hold: bool = False) -> None:
        self.hold = hold
        self.records: list[CallRecord] = []
        self.pending: list[asyncio.Future[None]] = []

    def recorded_call(self, key: str) -> CallRecord | None:
        return None

    def record_call(self, record: CallRecord) -> asyncio.Future[None]:
        self.records.append(record)
        future = asyncio.get_running_loop().create_future()
        self.pending.append(future)
        if not self.hold:
            future.set_result(None)
        return future

    def record_outcome(self, outcome: Outcome) -> asyncio.Future[None]:
        raise NotImplementedError

    def recorded_outcomes(self) -> Iterable[tuple[str, str]]:
        return ()

    def record_metrics(self, metrics: Mapping[str, OpMetrics]) -> None: ...

    def durable(self) -> asyncio.Future[None]:
        raise NotImplementedError


class ScriptedEngine(Backend):
    """Takes one second a call, prefills in the first half of it, and notes what it was sent."""

    name = "scripted"

    def __init__(
        self, capabilities: Capabilities, answer: Callable[[int], Exception | None] | None = None
    ) -> None:
        self._capabilities = capabilities
        self._answer = answer
        self.sent: list[tuple[float, str]] = []
        self.told = 0
        self.busy = 0
        self.most_busy = 0
        self.cancelled = 0

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    async def generate(
        self, request: Request, on_prefilled: Callable[[], None] | None = None
    ) -> Completion:
        number = len(self.sent)
        text = request.messages[-1].content
        self.sent.append((asyncio.get_running_loop().time(), text))
        self.busy += 1
        self.most_busy = max(self.most_busy, self.busy)
        try:
            await asyncio.sleep(0.5)
            error = self._answer(number) if self._answer else None
            if error is not None:
                raise error
            if on_prefilled is not None:
                self.told += 1
                on_prefilled()
            await asyncio.sleep(0.5)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.busy -= 1
        return Completion(text.upper(), "stop", Usage(len(text) // 4, 2))


def dispatcher(
    engine: Backend, store: Records | None = None, **options: Any
) -> tuple[Dispatcher, dict[str, OpMetrics]]:
    metrics: dict[str, OpMetrics] = {}
    store = store or Records()
    return (
        Dispatcher({"w": engine}, CallTable(store, metrics), store, LoopClock(), **options),
        metrics,
    )


def ask(text: str, **changes: Any) -> Request:
    return Request("", "m", (Message("user", text),), **changes)


def site(row: int = 0, **changes: Any) -> CallSite:
    return replace(CallSite("op", "q", row, f"row{row}", label="step"), **changes)


# --- what a call is ------------------------------------------------------------------------------


def test_a_record_says_who_asked_and_when() -> None:
    async def main() -> None:
        await asyncio.sleep(100)
        calls, _ = dispatcher(ScriptedEngine(Capabilities(1)))
        first, second = await asyncio.gather(
            calls.complete("w", ask("one"), site(1, path="map[0]", turn=2)),
            calls.complete("w", ask("two"), site(2)),
        )
        assert first.value == {"text": "ONE"}
        assert (first.op, first.query, first.row_key, first.path) == ("op", "q", "row1", "map[0]")
        assert (first.kind, first.name, first.effect, first.turn) == ("model", "m", "pure", 2)
        assert (first.queued_s, first.start_s, first.end_s) == pytest.approx((0, 0, 1))
        assert (second.queued_s, second.start_s, second.end_s) == pytest.approx((0, 1, 2))

    run(main)


def test_greedy_calls_are_shared_and_sampled_ones_stay_apart() -> None:
    async def main() -> None:
        engine = SimulatedBackend("m", LoopClock())
        calls, metrics = dispatcher(engine)
        await asyncio.gather(*(calls.complete("w", ask("same"), site(i)) for i in range(4)))
        assert engine.requests_seen == 1
        sampled = [site(i, op="sampled", effect=Effect.SAMPLED, call_id="c") for i in range(4)]
        hot = ask("same", temperature=1.0)
        records = await asyncio.gather(*(calls.complete("w", hot, s) for s in sampled))
        assert engine.requests_seen == 5
        assert len({str(r.value) for r in records}) == 4
        assert (metrics["op"].made, metrics["op"].shared) == (1, 3)
        assert (metrics["sampled"].made, metrics["sampled"].shared) == (4, 0)

    run(main)


def test_sampled_answers_follow_the_run_seed() -> None:
    async def main(seed: int) -> str:
        calls, _ = dispatcher(SimulatedBackend("m", LoopClock()), seed=seed)
        sampled = site(effect=Effect.SAMPLED, call_id="c")
        return str((await calls.complete("w", ask("x", temperature=0.7), sampled)).value)

    assert run(lambda: main(1)) == run(lambda: main(1)) != run(lambda: main(2))


TOOL = ToolSchema("lookup", "Look up.", '{"type":"object","properties":{"q":{"type":"string"}}}')
BASE = Request("", "m", (Message("system", "s"), Message("user", "u")))


@pytest.mark.parametrize(
    "other",
    [
        replace(BASE, model="m2"),
        replace(BASE, messages=(Message("system", "su"), Message("user", ""))),
        replace(BASE, messages=(Message("user", "s"), Message("user", "u"))),
        replace(BASE, max_tokens=1),
        replace(BASE, temperature=0.5),
        replace(BASE, top_p=0.5),
        replace(BASE, stop=("u",)),
        replace(BASE, schema_json="{}"),
        replace(BASE, options=("a", "b")),
        replace(BASE, tools=(TOOL,)),
        replace(BASE, messages=(*BASE.messages, Message("tool", "", (), "id"))),
        replace(BASE, messages=(*BASE.messages, Message("assistant", "", (ToolCall("", "", ""),)))),
    ],
)
def test_whatever_the_answer_may_depend_on_is_in_the_key(other: Request) -> None:
    assert request_key(BASE, None, "", "") != request_key(other, None, "", "")


def test_tenants_and_identities_have_keys_of_their_own_and_priorities_do_not() -> None:
    keys = {request_key(BASE, *rest) for rest in ((None, "", ""), (None, "", "t"), (None, "i", ""))}
    assert len(keys) == 3
    assert request_key(replace(BASE, priority=9), None, "", "") in keys


def test_settings_that_are_equal_and_written_differently_have_keys_of_their_own() -> None:
    whole, real = (request_key(replace(BASE, temperature=t), None, "", "") for t in (1, 1.0))
    assert whole != real


def test_a_request_is_made_as_it_was_asked_for() -> None:
    tools = (TOOL,)
    asked = Request(
        "old", "m2", BASE.messages, 9, 0.5, 0.6, 3, ("stop",), "{}", ("a", "b"), tools, 4
    )
    defaults = Request("", "", ())
    assert all(getattr(asked, f.name) != getattr(defaults, f.name) for f in fields(Request))
    assert asked.keyed("key", 5, 6) == replace(asked, key="key", seed=5, priority=6)


@given(st.lists(st.text(alphabet='",[]\\ab\ud800', max_size=4), min_size=1, max_size=3))
def test_texts_cannot_imitate_the_structure_of_a_key(parts: list[str]) -> None:
    split = replace(BASE, messages=tuple(Message("user", p) for p in parts))
    joined = replace(BASE, messages=(Message("user", '","'.join(parts)),))
    same = len(parts) == 1
    assert (request_key(split, None, "", "") == request_key(joined, None, "", "")) is same


def test_tool_calls_are_part_of_the_value() -> None:
    async def main() -> None:
        calls, _ = dispatcher(SimulatedBackend("m", LoopClock()))
        record = await calls.complete("w", replace(BASE, tools=(TOOL,)), site())
        value: Any = record.value
        (call,) = value["tool_calls"]
        assert call["name"] == "lookup" and set(call) == {"id", "name", "arguments_json"}
        assert record.finish_reason == "tool_calls"

    run(main)


def test_an_unknown_worker_is_named_with_those_that_exist() -> None:
    async def main() -> None:
        calls, _ = dispatcher(ScriptedEngine(Capabilities(1)))
        with pytest.raises(InvariantError, match=r"'gpu7'.*has: w"):
            await calls.complete("gpu7", ask("x"), site())

    run(main)


# --- slots ---------------------------------------------------------------------------------------


def test_the_engine_never_has_more_than_its_limit() -> None:
    async def main() -> None:
        engine = ScriptedEngine(Capabilities(3))
        calls, _ = dispatcher(engine)
        tasks = [asyncio.create_task(calls.complete("w", ask(f"{i}"), site(i))) for i in range(10)]
        await asyncio.sleep(0.1)
        assert (calls.in_flight, calls.waiting) == (3, 7)
        await asyncio.gather(*tasks)
        assert engine.most_busy == 3
        assert (calls.in_flight, calls.waiting) == (0, 0)

    run(main)


def test_smaller_priorities_go_first_and_equal_ones_in_order() -> None:
    async def main() -> list[str]:
        engine = ScriptedEngine(Capabilities(1))
        calls, _ = dispatcher(engine)
        order = [("first", 5), ("c1", 2), ("a", 0), ("c2", 2), ("b", 1)]
        await asyncio.gather(
            *(calls.complete("w", ask(t), site(i), priority=p) for i, (t, p) in enumerate(order))
        )
        return [text for _, text in engine.sent]

    assert run(main) == ["first", "a", "b", "c1", "c2"]


def test_a_slot_is_kept_until_the_record_is_durable_but_the_answer_is_not() -> None:
    async def main() -> None:
        engine = ScriptedEngine(Capabilities(1))
        store = Records(hold=True)
        calls, _ = dispatcher(engine, store)
        second = asyncio.create_task(calls.complete("w", ask("second"), site(2)))
        first = asyncio.create_task(calls.complete("w", ask("first"), site(1)))
        done, _ = await asyncio.wait((first, second), return_when=asyncio.FIRST_COMPLETED)
        await asyncio.sleep(60)
        assert done == {second} and len(engine.sent) == 1
        store.pending[0].set_result(None)
        await first
        assert len(engine.sent) == 2

    run(main)


def test_no_call_starts_when_records_cannot_be_kept() -> None:
    async def main() -> None:
        engine = ScriptedEngine(Capabilities(1))
        store = Records(hold=True)
        calls, _ = dispatcher(engine, store)
        first = asyncio.create_task(calls.complete("w", ask("first"), site(1)))
        second = asyncio.create_task(calls.complete("w", ask("second"), site(2)))
        await first
        store.pending[0].set_exception(OSError("no space left on device"))
        with pytest.raises(DrainingError, match="no space left"):
            await second
        with pytest.raises(DrainingError, match="no space left"):
            await calls.complete("w", ask("third"), site(3))
        assert len(engine.sent) == 1

    run(main)


def test_cancelled_calls_give_their_slots_back() -> None:
    async def main() -> None:
        engine = ScriptedEngine(Capabilities(1))
        calls, _ = dispatcher(engine)
        tasks = [asyncio.create_task(calls.complete("w", ask(f"{i}"), site(i))) for i in range(4)]
        await asyncio.sleep(0.1)
        tasks[0].cancel()
        tasks[2].cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(e, CallRecord) for e in ended] == [False, True, False, True]
        assert engine.cancelled == 1
        assert [t for _, t in engine.sent] == ["0", "1", "3"]
        assert (calls.in_flight, calls.waiting) == (0, 0)

    run(main)


def test_a_slot_that_comes_in_the_moment_of_cancellation_is_not_lost() -> None:
    async def main() -> None:
        lane = Lane(ScriptedEngine(Capabilities(1)), prime=True)
        first = await lane.enter(ask("first"))
        second = asyncio.create_task(lane.enter(ask("second")))
        await asyncio.sleep(0)
        lane.leave(first)
        lane.release()
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        assert (lane.in_flight, lane.waiting) == (0, 0)
        async with asyncio.timeout(1):
            await lane.enter(ask("third"))

    run(main)


# --- retries and draining ------------------------------------------------------------------------


def failing(times: int, *, retryable: bool = True) -> Callable[[int], Exception | None]:
    def answer(number: int) -> Exception | None:
        if number < times:
            return BackendError(f"failure {number}", backend="scripted", retryable=retryable)
        return None

    return answer


def test_retryable_failures_are_tried_again_with_growing_waits() -> None:
    async def main() -> list[float]:
        engine = ScriptedEngine(Capabilities(1), failing(3))
        calls, metrics = dispatcher(engine)
        record = await calls.complete("w", ask("x"), site())
        assert record.attempts == 4
        assert (metrics["op"].made, metrics["op"].retries, metrics["op"].errors) == (1, 3, 0)
        return [at_s for at_s, _ in engine.sent]

    sent_s = run(main)
    waits_s = [b - a - 0.5 for a, b in itertools.pairwise(sent_s)]
    assert all(0.25 * 2**i <= wait <= 0.5 * 2**i for i, wait in enumerate(waits_s))
    assert sent_s == run(main)


def test_the_last_attempt_raises_the_engine_s_error() -> None:
    async def main() -> None:
        engine = ScriptedEngine(Capabilities(1), failing(99))
        calls, metrics = dispatcher(engine, max_attempts=3)
        with pytest.raises(BackendError, match="failure 2") as caught:
            await calls.complete("w", ask("x"), site())
        assert caught.value.attempts == len(engine.sent) == 3
        assert (metrics["op"].errors, metrics["op"].retries) == (1, 2)
        assert calls.in_flight == 0

    run(main)


def test_what_cannot_be_helped_is_not_tried_again() -> None:
    async def main() -> None:
        engine = ScriptedEngine(Capabilities(1), failing(1, retryable=False))
        calls, _ = dispatcher(engine)
        with pytest.raises(BackendError, match="failure 0"):
            await calls.complete("w", ask("x"), site())
        assert (await calls.complete("w", ask("x"), site())).attempts == 1

    run(main)


def test_stop_lets_calls_in_the_engine_finish_and_refuses_the_others() -> None:
    async def main() -> None:
        engine = ScriptedEngine(Capabilities(2))
        calls, metrics = dispatcher(engine)
        tasks = [asyncio.create_task(calls.complete("w", ask(f"{i}"), site(i))) for i in range(5)]
        await asyncio.sleep(0.1)
        calls.stop()
        assert calls.waiting == 0
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(e) for e in ended] == [CallRecord] * 2 + [DrainingError] * 3
        with pytest.raises(DrainingError):
            await calls.complete("w", ask("late"), site(9))
        assert len(engine.sent) == 2
        assert (metrics["op"].requested, metrics["op"].errors) == (2, 0)

    run(main)


def test_stop_ends_the_wait_before_another_attempt() -> None:
    async def main() -> float:
        engine = ScriptedEngine(Capabilities(1), failing(99))
        calls, _ = dispatcher(engine)
        task = asyncio.create_task(calls.complete("w", ask("x"), site()))
        await asyncio.sleep(0.6)
        calls.stop()
        with pytest.raises(DrainingError):
            await task
        assert len(engine.sent) == 1
        return asyncio.get_running_loop().time()

    assert run(main) == pytest.approx(0.6)


# --- priming -------------------------------------------------------------------------------------

DOCUMENT = "A long document that every question of a group is about. " * 20
NEEDS_PRIMING = Capabilities(8, prefix_cache=True, prime_prefix=True, prefix_block_tokens=32)


def test_a_group_waits_until_the_first_of_it_is_prefilled() -> None:
    async def main() -> None:
        engine = ScriptedEngine(NEEDS_PRIMING)
        calls, _ = dispatcher(engine)
        texts = [f"{DOCUMENT} {i}" for i in range(5)] + ["something else"]
        await asyncio.gather(*(calls.complete("w", ask(t), site(i)) for i, t in enumerate(texts)))
        assert [at_s for at_s, _ in engine.sent] == pytest.approx([0, 0, 0.5, 0.5, 0.5, 0.5])
        assert {t for _, t in engine.sent[:2]} == {texts[0], texts[-1]}
        # The prefix is cached from now on: later questions wait for nobody.
        late = [f"{DOCUMENT} {i}" for i in range(5, 8)]
        await asyncio.gather(*(calls.complete("w", ask(t), site(i)) for i, t in enumerate(late)))
        assert [at_s for at_s, _ in engine.sent[6:]] == pytest.approx([1.5] * 3)
        stats = calls.priming_stats["w"]
        assert (stats.groups, stats.held) == (1, 4)
        assert stats.predicted_shared_tokens > 6 * len(DOCUMENT) // 4 // 2

    run(main)


@pytest.mark.parametrize(
    ("capabilities", "prime"),
    [(NEEDS_PRIMING, False), (replace(NEEDS_PRIMING, prime_prefix=False), True)],
)
def test_nothing_is_held_when_priming_is_off(capabilities: Capabilities, prime: bool) -> None:
    async def main() -> None:
        engine = ScriptedEngine(capabilities)
        calls, _ = dispatcher(engine, prime=prime)
        await asyncio.gather(
            *(calls.complete("w", ask(f"{DOCUMENT} {i}"), site(i)) for i in range(5))
        )
        assert [at_s for at_s, _ in engine.sent] == [0.0] * 5
        assert calls.priming_stats["w"].held == 0
        # To tell when a prompt is prefilled costs a streamed answer, and nobody waits for it.
        assert engine.told == 0

    run(main)


def test_priming_pays_on_an_engine_that_shares_nothing_at_once() -> None:
    async def main(prime: bool) -> tuple[int, float]:
        engine = SimulatedBackend("m", LoopClock(), capabilities=describe(8, prime_prefix=True))
        calls, _ = dispatcher(engine, prime=prime)
        records = await asyncio.gather(
            *(calls.complete("w", ask(f"{DOCUMENT} {i}"), site(i)) for i in range(8))
        )
        return sum(r.usage.cached_tokens or 0 for r in records), max(r.end_s for r in records)

    (primed, primed_s), (unprimed, unprimed_s) = run(lambda: main(True)), run(lambda: main(False))
    assert unprimed == 0 < primed
    assert primed_s < unprimed_s


def test_the_group_goes_on_when_its_first_call_fails_or_is_cancelled() -> None:
    async def main() -> None:
        engine = ScriptedEngine(
            NEEDS_PRIMING,
            lambda n: ContextOverflowError("9 > 8", backend="scripted") if n == 0 else None,
        )
        calls, _ = dispatcher(engine)
        tasks = [
            asyncio.create_task(calls.complete("w", ask(f"{DOCUMENT} {i}"), site(i)))
            for i in range(5)
        ]
        await asyncio.sleep(0.6)  # the first failed, the second primes
        assert [t[-1] for _, t in engine.sent] == ["0", "1"]
        tasks[1].cancel()
        await asyncio.sleep(0.1)  # the second left, the third primes
        assert [t[-1] for _, t in engine.sent] == ["0", "1", "2"]
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(e, CallRecord) for e in ended] == [False, False, True, True, True]

    run(main)


def test_nobody_is_held_for_a_call_that_waits_to_be_tried_again() -> None:
    async def main() -> None:
        engine = ScriptedEngine(NEEDS_PRIMING, failing(1))
        calls, _ = dispatcher(engine)
        records = await asyncio.gather(
            *(calls.complete("w", ask(f"{DOCUMENT} {i}"), site(i)) for i in range(3))
        )
        # The first fails at 0.5 s and waits; the second primes from then, the third follows it.
        assert [r.start_s for r in records[1:]] == pytest.approx([0.5, 1.0])
        assert records[0].attempts == 2

    run(main)


def test_a_held_call_does_not_take_a_slot_from_others() -> None:
    async def main() -> None:
        engine = ScriptedEngine(replace(NEEDS_PRIMING, max_in_flight=2))
        calls, _ = dispatcher(engine)
        texts = [*(f"{DOCUMENT} {i}" for i in range(4)), "x", "y"]
        await asyncio.gather(*(calls.complete("w", ask(t), site(i)) for i, t in enumerate(texts)))
        assert [t for _, t in engine.sent[:2]] == [texts[0], "x"]

    run(main)


def test_each_prefix_is_computed_once_when_the_cache_holds_those_of_a_few_groups() -> None:
    groups, size, slots = 40, 10, 24
    offered = replace(describe(slots, prime_prefix=True), cache_tokens=4_000)

    async def main() -> int:
        engine = SimulatedBackend("m", LoopClock(), capabilities=offered, cache_tokens=4_000)
        calls, _ = dispatcher(engine)
        asked = [(g, i) for g in range(groups) for i in range(size)]
        records = await asyncio.gather(
            *(
                calls.complete("w", ask(f"{g} {DOCUMENT} {i}"), site(g), priority=g)
                for g, i in asked
            )
        )
        return sum(
            r.usage.input_tokens - (r.usage.cached_tokens or 0) > len(DOCUMENT) // 8
            for r in records
        )

    assert run(main) == groups


@pytest.mark.parametrize(
    ("cache_tokens", "bytes_per_token", "remembered"),
    [(None, 4.0, True), (1_600, 4.0, True), (1_600, 1.0, False), (400, 4.0, False)],
)
def test_a_prefix_that_the_cache_has_no_room_for_is_primed_again(
    cache_tokens: int | None, bytes_per_token: float, remembered: bool
) -> None:
    """A document has 1140 bytes, and the cache room for one of them or for two."""

    async def main() -> list[float]:
        offered = replace(NEEDS_PRIMING, cache_tokens=cache_tokens, bytes_per_token=bytes_per_token)
        engine = ScriptedEngine(offered)
        calls, _ = dispatcher(engine)
        for start in ("a", "b"):
            await calls.complete("w", ask(start + DOCUMENT), site())
        texts = [f"a{DOCUMENT} {i}" for i in range(3)]
        await asyncio.gather(*(calls.complete("w", ask(t), site(i)) for i, t in enumerate(texts)))
        return [at_s - 2 for at_s, _ in engine.sent[2:]]

    assert run(main) == pytest.approx([0.0] * 3 if remembered else [0.0, 0.5, 0.5])


@settings(max_examples=150, deadline=None)
@given(
    prompts=st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=25
    ),
    slots=st.integers(1, 4),
    failures=st.sets(st.integers(0, 30), max_size=12),
    cancelled=st.sets(st.integers(0, 24), max_size=5),
    stop_at_s=st.none() | st.floats(0.1, 8.0),
)
def test_every_call_ends_whatever_fails_or_is_cancelled(
    prompts: list[tuple[int, int, int]],
    slots: int,
    failures: set[int],
    cancelled: set[int],
    stop_at_s: float | None,
) -> None:
    """No lost slot, no call held for ever, no more in the engine than it takes."""

    async def main() -> None:
        engine = ScriptedEngine(
            replace(NEEDS_PRIMING, max_in_flight=slots),
            lambda n: (
                BackendError("no", backend="scripted", retryable=n % 2 == 0)
                if n in failures
                else None
            ),
        )
        calls, metrics = dispatcher(engine)
        tasks = [
            asyncio.create_task(
                calls.complete(
                    "w",
                    ask(f"{'abc'[a] * 300}{'defg'[b] * 300} {c}"),
                    site(i),
                    priority=c,
                )
            )
            for i, (a, b, c) in enumerate(prompts)
        ]
        await asyncio.sleep(0.2)
        for i in cancelled:
            if i < len(tasks):
                tasks[i].cancel()
        if stop_at_s is not None:
            await asyncio.sleep(stop_at_s)
            calls.stop()
        async with asyncio.timeout(10_000):
            await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # a call that nobody waits for any more ends in its own task
        assert engine.most_busy <= slots
        assert (calls.in_flight, calls.waiting) == (0, 0)
        for m in metrics.values():
            assert m.requested == m.made + m.shared + m.replayed
        if stop_at_s is None:
            # All slots are back: as many calls as there are slots start at once.
            before = len(engine.sent)
            later = [
                asyncio.create_task(calls.complete("w", ask(f"{i}"), site(i))) for i in range(9)
            ]
            await asyncio.sleep(0.1)
            assert len(engine.sent) - before == slots
            await asyncio.gather(*later, return_exceptions=True)

    run(main)
