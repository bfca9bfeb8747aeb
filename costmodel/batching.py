"""How an engine cuts requests into steps: chunked prefill, fused decodes, packing, layer groups.

`batch_steps` lists the steps of a closed batch, all requests known at the start. Queues, arrivals
and several workers belong to the simulator, which steps the same formula.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from costmodel.attention import Use
from costmodel.errors import ProfileError
from costmodel.models import ModelProfile
from costmodel.step import PrefillChunk, StepLoad, StepModel

Packing = Literal["padded", "packed_rows", "varlen"]
"""padded: every prompt as long as the longest. packed_rows: prompts share rows of that length under
a dense mask (Prepacking). varlen: no padding at all, as ragged engines do."""


@dataclass(frozen=True, slots=True)
class Batching:
    """The rules by which an engine fills a step.

    Attributes:
        chunk_tokens: prompt tokens of one step at most, over all prompts in it.
        max_sequences: sequences in the engine at most.
        fuse_decodes: whether prompt chunks and decodes share a step. Otherwise prompts go first
            and decodes wait for them.
        max_chunks: prompts that one step may hold chunks of.
    """

    chunk_tokens: int = 8192
    max_sequences: int = 256
    fuse_decodes: bool = False
    max_chunks: int = 1_000_000

    def __post_init__(self) -> None:
        for name in ("chunk_tokens", "max_sequences", "max_chunks"):
            if getattr(self, name) < 1:
                raise ProfileError(f"{name} is {getattr(self, name)}; it must be at least 1")


@dataclass(frozen=True, slots=True)
class Call:
    """One request: tokens of its prompt, how many of them are in the cache, tokens it will say."""

    prompt_tokens: int
    output_tokens: int
    cached_tokens: int = 0

    def __post_init__(self) -> None:
        if self.output_tokens < 0 or not 0 <= self.cached_tokens <= self.prompt_tokens:
            raise ProfileError(
                f"a call of {self.prompt_tokens} prompt tokens, {self.cached_tokens} of them "
                f"cached, and {self.output_tokens} output tokens is impossible"
            )


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a batch in the compact form of `StepModel.step_s`."""

    prefills: tuple[tuple[int, int], ...]
    n_decodes: int
    decode_context_tokens: int

    def load(self) -> StepLoad:
        """The step in full, its decodes with their mean context."""
        mean = self.decode_context_tokens // self.n_decodes if self.n_decodes else 0
        chunks = tuple(PrefillChunk(tokens, context) for tokens, context in self.prefills)
        return StepLoad(chunks, (mean,) * self.n_decodes)


def batch_steps(calls: Sequence[Call], batching: Batching) -> Iterator[Step]:
    """The steps of a batch whose calls are all there at the start, in order of admission.

    Running prompts go on before new ones start; a call's first token comes with the step that ends
    its prompt. A call without output is prefill alone.
    """
    waiting = [[c.prompt_tokens - c.cached_tokens, c.cached_tokens, c.output_tokens] for c in calls]
    waiting.reverse()
    prompts: list[list[int]] = []
    # Decoding sequences by tokens left; their contexts only matter in sum.
    left: dict[int, int] = {}
    contexts: dict[int, int] = {}
    time = 0
    n_decodes = context = 0
    while waiting or prompts or n_decodes:
        chunks: list[tuple[int, int]] = []
        finished: list[tuple[int, int]] = []
        # Without fusing, decodes pause while prompts are computed.
        room = batching.chunk_tokens - (n_decodes if batching.fuse_decodes else 0)
        while room > 0 and len(chunks) < batching.max_chunks:
            if not prompts:
                running = n_decodes + len(finished) + len(chunks)
                if not waiting or running >= batching.max_sequences:
                    break
                prompts.append(waiting.pop())
            prompt = prompts[0]
            tokens = min(prompt[0], room)
            chunks.append((tokens, prompt[1]))
            room -= tokens
            prompt[0] -= tokens
            prompt[1] += tokens
            if prompt[0]:
                break
            prompts.pop(0)
            if prompt[2] > 1:
                finished.append((prompt[1] + 1, prompt[2] - 1))
        decodes = n_decodes if batching.fuse_decodes or not chunks else 0
        if chunks or decodes:
            yield Step(tuple(chunks), decodes, context if decodes else 0)
        elif not n_decodes:
            break
        if decodes:
            time += 1
            context += decodes
            ended = left.pop(time, 0)
            n_decodes -= ended
            context -= contexts.pop(time, 0)
        for length, more in finished:
            end = time + more
            left[end] = left.get(end, 0) + 1
            contexts[end] = contexts.get(end, 0) + length + more
            n_decodes += 1
            context += length


def batch_s(model: StepModel, calls: Sequence[Call], batching: Batching) -> float:
    """Seconds from sending a closed batch to its last token."""
    steps = sum(
        model.step_s(step.prefills, step.n_decodes, step.decode_context_tokens)
        for step in batch_steps(calls, batching)
    )
    return steps + model.calls_s(len(calls), sum(call.prompt_tokens for call in calls))


# --- packing -------------------------------------------------------------------------------------


def packed_chunks(lengths: Sequence[int], packing: Packing) -> tuple[PrefillChunk, ...]:
    """What an engine computes for prompts of these lengths: one chunk a row.

    Packed rows are filled greedily, longest prompt first, each into the first row with room.

    Example:
        >>> [len(packed_chunks((4, 2, 2, 1), p)) for p in ("padded", "packed_rows", "varlen")]
        [4, 3, 4]
    """
    if any(length < 0 for length in lengths):
        raise ProfileError(f"prompt lengths must not be negative: {min(lengths)}")
    longest = max(lengths, default=0)
    if packing == "varlen":
        return tuple(PrefillChunk(length) for length in lengths)
    if packing == "padded":
        return (PrefillChunk(longest),) * len(lengths)
    rows: list[int] = []
    for length in sorted(lengths, reverse=True):
        for i, used in enumerate(rows):
            if used + length <= longest:
                rows[i] += length
                break
        else:
            rows.append(length)
    return (PrefillChunk(longest),) * len(rows)


# --- layer groups --------------------------------------------------------------------------------

LAYER_GROUP_TOKENS = 512


def layer_groups(prompt_tokens: int, *, most: int | None = None) -> int:
    """Groups of layers that a prompt passes one step each (Layered Prefill): one for 512 tokens, at
    most `most` (the released code uses 16)."""
    groups = max(1, math.ceil(prompt_tokens / LAYER_GROUP_TOKENS))
    return groups if most is None else min(most, groups)


def layered_expert_traffic(decode_coverage: float, groups: int) -> float:
    """Expert bytes of Layered Prefill relative to chunked prefill, long chunks touching all
    experts: c_d + (1 - c_d) / G, with c_d the share that the decodes of a step touch."""
    return decode_coverage + (1 - decode_coverage) / groups


def layered_steps(
    prompt_tokens: int, n_layers: int, groups: int, decode_contexts: tuple[int, ...]
) -> Iterator[StepLoad]:
    """The steps of one prompt under Layered Prefill: the whole prompt in one group of layers at a
    time, decodes in all layers throughout. Contiguous groups, the first ones a layer larger."""
    groups = min(groups, n_layers)
    size, larger = divmod(n_layers, groups)
    first = 0
    for group in range(groups):
        last = first + size + (1 if group < larger else 0)
        contexts = tuple(context + group for context in decode_contexts)
        chunk = PrefillChunk(prompt_tokens, samples=last == n_layers)
        yield StepLoad((chunk,), contexts, (first, last))
        first = last


def chunked_steps(
    prompt_tokens: int, chunk_tokens: int, decode_contexts: tuple[int, ...]
) -> Iterator[StepLoad]:
    """The steps of one prompt cut into chunks, with decodes in every step (SARATHI)."""
    for step, start in enumerate(range(0, prompt_tokens, chunk_tokens)):
        tokens = min(chunk_tokens, prompt_tokens - start)
        chunk = PrefillChunk(tokens, start, samples=start + tokens == prompt_tokens)
        yield StepLoad((chunk,), tuple(context + step for context in decode_contexts))


def layered_prefill_refusal(model: ModelProfile, use: Use) -> str | None:
    """Why Layered Prefill would lose, or None when it may win. It saves the reloading of experts
    and keeps decodes going; outside the active group, decodes no longer ride on prefill weights."""
    if model.experts is None:
        return (
            f"{model.name} is dense: layer groups save no expert traffic and decodes lose the ride "
            "on prefill weights"
        )
    if use.tbt_limit_s is None:
        return "without a limit on the time between tokens, larger chunks do the same for less"
    if layer_groups(int(use.prompt_tokens)) == 1:
        return f"a prompt of {use.prompt_tokens:.0f} tokens is one group of layers"
    return None


# --- chunk size ----------------------------------------------------------------------------------


def balanced_chunk(prompt_to_output: float, batch: int) -> float:
    """The chunk at which every decode rides on a prefill chunk: C = P:D (B - 1) (SARATHI, 4.3)."""
    return prompt_to_output * (batch - 1)


def mix_s(
    model: StepModel, prompt_tokens: int, output_tokens: float, chunk_tokens: int, batch: int
) -> float:
    """Seconds a request of a steady decode-maximal mix: chunks of `chunk_tokens` - (batch - 1) with
    batch - 1 decodes on each; what decodes are left go `batch` at a time, and prompts that run out
    of decodes go alone.

    Decodes are priced at the mean context of a request.
    """
    context = int(prompt_tokens + output_tokens / 2)
    chunk = max(1, chunk_tokens - (batch - 1))
    riders_left = float(output_tokens)
    seconds = 0.0
    start = 0
    while start < prompt_tokens:
        tokens = min(chunk, prompt_tokens - start)
        riders = min(batch - 1, riders_left)
        whole = int(riders)
        seconds += model.step_s(((tokens, start),), whole, whole * context)
        riders_left -= whole
        start += tokens
    return seconds + riders_left / batch * model.step_s((), batch, batch * context)


def separate_s(model: StepModel, prompt_tokens: int, output_tokens: float, batch: int) -> float:
    """Seconds a request when prompts are prefilled whole and `batch` sequences decode together."""
    context = int(prompt_tokens + output_tokens / 2)
    decode = model.step_s((), batch, batch * context)
    return model.step_s(((prompt_tokens, 0),), 0, 0) + output_tokens / batch * decode


def best_chunk(
    model: StepModel,
    prompt_tokens: int,
    output_tokens: float,
    batch: int,
    *,
    tile_tokens: int | None = None,
    most: int = 8192,
) -> int:
    """The chunk (decodes included, a multiple of the tile) with the highest throughput."""
    tile = tile_tokens or model.hardware.tile_tokens
    tile = max(tile, 16)
    sizes = [n for n in range(tile, most + 1, tile) if n > batch - 1]
    return min(
        sizes, key=lambda size: (mix_s(model, prompt_tokens, output_tokens, size, batch), size)
    )
