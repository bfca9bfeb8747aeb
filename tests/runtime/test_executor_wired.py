"""The executor with the real things around it: the simulated engine, Python tools, a journal."""

from __future__ import annotations

import asyncio
import itertools
import random
from pathlib import Path
from typing import Any

from executor_setup import Q, Setup, gen, rows, run

from planner.logical import (
    Effect,
    Format,
    Json,
    Project,
    Prompt,
    Ref,
    Tool,
)
from runtime.backends.simulated import SimulatedBackend
from runtime.clock import LoopClock
from runtime.executor import Executor
from runtime.journal import Journal
from runtime.records import Outcome
from runtime.sharing import CallTable
from runtime.sql_tool import Databases
from runtime.tool_runner import ToolRunner
from runtime.tools import ToolSpec


def test_thousands_of_rows_on_the_simulated_engine() -> None:
    first = gen("first ", Q, max_tokens=16)
    root = Project((gen("second ", first, max_tokens=16), Format((first,), Prompt((Ref(0),)))))
    root = Project(root.inputs, ("second", "first"))

    async def main() -> tuple[list[Json], int]:
        engine = SimulatedBackend("m", LoopClock())
        setup = Setup({"main": root}, engine=engine, slots=16)
        return await setup.values(rows(2000)), engine.requests_seen

    values, requests = run(main)
    assert len({str(value) for value in values}) == 2000
    assert requests == 4000


def test_writes_of_python_tools_keep_the_order_of_the_rows() -> None:
    written: list[str] = []

    def shout(text: str) -> str:
        return text.upper()

    def publish(text: str) -> int:
        written.append(text)
        return len(written)

    text: dict[str, Any] = {"type": "object", "properties": {"text": {"type": "string"}}}
    specs = {
        "shout": ToolSpec("shout", shout, parameters=text, effect=Effect.PURE),
        "publish": ToolSpec("publish", publish, parameters=text),
    }
    loud = Tool((gen("", Q),), specs["shout"].ref, ("text",))
    root = Tool((loud,), specs["publish"].ref, ("text",), "main/publish")
    rng = random.Random(3)

    async def main() -> list[Json]:
        setup = Setup({"main": root}, latency_s=lambda _: rng.uniform(1, 9))
        clock = LoopClock()
        table = CallTable(setup.store, setup.metrics)
        runner = ToolRunner(specs, Databases(None), table, setup.store, clock)
        executor = Executor(
            setup.physical,
            dispatcher=setup.dispatcher,
            tools=runner,
            tool_schemas={},
            store=setup.store,
            clock=clock,
            metrics=setup.metrics,
        )
        outcomes = (await executor.run({"rows": rows(8)}))["main"]
        await runner.close()
        assert all(o.error is None for o in outcomes), outcomes
        return [o.value for o in outcomes]

    assert run(main) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert written == [f"Q{i}" for i in range(8)]


def test_a_run_that_was_stopped_goes_on_from_its_journal(tmp_path: Path) -> None:
    root = gen("second ", gen("first ", Q, temperature=1.0, call_id="main/1"))
    asked: list[str] = []

    async def part(stop_after_s: float | None) -> list[Outcome]:
        journal = Journal(tmp_path / "events.sqlite")
        setup = Setup({"main": root}, store=journal, window=4, slots=2)
        if stop_after_s is not None:
            asyncio.get_running_loop().call_later(stop_after_s, setup.executor.stop)
        outcomes = (await setup.run(rows(20)))["main"]
        asked.extend(setup.ours.asked)
        journal.close("finished")
        return outcomes

    parts = [run(lambda: part(5.5)), run(lambda: part(4.5)), run(lambda: part(None))]
    assert all(parts), "each part ends some rows"
    outcomes = sorted(itertools.chain(*parts), key=lambda outcome: outcome.row_index)
    assert [o.value for o in outcomes] == [f"SECOND FIRST Q{i}" for i in range(20)]
    assert len(asked) == len(set(asked)) == 40, "no call is made twice"
    assert run(lambda: part(None)) == []
