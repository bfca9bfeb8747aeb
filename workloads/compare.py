"""Runs a workload by Halo and by the baselines against the same servers and records what happened.

One record a run: makespan, latency of each row, tokens, what the servers did meanwhile. Before each
run every server's cache is flushed. Makespans include planning and opening connections, not the
import of libraries.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import http.client
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import halo
from workloads.baselines import BASELINES
from workloads.catalogue import named
from workloads.direct import DirectClient, Endpoints
from workloads.gpu.card_watch import CardWatch
from workloads.gpu.models import write_model
from workloads.gpu.server_cpu import ServerCpu
from workloads.gpu.server_log import ServerLogs
from workloads.graph import Workload
from workloads.stub_server import StubServer
from workloads.tables import write_tables

SAMPLE_S = 0.1
"""The sampling thread shares the interpreter with what is measured: it looks seldom, over a
connection that stays open."""

ABLATIONS: dict[str, dict[str, Any]] = {
    "halo": {},
    "halo-sharing": {"share": False},
    "halo-order": {"prefix_order": False},
    "halo-warm": {"warm": False},
    "halo-prime": {"prime": False},
    "halo-admission": {"steer": False, "max_in_flight": 4096},
    "halo-gather": {"gather": False},
    "halo-overlap": {"overlap": False},
}
"""Halo, and Halo with one thing switched off. Merging is switched off by running workloads one
after the other: `compare.run_merged`."""


@dataclass(frozen=True)
class Bench:
    """Where things are.

    Attributes:
        servers: address of each model's server.
        names: what the servers call the models.
        folder: for generated databases.
        logs: of the servers, where they are known.
        card: that the servers share, where there is one.
    """

    servers: Mapping[str, str]
    names: Mapping[str, str]
    api_url: str
    folder: Path
    logs: ServerLogs = field(default_factory=lambda: ServerLogs({}))
    card: int | None = None

    def endpoints(self, workload: Workload) -> Endpoints:
        database = write_tables(workload.database, self.folder) if workload.database else None
        return Endpoints(self.servers, self.names, self.api_url, database)


def run_one(
    bench: Bench, system: str, workload: Workload, rows: Sequence[dict[str, str]], seed: int,
    *, out: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """One run of `system`: "halo", an entry of `ABLATIONS`, or a baseline's name. Halo's run
    directory is kept in `out`."""
    endpoints = bench.endpoints(workload)
    used = {model: bench.servers[model] for model in workload.models}
    flush(used.values())
    bench.logs.mark()
    processors = ServerCpu({m: urlsplit(url).port or 0 for m, url in bench.servers.items()})
    processors.mark()
    # What earlier runs left is no run's garbage.
    gc.collect()
    gc.freeze()
    with ServerWatch(used.values()) as watch, CardWatch(bench.card) as card:
        if system in ABLATIONS:
            record = _run_halo(bench, endpoints, [workload], [rows], ABLATIONS[system], out)
        else:
            record = asyncio.run(_run_baseline(system, endpoints, workload, rows))
    return {
        "system": system,
        "workload": workload.name,
        "seed": seed,
        "rows": len(rows),
        **record,
        "card_idle_share": card.idle_share,
        "servers": watch.summary(),
        "server_cpu_s": processors.seconds(),
        "prefill_steps": bench.logs.prefill_steps(),
    }


def run_merged(
    bench: Bench, workloads: Sequence[Workload], rows: Sequence[Sequence[dict[str, str]]], seed:
    int, *, merge: bool,
) -> dict[str, Any]:  # fmt: skip
    """Several workloads over the same database as one batch, or one batch after the other."""
    endpoints = bench.endpoints(workloads[0])
    flush(bench.servers.values())
    with ServerWatch(bench.servers.values()) as watch:
        if merge:
            record = _run_halo(bench, endpoints, workloads, rows, {})
        else:
            parts = [
                _run_halo(bench, endpoints, [workload], [its_rows], {})
                for workload, its_rows in zip(workloads, rows, strict=True)
            ]
            record = parts[0]
            for part in parts[1:]:
                record = {
                    key: part[key] if isinstance(part[key], str | list) else record[key] + part[key]
                    for key in record
                }
    return {
        "system": "halo" if merge else "halo-merging",
        "workload": "+".join(workload.name for workload in workloads),
        "seed": seed,
        "rows": sum(map(len, rows)),
        **record,
        "servers": watch.summary(),
    }


def _run_halo(
    bench: Bench,
    endpoints: Endpoints,
    workloads: Sequence[Workload],
    rows: Sequence[Sequence[dict[str, str]]],
    settings: Mapping[str, Any],
    out: Path | None = None,
) -> dict[str, Any]:
    models = sorted({model for workload in workloads for model in workload.models})
    urls = ",".join(bench.servers[model] for model in models)
    started_s = time.perf_counter()
    with halo.Session(engine=f"sglang={urls}", db=endpoints.database, **settings) as session:
        prepared = session.prepare(
            [(w.flow(bench.api_url, bench.names), r) for w, r in zip(workloads, rows, strict=True)]
        )
        planned_s = time.perf_counter()
        result = session.run_prepared(prepared, out=out)
        ended_s = time.perf_counter()
    usage: dict[str, int] = {"in": 0, "out": 0, "cached": 0, "calls": 0}
    for metrics in result.metrics.values():
        usage["in"] += metrics.usage.input_tokens
        usage["out"] += metrics.usage.output_tokens
        usage["cached"] += metrics.usage.cached_tokens or 0
        usage["calls"] += metrics.made if metrics.usage.input_tokens else 0
    outcomes = list(result)
    begun_s = planned_s - started_s
    return {
        "makespan_s": ended_s - started_s,
        "plan_s": planned_s - started_s,
        "cpu_s": result.cpu_s,
        "latency_s": [round(begun_s + o.ended_s, 4) for o in outcomes],
        "calls": usage["calls"],
        "input_tokens": usage["in"],
        "output_tokens": usage["out"],
        "cached_tokens": usage["cached"],
        "warmed_tokens": result.warmed_tokens,
        "failed": len(result.errors),
        "errors": [
            f"{o.error.type}: {o.error.message}"[:200] for o in result.errors[:3] if o.error
        ],
        "answers": digest([o.value for o in outcomes]),
    }


async def _run_baseline(
    system: str, endpoints: Endpoints, workload: Workload, rows: Sequence[dict[str, str]]
) -> dict[str, Any]:
    latency_s = [0.0] * len(rows)
    started_s = time.perf_counter()
    cpu_s = time.process_time()

    def on_row(index: int) -> None:
        latency_s[index] = round(time.perf_counter() - started_s, 4)

    async with DirectClient(endpoints) as client:
        answers = await BASELINES[system](client, workload.graph(), rows, on_row)
        ended_s = time.perf_counter()
        counters = client.counters
    return {
        "makespan_s": ended_s - started_s,
        "plan_s": 0.0,
        "cpu_s": time.process_time() - cpu_s,
        "latency_s": latency_s,
        "calls": counters.calls,
        "input_tokens": counters.input_tokens,
        "output_tokens": counters.output_tokens,
        "cached_tokens": counters.cached_tokens,
        "failed": 0,
        "errors": [],
        "answers": digest(answers),
    }


def rehearse(api_url: str, folder: Path, systems: Iterable[str]) -> None:
    """Load what the systems import when they first run, by a run of each against a server that
    computes nothing: no makespan is to contain that."""
    tokenizer = str(write_model("tiny", folder))
    workload = named("w1")[0]
    with StubServer("8b", tokenizer) as big, StubServer("1b", tokenizer) as small:
        servers = {"8b": big.url, "1b": small.url}
        bench = Bench(servers, {name: name for name in servers}, api_url, folder)
        for system in systems:
            run_one(bench, system, workload, workload.rows(2, 0), 0)


def digest(answers: Sequence[Any]) -> str:
    """One short name for a list of answers: equal lists have equal names."""
    return hashlib.sha256(json.dumps(answers).encode()).hexdigest()[:16]


def with_count(workload: Workload, scale: float) -> Workload:
    """The workload with `scale` times its rows, at least two."""
    return replace(workload, count=max(2, round(workload.count * scale)))


def flush(servers: Any) -> None:
    """Empty the caches. A server refuses while a request is still being cleared away."""
    for url in servers:
        for _ in range(100):
            request = urllib.request.Request(f"{url}/flush_cache", data=b"{}", method="POST")
            try:
                with urllib.request.urlopen(request, timeout=30):
                    break
            except urllib.error.HTTPError:
                time.sleep(0.05)
        else:
            raise RuntimeError(f"{url} does not flush its cache")


class ServerWatch:
    """Samples what servers do, on a thread: requests running and waiting, use of the KV pool."""

    def __init__(self, servers: Any) -> None:
        self._servers = list(servers)
        self._samples: dict[str, list[tuple[int, int, float]]] = {u: [] for u in self._servers}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> ServerWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        connections = {
            url: http.client.HTTPConnection(url.removeprefix("http://"), timeout=5)
            for url in self._servers
        }
        while not self._stop.wait(SAMPLE_S):
            for url, connection in connections.items():
                try:
                    connection.request("GET", "/v1/loads?include=core")
                    load = json.load(connection.getresponse())["loads"][0]
                except (OSError, ValueError, http.client.HTTPException):
                    connection.close()
                    continue
                self._samples[url].append(
                    (load["num_running_reqs"], load["num_waiting_reqs"], load["token_usage"])
                )
        for connection in connections.values():
            connection.close()

    def summary(self) -> dict[str, Any]:
        """By server: share of samples in which nothing ran, means, and the largest queue."""
        return {
            url: {
                "samples": len(samples),
                "idle_share": round(
                    sum(r == 0 and w == 0 for r, w, _ in samples) / len(samples), 3
                ),
                "mean_running": round(sum(r for r, _, _ in samples) / len(samples), 1),
                "most_waiting": max(w for _, w, _ in samples),
                "most_kv": round(max(k for _, _, k in samples), 3),
            }
            for url, samples in self._samples.items()
            if samples
        }
