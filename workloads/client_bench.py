"""What Halo's client costs: a thousand calls at once against a server that computes nothing."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import halo
from workloads.gpu.models import write_model
from workloads.stub_server import StubServer

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
        tokenizer = write_model("tiny", Path(scratch))
        server = subprocess.Popen(
            [sys.executable, "-P", "-c", SERVE, str(tokenizer), *sys.path],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert server.stdout is not None
            url = server.stdout.readline().strip()
            figures: dict[str, Any] = {"calls": calls, "in_flight": IN_FLIGHT}
            for name, out in (("in_memory", None), ("journalled", Path(scratch) / "run")):
                figures[name] = _measured(url, calls, out)
            return figures
        finally:
            server.kill()
            server.wait()


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


SERVE = """
import sys
sys.path[:] = sys.argv[2:]
from workloads.client_bench import serve
serve(sys.argv[1])
"""


def serve(tokenizer: str) -> None:
    """Serve until killed; the address goes to standard output."""
    print(StubServer("stub", tokenizer).url, flush=True)
    threading.Event().wait()
