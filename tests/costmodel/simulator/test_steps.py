"""Macro-steps against an engine that takes every step by itself."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_work import TIMER, engine

from costmodel.simulator import (
    Assignment,
    Machine,
    ModelWork,
    Operation,
    PromptPart,
    WorkerSpec,
    Workload,
    simulate,
)


def step_by_step(
    prompts: list[int], outputs: list[int], arrivals: list[float], max_running: int, chunk: int
) -> list[float]:
    """End times of calls of one engine: each step admits what has arrived, prefill first."""
    now = 0.0
    waiting = list(range(len(prompts)))
    running: dict[int, int] = {}
    ends = [0.0] * len(prompts)
    while waiting or running:
        tokens = 0
        admitted: list[int] = []
        for i in list(waiting):
            if arrivals[i] > now + 1e-12 or len(running) + len(admitted) >= max_running:
                continue
            if tokens >= chunk:
                break
            admitted.append(i)
            waiting.remove(i)
            tokens += prompts[i]
        if admitted:
            full, rest = divmod(tokens, chunk)
            now += full * TIMER.step_s(chunk, 0, 0, 0)
            now += TIMER.step_s(rest, 0, 0, 0) if rest else 0.0
            for i in admitted:
                running[i] = outputs[i]
        elif running:
            now += TIMER.step_s(0, 0, len(running), 0)
            for i in running:
                running[i] -= 1
        else:
            now = max(now, min(arrivals[i] for i in waiting))
            continue
        for i in [i for i, left in running.items() if left <= 0]:
            ends[i] = now
            del running[i]
    return ends


@given(
    st.lists(
        st.tuples(
            st.integers(1, 300),
            st.integers(0, 30),
            st.floats(0, 2, allow_nan=False).map(lambda x: round(x, 3)),
        ),
        min_size=1,
        max_size=14,
    ),
    st.integers(1, 6),
    st.sampled_from([64, 256, 4096]),
)
@settings(max_examples=150, deadline=None)
def test_macro_steps_end_calls_when_single_steps_do(
    calls: list[tuple[int, int, float]], max_running: int, chunk: int
) -> None:
    calls = sorted(calls, key=lambda c: c[2])
    prompts, outputs = [c[0] for c in calls], [c[1] for c in calls]
    # Steps take multiples of 0.1 ms: no call arrives at the very end of another's step.
    arrivals = [c[2] + i * 1.7e-6 for i, c in enumerate(calls)]
    op = Operation(
        "a",
        ModelWork("m", (PromptPart("p", 1, True),), 1),
        prompt_tokens=prompts,
        output_tokens=outputs,
    )
    workload = Workload((op,), (1,) * len(calls), arrival_s=tuple(arrivals))
    spec = engine(max_running=max_running, chunk_tokens=chunk)
    machine = Machine((WorkerSpec("w", {"m": spec}, 1e12, ("m",)),))
    priority = [float(i) for i in range(len(calls))]
    run = simulate(workload, machine, Assignment([0] * len(calls), priority))
    expected = step_by_step(prompts, outputs, arrivals, max_running, chunk)
    for got, wanted in zip(run.group_end_s, expected, strict=True):
        assert abs(got - wanted) < 1e-6
