"""The SQL benchmarks: a batch of five overlapping queries over 2,000 reviews, against other systems
on one server that counts; and 200,000 rows with 500 distinct inputs.

    python -m workloads.sql_bench [--rows N] [--peer NAME=PYTHON]... [--big]

Prints one JSON object. Peers (lotus, lotus-cache, fenic, fenic-cache, daft) run with the Python of
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
from workloads.sql_peers import ANGRY, DELIVERY, LABELS
from workloads.sql_reviews import rows as review_rows
from workloads.sql_server import CountingServer, Counts

PEER_S = 3600
"""How long a peer may take: on a busy machine the slowest need most of an hour."""

_LABEL = f"AI_CLASSIFY(body, {LABELS})"
_LATE = f"AI_FILTER(PROMPT('{DELIVERY} {{0}}', body))"

QUERIES = (
    f"SELECT * FROM reviews WHERE {_LATE} AND stars <= 2 AND lang = 'en'",
    f"SELECT id, {_LABEL} AS k FROM reviews WHERE stars = 1",
    f"SELECT lang, count(*) AS n FROM reviews WHERE stars <= 2 AND {_LATE} GROUP BY lang",
    f"SELECT id, {_LABEL} AS k FROM reviews WHERE stars <= 2 AND {_LATE}",
    f"SELECT * FROM reviews WHERE stars <= 3 AND AI_FILTER(PROMPT('{ANGRY} {{0}}', body))",
)


def five_queries(count: int, peers: dict[str, str]) -> dict[str, Any]:
    """Calls, distinct prompts, tokens and time of every contender for the same five queries."""
    table = review_rows(count)
    found: dict[str, Any] = {}
    with CountingServer() as server, tempfile.TemporaryDirectory() as scratch:
        # First load the libraries, so that times are those of queries.
        with halo.Session(engine=f"openai={server.url}", model="bench") as session:
            halo.sql("SELECT AI_SCORE('x')", session=session)
            server.reset()
            started = time.monotonic()
            result = halo.sql(";\n".join(QUERIES), tables={"reviews": table}, session=session)
            elapsed_s = time.monotonic() - started
            returned = [len(each) for each in result.batch]
        found["halo"] = _entry(server.reset(), elapsed_s, returned)
        path = Path(scratch) / "reviews.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in table), "utf-8")
        for name, python in peers.items():
            found[name] = _peer(name, python, server, path)
            print(json.dumps({name: found[name]}), file=sys.stderr, flush=True)
    return {"rows": count, "queries": len(QUERIES), "systems": found}


def _peer(name: str, python: str, server: CountingServer, path: Path) -> dict[str, Any]:
    server.reset()
    script = str(Path(__file__).with_name("sql_peers.py"))
    with tempfile.TemporaryDirectory() as own:  # answer caches of peers start empty
        try:
            done = subprocess.run(
                [python, script, name, server.url, str(path)],
                capture_output=True, text=True, timeout=PEER_S, cwd=own, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return {"failed": f"no end after {PEER_S} s", "requests": server.reset().requests}
    counts = server.reset()
    if done.returncode:
        return {"failed": done.stderr[-800:], "requests": counts.requests}
    said = json.loads(done.stdout.strip().splitlines()[-1])
    return _entry(counts, said["elapsed_s"], said["rows"])


def _entry(counts: Counts, elapsed_s: float, returned: list[int]) -> dict[str, Any]:
    return {
        "requests": counts.requests,
        "distinct_prompts": counts.distinct,
        "input_tokens": counts.input_tokens,
        "elapsed_s": round(elapsed_s, 2),
        "rows_returned": returned,
    }


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
    parser.add_argument("--big", action="store_true", help="200,000 rows as well")
    asked = parser.parse_args()
    peers = dict(each.split("=", 1) for each in asked.peer)
    report: dict[str, Any] = {"five_queries": five_queries(asked.rows, peers)}
    if asked.big:
        report["many_rows"] = many_rows()
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
