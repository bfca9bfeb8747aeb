"""Benchmarks: each returns figures as one JSON-able object, with what repeats them."""

from __future__ import annotations

import resource
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import halo
from workloads.client_bench import client
from workloads.planner_bench import planner
from workloads.pte_bench import pte
from workloads.tools_bench import tools

lm = halo.Model()


@halo.workflow
def eight_operators(question: str) -> str:
    """Eight operators a row, four of them model calls."""
    facts = lm.gen(f"List two facts.\nQuestion: {question}", max_tokens=16, name="facts")
    pro = lm.gen(f"Facts: {facts}\nArgue for: {question}", max_tokens=16, name="pro")
    con = lm.gen(f"Facts: {facts}\nArgue against: {question}", max_tokens=16, name="con")
    winner = lm.choose(f"FOR: {pro}\nAGAINST: {con}\nWho won?", ["for", "against"], name="judge")
    return f"{winner}: {pro} / {con}"


def overhead(rows: int = 20_000) -> dict[str, Any]:
    """Halo's own cost: a workflow of eight operators over `rows` distinct rows on the simulated
    engine, with a run directory. Nothing but Halo uses CPU time here."""
    table = [{"question": f"Is option {i} better than option {i + 1}?"} for i in range(rows)]
    with tempfile.TemporaryDirectory() as scratch, halo.Session(engine="simulated") as session:
        result = session.run(eight_operators, table, out=Path(scratch) / "run")
    summary = result.summary()
    return {
        "rows": rows,
        "operators": 8,
        "elapsed_s": summary["elapsed_s"],
        "cpu_s": summary["cpu_s"],
        "cpu_us_per_call": summary["cpu_us_per_call"],
        "calls_made": summary["calls"]["made"],
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def merging(rows: int = 30) -> dict[str, Any]:
    """Two workflows that share their first two operators, merged and one after the other."""

    @halo.workflow
    def first(question: str) -> str:
        facts = lm.gen(f"List two facts.\nQuestion: {question}", max_tokens=16)
        angle = lm.gen(f"Facts: {facts}\nName the best angle.", max_tokens=16)
        return lm.gen(f"Angle: {angle}\nWrite the headline.", max_tokens=16)

    @halo.workflow
    def second(question: str) -> str:
        facts = lm.gen(f"List two facts.\nQuestion: {question}", max_tokens=16)
        angle = lm.gen(f"Facts: {facts}\nName the best angle.", max_tokens=16)
        return lm.gen(f"Angle: {angle}\nWrite the objection.", max_tokens=16)

    table = [{"question": f"Is option {i} better?"} for i in range(rows)]
    requests: dict[str, int] = {}
    with halo.Session(engine="simulated") as session:
        merged = session.run([(first, table), (second, table)])
        requests["merged"] = sum(merged.engine_requests.values())
    alone = 0
    for flow in (first, second):
        with halo.Session(engine="simulated") as session:
            alone += sum(session.run(flow, table).engine_requests.values())
    requests["alone"] = alone
    return {"rows": rows, "engine_requests": requests}


def _scheduler(name: str) -> Callable[[], dict[str, Any]]:
    def run() -> dict[str, Any]:
        from workloads.schedule_bench import BENCHMARKS as scheduling

        return scheduling[name]()

    return run


BENCHMARKS: dict[str, Callable[[], dict[str, Any]]] = {
    **{
        name: _scheduler(name)
        for name in (
            "simulator",
            "schedule-shapes",
            "schedule-planning",
            "schedule-anytime",
            "schedule-gap",
        )
    },
    "client": client,
    "tools": tools,
    "overhead": overhead,
    "merge": merging,
    "pte": pte,
    "planner": planner,
}
