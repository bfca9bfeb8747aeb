"""Rows under way are no more than let later calls of a row find what earlier ones computed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from costmodel.tokens import estimate_tokens
from planner.logical import Column, Generate, Json, LogicalPlan, Op, Prompt, Ref, Result, Scan
from planner.physical import PhysicalPlan, Worker, place
from planner.row_window import FILL, rows_that_fit
from planner.stats import PlanStats, estimate
from runtime.backends.simulated import SimulatedBackend, describe
from runtime.clock import LoopClock, new_event_loop
from runtime.run import RunHandle, RunInputs

SCAN = Scan((), "rows", ("case", "question"))
CASE, QUESTION = Column((SCAN,), "case"), Column((SCAN,), "question")
ROWS = 1_000
CASE_TOKENS, QUESTION_TOKENS, ANSWER_TOKENS = 100, 10, 20


def ask(system: str, *parts: str | Op, model: str = "m") -> Generate:
    """A call whose answer is expected to have `ANSWER_TOKENS` tokens."""
    inputs = tuple(dict.fromkeys(part for part in parts if isinstance(part, Op)))
    segments = tuple(Ref(inputs.index(p)) if isinstance(p, Op) else p for p in parts)
    return Generate(
        inputs, model, Prompt(segments), system=Prompt((system,)), max_tokens=2 * ANSWER_TOKENS
    )


def stats_of(result: Op, *, same_case: int = 1) -> tuple[LogicalPlan, PlanStats]:
    """A plan over rows of which `same_case` each have the same case. A word is a token."""
    plan = LogicalPlan((("q", Result((result, SCAN))),))
    rows = [
        {
            "case": " ".join(f"c{i // same_case}w{k}" for k in range(CASE_TOKENS)),
            "question": " ".join(f"q{i}w{k}" for k in range(QUESTION_TOKENS)),
        }
        for i in range(ROWS)
    ]
    return plan, estimate(plan, {"rows": rows}, lambda text: len(text.split()))


def fitting(result: Op, cache_tokens: int = 10_000, *, same_case: int = 1) -> float | None:
    plan, stats = stats_of(result, same_case=same_case)
    return rows_that_fit(plan, stats, {"m": cache_tokens})


def reflection() -> Generate:
    """An answer, a critique under other instructions, and an answer that begins as the first."""
    first = ask("Answer.", CASE, QUESTION)
    critique = ask("Criticise.", CASE, QUESTION, first)
    return ask("Answer.", CASE, QUESTION, first, critique)


def test_the_first_prompt_of_a_row_is_there_when_its_last_call_begins_with_it() -> None:
    first = 1 + CASE_TOKENS + QUESTION_TOKENS + ANSWER_TOKENS
    critique = first + ANSWER_TOKENS
    last = 3 * ANSWER_TOKENS  # two answers behind what is shared, and its own
    assert last < first
    assert fitting(reflection()) == pytest.approx(FILL * 10_000 / (first + critique), rel=0.02)


def test_the_longest_prompts_of_a_debate_decide() -> None:
    opening = ask("Debate.", CASE, QUESTION)
    reply = ask("Debate.", CASE, QUESTION, opening)
    closing = ask("Debate.", CASE, QUESTION, opening, reply)
    # Each begins as the one before it: the opening puts most into the cache.
    first = CASE_TOKENS + QUESTION_TOKENS + ANSWER_TOKENS
    assert fitting(closing) == pytest.approx(FILL * 10_000 / first, rel=0.02)


def test_a_later_call_may_put_more_into_the_cache_than_the_first() -> None:
    first = ask("Answer.", CASE)
    last = ask("Answer.", CASE, first, CASE, CASE)
    new = ANSWER_TOKENS + 2 * CASE_TOKENS + ANSWER_TOKENS
    assert fitting(last) == pytest.approx(FILL * 10_000 / new, rel=0.02)


def test_rows_that_share_their_first_prompt_leave_room_for_more() -> None:
    alone, together = fitting(reflection()), fitting(reflection(), same_case=10)
    assert alone is not None and together is not None
    assert together > 2 * alone


def test_more_cache_more_rows() -> None:
    one, two = fitting(reflection(), 10_000), fitting(reflection(), 20_000)
    assert one is not None and two == pytest.approx(2 * one)


@pytest.mark.parametrize(
    "result",
    [
        ask("Answer.", CASE, QUESTION),
        ask("Summarize.", ask("Answer.", CASE, QUESTION)),
        # The same instructions, and nothing of the row in common.
        ask("Answer.", ask("Answer.", CASE), QUESTION),
        # The case is long, and behind it nothing is as it was.
        ask("Answer.", QUESTION, ask("Answer.", QUESTION, CASE)),
        # Side by side: nothing comes between the two.
        ask("Join.", ask("Answer.", CASE, "as a lawyer"), ask("Answer.", CASE, "as an engineer")),
    ],
)
def test_without_reuse_between_calls_of_a_row_there_is_no_bound(result: Op) -> None:
    assert fitting(result) is None


def test_without_a_known_cache_there_is_no_bound() -> None:
    plan, stats = stats_of(reflection())
    assert rows_that_fit(plan, stats, {}) is None


def test_the_model_with_less_room_decides() -> None:
    big = reflection()
    small_first = ask("Answer.", CASE, QUESTION, model="small")
    small = ask("Answer.", CASE, QUESTION, small_first, big, model="small")
    plan, stats = stats_of(small)
    alone = rows_that_fit(plan, stats, {"m": 10_000})
    both = rows_that_fit(plan, stats, {"m": 10_000, "small": 100})
    assert alone is not None and both is not None
    assert both < alone / 10


def test_too_few_rows_to_keep_an_engine_busy_are_no_bound() -> None:
    plan, stats = stats_of(reflection())
    bound = rows_that_fit(plan, stats, {"m": 10_000})
    assert bound is not None
    assert rows_that_fit(plan, stats, {"m": 10_000}, least_calls=bound - 1) == bound
    assert rows_that_fit(plan, stats, {"m": 10_000}, least_calls=bound + 1) is None


def rows_in_flight(result: Op, workers: Sequence[Worker]) -> int:
    plan, stats = stats_of(result)
    return place(plan, stats, {worker.model: worker for worker in workers}).rows_in_flight


def test_the_plan_keeps_the_bound_where_the_engine_tells_its_cache() -> None:
    bound = fitting(reflection(), 20_000)
    assert bound is not None
    known = Worker("s", "sglang", "m", 64, prefix_cache=True, cache_tokens=20_000)
    assert rows_in_flight(reflection(), [known]) == int(bound)
    for other in (
        Worker("s", "sglang", "m", 64, prefix_cache=True),
        Worker("s", "sglang", "m", 64, cache_tokens=20_000),
    ):
        assert rows_in_flight(reflection(), [other]) == 256


def test_an_engine_of_one_slot_has_a_row() -> None:
    small = Worker("s", "sglang", "m", 1, prefix_cache=True, cache_tokens=300)
    assert rows_in_flight(reflection(), [small]) >= 1


def test_with_the_planned_rows_no_prompt_is_computed_twice() -> None:
    slots, cache_tokens = 64, 24_000
    rows: list[dict[str, Json]] = [
        {"case": f"Case {i}. " + f"Fact {i:04} of it. " * 60, "question": f"What of {i}?"}
        for i in range(200)
    ]
    plan = LogicalPlan((("q", Result((reflection(), SCAN))),))
    stats = estimate(plan, {"rows": rows}, estimate_tokens)
    worker = Worker("s", "simulated", "m", slots, prefix_cache=True, cache_tokens=cache_tokens)
    planned = place(plan, stats, {"m": worker})

    def computed_tokens(physical: PhysicalPlan, room: int = cache_tokens) -> int:
        async def main() -> int:
            engine = SimulatedBackend(
                "m", LoopClock(), capabilities=describe(slots), cache_tokens=room
            )
            handle = RunHandle(RunInputs(physical, stats, {"rows": rows}, {}))
            finished = await handle.run({"s": engine})
            usages = [metrics.usage for metrics in finished.metrics.values()]
            return sum(u.input_tokens - (u.cached_tokens or 0) for u in usages)

        with asyncio.Runner(loop_factory=lambda: new_event_loop(True)) as runner:
            return runner.run(main())

    least = computed_tokens(planned, room=10_000_000)
    assert computed_tokens(planned) == least
    assert computed_tokens(replace(planned, rows_in_flight=512)) > 1.3 * least
