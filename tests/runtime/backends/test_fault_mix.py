"""Batches against servers that fail all the time: every row ends, nothing is lost or doubled."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from byte_tokenizer import write_tokenizer
from fault_server import BEHAVIOURS, FaultServer, reply

from costmodel.usage import OpMetrics
from runtime.backends.base import Backend, Message, Request
from runtime.backends.openai import open_backend as open_openai
from runtime.backends.sglang_open import open_backend as open_sglang
from runtime.clock import LoopClock, new_event_loop
from runtime.dispatch import Dispatcher
from runtime.errors import BackendError
from runtime.memory_store import MemoryStore
from runtime.records import CallSite
from runtime.sharing import CallTable

ATTEMPTS = 40


def behave(share: float) -> Any:
    """Each call fails with probability `share`, in one of twelve ways, decided by its number."""

    def decide(number: int, body: dict[str, Any]) -> str | None:
        draw = int.from_bytes(hashlib.sha256(f"{share}/{number}".encode()).digest()[:4], "big")
        if draw / 2**32 >= share:
            return None
        return BEHAVIOURS[draw % len(BEHAVIOURS)]

    return decide


async def batch(backend: Backend, rows: int) -> tuple[list[Any], MemoryStore, dict[str, OpMetrics]]:
    metrics: dict[str, OpMetrics] = {}
    store = MemoryStore()
    dispatcher = Dispatcher(
        {"w": backend}, CallTable(store, metrics), store, LoopClock(), max_attempts=ATTEMPTS
    )
    calls = (
        dispatcher.complete(
            "w",
            Request("", "tiny", (Message("user", f"row {i}"),), max_tokens=8),
            CallSite("op", "q", i, str(i)),
        )
        for i in range(rows)
    )
    return await asyncio.gather(*calls, return_exceptions=True), store, metrics


@pytest.mark.parametrize("engine", ["sglang", "openai"])
@pytest.mark.parametrize("share", [0.01, 0.1, 0.71])
def test_all_rows_end_whatever_the_server_does(tmp_path: Path, engine: str, share: float) -> None:
    rows = 300
    with FaultServer(str(write_tokenizer(tmp_path)), behave(share)) as server:

        async def main() -> tuple[list[Any], MemoryStore, dict[str, OpMetrics]]:
            clock = LoopClock()
            backend = (
                await open_sglang(server.url, "tiny", clock)
                if engine == "sglang"
                else await open_openai(f"{server.url}/v1", "tiny", clock)
            )
            try:
                return await batch(backend, rows)
            finally:
                await backend.close()

        # Simulated time: pauses between attempts cost nothing.
        with asyncio.Runner(loop_factory=lambda: new_event_loop(True)) as runner:
            results, _, metrics = runner.run(main())
    failed = [r for r in results if isinstance(r, BaseException)]
    assert not failed, Counter(str(f)[:80] for f in failed)
    for i, record in enumerate(results):
        if engine == "sglang":
            prompt = f"<|im_start|>user\nrow {i}<|im_end|>\n<|im_start|>assistant\n"
            assert record.value["text"] == reply(prompt)
        assert record.attempts <= ATTEMPTS and record.finish_reason in ("stop", "length")
    counted = metrics["op"]
    assert counted.made == rows and counted.errors == 0
    assert counted.retries == sum(r.attempts - 1 for r in results)
    if share == 0.71:
        assert counted.retries > rows


def test_a_server_that_dies_in_the_middle_of_a_batch_loses_no_row(tmp_path: Path) -> None:
    """Two replicas, one of which stops for good while it works on rows."""
    folder = str(write_tokenizer(tmp_path))
    with FaultServer(folder) as stays, FaultServer(folder) as dies:
        dies.behave = lambda number, body: "reset" if number >= 20 else None

        async def main() -> list[Any]:
            backend = await open_sglang(f"{dies.url},{stays.url}", "tiny", LoopClock())
            try:
                results, _, _ = await batch(backend, 200)
                return results
            finally:
                await backend.close()

        dies.healthy = False
        with asyncio.Runner(loop_factory=lambda: new_event_loop(True)) as runner:
            results = runner.run(main())
        asked = len(dies.calls)
    assert all(not isinstance(r, BaseException) for r in results)
    assert len(stays.calls) >= 200 - 20 and asked <= 20 + 16


def test_rows_that_never_succeed_end_with_the_reason(tmp_path: Path) -> None:
    with FaultServer(str(write_tokenizer(tmp_path)), lambda number, body: "500") as server:

        async def main() -> list[Any]:
            backend = await open_sglang(server.url, "tiny", LoopClock())
            try:
                return (await batch(backend, 3))[0]
            finally:
                await backend.close()

        with asyncio.Runner(loop_factory=lambda: new_event_loop(True)) as runner:
            results = runner.run(main())
    assert all(isinstance(r, BackendError) and "500" in str(r) for r in results)
    assert {r.attempts for r in results} == {ATTEMPTS}
