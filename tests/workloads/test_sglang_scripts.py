"""The scripts that measure a SGLang server, against a server that answers at once."""

from __future__ import annotations

import argparse
import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
from aiohttp import web

from costmodel.batching import Batching
from costmodel.radix_cache import RadixCache
from costmodel.samples import read_samples
from workloads.gpu import cache_counts_sglang, calibrate_sglang

T = TypeVar("T")
CAPACITY = 9_000


class FakeServer:
    """Answers `/generate` as SGLang does, with a radix cache and without a model."""

    def __init__(self) -> None:
        self.cache = RadixCache(CAPACITY)
        self.calls = 0

    async def generate(self, request: web.Request) -> web.Response:
        body: dict[str, Any] = await request.json()
        single = isinstance(body["input_ids"][0], int)
        prompts = [body["input_ids"]] if single else body["input_ids"]
        sampling = body["sampling_params"]
        answers = [
            self._answer(p, s)
            for p, s in zip(prompts, [sampling] if single else sampling, strict=True)
        ]
        return web.json_response(answers[0] if single else answers)

    def _answer(self, prompt: list[int], sampling: dict[str, Any]) -> dict[str, Any]:
        self.calls += 1
        assert sampling["ignore_eos"]
        ids = [(7 * self.calls + i) % 1000 for i in range(sampling["max_new_tokens"])]
        served = self.cache.serve(prompt, ids)
        meta = {
            "cached_tokens": served.cached_tokens,
            "completion_tokens": len(ids),
            "output_token_logprobs": [[0.0, i, None] for i in ids],
        }
        return {"text": "", "meta_info": meta}

    async def flush(self, request: web.Request) -> web.Response:
        self.cache = RadixCache(CAPACITY)
        return web.Response()

    async def info(self, request: web.Request) -> web.Response:
        return web.json_response(
            {
                "version": "0.5.17", "chunked_prefill_size": 8192, "max_running_requests": 64,
                "max_total_num_tokens": CAPACITY,
            }
        )  # fmt: skip


def serving(use: Callable[[str, FakeServer], Awaitable[T]]) -> T:
    async def run() -> T:
        server = FakeServer()
        app = web.Application(client_max_size=2**26)
        app.router.add_post("/generate", server.generate)
        app.router.add_post("/flush_cache", server.flush)
        app.router.add_get("/server_info", server.info)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        try:
            return await use(f"http://127.0.0.1:{runner.addresses[0][1]}", server)
        finally:
            await runner.cleanup()

    return asyncio.run(run())


def test_cache_counts_agree_with_a_server_that_follows_the_rules() -> None:
    async def use(url: str, server: FakeServer) -> dict[str, Any]:
        args = argparse.Namespace(url=url, vocab=128_000, capacity=None, seed=0)
        return await cache_counts_sglang.run(args)

    document = serving(use)
    assert [r["workload"] for r in document["results"]] == 2 * [
        "questions_over_documents", "growing_chats", "experts_over_rows",
    ]  # fmt: skip
    assert all(r["relative_error"] == 0 for r in document["results"] if r["reported_cached_tokens"])
    assert sum(r["predicted_evicted_tokens"] for r in document["results"][3:]) > CAPACITY


def test_calibration_samples_are_what_halo_calibrate_reads(tmp_path: Path) -> None:
    rng = random.Random(0)
    plans = calibrate_sglang.held_out_plans(3, rng, 2000)
    sweep = calibrate_sglang.Plan("behind", "fit", ((0, 16, 2), (None, 8, 1)), (64,))

    async def use(url: str, fake: FakeServer) -> list[dict[str, Any]]:
        async with aiohttp.ClientSession() as session:
            server = calibrate_sglang.Server(url, session)
            return [
                await calibrate_sglang.run_plan(server, plan, 128_000, rng)
                for plan in (sweep, *plans)
            ]

    document = {
        "format": "halo-calibration-samples-1", "engine": "sglang 0.5.17",
        "model": "llama-3.1-8b", "device": "h200",
        "batching": {"chunk_tokens": 8192, "max_sequences": 64, "fuse_decodes": False},
        "samples": serving(use),
    }  # fmt: skip
    path = tmp_path / "samples.json"
    path.write_text(json.dumps(document), "utf-8")
    samples = read_samples(path)
    assert samples.batching == Batching(8192, 64)
    assert (len(samples.fit), len(samples.held_out)) == (1, 3)
    first = samples.fit[0]
    assert [(c.prompt_tokens, c.output_tokens, c.cached_tokens) for c in first.calls] == [
        (80, 2, 64), (8, 1, 0),
    ]  # fmt: skip
    expected, reported = samples.cached_tokens or (0, 0)
    assert expected == reported > 0


def test_sweeps_fit_their_time_and_cover_what_is_fitted() -> None:
    plans = calibrate_sglang.fit_plans()
    prompts = sum(sum(new for _, new, _ in p.calls) + sum(p.prefixes) for p in plans)
    steps = sum(max(answer for _, _, answer in p.calls) for p in plans)
    # Twice, at 40,000 prompt tokens a second and 8 ms a step, with the mixtures: under 4 minutes.
    assert 2 * (prompts / 40_000 + 0.008 * steps) < 90
    held_out = calibrate_sglang.held_out_plans(72, random.Random(0), 60_000)
    assert len(held_out) >= 60
    assert any(p.prefixes for p in held_out)
    assert {p.split for p in plans} == {"fit"}
    assert {p.split for p in held_out} == {"held_out"}
