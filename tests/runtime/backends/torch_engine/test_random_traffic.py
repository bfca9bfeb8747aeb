"""Requests that come, go and crowd each other out at random: nothing is lost and every answer is
right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_exactness import engine_of
from tiny_models import ANSWER_TOKENS, Tiny

from runtime.backends.torch_engine.scheduler import SchedulerConfig
from runtime.backends.torch_engine.sequence import GenerationRequest, SequenceState, Stage

CONFIGS = (
    SchedulerConfig(max_step_tokens=40, max_running=6),
    SchedulerConfig(chunk_tokens=8, max_running=4),
    SchedulerConfig(max_running=12),
    SchedulerConfig(layer_groups=2, cohort_tokens=120, max_running=8),
)

ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(0, 11), st.integers(-1, 1)),
        st.tuples(st.just("cancel"), st.integers(0, 30), st.just(0)),
        st.tuples(st.just("step"), st.integers(1, 6), st.just(0)),
        st.tuples(st.just("clear"), st.just(0), st.just(0)),
    ),
    max_size=40,
)


@pytest.fixture(scope="module")
def tiny_session(tiny_of: Callable[[str], Tiny]) -> Tiny:
    return tiny_of("qwen3")


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(ACTIONS, st.sampled_from(range(len(CONFIGS))), st.sampled_from([100, 160, 400, 2_000]))
def test_random_traffic(
    tiny_session: Tiny, actions: list[Any], config: int, max_kv_tokens: int
) -> None:
    tiny = tiny_session
    engine = engine_of(tiny, max_kv_tokens, scheduler=CONFIGS[config])
    running: list[tuple[SequenceState, int]] = []
    for action, number, priority in actions:
        if action == "submit":
            request = GenerationRequest(tiny.prompts[number], ANSWER_TOKENS, priority=priority)
            running.append((engine.submit(request), number))
        elif action == "cancel" and running:
            engine.cancel(running[number % len(running)][0])
        elif action == "clear":
            engine.scheduler.clear_cache()
        elif action == "step":
            for _ in range(number):
                engine.step()
        engine.check()
    steps = 0
    while engine.has_work:
        engine.step()
        steps += 1
        assert steps < 2_000
    engine.check()
    for sequence, number in running:
        if sequence.result is not None:
            assert sequence.result.ids == tiny.answers[number]
        else:
            assert sequence.cancelled or sequence.stage is Stage.DONE
    assert engine.pool.free_slots + engine.tree.tokens == engine.pool.n_slots
    assert engine.tree.evictable_tokens == engine.tree.tokens
    engine.scheduler.clear_cache()
    assert engine.pool.free_slots == engine.pool.n_slots


OPENINGS = st.lists(
    st.tuples(st.sampled_from(["append", "replace", "step"]), st.integers(0, 70)), max_size=10
)


@settings(max_examples=30, deadline=None)
@given(OPENINGS, st.integers(0, 11), st.sampled_from([130, 2_000]))
def test_open_prompts_answer_as_whole_ones(
    tiny_session: Tiny, script: list[tuple[str, int]], number: int, max_kv_tokens: int
) -> None:
    """Any script of growing and replacing ends with the answer to the whole prompt; growing
    computes nothing twice."""
    tiny = tiny_session
    prompt, other = tiny.prompts[number], tiny.prompts[(number + 1) % 12]
    engine = engine_of(
        tiny, max_kv_tokens, scheduler=SchedulerConfig(chunk_tokens=16, max_running=4)
    )
    prefilled = 0

    def count(metrics: Any) -> None:
        nonlocal prefilled
        prefilled += metrics.prefilled_tokens

    engine._on_step = count
    sequence = engine.submit(GenerationRequest([], ANSWER_TOKENS), is_open=True)
    ids: list[int] = []
    appended_only = True
    for action, size in script:
        if action == "step":
            engine.submit(GenerationRequest(other, 2)) if size > 60 else None
            appended_only &= size <= 60
            for _ in range(size // 20):
                engine.step()
        elif action == "append" and prompt[: len(ids)] == ids:
            ids = prompt[: len(ids) + size]
            assert engine.update_prompt(sequence, ids) == 0
        else:
            appended_only = False
            ids = [*prompt[: size // 3], *other[: size // 2]]
            engine.update_prompt(sequence, ids)
        engine.check()
    if prompt[: len(ids)] != ids:
        appended_only = False
    engine.update_prompt(sequence, prompt)
    engine.close_prompt(sequence)
    while engine.has_work:
        engine.step()
    engine.check()
    assert sequence.result is not None
    assert sequence.result.ids == tiny.answers[number]
    if appended_only and max_kv_tokens == 2_000:
        assert prefilled == len(prompt)
