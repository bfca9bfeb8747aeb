"""The comparison on a simulated server: what Halo's order makes of the radix cache at the published
number of rows, and the server against what can be worked out by hand."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, TypeVar

import pytest

from costmodel.prefix_cache import PrefixCache, block_chain
from runtime.clock import new_event_loop
from workloads.__main__ import main
from workloads.catalogue import named
from workloads.compare_simulated import run_baseline, run_halo
from workloads.simulated_sglang import (
    KvPool,
    Machine,
    Served,
    SimulatedServer,
    answer_of,
    tokens_of,
)

T = TypeVar("T")

ONE_SECOND_STEPS = Machine(
    pool_tokens=1000,
    chunk_tokens=100,
    mixed_chunks=False,
    prefill_step_s=1.0,
    prefill_s_per_token=0.0,
    prefill_s_per_request=0.0,
    prefill_s_per_cached_pair=0.0,
    decode_step_s=1.0,
    decode_s_per_request=0.0,
    decode_s_per_context_token=0.0,
    schedule_step_s=0.0,
    schedule_s_per_new_request=0.0,
    schedule_s_per_running_request=0.0,
    receive_s=0.0,
    send_s=0.0,
    jitter_s=0.0,
)


class RecordingServer(SimulatedServer):
    """Keeps the prompts that it was sent, in order; warm-ups have no answer."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[tuple[str, int]] = []

    async def answer(
        self,
        prompt: str,
        answer_tokens: int,
        *,
        priority: int = 0,
        on_prefilled: Callable[[], None] | None = None,
    ) -> Served:
        self.sent.append((prompt, answer_tokens))
        return await super().answer(
            prompt, answer_tokens, priority=priority, on_prefilled=on_prefilled
        )

    def prefilled_with_endless_cache(self) -> int:
        """What the same prompts, one after the other, would have computed if nothing were
        evicted."""
        size = self.machine.block_tokens
        cache, prefilled = PrefixCache(None, size), 0
        for prompt, _ in self.sent:
            tokens = tokens_of(prompt)
            chain = block_chain(tokens, size)
            prefilled += len(tokens) - size * cache.match(chain[: (len(tokens) - 1) // size])
            cache.insert(chain)
        return prefilled


# --- the comparison ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mapred", "debate", "reflect", "trading"])
def test_everybody_sends_the_same_prompts_and_gets_the_same_answers(name: str) -> None:
    workload = named(name)[0]
    rows = workload.rows(5, 3)
    halo_server = RecordingServer()
    halo_run = run_halo(halo_server, workload, rows)
    assert halo_run.makespan_s > 0 and all(isinstance(a, str) and a for a in halo_run.answers)
    prompts = {sent for sent in halo_server.sent if sent[1]}
    assert halo_server.counters.calls == len(prompts)
    for system in ("async", "operators", "rows"):
        server = RecordingServer()
        run = run_baseline(system, server, workload, rows)
        assert run.answers == halo_run.answers and set(server.sent) == prompts
        assert run.makespan_s > 0 and server.counters.calls == len(server.sent)


@pytest.mark.parametrize("name", ["mapred", "debate", "reflect"])
def test_at_the_published_rows_halo_computes_hardly_a_prefix_twice(name: str) -> None:
    """The cache does not hold the prefixes of all rows. Calls held for a prefix once let calls of
    far later rows go first: without the bound on that (`runtime.lane.LOOK_AHEAD`) mapred prefills
    1.3 times as much, without the window of rows (`planner.row_window`) debate 1.5 times and
    reflect 1.2 times."""
    workload = named(name)[0]
    server = RecordingServer()
    run_halo(server, workload, workload.rows(workload.count, 1))
    least = server.prefilled_with_endless_cache()
    assert least > server.machine.pool_tokens, "too few rows to evict anything"
    assert server.counters.prefilled_tokens <= 1.05 * least


def test_calls_in_the_server_follow_the_setting() -> None:
    workload = named("mapred")[0]
    server = SimulatedServer()
    run_halo(server, workload, workload.rows(20, 1), max_in_flight=4)
    assert 0 < server.counters.mean_decode_batch <= 4


def test_the_command_prints_a_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = "halo-bench simulate --workloads debate,mapred --scale 0.01 --systems halo,operators"
    monkeypatch.setattr(sys, "argv", command.split())
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    head, *tables = capsys.readouterr().out.split("\n\n| ")
    assert head.startswith("Simulated: fitted to one H200") and "debate, 6 rows, simulated" in head
    assert len(tables) == 2
    for printed in tables:
        columns, _, *lines = printed.split("\n\n")[0].splitlines()
        assert columns.startswith("system | makespan (simulated) | calls | prefilled tokens |")
        assert [line.split()[1] for line in lines] == ["halo", "operators"]
        assert {line.count("|") for line in lines} == {9}


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ("--workloads w1", "cannot simulate w1; there are: mapred, debate"),
        ("--systems lpm,halo", "cannot simulate lpm; there are: halo, async"),
        ("--workloads ,", "cannot simulate nothing"),
        ("--max-in-flight 0", "must be at least 1"),
    ],
)
def test_the_command_refuses_what_it_cannot_simulate(
    options: str,
    complaint: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["halo-bench", "simulate", *options.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert complaint in capsys.readouterr().err


# --- the server, by hand -------------------------------------------------------------------------


def on_server(
    machine: Machine, work: Callable[[SimulatedServer], Coroutine[Any, Any, T]]
) -> tuple[T, SimulatedServer]:
    """What `work` makes of a server on virtual time."""

    async def run() -> tuple[T, SimulatedServer]:
        server = SimulatedServer(machine)
        try:
            return await work(server), server
        finally:
            await server.close()

    with asyncio.Runner(loop_factory=lambda: new_event_loop(virtual=True)) as runner:
        return runner.run(run())


def ended_at(served: list[Served]) -> list[float]:
    return [one.end_s for one in served]


def machine(**settings: Any) -> Machine:
    return replace(ONE_SECOND_STEPS, **settings)


def test_a_prefix_is_reused_once_it_is_computed() -> None:
    async def work(server: SimulatedServer) -> list[Served]:
        together = await asyncio.gather(
            server.answer("aaaabbbbcccc", 3), server.answer("aaaabbbbdddd", 3)
        )
        return [*together, await server.answer("aaaabbbbeeee", 1)]

    served, server = on_server(ONE_SECOND_STEPS, work)
    # Two prompts of one step do not share. A prefill step gives the first token of an answer.
    assert [one.cached_tokens for one in served] == [0, 0, 8]
    assert [one.first_token_s for one in served] == [1, 1, 4]
    assert ended_at(served) == [3, 3, 4]
    assert served[0].text == answer_of("aaaabbbbcccc", 3) and len(served[0].text) == 3
    counters = server.counters
    assert (counters.calls, counters.prompt_tokens, counters.prefilled_tokens) == (3, 36, 28)
    assert (counters.prefill_steps, counters.decode_steps) == (2, 2)
    assert counters.mean_decode_batch == 2 and counters.cached_share == pytest.approx(8 / 36)


def test_the_last_token_of_a_prompt_is_always_computed() -> None:
    async def work(server: SimulatedServer) -> list[Served]:
        return [await server.answer("aaaabbbb", 1) for _ in range(2)]

    assert [one.cached_tokens for one in on_server(ONE_SECOND_STEPS, work)[0]] == [0, 4]


def test_an_answer_is_cached_all_but_its_last_token() -> None:
    async def work(server: SimulatedServer) -> list[Served]:
        first = await server.answer("aaaa", 9)
        return [first, await server.answer(f"aaaa{first.text}more", 1)]

    assert on_server(ONE_SECOND_STEPS, work)[0][1].cached_tokens == 4 + 8


def test_a_warm_up_is_prefill_alone() -> None:
    async def work(server: SimulatedServer) -> list[Served]:
        return [await server.answer("aaaabbbb", 0), await server.answer("aaaabbbbcccc", 1)]

    served, server = on_server(ONE_SECOND_STEPS, work)
    assert served[0].text == "" and served[1].cached_tokens == 8
    assert server.counters.calls == 1 and server.counters.decode_steps == 0


def test_the_least_recently_used_leaf_is_evicted() -> None:
    pool = KvPool(24, 4)
    for tokens in ("aaaabbbb", "aaaacccc", "ddddeeee"):
        pool.insert(tokens)
    assert pool.cached_tokens == 20 and pool.used_tokens == 0
    assert pool.match("aaaabbbb?").depth == 2  # and so the leaf "cccc" is the oldest
    pool.outside_tokens = 8
    pool.evict()
    assert pool.cached_tokens == 16 and pool.used_tokens == 8
    assert pool.match("aaaacccc?").depth == 1
    pool.outside_tokens = 16
    pool.evict()  # "eeee" and then "dddd", a leaf by then: older than all of "aaaabbbb"
    assert pool.match("ddddeeee?").depth == 0 and pool.match("aaaabbbb?").depth == 2


def test_what_is_locked_stays() -> None:
    pool = KvPool(8, 4)
    first = pool.insert("aaaabbbb")
    pool.lock(first)
    pool.lock(first)
    pool.insert("cccc")
    pool.evict()
    assert pool.match("cccc?").depth == 0 and pool.match("aaaabbbb?").depth == 2
    pool.unlock(first)
    pool.outside_tokens = 4
    pool.evict()
    assert pool.cached_tokens == 8 and pool.used_tokens == 12
    pool.unlock(first)
    pool.evict()
    assert pool.cached_tokens == 4 and pool.used_tokens == 4


def test_a_prompt_longer_than_a_chunk_takes_several_steps() -> None:
    async def work(server: SimulatedServer) -> list[Served]:
        return await asyncio.gather(
            server.answer("l" * 250, 1), server.answer("s" * 20, 1), server.answer("t" * 40, 1)
        )

    served, server = on_server(ONE_SECOND_STEPS, work)
    # The third step has room for 50 tokens beside the rest of the first prompt: all of the second
    # and 30 of the third, which the fourth step completes.
    assert ended_at(served) == [3, 3, 4]
    assert server.counters.prefill_steps == 4 and server.counters.prefilled_tokens == 310


@pytest.mark.parametrize(("mixed", "end_s"), [(False, 6), (True, 4)])
def test_answers_go_on_while_prompts_are_computed_when_chunks_are_mixed(
    mixed: bool, end_s: float
) -> None:
    async def work(server: SimulatedServer) -> list[Served]:
        async def late() -> Served:
            await asyncio.sleep(0.5)
            return await server.answer("l" * 198, 1)

        return await asyncio.gather(server.answer("s" * 20, 4), late())

    served, server = on_server(replace(ONE_SECOND_STEPS, mixed_chunks=mixed), work)
    # The first token is there at 1; the long prompt takes two steps, and with an answer beside it
    # the chunk's 100 tokens hold 99 of it.
    assert ended_at(served) == [end_s, 3]
    assert server.counters.prefilled_tokens == 218 and server.counters.decoded_tokens == 3


def test_a_full_pool_makes_requests_wait() -> None:
    async def work(server: SimulatedServer) -> list[Served]:
        return await asyncio.gather(server.answer("a" * 12, 12), server.answer("b" * 12, 12))

    # Beside the first one, which has 12 tokens and is expected to need 0.7 * 12 more, the second
    # one's 24 make 44.4.
    assert ended_at(on_server(machine(pool_tokens=44), work)[0]) == [12, 24]
    assert ended_at(on_server(machine(pool_tokens=45), work)[0]) == [12, 12]


def test_what_never_fits_the_pool_is_refused() -> None:
    async def work(server: SimulatedServer) -> Served:
        return await server.answer("a" * 30, 11)

    with pytest.raises(ValueError, match="30 tokens and an answer of 11 do not fit a pool of 40"):
        on_server(machine(pool_tokens=40), work)


def test_smaller_priorities_go_first_and_then_the_earlier() -> None:
    order: list[str] = []

    async def ask(server: SimulatedServer, name: str, priority: int) -> None:
        await server.answer(name * 8, 2, priority=priority)
        order.append(name)

    async def work(server: SimulatedServer) -> None:
        asked = {"a": 5, "b": 1, "c": 3, "d": 1}
        await asyncio.gather(*(ask(server, *each) for each in asked.items()))

    on_server(machine(max_running_requests=1), work)
    assert order == ["b", "d", "c", "a"]


@pytest.mark.parametrize(("prepared_s", "end_s"), [(0.75, 3.75), (2.0, 7.0)])
def test_a_step_is_prepared_while_the_one_before_runs(prepared_s: float, end_s: float) -> None:
    async def work(server: SimulatedServer) -> float:
        return (await server.answer("aaaa", 3)).end_s

    assert on_server(machine(schedule_step_s=prepared_s), work)[0] == end_s


def test_the_front_end_does_one_thing_after_the_other() -> None:
    told_s: list[float] = []

    async def work(server: SimulatedServer) -> list[Served]:
        loop = asyncio.get_running_loop()
        return await asyncio.gather(
            server.answer("aaaa", 1, on_prefilled=lambda: told_s.append(loop.time())),
            server.answer("bbbb", 1),
        )

    # Received at 4 (streaming takes twice as long) and 6; the first one is computed at 5. It is
    # told of its prompt at 8 and gets its answer at 12; the second one, computed at 6, at 14.
    settings = machine(receive_s=2.0, send_s=2.0, streaming_factor=2.0)
    assert ended_at(on_server(settings, work)[0]) == [12, 14]
    assert told_s == [8]


def test_step_times_grow_with_their_work() -> None:
    default = Machine()
    assert default.prefill_s(4096, 8, 0) == pytest.approx(0.004 + 4096 * 23.5e-6 + 8 * 3e-5)
    assert default.decode_s(256, 0) == pytest.approx(0.0068 + 256 * 8e-6)
    # One more, and the batch is no captured graph.
    assert default.decode_s(1025, 0) - default.decode_s(1024, 0) > default.no_graph_step_s
