"""What the client's tools cost: workflows whose models answer after a fixed time and compute
nothing, so that a run takes longer only where queries, HTTP calls and functions are slow."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from workloads.catalogue import named
from workloads.compare import Bench, run_one, with_count
from workloads.gpu.models import write_model
from workloads.mock_api import MockApi
from workloads.stub_server import StubProcess

ANSWER_S = 0.3
SCALE = 0.4
WORKLOADS = "w1,w3,w4,w5"
ROUNDS = 2


def tools() -> dict[str, Any]:
    """Seconds of Halo and of plain asynchronous code (baseline a), in turn, best of `ROUNDS`, by
    workload. Models, like the HTTP service, are processes of their own."""
    figures: dict[str, Any] = {"answer_s": ANSWER_S, "scale": SCALE}
    with tempfile.TemporaryDirectory() as scratch, MockApi() as api:
        folder = Path(scratch)
        tokenizer = str(write_model("tiny", folder))
        with (
            StubProcess("8b", tokenizer, answer_s=ANSWER_S) as big,
            StubProcess("1b", tokenizer, answer_s=ANSWER_S) as small,
        ):
            servers = {"8b": big.url, "1b": small.url}
            bench = Bench(servers, {name: name for name in servers}, api.url, folder)
            for workload in (with_count(w, SCALE) for w in named(WORKLOADS)):
                rows = workload.rows(workload.count, 1)
                took_s: dict[str, list[float]] = {"halo": [], "async": []}
                run_one(bench, "halo", workload, rows[:2], 1)  # modules loaded, tables written
                for _ in range(ROUNDS):
                    for system, each in took_s.items():
                        record = run_one(bench, system, workload, rows, 1)
                        each.append(float(record["makespan_s"]))
                halo_s, async_s = min(took_s["halo"]), min(took_s["async"])
                figures[workload.name] = {
                    "halo_s": round(halo_s, 2),
                    "async_s": round(async_s, 2),
                    "async_over_halo": round(async_s / halo_s, 2),
                }
    return figures
