"""The torch engine beside other engines: the same weights, the same token ids, one after the other.

    python -m workloads.torch_bench [--model NAME] [--threads N] [--engines …] [--python vllm=PATH]
        [--rounds N]

Every engine runs in a process of its own, in float32 and in bfloat16 where it has both, and the
better time counts: each at its best settings. `--python ENGINE=PATH` names the interpreter of the
environment where another engine is installed; one that is missing is reported as missing.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ENGINES = ("torch_engine", "openvino", "transformers", "vllm", "llama_cpp")
PRECISIONS = ("float32", "bfloat16")
REPEATS = 2
VOCABULARY = 40_000
"""Ids below this are ordinary tokens of the models that are measured."""


def loads(rng: random.Random, *, quick: bool) -> list[dict[str, Any]]:
    """The batches: prompts as token ids, fresh ones for each repeat."""

    def tokens(n: int) -> list[int]:
        return [rng.randrange(1_000, VOCABULARY) for _ in range(n)]

    def shared() -> list[list[int]]:
        stem = tokens(512)
        return [[*stem, *tokens(32)] for _ in range(8 if quick else 64)]

    n_out = 8 if quick else 32
    made = [
        {
            "name": "shared prefix: 512 + 32 tokens",
            "prompts": [shared() for _ in range(REPEATS)],
            "output_tokens": n_out,
            "prime": True,
        },
        {
            "name": "distinct prompts: 256 tokens",
            "prompts": [[tokens(256) for _ in range(8 if quick else 64)] for _ in range(REPEATS)],
            "output_tokens": n_out,
        },
    ]
    for batch in (1, 8, 32):
        prompts = [[tokens(64) for _ in range(batch)] for _ in range(REPEATS)]
        name = f"decode, batch {batch}"
        made.append({"name": name, "prompts": prompts, "output_tokens": 2 * n_out})
    return made


def run_engine(engine: str, python: str, job: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    """Figures of one engine in a process of its own; {"error": …} when it cannot run."""
    spec = importlib.util.find_spec("halo")
    assert spec is not None and spec.origin is not None
    root = Path(spec.origin).parents[1]
    script = root / "runtime" / "backends" / "torch_engine" / "contenders.py"
    command = [python, str(script), engine]
    # Only this package's own engine needs Halo; others must not meet its modules by accident.
    environment = {**os.environ, "OMP_NUM_THREADS": str(job["threads"])}
    environment.pop("PYTHONPATH", None)
    if engine == "torch_engine":
        environment["PYTHONPATH"] = str(root)
    try:
        done = subprocess.run(
            command, input=json.dumps(job), capture_output=True, text=True, timeout=timeout_s,
            env=environment, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"error": f"not done within {timeout_s:.0f} s"}
    if done.returncode:
        return {"error": done.stderr.strip().rpartition("\n")[2] or f"exit {done.returncode}"}
    return dict(json.loads(done.stdout.strip().rpartition("\n")[2]))


def torch_engine(
    model: str,
    *,
    threads: int = 1,
    engines: tuple[str, ...] = ENGINES,
    pythons: dict[str, str] | None = None,
    quick: bool = False,
    rounds: int = 1,
    only: str = "",
    timeout_s: float = 3_600.0,
) -> dict[str, Any]:
    """Seconds of each load on each engine, and each engine's time over the torch engine's.

    The engines take turns `rounds` times, so that a machine that grows slower meets all of them.
    `only`: loads whose names contain it.
    """
    batches = [load for load in loads(random.Random(1), quick=quick) if only in load["name"]]
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        export = [sys.executable, "-m", "runtime.backends.torch_engine.export", model, scratch]
        subprocess.run(export, check=True, stdout=sys.stderr)
        pairs = [(e, p) for e in engines for p in PRECISIONS if (e, p) != ("llama_cpp", "bfloat16")]
        for engine, precision in pairs * rounds:
            name = f"{engine} {precision}"
            before = results.get(name, {})
            if "error" in before:
                continue
            print(f"{name} …", file=sys.stderr, flush=True)
            job = {
                "model": scratch, "gguf": f"{scratch}/model-f16.gguf", "threads": threads,
                "precision": precision, "loads": batches,
            }  # fmt: skip
            if engine not in ("openvino", "vllm"):
                # Requests of one moment share their prefix there, or never do.
                job["loads"] = [{**b, "prime": False} for b in batches]
            python = (pythons or {}).get(engine, sys.executable)
            result = run_engine(engine, python, job, timeout_s)
            for load, seconds in before.get("seconds", {}).items():
                result.setdefault("seconds", {}).setdefault(load, []).extend(seconds)
            results[name] = result
    settings = {"model": model, "threads": threads, "quick": quick, "rounds": rounds}
    return {**settings, **compare(results)}


def compare(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The best time of each engine on each load, and it over the torch engine's best: above 1 the
    torch engine is faster.

    Example:
        >>> seconds = {"a": [2.0, 1.0]}
        >>> compare({
        ...     "torch_engine float32": {"seconds": seconds},
        ...     "vllm bfloat16": {"seconds": {"a": [3.0, 4.0]}},
        ...     "vllm float32": {"error": "no"}})["loads"]["a"]["vllm"]["over_torch_engine"]
        3.0
    """
    table: dict[str, dict[str, dict[str, Any]]] = {}
    for name, result in results.items():
        engine, _, precision = name.partition(" ")
        for load, seconds in result.get("seconds", {}).items():
            best = table.setdefault(load, {}).get(engine)
            if best is None or min(seconds) < best["seconds"]:
                table[load][engine] = {
                    "seconds": min(seconds), "precision": precision, "all_seconds": seconds,
                }  # fmt: skip
    for row in table.values():
        ours = row.get("torch_engine")
        for entry in row.values() if ours is not None else ():
            entry["over_torch_engine"] = entry["seconds"] / row["torch_engine"]["seconds"]
    versions = {n: r.get("version") or r.get("error") for n, r in results.items()}
    return {"engines": versions, "loads": table}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--python", action="append", default=[], metavar="ENGINE=PATH")
    parser.add_argument("--rounds", type=int, default=1, help="turns that every engine takes")
    parser.add_argument("--only", default="", help="loads whose names contain this")
    parser.add_argument("--quick", action="store_true", help="small batches, to see that it runs")
    arguments = parser.parse_args()
    pythons = dict(p.split("=", 1) for p in arguments.python)
    figures = torch_engine(
        arguments.model,
        threads=arguments.threads,
        engines=tuple(arguments.engines.split(",")),
        pythons=pythons,
        quick=arguments.quick,
        rounds=arguments.rounds,
        only=arguments.only,
    )
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
