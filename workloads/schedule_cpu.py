"""Two copies of a model in two processes on one machine: the chosen schedule, measured.

    python -m workloads.schedule_cpu --engine torch --model smollm2-135m-instruct --out result.json

The same batch is run by two engines under `auto`, `round-robin` (operators dealt to the engines in
turn) and `min-switch`, and by one engine alone, `--repeat` times each and in turn. Engines are
started once, each a process of its own (`halo models serve`), and warmed up before anything is
timed; what is timed is the run, with its planning left out. Two engines share the machine's cores:
give each its share with `--threads`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import halo

ALONE = "alone"
WAYS = ("auto", "round-robin", "min-switch", ALONE)

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


@contextmanager
def served(engine: str, model: str, threads: int) -> Generator[str]:
    """An engine in a process of its own; its name for Halo. Raises `RuntimeError` when it does not
    start."""
    command = [sys.executable, "-c", "from halo.cli import main; main()", "models", "serve", model]
    command += ["--engine", engine, "--port", "0", "--threads", str(threads)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        _, separator, address = line.strip().rpartition(" at ")
        if not separator:
            raise RuntimeError(f"{' '.join(command)} did not start; it said {line!r}")
        yield f"openai={address}"
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def measure(
    engine: str, model: str, n_rows: int, repeat: int, threads: int, ways: Sequence[str] = WAYS
) -> dict[str, Any]:
    """Seconds of each way to run the batch, and the calls that each engine got."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    requests: dict[str, list[int]] = {}
    with ExitStack() as stack:
        began = time.perf_counter()
        engines = [stack.enter_context(served(engine, model, threads)) for _ in range(2)]
        pair = stack.enter_context(halo.Session(model=model, workers=tuple(engines)))
        alone = stack.enter_context(halo.Session(model=model, engine=engines[0]))
        for session in (pair, alone) if ALONE in ways else (pair,):
            session.run(review, rows(4, 0))
        print(f"ready after {time.perf_counter() - began:.0f} s", file=sys.stderr)
        order = list(ways)
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
                requests[way] = sorted(result.engine_requests.values(), reverse=True)
                print(f"{way}: {seconds[way][-1]:.2f} s {requests[way]}", file=sys.stderr)
    medians = {way: statistics.median(times) for way, times in seconds.items()}
    return {
        "workload": "schedule-cpu",
        "engine": engine,
        "model": model,
        "rows": n_rows,
        "seconds": {way: [round(s, 3) for s in times] for way, times in seconds.items()},
        "median_s": {way: round(s, 3) for way, s in medians.items()},
        "over_auto": {way: round(s / medians["auto"], 3) for way, s in medians.items()},
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
    parser.add_argument("--way", action="append", choices=WAYS, help="auto and these; default: all")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    result = measure(
        arguments.engine, arguments.model, arguments.rows, arguments.repeat, arguments.threads,
        tuple(dict.fromkeys(("auto", *(arguments.way or WAYS)))),
    )  # fmt: skip
    text = json.dumps(result, indent=2)
    if arguments.out:
        arguments.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
