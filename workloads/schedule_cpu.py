"""Two copies of a model in two processes on one machine: the chosen schedule, measured.

    python -m workloads.schedule_cpu --engine torch --model smollm2-135m-instruct --out result.json

The same batch is run by two engines under `auto`, `round-robin` (operators dealt to the engines in
turn) and `min-switch`, and by one engine alone, `--repeat` times each and in turn. Engines are
opened once and warmed up before anything is timed; what is timed is the run with its planning left
out. Two engines share the machine's cores: give each its share with `--threads`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import halo

SCHEDULERS = ("auto", "round-robin", "min-switch")
ALONE = "one engine"

lm = halo.Model()


@halo.workflow
def review(question: str) -> str:
    """Five calls a row: one, two that read it, one that reads those, and one beside them."""
    facts = lm.gen(f"List two facts about this.\nQuestion: {question}", max_tokens=24, name="facts")
    pro = lm.gen(f"Facts: {facts}\nArgue for it: {question}", max_tokens=24, name="pro")
    con = lm.gen(f"Facts: {facts}\nArgue against it: {question}", max_tokens=24, name="con")
    title = lm.gen(f"Write a title for: {question}", max_tokens=8, name="title")
    return lm.gen(
        f"Title: {title}\nFor: {pro}\nAgainst: {con}\nWho won?", max_tokens=16, name="end"
    )


def rows(n: int, salt: int) -> list[dict[str, str]]:
    """`n` questions; another `salt` gives others."""
    return [{"question": f"Case {salt}-{i}: is plan {i} better than plan {i + 1}?"}
            for i in range(n)]  # fmt: skip


def measure(
    engine: str, model: str, n_rows: int, repeat: int, threads: int | None
) -> dict[str, Any]:
    """Seconds of each way to run the batch, and the calls that each engine got."""
    seconds: dict[str, list[float]] = {way: [] for way in (*SCHEDULERS, ALONE)}
    requests: dict[str, dict[str, int]] = {}
    common: dict[str, Any] = {"model": model}
    if threads:
        common["threads"] = threads
    with (
        halo.Session(**common, workers=(engine, engine)) as pair,
        halo.Session(**common, engine=engine) as alone,
    ):
        for session in (pair, alone):
            session.run(review, rows(4, 0))
        order = list(seconds)
        for turn in range(repeat):
            # Another one goes first each time: what drifts on the machine meets all alike.
            for way in order[turn % len(order) :] + order[: turn % len(order)]:
                session = alone if way == ALONE else pair
                if way != ALONE:
                    session.config = session.config.model_copy(update={"scheduler": way})
                # Every run has questions of its own, so that none finds another one's prefixes.
                salt = 1 + turn * len(order) + order.index(way)
                prepared = session.prepare(review, rows(n_rows, salt))
                began = time.perf_counter()
                result = session.run_prepared(prepared)
                seconds[way].append(time.perf_counter() - began)
                requests[way] = dict(result.engine_requests)
                print(f"{way}: {seconds[way][-1]:.2f} s {requests[way]}", file=sys.stderr)
    medians = {way: statistics.median(times) for way, times in seconds.items()}
    return {
        "engine": engine,
        "model": model,
        "rows": n_rows,
        "seconds": {way: [round(s, 3) for s in times] for way, times in seconds.items()},
        "median_s": {way: round(s, 3) for way, s in medians.items()},
        "round_robin_over_auto": round(medians["round-robin"] / medians["auto"], 3),
        "one_engine_over_auto": round(medians[ALONE] / medians["auto"], 3),
        "requests": requests,
    }


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--engine", default="local")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of each engine")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    result = measure(
        arguments.engine, arguments.model, arguments.rows, arguments.repeat, arguments.threads
    )
    text = json.dumps(result, indent=2)
    if arguments.out:
        arguments.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
