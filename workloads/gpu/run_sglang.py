"""Driver of the comparison on one machine with an accelerator (or, for a dry run, without one).

    python -m workloads.gpu.run_sglang STAGE... --out DIR [--budget-s 520]

Stages: `main` (Halo and the baselines a, b, c, e), `lpm` (baseline d on servers that order by
longest prefix), `timeline` (Halo once, with the times of every call), `ablation` (Halo with one
thing switched off at a time), `distinct` (rows without repetition), `extra:COMMAND` (a command with
the servers' addresses in its environment: SGLANG_8B_URL, SGLANG_1B_URL).

Without an accelerator, `--cpu` is a dry run on a tiny model, and `--emulated SLOWER` has real
servers whose model takes SLOWER times as long as a card would (`emulated_card.py`); the processor
then needs to keep up, which two cores do with 3.

Servers that already answer on their ports are used as they are; others are started. Every run is
one line of DIR/STAGE.jsonl as soon as it has ended; runs that are there already are not repeated.
When the budget is spent, what is left is not run, and the last line says so: the same command with
the same DIR goes on. With several cards, one process for each, `--device` and a DIR of its own.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from halo.engine_process import freeze_collector
from workloads.baselines import BASELINES
from workloads.catalogue import named
from workloads.compare import (
    ABLATIONS,
    Bench,
    flush,
    rehearse,
    run_merged,
    run_one,
    with_count,
)
from workloads.direct import chat_text
from workloads.gpu.models import write_model
from workloads.gpu.server_log import ServerLogs
from workloads.graph import Workload
from workloads.mock_api import MockApi
from workloads.text import words

PORTS = {"8b": 31008, "1b": 31001}
"""Of the first card's servers."""
PORTS_OF_A_DEVICE = 100
POLICIES = {
    "plan": [
        "--schedule-policy", "fcfs", "--enable-priority-scheduling",
        "--schedule-low-priority-values-first", "--disable-priority-preemption",
    ],
    "lpm": ["--schedule-policy", "lpm"],
}  # fmt: skip
GPU_FLAGS = {
    "8b": ["--mem-fraction-static", "0.75", "--cuda-graph-max-bs-decode", "256"],
    "1b": ["--mem-fraction-static", "0.80", "--cuda-graph-max-bs-decode", "256"],
}
MAX_KV_TOKENS = {"8b": 250_000, "1b": 250_000}
CPU_FLAGS = [
    "--device",
    "cpu",
    "--attention-backend",
    "torch_native",
    "--disable-overlap-schedule",
    "--cuda-graph-backend-decode",
    "disabled",
    "--cuda-graph-backend-prefill",
    "disabled",
    "--max-total-tokens",
    "65536",
    "--max-running-requests",
    "64",
]
READY_S = 240.0
HERE = Path(__file__).parent


class Servers:
    """One server for each model, all with one policy."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._policy = ""
        self._ports = {n: port + PORTS_OF_A_DEVICE * arguments.device for n, port in PORTS.items()}
        self.urls = {name: f"http://127.0.0.1:{port}" for name, port in self._ports.items()}

    def ensure(self, policy: str) -> None:
        """Have the servers up under `policy`; restarts what runs under another one."""
        if self._policy == policy:
            return
        self.stop()
        started_s = time.perf_counter()
        for name in PORTS:
            if not self._answers(name, policy):
                # Together: their pools have fixed sizes, so neither depends on what it finds free.
                self._start(name, policy)
        for name in PORTS:
            self._wait(name, started_s)
        self._policy = policy
        if self._arguments.emulated:
            print(f"emulated card: all times are those of one {self._arguments.emulated:g} times "
                  "slower", flush=True)  # fmt: skip
        print(f"servers ({policy}) ready after {time.perf_counter() - started_s:.1f} s", flush=True)
        for name, url in self.urls.items():
            warm_up(url, 8 if self._arguments.cpu else 64)
            freeze_collector(url)
            print(f"{name} warmed up", flush=True)

    def logs(self, policy: str) -> ServerLogs:
        """What the servers under `policy` write, this process's or an earlier one's."""
        return ServerLogs({name: self._log(name, policy) for name in PORTS})

    def _log(self, name: str, policy: str) -> Path:
        device = self._arguments.device
        return Path(tempfile.gettempdir()) / f"halo-server-{device}-{name}-{policy}.log"

    def stop(self) -> None:
        """End the servers that this process started, and those that it found."""
        for process in self._processes.values():
            for sign in (signal.SIGTERM, signal.SIGKILL):
                try:
                    os.killpg(process.pid, sign)
                    process.wait(timeout=10)
                    break
                except (ProcessLookupError, subprocess.TimeoutExpired):
                    continue
        if self._processes:
            time.sleep(2)
        self._processes.clear()
        self._policy = ""

    def _start(self, name: str, policy: str) -> None:
        arguments = self._arguments
        model = write_model("tiny" if arguments.cpu else name, Path(arguments.models))
        command = [arguments.python, "-P", str(HERE / "serve.py")]
        environment = dict(os.environ)
        if not arguments.cpu:
            environment["CUDA_VISIBLE_DEVICES"] = str(arguments.device)
        if arguments.cpu:
            shim = HERE.parent.parent / "runtime" / "backends" / "sglang_cpu.py"
            command += ["--cpu-shim", str(shim)]
            environment["OMP_NUM_THREADS"] = "1"
        if arguments.emulated:
            lock = Path(arguments.models) / f"card-{arguments.device}"
            command += ["--emulated-card", f"{name}:{arguments.emulated}:{lock}"]
        command += [
            "--model-path", str(model), "--load-format", "dummy", "--served-model-name", name,
            "--host", "127.0.0.1", "--port", str(self._ports[name]), "--enable-cache-report",
            "--skip-server-warmup", "--sleep-on-idle", *POLICIES[policy],
        ]  # fmt: skip
        command += CPU_FLAGS if arguments.cpu else GPU_FLAGS[name]
        if not arguments.cpu or arguments.emulated:
            command += ["--max-total-tokens", str(MAX_KV_TOKENS[name])]
        if arguments.emulated:
            command += ["--max-running-requests", "2048", "--chunked-prefill-size", "8192"]
        command += shlex.split(arguments.server_flags)
        log = self._log(name, policy)
        print("$", shlex.join(command), flush=True)
        with log.open("wb") as file:
            self._processes[name] = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
                env=environment, cwd=tempfile.gettempdir(),
            )  # fmt: skip

    def _wait(self, name: str, started_s: float) -> None:
        while not self._healthy(name):
            process = self._processes.get(name)
            if process is not None and process.poll() is not None:
                sys.exit(f"server {name} ended with {process.returncode}; see its log")
            if time.perf_counter() - started_s > READY_S:
                sys.exit(f"server {name} is not ready after {READY_S:g} s; see its log")
            time.sleep(0.5)

    def _answers(self, name: str, policy: str) -> bool:
        """Whether a server of a former call is there, with the same policy."""
        if not self._healthy(name):
            return False
        with urllib.request.urlopen(f"{self.urls[name]}/server_info", timeout=10) as answer:
            found = json.load(answer)["schedule_policy"]
        if found != POLICIES[policy][1]:
            sys.exit(f"port {self._ports[name]} has a server with policy {found}; stop it first")
        return True

    def _healthy(self, name: str) -> bool:
        try:
            with urllib.request.urlopen(f"{self.urls[name]}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


def warm_up(url: str, count: int) -> None:
    """Let a server compile and capture what it needs: batches of growing size, several lengths."""

    def ask(seed: str, n_chars: int, n_tokens: int) -> None:
        body = {
            "text": chat_text("", words(seed, n_chars)),
            "sampling_params": {"max_new_tokens": n_tokens, "temperature": 0.0},
        }
        request = urllib.request.Request(
            f"{url}/generate", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=300) as answer:
            answer.read()

    with ThreadPoolExecutor(count) as pool:
        for n_chars in (60, 600, 1500):
            asked = [pool.submit(ask, f"{n_chars}/{i}", n_chars, 8) for i in range(count)]
            for each in asked:
                each.result()


def peak_rates(url: str, *, small: bool = False) -> dict[str, float]:
    """The best that this server does: tokens per second of prefill alone, on long prompts that
    share nothing, and of decoding, in the batch that suits it best."""
    n, n_chars, batches, n_tokens = (4, 256, [8], 8) if small else (16, 4096, [256, 512, 1024], 64)

    def ask(count: int, size: int, tokens: int) -> float:
        flush([url])
        body = {
            "text": [words(f"peak/{i}/{size}/{tokens}", size) for i in range(count)],
            "sampling_params": {"max_new_tokens": tokens, "temperature": 0.0, "ignore_eos": True},
        }
        request = urllib.request.Request(
            f"{url}/generate", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        started_s = time.perf_counter()
        with urllib.request.urlopen(request, timeout=300) as answer:
            answer.read()
        return time.perf_counter() - started_s

    def decode_rate(batch: int) -> float:
        begin_s = min(ask(batch, 64, 1) for _ in range(2))
        decode_s = min(ask(batch, 64, n_tokens + 1) for _ in range(2)) - begin_s
        return batch * n_tokens / max(decode_s, 1e-6)

    ask(n, n_chars, 1)
    prefill_s = min(ask(n, n_chars, 1) for _ in range(2))
    rates = {batch: decode_rate(batch) for batch in batches}
    best = max(rates, key=rates.__getitem__)
    return {
        "prefill_tokens_per_s": round(n * n_chars / prefill_s),
        "decode_tokens_per_s": round(rates[best]),
        "decode_batch": best,
    }


def read_records(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of records."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def makespan_s(
    records: list[dict[str, Any]], system: str, workload: Workload, seed: int
) -> float | None:
    """Of a run of this workload with as many rows; None when there is none."""
    for r in records:
        same = (r.get("system"), r.get("workload"), r.get("seed"), r.get("rows"))
        if same == (system, workload.name, seed, workload.count) and "makespan_s" in r:
            return float(r["makespan_s"])
    return None


def near_the_best(
    records: list[dict[str, Any]], system: str, workload: Workload, seed: int, within: float
) -> bool:
    """Whether a system is worth running after what is recorded of `seed`: Halo always, a baseline
    when it was near the best of them, or is not known."""
    known = {s: makespan_s(records, s, workload, seed) for s in BASELINES}
    best = min((s for s in known.values() if s is not None), default=None)
    own = known.get(system)
    return own is None or best is None or own <= best * (1 + within)


class Log:
    """Records as lines of a file, and a short line on the terminal."""

    def __init__(self, path: Path, deadline_s: float) -> None:
        self.folder = path.parent
        self.records = read_records(path) if path.exists() else []
        self._file = path.open("a", encoding="utf-8")
        self._deadline_s = deadline_s

    @property
    def left_s(self) -> float:
        return self._deadline_s - time.perf_counter()

    def write(self, record: dict[str, Any]) -> None:
        self.records.append(record)
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def run(self, **what: Any) -> bool:
        """Make one run and record it; False when no time is left."""
        workload: Workload | None = what.get("workload")
        rows: list[dict[str, str]] | None = what.get("rows")
        if workload is not None and rows is not None:
            asked = replace(workload, count=len(rows))
            if makespan_s(self.records, str(what.get("system")), asked, what["seed"]) is not None:
                return True
        if self.left_s < 0:
            self.write({"note": "budget spent", "next": str(what.get("system"))})
            return False
        merge: bool | None = what.pop("merge", None)
        record: dict[str, Any]
        try:
            record = run_one(**what) if merge is None else run_merged(**what, merge=merge)
        except Exception as error:
            name = getattr(what.get("workload"), "name", "")
            record = {"system": what.get("system"), "workload": name, "seed": what["seed"],
                      "error": repr(error)[:500]}  # fmt: skip
        self.write(record)
        if "makespan_s" in record:
            cached = record["cached_tokens"] / max(1, record["input_tokens"])
            print(
                f"{record['workload']:10} {record['system']:15} seed {record['seed']} "
                f"{record['makespan_s']:7.2f} s  calls {record['calls']:5}  "
                f"in {record['input_tokens']:8} cached {cached:4.0%}  {record['answers']}  "
                f"failed {record['failed']} {record['errors'][:1]}",
                flush=True,
            )
        else:
            print(record, flush=True)
        return True


def run_stage(
    stage: str, servers: Servers, log: Log, arguments: argparse.Namespace, api_url: str
) -> None:
    """The runs of one stage, seeds outermost, so that a cut leaves whole seeds."""
    workloads = [with_count(w, arguments.scale) for w in named(arguments.workloads)]
    seeds = range(arguments.first_seed, arguments.seeds + 1)
    policy = "lpm" if stage == "lpm" else "plan"
    bench = Bench(
        servers.urls, {name: name for name in PORTS}, api_url,
        Path(arguments.models) / "databases", servers.logs(policy),
        None if arguments.cpu else arguments.device,
    )  # fmt: skip
    servers.ensure(policy)
    if not stage.startswith("extra:"):
        # The first description of itself that a server gives takes a second: for nobody's run.
        small = named("w1")[0]
        for system in ("halo", "async"):
            run_one(bench, system, small, small.rows(2, 0), 0)
    if stage == "main":
        for name, url in servers.urls.items():
            if not any(r.get("note") == "peak" and r["model"] == name for r in log.records):
                log.write({"note": "peak", "model": name, **peak_rates(url, small=arguments.cpu)})
        systems = arguments.systems.split(",")
        earlier = read_records(Path(arguments.near)) if arguments.near else None
        for seed in seeds:
            for workload in workloads:
                rows = workload.rows(workload.count, seed)
                for system in in_turn(systems, seed):
                    known = earlier or (log.records if seed > 1 else [])
                    if not near_the_best(known, system, workload, 1, arguments.within):
                        continue
                    if not log.run(bench=bench, system=system, workload=workload, rows=rows,
                                   seed=seed):  # fmt: skip
                        return
        for workload in workloads:
            # One row after the other takes rows times as long: two rows tell how long one takes.
            rows = workload.rows(workload.count, 1)[:2]
            if not log.run(bench=bench, system="rows", workload=workload, rows=rows, seed=1):
                return
    elif stage == "timeline":
        for workload in workloads:
            out = Path(arguments.models) / "runs" / workload.name
            shutil.rmtree(out, ignore_errors=True)
            rows = workload.rows(workload.count, arguments.first_seed)
            if not log.run(bench=bench, system="halo", workload=workload, rows=rows,
                           seed=arguments.first_seed, out=out):  # fmt: skip
                return
            keep_trace(out / "trace.jsonl", log.folder / f"timeline-{workload.name}.csv.gz")
    elif stage == "lpm":
        for seed in seeds:
            for workload in workloads:
                rows = workload.rows(workload.count, seed)
                if not log.run(bench=bench, system="lpm", workload=workload, rows=rows, seed=seed):
                    return
    elif stage == "ablation":
        for seed in seeds:
            for workload in workloads:
                rows = workload.rows(workload.count, seed)
                for system in in_turn(list(ABLATIONS), seed):
                    if not log.run(bench=bench, system=system, workload=workload, rows=rows,
                                   seed=seed):  # fmt: skip
                        return
            for pair in merged_pairs(workloads):
                tables = [w.rows(w.count, seed) for w in pair]
                for merge in (True, False) if seed % 2 else (False, True):
                    if not log.run(bench=bench, workloads=pair, rows=tables, seed=seed,
                                   merge=merge):  # fmt: skip
                        return
    elif stage == "distinct":
        for seed in seeds:
            for workload in workloads:
                rows = distinct_rows(workload, seed)
                for system in in_turn(["halo", "async", "langgraph"], seed):
                    if not log.run(bench=bench, system=system, workload=workload, rows=rows,
                                   seed=seed):  # fmt: skip
                        return
    elif stage.startswith("extra:"):
        urls = {f"SGLANG_{name.upper()}_URL": url for name, url in servers.urls.items()}
        command = shlex.split(stage.removeprefix("extra:"))
        print("$", shlex.join(command), flush=True)
        environment = {**os.environ, **urls, "OUT": str(arguments.out)}
        done = subprocess.run(command, env=environment, timeout=max(10.0, log.left_s), check=False)
        log.write({"note": stage, "returncode": done.returncode})
    else:
        sys.exit(f"no stage {stage!r}")


TIMELINE = (
    "kind", "name", "op", "queued_s", "start_s", "first_token_s", "end_s", "input_tokens",
    "cached_tokens", "output_tokens",
)  # fmt: skip


def keep_trace(trace: Path, path: Path) -> None:
    """The times and tokens of every call in a trace, without the texts."""
    with trace.open(encoding="utf-8") as lines, gzip.open(path, "wt", newline="") as file:
        writer = csv.DictWriter(file, TIMELINE, extrasaction="ignore")
        writer.writeheader()
        for line in lines:
            call = json.loads(line)
            for name in TIMELINE:
                if isinstance(call[name], float):
                    call[name] = round(call[name], 4)
            writer.writerow({**call, "op": call["op"][:8]})


def in_turn(systems: list[str], seed: int) -> Iterator[str]:
    """The systems, beginning with another one for each seed, so that none always goes first."""
    first = seed % len(systems)
    yield from systems[first:] + systems[:first]


def merged_pairs(workloads: list[Workload]) -> list[list[Workload]]:
    """Pairs of workloads that ask the same database about rows of the same kind."""
    by_name = {w.name: w for w in workloads}
    pairs = [("w1", "w2"), ("w3", "w4"), ("w5", "w6"), ("mapred", "debate")]
    return [[by_name[a], by_name[b]] for a, b in pairs if a in by_name and b in by_name]


def imported(arguments: argparse.Namespace) -> Iterator[str]:
    """Systems that import something of their own."""
    yield from ("halo", "async")
    asked = "main" in arguments.stages and "langgraph" in arguments.systems.split(",")
    if asked or "distinct" in arguments.stages:
        yield "langgraph"


def distinct_rows(workload: Workload, seed: int) -> list[dict[str, str]]:
    """As many rows as the workload has, or as there are different ones, without repetition."""
    rows = workload.rows(workload.count * 4, seed)
    different = list({json.dumps(row, sort_keys=True): row for row in rows}.values())
    return different[: workload.count]


def machine() -> dict[str, Any]:
    """What the records were measured on."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        gpu = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        gpu = "none"
    return {
        "note": "machine", "gpu": gpu, "cpu_count": os.cpu_count(),
        "python": platform.python_version(), "arguments": sys.argv[1:],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("stages", nargs="+")
    parser.add_argument("--out", required=True)
    parser.add_argument("--models", default=str(Path(tempfile.gettempdir()) / "halo-models"))
    parser.add_argument("--python", default=sys.executable, help="of SGLang's environment")
    parser.add_argument("--workloads", default="", help="comma-separated; default: all")
    parser.add_argument("--systems", default="halo,async,langgraph,operators")
    parser.add_argument("--seeds", type=int, default=3, help="the last one")
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--scale", type=float, default=1.0, help="times the published rows")
    parser.add_argument(
        "--within",
        type=float,
        default=float("inf"),
        help="main: after the first seed, leave out baselines that took more than "
        "this share longer than the best",
    )
    parser.add_argument(
        "--near",
        default="",
        help="main: records of an earlier comparison, which tell from the first "
        "seed on what --within leaves out",
    )
    parser.add_argument("--server-flags", default="", help="further flags of both servers")
    parser.add_argument("--device", type=int, default=0, help="the card")
    parser.add_argument("--budget-s", type=float, default=520.0)
    parser.add_argument("--cpu", action="store_true", help="dry run: tiny model, no accelerator")
    parser.add_argument(
        "--emulated",
        type=float,
        default=0.0,
        metavar="SLOWER",
        help="no accelerator: real servers whose model takes SLOWER times as long as one H200 "
        "would and computes nothing; makespans are emulated",
    )
    parser.add_argument("--keep", action="store_true", help="leave the servers running")
    arguments = parser.parse_args()
    arguments.cpu = arguments.cpu or arguments.emulated > 0
    # Servers run in a folder of their own. Links stay: an environment's Python is one.
    arguments.models = str(Path(arguments.models).absolute())
    if os.sep in arguments.python:
        arguments.python = str(Path(arguments.python).absolute())
    Path(arguments.out).mkdir(parents=True, exist_ok=True)
    deadline_s = time.perf_counter() + arguments.budget_s
    servers = Servers(arguments)
    with MockApi() as api:
        rehearse(api.url, Path(arguments.models) / "databases", imported(arguments))
        try:
            for stage in arguments.stages:
                log = Log(Path(arguments.out) / f"{stage.partition(':')[0]}.jsonl", deadline_s)
                log.write(machine())
                run_stage(stage, servers, log, arguments, api.url)
        finally:
            if not arguments.keep:
                servers.stop()


if __name__ == "__main__":
    main()
