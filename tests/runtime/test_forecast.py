"""A run's progress says how many calls the whole run will make, as its first rows suggest."""

from __future__ import annotations

import asyncio

import halo
from halo.progress import progress_line
from halo.session import Session
from runtime.backends.simulated import SimulatedBackend
from runtime.clock import LoopClock, new_event_loop
from runtime.executor import Progress
from runtime.run import RunHandle, RunInputs

LM = halo.Model()


@halo.workflow
def shorten(text: str) -> str:
    """A second call over answers, which are alike more often than is assumed."""
    verdict = LM.choose(f"Good or bad? {text}", ["good", "bad"])
    return LM.gen(f"Write a title for a {verdict} review.", max_tokens=30)


def test_calls_expected_move_from_the_estimate_to_what_is_made() -> None:
    with Session(engine="simulated") as session:
        rows = [{"text": f"row {i}"} for i in range(60)]
        prepared = session.prepare(shorten, rows)
        handle = RunHandle(
            RunInputs(
                plan=prepared.plan, stats=prepared.stats, rows=prepared.rows_by_source,
                tools=prepared.tools,
            )
        )  # fmt: skip
        assert handle.progress is None
        seen: list[Progress] = []

        async def watched() -> None:
            engines = {
                worker.name: SimulatedBackend(worker.model, LoopClock())
                for worker in prepared.plan.workers
            }
            running = asyncio.ensure_future(handle.run(engines))
            while not running.done():
                await asyncio.sleep(0.02)
                if handle.progress is not None:
                    seen.append(handle.progress)
            await running

        loop = new_event_loop(virtual=True)
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(watched())
    first, last = seen[0], seen[-1]
    assert first.calls_expected == 120
    # One title for each of two verdicts: 62 calls; the assumption of 120 still counts a little.
    assert last.made == 62
    assert last.calls_expected is not None
    assert 62 <= last.calls_expected < 110
    assert "of about 120 made" in progress_line(first)
