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
from workloads.gpu.models import COMMON, SHAPES, write_model
from workloads.graph import Workload
from workloads.mock_api import MockApi
from workloads.stub_server import StubServer
from workloads.tables import write_tables


@dataclass(frozen=True)
class Work:
    """Of one model: prompt tokens with shared prefixes counted once, answer tokens of distinct
    calls, the tokens that these attend to while they are decoded, in sum, and the number of those
    calls."""

    prefill_tokens: int
    decode_tokens: int
    context_tokens: int
    calls: int

    def seconds(self, rates: Mapping[str, float]) -> float:
        """At `prefill_tokens_per_s` and `decode_tokens_per_s`."""
        return (
            self.prefill_tokens / rates["prefill_tokens_per_s"]
            + self.decode_tokens / rates["decode_tokens_per_s"]
        )

    def reading_s(self, model: str, memory_bytes_per_s: float) -> float:
        """What reading the KV cache takes while decoding, at the memory's peak rate. An engine
        reads it for each sequence, also where sequences share a prefix. The peak rate of decoding
        is measured on short prompts, and has next to nothing of this."""
        return self.context_tokens * kv_bytes_per_token(model) / memory_bytes_per_s


def kv_bytes_per_token(model: str) -> int:
    """Of a shape of `workloads.gpu.models`, in two bytes a value."""
    shape = {**COMMON, **SHAPES[model]}
    return int(
        2 * 2 * shape["num_hidden_layers"] * shape["num_key_value_heads"] * shape["head_dim"]
    )


def work_of(workload: Workload, rows: list[dict[str, str]]) -> dict[str, Work]:
    """The work of `rows`, by model. Runs them against a server that computes nothing; tokens are
    bytes, as in the models of `workloads.gpu.models`."""
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
            distinct_prefix_bytes(prompt for prompt, _ in stub.prompts),
            sum(n_tokens for _, n_tokens in stub.prompts),
            sum(len(p.encode()) * n + n * (n + 1) // 2 for p, n in stub.prompts),
            len(stub.prompts),
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
