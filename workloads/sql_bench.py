"""The SQL benchmarks: a batch of five overlapping queries over 2,000 reviews, against other systems
on one server that counts; and 200,000 rows with 500 distinct inputs.

    python -m workloads.sql_bench [--rows N] [--peer NAME=PYTHON]... [--big] [--out FILE]

Gives one JSON object. Peers (lotus, lotus-cache, fenic, fenic-cache, daft) run with the Python of
an environment of theirs. The server answers at once, so times are what the systems themselves take,
and machines that are busy with other things make them longer.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import halo
from workloads.sql_halo import QUERIES
from workloads.sql_reviews import rows as review_rows
from workloads.sql_server import CountingServer

LIMIT_S = 3600.0
"""How long a contender may take: on a busy machine the slowest need most of an hour."""


def five_queries(count: int, peers: dict[str, str], limit_s: float) -> dict[str, Any]:
    """Calls, distinct prompts, tokens and time of every contender for the same five queries. Each
    runs in a process of its own."""
    found: dict[str, Any] = {}
    with CountingServer() as server, tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "reviews.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in review_rows(count)), "utf-8")
        # Peers do not see this repository: its packages could hide modules of theirs.
        root = str(Path(__file__).resolve().parents[1])
        commands = {
            "halo": ["env", f"PYTHONPATH={root}", sys.executable, "-m", "workloads.sql_halo"]
        }
        script = str(Path(__file__).with_name("sql_peers.py"))
        commands |= {name: [python, "-I", script, name] for name, python in peers.items()}
        for name, command in commands.items():
            found[name] = measured([*command, server.url, str(path)], server, limit_s)
            print(json.dumps({name: found[name]}), file=sys.stderr, flush=True)
    return {"rows": count, "queries": len(QUERIES), "systems": found}


def measured(command: list[str], server: CountingServer, limit_s: float) -> dict[str, Any]:
    """What one contender asked and took; `failed` says why when it did not end well."""
    server.reset()
    before_s = _children_s()
    started = time.monotonic()
    said: dict[str, Any]
    with tempfile.TemporaryDirectory() as own:  # answer caches of peers start empty
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=limit_s, cwd=own,
                check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            said = {"failed": f"no end after {limit_s:.0f} s"}
        else:
            if done.returncode:
                said = {"failed": done.stderr[-800:]}
            else:
                said = json.loads(done.stdout.strip().splitlines()[-1])
    total_s = time.monotonic() - started
    counts = server.reset()
    return {
        **said,
        "requests": counts.requests,
        "repeated_after_failure": counts.repeated,
        "distinct_prompts": counts.distinct,
        "input_tokens": counts.input_tokens,
        "process_s": round(total_s, 2),
        "processor_s": round(_children_s() - before_s, 2),
    }


def _children_s() -> float:
    """Processor seconds of the processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def many_rows(count: int = 200_000, distinct: int = 500) -> dict[str, Any]:
    """`count` rows with `distinct` different inputs on the simulated engine: calls, seconds of
    Halo's own, and memory."""
    import duckdb

    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "big.duckdb"
        with duckdb.connect(path) as connection:
            connection.execute(
                f"CREATE TABLE big AS SELECT i AS id, 'text ' || (i % {distinct}) || ' ' || "
                f"repeat('words and more ', 20) AS t FROM range({count}) r(i)"
            )
        text = "SELECT id, AI_CLASSIFY(t, ['a', 'b']) AS k FROM big"
        with halo.Session(engine="simulated", db=path) as session:
            halo.sql("SELECT AI_SCORE('x')", session=session)
            before_bytes = _peak_bytes()
            started = time.monotonic()
            result = halo.sql(text, session=session)
            elapsed_s = time.monotonic() - started
            return {
                "rows": len(result),
                "calls": result.run.summary()["calls"]["made"],
                "elapsed_s": round(elapsed_s, 2),
                "grown_bytes": _peak_bytes() - before_bytes,
            }


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description="The SQL benchmarks.")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON")
    parser.add_argument("--limit-s", type=float, default=LIMIT_S, help="for each contender")
    parser.add_argument("--big", action="store_true", help="200,000 rows as well")
    parser.add_argument("--out", type=Path, help="a file for the JSON; standard output without")
    asked = parser.parse_args()
    peers = dict(each.split("=", 1) for each in asked.peer)
    report: dict[str, Any] = {"five_queries": five_queries(asked.rows, peers, asked.limit_s)}
    if asked.big:
        report["many_rows"] = many_rows()
    text = json.dumps(report, indent=1)
    if asked.out is None:
        print(text)
    else:
        asked.out.write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
