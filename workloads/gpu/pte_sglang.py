"""Tool-using conversations against a real SGLang server: what each call needed, in tokens and in
time. The raw measurements are written as one JSON file; `halo-bench pte-evaluate FILE` correlates
them with PTE.

    python workloads/gpu/pte_sglang.py --out pte_raw.json --model-path /models/llama8b
    python workloads/gpu/pte_sglang.py --out roomy.json --url http://127.0.0.1:30000 --pool roomy

The first form starts two servers one after the other: `roomy`, whose KV pool holds every
conversation, and `tight` (`--max-total-tokens`), which must evict the paused ones. The second
form measures a server that is already running.

A conversation is a shared system prompt, a task, and turns that end in a tool call: the tool
pauses for a real time, then its answer is appended to the exact token ids of the prompt and the
model's answer. `alive` conversations are under way at once, `concurrency` of them may be in the
engine. Standard library and aiohttp only, so that it runs where Halo is not installed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import signal
import subprocess
import sys
import time
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import aiohttp

FORMAT = "halo-pte-raw-1"
SYSTEM_TOKENS = 700
TOKEN_IDS = (100, 30_000)
LEVELS = (  # concurrency, conversations, most alive at once
    (2, 20, 20),
    (8, 50, 44),
    (32, 80, 72),
)
TIGHT_POOL_TOKENS = 24_576


@dataclass(frozen=True)
class Step:
    """What one turn will do: tokens that come in before it, tokens it decodes, and the seconds
    that its tool takes afterwards."""

    new_tokens: int
    decode_tokens: int
    pause_s: float


def plan_conversation(seed: int) -> list[Step]:
    """The turns of a conversation: a spread like that of agent runs, where a few are long."""
    random = Random(seed)
    steps: list[Step] = []
    turns = min(12, 2 + int(random.expovariate(1 / 3.2)))
    for turn in range(turns):
        if turn == 0:
            new = random.randrange(80, 700)
        else:  # tool answers: mostly short, sometimes a whole page
            new = min(3000, int(random.lognormvariate(5.6, 1.0)) + 16)
        decode = min(320, int(random.lognormvariate(4.0, 0.75)) + 8)
        pause = min(2.5, random.lognormvariate(-0.9, 0.7))
        steps.append(Step(new, decode, pause))
    return steps


class Server:
    """An SGLang server that this script started, or one that runs already."""

    def __init__(self, url: str, process: subprocess.Popen[bytes] | None = None) -> None:
        self.url = url
        self.process = process

    @classmethod
    def launch(
        cls, model_path: str, port: int, log: Path, extra: list[str], patience_s: float
    ) -> Server:
        """Start a server and wait until it answers."""
        command = [
            sys.executable, "-m", "sglang.launch_server", "--model-path", model_path,
            "--load-format", "dummy", "--host", "127.0.0.1", "--port", str(port),
            "--enable-cache-report", "--skip-server-warmup",
            "--mem-fraction-static", "0.85", "--schedule-policy", "lpm",
            "--cuda-graph-max-bs-decode", "64", *extra,
        ]  # fmt: skip
        print("$", " ".join(command), flush=True)
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        server = cls(f"http://127.0.0.1:{port}", process)
        started = time.monotonic()
        while time.monotonic() - started < patience_s and process.poll() is None:
            try:
                with urllib.request.urlopen(f"{server.url}/health", timeout=5):
                    print(f"ready after {time.monotonic() - started:.1f} s", flush=True)
                    return server
            except OSError:
                time.sleep(0.5)
        server.stop()
        tail = log.read_text("utf-8", "replace")[-4000:]
        raise SystemExit(f"the server did not come up within {patience_s:g} s:\n{tail}")

    def stop(self) -> None:
        if self.process is None:
            return
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        self.process.wait()


def _seconds(total: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=total)


class Client:
    """Calls /generate with token ids."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url
        self._ask_logprobs = False

    async def get(self, path: str) -> Any:
        async with self._session.get(self._url + path, timeout=_seconds(30)) as answer:
            return await answer.json(content_type=None) if answer.status == 200 else None

    async def flush(self) -> None:
        async with self._session.post(f"{self._url}/flush_cache", timeout=_seconds(30)) as answer:
            await answer.read()
        await asyncio.sleep(0.3)

    async def generate(self, ids: list[int], new_tokens: int) -> dict[str, Any]:
        body: dict[str, Any] = {
            "input_ids": ids,
            "sampling_params": {
                "max_new_tokens": new_tokens, "temperature": 0, "ignore_eos": True,
            },
        }  # fmt: skip
        if self._ask_logprobs:
            body["return_logprob"] = True
        async with self._session.post(
            f"{self._url}/generate", json=body, timeout=_seconds(300)
        ) as answer:
            if answer.status != 200:
                raise SystemExit(
                    f"/generate answered {answer.status}: {(await answer.text())[:500]}"
                )
            return dict(await answer.json())

    async def probe(self) -> None:
        """Warm the kernels up, and find out how the server tells the ids of its answer."""
        random = Random(11)
        answer = await self.generate(_ids(random, 64), 4)
        if output_ids(answer) is None:
            self._ask_logprobs = True
            answer = await self.generate(_ids(random, 64), 4)
            if output_ids(answer) is None:
                raise SystemExit(
                    f"the server tells no ids of its answer; it gave: {sorted(answer)}"
                )
        for size in (1, 4, 16, 48):
            await asyncio.gather(*(self.generate(_ids(random, 400), 12) for _ in range(size)))


def output_ids(answer: dict[str, Any]) -> list[int] | None:
    """Token ids of an answer, as /generate gives them directly or beside log probabilities."""
    ids: list[Any] = answer.get("output_ids") or []
    if ids:
        wanted = answer["meta_info"].get("completion_tokens")
        return [int(each) for each in (ids[-wanted:] if wanted else ids)]
    pairs = answer.get("meta_info", {}).get("output_token_logprobs")
    return [int(pair[1]) for pair in pairs] if pairs else None


def _ids(random: Random, count: int) -> list[int]:
    return [random.randrange(*TOKEN_IDS) for _ in range(count)]


async def converse(
    client: Client, gate: asyncio.Semaphore, system: list[int], seed: int, began: float
) -> dict[str, Any]:
    """Hold one conversation and return the record of its calls."""
    random = Random(seed * 7919 + 1)
    ids = list(system)
    calls: list[dict[str, Any]] = []
    for step in plan_conversation(seed):
        ids += _ids(random, step.new_tokens)
        async with gate:
            sent = time.perf_counter()
            answer = await client.generate(ids, step.decode_tokens)
            done = time.perf_counter()
        meta = answer["meta_info"]
        calls.append(
            {
                "context_tokens": len(ids),
                "new_tokens": step.new_tokens,
                "sent_s": sent - began,
                "done_s": done - began,
                "pause_s": step.pause_s,
                "meta": {
                    key: value
                    for key, value in meta.items()
                    if isinstance(value, int | float | str | None) or key == "cached_tokens_details"
                },
            }
        )
        ids += output_ids(answer) or []
        await asyncio.sleep(step.pause_s)  # the tool, in real time
    return {"seed": seed, "calls": calls}


async def measure_level(
    client: Client, pool: str, concurrency: int, conversations: int, alive: int, budget_s: float
) -> dict[str, Any]:
    """Hold `conversations` at one level; after `budget_s` no new one begins."""
    await client.flush()
    base = 1000 * concurrency
    system = _ids(Random(base), SYSTEM_TOKENS)
    gate, seats = asyncio.Semaphore(concurrency), asyncio.Semaphore(alive)
    began = time.perf_counter()

    async def one(seed: int) -> dict[str, Any] | None:
        async with seats:
            if time.perf_counter() - began > budget_s:
                return None
            return await converse(client, gate, system, seed, began)

    held = await asyncio.gather(*(one(base + number) for number in range(conversations)))
    records = [record for record in held if record is not None]
    wall_s = time.perf_counter() - began
    calls = [call for record in records for call in record["calls"]]
    prompt = sum(call["context_tokens"] for call in calls)
    cached = sum(call["meta"].get("cached_tokens") or 0 for call in calls)
    print(
        f"{pool}, {concurrency} in the engine, {alive} alive: {len(records)} conversations, "
        f"{len(calls)} calls, {prompt:,} prompt tokens, {cached / max(prompt, 1):.0%} cached, "
        f"{wall_s:.1f} s",
        flush=True,
    )
    return {
        "pool": pool,
        "concurrency": concurrency,
        "alive": alive,
        "wall_s": wall_s,
        "skipped": conversations - len(records),
        "conversations": records,
    }


async def measure(server: Server, pool: str, budget_s: float) -> dict[str, Any]:
    """All levels on one server."""
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        client = Client(session, server.url)
        await client.probe()
        info: dict[str, Any] = (
            await client.get("/server_info") or await client.get("/get_server_info") or {}
        )
        levels: list[dict[str, Any]] = []
        left = budget_s
        for number, (concurrency, conversations, alive) in enumerate(LEVELS):
            started = time.perf_counter()
            share = left / (len(LEVELS) - number)
            levels.append(
                await measure_level(client, pool, concurrency, conversations, alive, share)
            )
            left = max(5.0, left - (time.perf_counter() - started))
    kept = (
        "max_total_num_tokens", "max_total_tokens", "chunked_prefill_size", "schedule_policy",
        "mem_fraction_static", "page_size", "version", "attention_backend", "model_path",
        "max_running_requests",
    )  # fmt: skip
    states: list[dict[str, Any]] = info.get("internal_states") or [{}]
    flat: dict[str, Any] = {**info, **states[0]}
    return {
        "pool": pool,
        "server": {key: flat[key] for key in kept if key in flat},
        "levels": levels,
    }


def device_name() -> str:
    """The accelerator as its driver names it."""
    try:
        found = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip().splitlines()[0]


def model_config(model_path: str | None) -> dict[str, Any] | None:
    """The model's config.json, which travels with the measurements."""
    if model_path is None:
        return None
    path = Path(model_path) / "config.json"
    return dict(json.loads(path.read_text("utf-8"))) if path.is_file() else None


def run(arguments: argparse.Namespace) -> None:
    """Measure, and write everything that was measured."""
    pools: list[dict[str, Any]] = []
    started = time.monotonic()
    if arguments.url:
        server = Server(arguments.url.rstrip("/"))
        pools.append(asyncio.run(measure(server, arguments.pool, arguments.budget_s)))
    else:
        for pool in ("roomy", "tight"):
            extra = ["--max-total-tokens", str(TIGHT_POOL_TOKENS)] if pool == "tight" else []
            log = arguments.out.with_suffix(f".{pool}.log")
            server = Server.launch(
                arguments.model_path, arguments.port, log, extra, arguments.patience_s
            )
            try:
                share = arguments.budget_s * (0.35 if pool == "roomy" else 0.65)
                pools.append(asyncio.run(measure(server, pool, share)))
            finally:
                server.stop()
    document = {
        "format": FORMAT,
        "device": device_name(),
        "model_path": arguments.model_path,
        "model_config": model_config(arguments.model_path),
        "system_tokens": SYSTEM_TOKENS,
        "plan_steps_of_seed_0": [asdict(step) for step in plan_conversation(0)],
        "elapsed_s": time.monotonic() - started,
        "pools": pools,
    }
    arguments.out.write_text(json.dumps(document) + "\n", "utf-8")
    conversations = sum(len(level["conversations"]) for pool in pools for level in pool["levels"])
    print(
        f"{conversations} conversations in {math.ceil(time.monotonic() - started)} s "
        f"-> {arguments.out}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="file for the raw measurements")
    parser.add_argument("--url", help="a running server; otherwise two are started")
    parser.add_argument("--pool", default="roomy", help="with --url: roomy or tight")
    parser.add_argument("--model-path", help="folder with config.json (and tokenizer)")
    parser.add_argument("--port", type=int, default=30_700)
    parser.add_argument("--budget-s", type=float, default=150.0, help="seconds of conversations")
    parser.add_argument("--patience-s", type=float, default=150.0, help="wait for a server")
    arguments = parser.parse_args()
    if not arguments.url and not arguments.model_path:
        parser.error("give --model-path to start servers, or --url of a running one")
    run(arguments)


if __name__ == "__main__":
    main()
