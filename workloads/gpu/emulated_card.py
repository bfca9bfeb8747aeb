"""A card that computes nothing: a model's steps take the time that a card would need for them.

Scheduler, radix cache, KV pool, front end and HTTP are a real SGLang server's on a processor, and
so is what they cost. Only the model is replaced: its forward pass sleeps, and every next token is
the same. Servers that share a card take turns, step by step. It shows where a card would wait, how
full its batches are and what is prefilled twice, for workloads of any kind.

The processor is busy with what a card's machine does on a faster one, so time may be stretched:
with `slower` 3, steps take three times as long and everything else a third of it in comparison.
Imports nothing of Halo: it runs with the Python of SGLang's environment.
"""

from __future__ import annotations

import fcntl
import importlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class StepTimes:
    """Of a model on one H200, from its measured peak rates (8B shape: 42,000 prefilled tokens and,
    in batches of 256, 25,000 decoded tokens a second; 1B: 260,000 and 85,000) and from the bytes of
    keys and values of a token at 4 TB/s. Fitted, not measured step by step."""

    step_s: float
    s_per_prefilled_token: float
    s_per_request: float
    s_per_context_token: float

    def seconds(self, *, prefilled_tokens: int, requests: int, context_tokens: int) -> float:
        """A step that computes `prefilled_tokens` prompt tokens and decodes `requests` more, whose
        contexts have `context_tokens`."""
        return (
            self.step_s
            + prefilled_tokens * self.s_per_prefilled_token
            + requests * self.s_per_request
            + context_tokens * self.s_per_context_token
        )


TIMES = {
    "8b": StepTimes(0.007, 1 / 42e3, 12e-6, 131_072 / 4e12),
    "1b": StepTimes(0.002, 1 / 260e3, 4e-6, 32_768 / 4e12),
}


class EmulatedCard:
    """The card that all servers with the same `lock` share.

    Args:
        lock: a file; whoever holds it computes.
        slower: how many times as long as on a card every step takes.
    """

    def __init__(self, times: StepTimes, lock: Path, slower: float) -> None:
        self._times = times
        self._slower = slower
        self._lock = lock

    def step(self, *, prefilled_tokens: int, requests: int, context_tokens: int) -> None:
        """Wait for the card, then for as long as the step takes."""
        seconds = self._slower * self._times.seconds(
            prefilled_tokens=prefilled_tokens, requests=requests, context_tokens=context_tokens
        )
        with self._lock.open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            time.sleep(seconds)


def replace_model(card: EmulatedCard) -> None:
    """Let SGLang's Llama spend its time on `card` instead of computing."""
    torch: Any = importlib.import_module("torch")
    llama: Any = importlib.import_module("sglang.srt.models.llama")
    outputs: Any = importlib.import_module("sglang.srt.layers.logits_processor")

    def forward(
        self: Any, input_ids: Any, positions: Any, forward_batch: Any, *_: Any, **__: Any
    ) -> Any:
        batch = int(forward_batch.batch_size)
        tokens = len(input_ids)
        context = int(forward_batch.seq_lens_cpu.sum())
        mode = forward_batch.forward_mode
        if mode.is_decode():
            card.step(prefilled_tokens=0, requests=batch, context_tokens=context)
        else:
            # The answers that go on in a mixed step read their contexts; prompts of a prefill step
            # read little beside what they compute.
            mixed = context if mode.is_mixed() else 0
            card.step(prefilled_tokens=tokens, requests=0, context_tokens=mixed)
        logits = torch.zeros(batch, self.config.vocab_size)
        return outputs.LogitsProcessorOutput(next_token_logits=logits)

    llama.LlamaForCausalLM.forward = forward


def from_words(words: str) -> EmulatedCard:
    """From `MODEL:SLOWER:LOCK`."""
    model, slower, lock = words.split(":", 2)
    return EmulatedCard(TIMES[model], Path(lock), float(slower))
