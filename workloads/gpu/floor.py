"""The least that a workload's rows cost an engine: every distinct prompt token prefilled once,
every answer of a distinct call decoded once, at the engine's best rates.

No schedule can beat it, and none reaches it: prompts become known only when their inputs are, and
batches are not always full.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from workloads.baselines import all_rows_at_once
from workloads.direct import DirectClient, Endpoints
from workloads.gpu.models import write_model
from workloads.graph import Workload
from workloads.mock_api import MockApi
from workloads.simulated_sglang import tokens_of
from workloads.stub_server import StubServer
from workloads.tables import write_tables


@dataclass(frozen=True)
class Work:
    """Of one model: prompt tokens with shared prefixes counted once, and answer tokens of distinct
    calls."""

    prefill_tokens: int
    decode_tokens: int

    def seconds(self, rates: Mapping[str, float]) -> float:
        """At `prefill_tokens_per_s` and `decode_tokens_per_s`."""
        return (
            self.prefill_tokens / rates["prefill_tokens_per_s"]
            + self.decode_tokens / rates["decode_tokens_per_s"]
        )


def work_of(workload: Workload, rows: list[dict[str, str]]) -> dict[str, Work]:
    """The work of `rows`, by model. Runs them against a server that computes nothing. Tokens are
    those of the models of `workloads.gpu.models`: bytes, and one for each control token."""
    with tempfile.TemporaryDirectory() as scratch, MockApi(mean_s=0.001) as api:
        folder = Path(scratch)
        tokenizer = str(write_model("tiny", folder))
        database = write_tables(workload.database, folder) if workload.database else None
        stubs = {model: StubServer(model, tokenizer) for model in workload.models}
        try:
            endpoints = Endpoints({m: s.url for m, s in stubs.items()}, {}, api.url, database)

            async def run() -> None:
                async with DirectClient(endpoints) as client:
                    await all_rows_at_once(client, workload.graph(), rows, lambda _: None)

            asyncio.run(run())
        finally:
            for stub in stubs.values():
                stub.close()
    return {
        model: Work(
            distinct_prefix_bytes(tokens_of(prompt) for prompt, _ in stub.prompts),
            sum(n_tokens for _, n_tokens in stub.prompts),
        )
        for model, stub in stubs.items()
    }


def distinct_prefix_bytes(prompts: Iterable[str]) -> int:
    """The size of the prefix tree of `prompts`, in bytes.

    Example:
        >>> distinct_prefix_bytes(["abcd", "abxy", "abxz"])
        7
    """
    total = 0
    before = b""
    for prompt in sorted(prompt.encode() for prompt in set(prompts)):
        shared = 0
        for left, right in zip(before, prompt, strict=False):
            if left != right:
                break
            shared += 1
        total += len(prompt) - shared
        before = prompt
    return total
