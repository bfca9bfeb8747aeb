"""A card that computes nothing: a model's steps take the time that a card would need for them.

Scheduler, radix cache, KV pool, front end and HTTP are a real SGLang server's on a processor, and
so is what they cost. Only the model is replaced: its forward pass sleeps, and every next token is
the same. Servers that compute at the same time get equal parts of the card, as a driver gives them
slices of time. It shows where a card would wait, how full its batches are and what is prefilled
twice, for workloads of any kind.

The processor is busy with what a card's machine does on a faster one, so time may be stretched:
with `slower` 3, steps take three times as long and everything else a third of it in comparison.
Imports nothing of Halo: it runs with the Python of SGLang's environment.
"""

from __future__ import annotations

import importlib
import mmap
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class StepTimes:
    """Of a model on one H200, from its measured peak rates (8B shape: 41,000 prefilled tokens a
    second, and decoded ones in batches of 256 and 1,024 at 25,000 and 31,000; 1B: 250,000, and in
    batches of 256 and 512 at 77,000 and 95,000) and from the bytes of keys and values of a token at
    4 TB/s. Fitted, not measured step by step.

    Attributes:
        step_s: reading the weights, which small steps wait for.
        s_per_token: computing a token, which large steps wait for.
    """

    step_s: float
    s_per_token: float
    s_per_request: float
    s_per_context_token: float

    def seconds(self, *, prefilled_tokens: int, requests: int, context_tokens: int) -> float:
        """A step that computes `prefilled_tokens` prompt tokens and decodes `requests` more, whose
        contexts have `context_tokens`."""
        return (
            max(self.step_s, (prefilled_tokens + requests) * self.s_per_token)
            + requests * self.s_per_request
            + context_tokens * self.s_per_context_token
        )


TIMES = {
    "8b": StepTimes(0.007, 1 / 41e3, 8e-6, 131_072 / 4e12),
    "1b": StepTimes(0.0012, 1 / 250e3, 6.5e-6, 32_768 / 4e12),
}
SEATS = tuple(TIMES)
SLICE_S = 0.001
"""After this time, times the card's `slower`, a server looks whether others compute as well."""


class EmulatedCard:
    """The card that all servers with the same `shared` file share.

    Args:
        model: of `TIMES`; each has a seat of its own.
        shared: a file with one byte for each seat: 1 while its server computes.
        slower: how many times as long as on a card every step takes.
    """

    def __init__(self, model: str, shared: Path, slower: float) -> None:
        self._times = TIMES[model]
        self._seat = SEATS.index(model)
        self._slower = slower
        with shared.open("ab") as file:
            if file.tell() < len(SEATS):
                file.truncate(len(SEATS))
        with shared.open("r+b") as file:
            self._seats = mmap.mmap(file.fileno(), len(SEATS))
        self._seats[self._seat] = 0  # whoever had it before may have been killed in a step

    def step(self, *, prefilled_tokens: int, requests: int, context_tokens: int) -> None:
        """Wait for as long as the step takes on the part of the card that others leave."""
        left_s = self._slower * self._times.seconds(
            prefilled_tokens=prefilled_tokens, requests=requests, context_tokens=context_tokens
        )
        self._seats[self._seat] = 1
        before_s = time.perf_counter()
        while left_s > 1e-9:
            sharing = sum(self._seats[:])
            time.sleep(min(left_s * sharing, SLICE_S * self._slower))
            now_s = time.perf_counter()
            left_s -= (now_s - before_s) / sharing
            before_s = now_s
        self._seats[self._seat] = 0


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
    """From `MODEL:SLOWER:FILE`."""
    model, slower, shared = words.split(":", 2)
    return EmulatedCard(model, Path(shared), float(slower))
