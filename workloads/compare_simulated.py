"""`halo-bench simulate`: the engine comparison against a simulated SGLang server, in seconds.

Halo's own planner, dispatcher and executor, and the baselines as they are, send their prompts to
`workloads.simulated_sglang` on virtual time. It shows what order and admission do to the radix
cache and to batches; makespans are a model's. It has no steering of admission by the server's load
and none of the client's own processor time, so Halo with short answers looks faster than it is.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import halo
from halo.loop_thread import LoopThread
from halo.own_engine import Backend, Capabilities, Completion, Request, Usage
from workloads.baselines import BASELINES
from workloads.catalogue import named
from workloads.compare import with_count
from workloads.direct import DirectClient, Endpoints, chat_text
from workloads.gpu.evaluate import table
from workloads.graph import Node, Workload
from workloads.simulated_sglang import FITTED_TO, H200_8B, Machine, SimulatedServer

MODEL = "8b"
SIMULATED = ("mapred", "debate", "reflect", "iterative", "parallel", "trading")
"""The workloads that use one model and no tools."""
SYSTEMS = ("halo", "async", "operators", "rows")
"""Those that a server with SGLang's usual order of requests can tell apart."""
WARM_PRIORITY = -(2**31)
MOST_IN_FLIGHT = 1024
"""What Halo takes to be worth having in an SGLang server."""


@dataclass(frozen=True)
class SimulatedRun:
    """What a system did. `makespan_s` is simulated."""

    system: str
    makespan_s: float
    answers: Sequence[Any]
    server: SimulatedServer


class SimulatedEngine(Backend):
    """The server as an engine of Halo, which describes itself as SGLang 0.5.17 does."""

    def __init__(self, server: SimulatedServer, max_in_flight: int | None = None) -> None:
        self.name = "simulated"
        self.requests_seen = 0
        self._server = server
        machine = server.machine
        self._capabilities = Capabilities(
            max_in_flight or min(MOST_IN_FLIGHT, machine.max_running_requests),
            context_tokens=machine.pool_tokens,
            prefix_cache=True,
            prime_prefix=True,
            reports_cached_tokens=True,
            tool_calls=False,
            deterministic=False,
            cache_tokens=machine.pool_tokens,
            prime_tokens=128,
            bytes_per_token=1.0,
            seeded=False,
            warms=True,
        )

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    def count_tokens(self, text: str) -> int:
        return len(text)

    async def generate(
        self, request: Request, on_prefilled: Callable[[], None] | None = None
    ) -> Completion:
        self.requests_seen += 1
        served = await self._server.answer(
            _prompt(request),
            request.max_tokens,
            priority=request.priority,
            on_prefilled=on_prefilled,
        )
        usage = Usage(served.prompt_tokens, request.max_tokens, served.cached_tokens)
        return Completion(
            served.text, "length", usage, (), served.start_s, served.first_token_s, served.end_s
        )

    async def warm(self, request: Request) -> int:
        served = await self._server.answer(_open_prompt(request), 0, priority=WARM_PRIORITY)
        return served.prompt_tokens - served.cached_tokens

    async def close(self) -> None:
        await self._server.close()


class SimulatedSession(halo.Session):
    """A session whose engine is open already, and simulated, so that its loop is on virtual
    time."""

    def __init__(self, engine: SimulatedEngine, **settings: Any) -> None:
        super().__init__(engine="simulated", model=MODEL, **settings)
        self._engines.opened[f"simulated:{MODEL}"] = engine


class SimulatedClient(DirectClient):
    """The baselines' client, of a simulated server."""

    def __init__(self, server: SimulatedServer) -> None:
        super().__init__(Endpoints({}, {}))
        self._server = server

    async def answer(self, node: Node, prompt: str) -> str:
        served = await self._server.answer(chat_text(node.system, prompt), node.max_tokens)
        return served.text


def run_halo(
    server: SimulatedServer,
    workload: Workload,
    rows: Sequence[dict[str, str]],
    max_in_flight: int | None = None,
) -> SimulatedRun:
    """One run by Halo."""
    with SimulatedSession(SimulatedEngine(server, max_in_flight)) as session:
        result = session.run(workload.flow(models={MODEL: MODEL}), rows)
    answers = [outcome.value for outcome in result]
    return SimulatedRun("halo", result.run_clock_s, answers, server)


def run_baseline(
    system: str, server: SimulatedServer, workload: Workload, rows: Sequence[dict[str, str]]
) -> SimulatedRun:
    """One run by a baseline."""

    async def run() -> tuple[list[str], float]:
        async with SimulatedClient(server) as client:
            answers = await BASELINES[system](client, workload.graph(), rows, lambda _: None)
            ended_s = asyncio.get_running_loop().time()
        await server.close()
        return answers, ended_s

    loop = LoopThread(virtual=True)
    try:
        answers, ended_s = loop.call(run())
    finally:
        loop.close()
    return SimulatedRun(system, ended_s, answers, server)


def run_system(
    system: str,
    workload: Workload,
    rows: Sequence[dict[str, str]],
    *,
    machine: Machine = H200_8B,
    max_in_flight: int | None = None,
) -> SimulatedRun:
    """One run by Halo or a baseline, on a server of its own. `max_in_flight` is a setting of
    Halo's: calls in the server at once."""
    server = SimulatedServer(machine)
    if system == "halo":
        return run_halo(server, workload, rows, max_in_flight)
    return run_baseline(system, server, workload, rows)


def report(workload: Workload, rows: int, runs: Sequence[SimulatedRun]) -> str:
    """The runs of a workload as a table."""
    head = [
        "system", "makespan (simulated)", "calls", "prefilled tokens", "cached", "prefill steps",
        "decode steps", "mean decode batch",
    ]  # fmt: skip
    lines = [
        [
            run.system,
            f"{run.makespan_s:.1f} s",
            f"{counters.calls:,}",
            f"{counters.prefilled_tokens:,}",
            f"{counters.cached_share:.1%}",
            f"{counters.prefill_steps:,}",
            f"{counters.decode_steps:,}",
            f"{counters.mean_decode_batch:.0f}",
        ]
        for run in runs
        for counters in (run.server.counters,)
    ]
    return f"{workload.name}, {rows:,} rows, simulated\n\n{table(head, lines)}"


def main(arguments: Sequence[str]) -> int:
    """Simulate and print a table for each workload."""
    parser = argparse.ArgumentParser(
        prog="halo-bench simulate",
        description="The engine comparison against a simulated SGLang server: "
        f"{FITTED_TO}. Makespans are simulated.",
    )
    parser.add_argument("--workloads", default=",".join(SIMULATED), help="default: %(default)s")
    parser.add_argument(
        "--systems", default="halo,async,operators", help=f"of {', '.join(SYSTEMS)}"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="of the published rows")
    parser.add_argument("--seed", type=int, default=1, help="of the rows")
    parser.add_argument("--max-in-flight", type=int, help="Halo's calls in the server at once")
    given = parser.parse_args(arguments)
    names, systems = _listed(given.workloads), _listed(given.systems)
    for wanted, known in ((names, SIMULATED), (systems, SYSTEMS)):
        unknown = [name for name in wanted if name not in known]
        if unknown or not wanted:
            parser.error(f"cannot simulate {', '.join(unknown) or 'nothing'}; there are: "
                         f"{', '.join(known)}")  # fmt: skip
    if given.max_in_flight is not None and given.max_in_flight < 1:
        parser.error(f"--max-in-flight is {given.max_in_flight}; it must be at least 1")
    print(f"Simulated: {FITTED_TO}.")
    for workload in named(",".join(names)):
        scaled = with_count(workload, given.scale)
        rows = scaled.rows(scaled.count, given.seed)
        runs = [
            run_system(system, scaled, rows, max_in_flight=given.max_in_flight)
            for system in systems
        ]
        print(f"\n{report(scaled, len(rows), runs)}", flush=True)
        if any(run.answers != runs[0].answers for run in runs):
            print("error: the systems' answers differ")
            return 1
    return 0


def _listed(names: str) -> list[str]:
    return [name for name in names.split(",") if name]


def _prompt(request: Request) -> str:
    """The conversation, ready for the answer, as `DirectClient` sends it."""
    contents = _contents(request)
    return chat_text(contents.get("system", ""), contents["user"])


def _open_prompt(request: Request) -> str:
    """The conversation up to the end of its last message's content."""
    contents = _contents(request)
    if "user" in contents:
        return _prompt(request).removesuffix(chat_text("", "").partition("user\n")[2])
    return chat_text(contents["system"], "").partition("<|im_end|>")[0]


def _contents(request: Request) -> Mapping[str, str]:
    return {message.role: message.content for message in request.messages}
