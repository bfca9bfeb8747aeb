"""Measure step times of a running SGLang server: raw samples for `halo calibrate --samples`.

    python workloads/gpu/calibrate_sglang.py --url http://127.0.0.1:30000 --out samples.json

A sample is one closed batch: calls of known prompt, hit and answer lengths, sent in one request,
and the seconds until the last is answered. Prompts are random token ids, so that nothing hits the
cache unless the sample says so; a prefix that shall hit is computed first, outside the measurement.
Answers have forced lengths (`ignore_eos`), so that random weights do.

Samples named "fit" sweep one thing at a time; samples named "held_out" are random mixtures of
prefill, hits and decode that no fit sees. Needs aiohttp alone. Under 4 minutes for an 8B model on
an H200; `--budget-s` bounds it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import platform
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp


@dataclass(frozen=True)
class Plan:
    """One batch to run: calls of (prefix number or None, new tokens, answer tokens), and the
    lengths of the prefixes that are warmed first."""

    name: str
    split: str
    calls: tuple[tuple[int | None, int, int], ...]
    prefixes: tuple[int, ...] = ()

    @property
    def tokens(self) -> int:
        """Tokens of KV that the batch holds at most, shared prefixes once."""
        return sum(new + answer for _, new, answer in self.calls) + sum(self.prefixes)


def fit_plans() -> list[Plan]:
    """Sweeps: prompts alone, prompts behind hits, decodes by batch and by context."""
    plans: list[Plan] = []
    for n in (16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384):
        plans.append(Plan(f"prefill {n}", "fit", ((None, n, 1),)))
    for count, n in ((4, 128), (16, 128), (8, 512), (32, 256), (8, 2048), (64, 128)):
        plans.append(Plan(f"prefill {count} x {n}", "fit", ((None, n, 1),) * count))
    for hit, n in (
        (2048, 64),
        (8192, 64),
        (16384, 256),
        (8192, 1024),
        (16384, 2048),
        (24576, 4096),
    ):
        plans.append(Plan(f"prefill {n} behind {hit}", "fit", ((0, n, 1),), (hit,)))
    for count, hit, n in ((16, 4096, 64), (64, 2048, 32), (8, 8192, 256)):
        plans.append(
            Plan(f"prefill {count} x {n} behind {hit}", "fit", ((0, n, 1),) * count, (hit,))
        )
    for batch in (1, 2, 4, 8, 16, 32, 64, 128, 192, 256):
        plans.append(Plan(f"decode {batch} at 128", "fit", ((None, 128, 96),) * batch))
    for batch, context in ((1, 4096), (1, 16384), (8, 1024), (8, 4096), (16, 4096), (32, 2048)):
        plans.append(Plan(f"decode {batch} at {context}", "fit", ((None, context, 128),) * batch))
    for batch, context in ((64, 1024), (128, 512), (24, 6144)):
        plans.append(Plan(f"decode {batch} at {context}", "fit", ((None, context, 128),) * batch))
    for batch, context in ((64, 4096), (128, 2048)):
        # Contexts from one warmed prefix: long decodes without long prefills.
        plans.append(
            Plan(f"decode {batch} behind {context}", "fit", ((0, 32, 128),) * batch, (context,))
        )
    return plans


def held_out_plans(count: int, rng: random.Random, token_limit: int) -> list[Plan]:
    """Random mixtures: 1 to 128 calls, 16 to 4,096 new tokens, 1 to 192 answer tokens; two batches
    in three have calls behind warmed prefixes of 256 to 8,192 tokens."""

    def log_uniform(low: int, high: int) -> int:
        return round(math.exp(rng.uniform(math.log(low), math.log(high))))

    plans: list[Plan] = []
    while len(plans) < count:
        number = len(plans)
        size = log_uniform(1, 128)
        longest = log_uniform(32, 4096)
        answers = log_uniform(4, 192)
        n_prefixes = rng.choice((0, 0, 1, 1, 2, 3))
        prefixes = tuple(log_uniform(256, 8192) for _ in range(n_prefixes))
        calls = tuple(
            (
                rng.randrange(n_prefixes) if n_prefixes and rng.random() < 0.7 else None,
                log_uniform(16, longest),
                rng.randint(max(1, answers // 4), answers),
            )
            for _ in range(size)
        )
        plan = Plan(f"mixed {number}", "held_out", calls, prefixes)
        if plan.tokens <= token_limit:
            plans.append(plan)
    return plans


class Server:
    """The few calls of SGLang's own API that a measurement needs."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self._url = url.rstrip("/")
        self._session = session

    async def get(self, path: str) -> dict[str, Any]:
        async with self._session.get(self._url + path) as response:
            return await response.json() if response.status == 200 else {}

    async def generate(self, prompts: list[list[int]], answers: list[int]) -> list[dict[str, Any]]:
        """Run one batch; the answers' meta information."""
        body = {
            "input_ids": prompts,
            "sampling_params": [
                {"max_new_tokens": n, "temperature": 0, "ignore_eos": True} for n in answers
            ],
        }
        async with self._session.post(self._url + "/generate", json=body) as response:
            if response.status != 200:
                raise RuntimeError(f"/generate answered {response.status}: {await response.text()}")
            answered = await response.json()
        return [answer["meta_info"] for answer in answered]


async def run_plan(server: Server, plan: Plan, vocab: int, rng: random.Random) -> dict[str, Any]:
    """Warm the plan's prefixes, then measure its batch."""

    def tokens(count: int) -> list[int]:
        return [rng.randrange(1000, vocab) for _ in range(count)]

    prefixes = [tokens(n) for n in plan.prefixes]
    if prefixes:
        await server.generate(prefixes, [1] * len(prefixes))
    prompts = [(prefixes[p] if p is not None else []) + tokens(new) for p, new, _ in plan.calls]
    answers = [answer for _, _, answer in plan.calls]
    start = time.perf_counter()
    metas = await server.generate(prompts, answers)
    seconds = time.perf_counter() - start
    return {
        "name": plan.name,
        "split": plan.split,
        "seconds": seconds,
        # Prompt, answer and hit tokens of each call, as planned; beside them what the server says.
        "calls": [
            [len(prompt), answer, len(prefixes[p]) if p is not None else 0]
            for prompt, answer, (p, _, _) in zip(prompts, answers, plan.calls, strict=True)
        ],
        "reported_cached_tokens": [meta.get("cached_tokens") for meta in metas],
        "reported_output_tokens": [meta.get("completion_tokens") for meta in metas],
    }


async def measure(args: argparse.Namespace) -> dict[str, Any]:
    rng = random.Random(args.seed)
    timeout = aiohttp.ClientTimeout(total=None, sock_read=300)
    started = time.perf_counter()
    samples: list[dict[str, Any]] = []
    async with aiohttp.ClientSession(timeout=timeout) as session:
        server = Server(args.url, session)
        info = await server.get("/server_info") or await server.get("/get_server_info")
        model = await server.get("/model_info") or await server.get("/get_model_info")
        # The first calls compile kernels and fill allocators.
        for n, batch in ((64, 1), (2048, 4), (8192, 2), (64, 64), (256, 16)):
            prompts = [[rng.randrange(1000, args.vocab) for _ in range(n)] for _ in range(batch)]
            await server.generate(prompts, [8] * batch)
        held_out = held_out_plans(args.held_out, rng, args.tokens)
        # Held-out batches between the sweeps: a clock that drifts shows in the errors.
        plans = fit_plans() + held_out + fit_plans() * (args.repeats - 1)
        for i, plan in enumerate(plans):
            spent = time.perf_counter() - started
            if spent > args.budget_s:
                print(f"budget of {args.budget_s} s spent after {i} samples", file=sys.stderr)
                break
            sample = await run_plan(server, plan, args.vocab, rng)
            samples.append(sample)
            print(f"{spent:6.1f} s  {plan.name}: {sample['seconds']:.3f} s", file=sys.stderr)
    kept = (
        "version", "model_path", "dtype", "chunked_prefill_size", "max_prefill_tokens",
        "max_running_requests", "enable_mixed_chunk", "attention_backend", "page_size", "tp_size",
        "dp_size", "mem_fraction_static", "max_total_num_tokens", "disable_radix_cache",
        "schedule_policy", "cuda_graph_max_bs", "load_format",
    )  # fmt: skip
    return {
        "format": "halo-calibration-samples-1",
        "engine": f"sglang {info.get('version', '')}".strip(),
        "model": args.model or str(model.get("model_path", "")),
        "device": args.device,
        "command": " ".join(sys.argv),
        "python": platform.python_version(),
        "seed": args.seed,
        "server": {key: info[key] for key in kept if key in info},
        "batching": {
            "chunk_tokens": int(info.get("chunked_prefill_size") or 8192),
            "max_sequences": int(info.get("max_running_requests") or 256),
            "fuse_decodes": bool(info.get("enable_mixed_chunk", False)),
        },
        "wall_s": time.perf_counter() - started,
        "samples": samples,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--url", default="http://127.0.0.1:30000")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--model", default="llama-3.1-8b", help="profile of the served shape")
    parser.add_argument("--device", default="h200", help="hardware profile of the device")
    parser.add_argument("--vocab", type=int, default=128000, help="token ids stay below this")
    parser.add_argument("--held-out", type=int, default=72, help="mixed batches to hold out")
    parser.add_argument("--repeats", type=int, default=2, help="runs of each sweep sample")
    parser.add_argument("--tokens", type=int, default=60000, help="KV tokens of a mixed batch")
    parser.add_argument("--budget-s", type=float, default=225.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    document = asyncio.run(measure(args))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(document) + "\n", encoding="utf-8")
    held_out = sum(sample["split"] == "held_out" for sample in document["samples"])
    print(
        f"{len(document['samples'])} samples, {held_out} held out, {document['wall_s']:.0f} s: "
        f"{args.out}"
    )


if __name__ == "__main__":
    main()
