"""What Halo's client costs: a thousand calls at once against a server that computes nothing."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import halo
from workloads.gpu.models import write_model
from workloads.stub_server import StubProcess

IN_FLIGHT = 1000
PROMPT = "word " * 100


@halo.workflow
def one_call(q: str) -> str:
    """One model call a row, with a prompt of 500 characters that shares nothing."""
    return halo.Model().gen(f"{q} {PROMPT}", max_tokens=24, name="call")


def client(calls: int = 10_000) -> dict[str, Any]:
    """Processor time of this process for each call, from the row to its recorded answer, and calls
    a second. The server runs in a process of its own. Without a run directory, and with one."""
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer = str(write_model("tiny", Path(scratch)))
        with StubProcess("stub", tokenizer) as server:
            figures: dict[str, Any] = {"calls": calls, "in_flight": IN_FLIGHT}
            for name, out in (("in_memory", None), ("journalled", Path(scratch) / "run")):
                figures[name] = _measured(server.url, calls, out)
            return figures


def _measured(url: str, calls: int, out: Path | None) -> dict[str, float]:
    rows = [{"q": f"question {i}"} for i in range(calls)]
    with halo.Session(engine=f"sglang={url}", max_in_flight=IN_FLIGHT) as session:
        prepared = session.prepare(one_call, rows)
        session.run(one_call, rows[:200])  # connections are open, modules loaded
        result = session.run_prepared(prepared, out=out)
    if result.errors:
        raise RuntimeError(f"{len(result.errors)} calls failed: {result.errors[0].error}")
    return {
        "cpu_ms_per_call": round(1000 * result.cpu_s / calls, 3),
        "calls_per_s": round(calls / result.elapsed_s),
        "elapsed_s": round(result.elapsed_s, 2),
    }
