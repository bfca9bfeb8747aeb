"""Measure an engine through Halo's own seam: batches of calls, and how long each took.

Works on any `Backend`. Prompts are made of random words, so that nothing hits the prefix cache
unless the plan says so; a prefix that shall hit is finished by one call first. What an engine says
it used (prompt, answer and cached tokens) counts, not what was asked for: a model may stop early.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from costmodel.batching import Call
from costmodel.samples import Sample, SampleSet
from costmodel.sampling import Limits, PlannedBatch, mixed_batches, planned_tokens, sweep_batches
from runtime.backends.base import Backend, Completion, Message, Request
from runtime.clock import Clock

Announce = Callable[[str], None]

HELD_OUT_BATCHES = 60
WORDS_SEED = 20_231
TEMPLATE_END_TOKENS = 6
"""About what a chat template puts between the user's text and the answer."""
_CONSONANTS, _VOWELS = "bcdfghjklmnprstvz", "aeiou"


@dataclass(frozen=True)
class Speed:
    """What a probe found: prompt tokens a second, seconds of a decode step."""

    prefill_tokens_per_s: float
    decode_step_s: float


class Measurer:
    """Runs planned batches on one backend."""

    def __init__(self, backend: Backend, clock: Clock, model: str, seed: int = 0) -> None:
        self._backend = backend
        self._clock = clock
        self._model = model
        self._rng = random.Random(seed + WORDS_SEED)
        self._calls = 0
        self._tokens_per_word = 1.0

    async def probe(self) -> Speed:
        """Warm the engine up and find how fast it is, roughly."""
        await self._batch([("".join(self._words(16)), 4)])
        text = "".join(self._words(200))
        self._tokens_per_word = self._backend.count_tokens(text) / 200
        start = self._clock.now_s()
        (answer,) = await self._batch([(self._text(512), 1)])
        prefill_s = self._clock.now_s() - start
        start = self._clock.now_s()
        (long,) = await self._batch([(self._text(16), 24)])
        decode_s = self._clock.now_s() - start
        steps = max(1, long.usage.output_tokens)
        return Speed(answer.usage.input_tokens / max(prefill_s, 1e-6), decode_s / steps)

    async def sample(self, batch: PlannedBatch) -> Sample:
        """Warm the prefixes of a batch, then run and time it."""
        prefixes = [self._text(tokens) for tokens in batch.prefixes]
        for prefix in prefixes:
            await self._batch([(prefix + self._text(4), 1)])
        prompts = [
            (("" if c.prefix is None else prefixes[c.prefix]) + self._text(c.new_tokens), c)
            for c in batch.calls
        ]
        start = self._clock.now_s()
        answers = await self._batch([(text, c.answer_tokens) for text, c in prompts])
        seconds = self._clock.now_s() - start
        calls = tuple(
            self._call(answer, text, "" if c.prefix is None else prefixes[c.prefix])
            for answer, (text, c) in zip(answers, prompts, strict=True)
        )
        return Sample(batch.name, calls, seconds, batch.held_out)

    def _call(self, answer: Completion, text: str, prefix: str) -> Call:
        """What a call turned out to be. Where the engine does not say what hit, whole blocks of
        the chat template's beginning and of the prefix are taken to have."""
        usage = answer.usage
        cached = usage.cached_tokens
        if cached is None:
            cached = 0
            capabilities = self._backend.capabilities
            if capabilities.prefix_cache:
                template = usage.input_tokens - self._backend.count_tokens(text)
                beginning = max(0, template - TEMPLATE_END_TOKENS)
                held = beginning + self._backend.count_tokens(prefix)
                block = capabilities.prefix_block_tokens
                cached = held // block * block
        most = max(0, usage.input_tokens - 1)
        return Call(usage.input_tokens, usage.output_tokens, min(cached, most))

    async def _batch(self, calls: list[tuple[str, int]]) -> list[Completion]:
        requests: list[Request] = []
        for text, answer_tokens in calls:
            self._calls += 1
            requests.append(
                Request(
                    key=f"calibrate-{self._calls}",
                    model=self._model,
                    messages=(Message("user", text),),
                    max_tokens=answer_tokens,
                )
            )
        return await asyncio.gather(*(self._backend.generate(request) for request in requests))

    def _text(self, tokens: int) -> str:
        return "".join(self._words(max(1, round(tokens / self._tokens_per_word))))

    def _words(self, count: int) -> list[str]:
        """Words that no prompt has had before: long prefixes agree by chance never."""
        letter = self._rng.choice
        return [
            "".join(letter(_CONSONANTS) + letter(_VOWELS) for _ in range(2)) + " "
            for _ in range(count)
        ]


def limits_for(backend: Backend, speed: Speed, budget_s: float, held_out: int) -> Limits:
    """Batch sizes that keep a calibration within `budget_s` on an engine of this speed."""
    capabilities = backend.capabilities
    context = capabilities.context_tokens or 4096
    # Half of the time for prompts and half for decoding, over all batches.
    batches = held_out + 30
    tokens = int(0.5 * budget_s * speed.prefill_tokens_per_s / batches * 2.5)
    answers = int(0.5 * budget_s / max(speed.decode_step_s, 1e-6) / batches)
    return Limits(
        max_calls=max(1, min(capabilities.max_in_flight, 128)),
        context_tokens=context,
        tokens=max(256, min(tokens, 32_768, context - 64)),
        answer_tokens=max(8, min(answers, 64)),
    )


async def measure(
    backend: Backend,
    clock: Clock,
    model: str,
    *,
    engine: str,
    device: str,
    budget_s: float = 170.0,
    held_out: int = HELD_OUT_BATCHES,
    seed: int = 0,
    announce: Announce = lambda line: None,
) -> SampleSet:
    """Samples of `backend`: every sweep once among the mixtures, then the sweeps again.

    Stops measuring after `budget_s`. Sweeps and mixtures alternate, so that a slow engine loses
    some of both, and a machine whose speed drifts shows it in the errors.
    """
    started = clock.now_s()
    measurer = Measurer(backend, clock, model, seed)
    speed = await measurer.probe()
    limits = limits_for(backend, speed, budget_s, held_out)
    rng = random.Random(seed)
    sweeps = sweep_batches(limits)
    mixed = mixed_batches(held_out, limits, rng)
    prompts, steps = planned_tokens((*sweeps, *mixed))
    announce(
        f"{speed.prefill_tokens_per_s:,.0f} prompt tokens/s, {speed.decode_step_s * 1e3:.1f} ms a "
        f"step; {len(sweeps)} sweeps and {len(mixed)} mixtures: {prompts:,} prompt tokens, "
        f"{steps:,} decode steps"
    )
    samples: list[Sample] = []
    plans = (*_interleaved(sweeps, mixed), *sweeps)
    for i, batch in enumerate(plans):
        spent = clock.now_s() - started
        if spent > budget_s:
            announce(f"{budget_s:.0f} s are spent after {i} of {len(plans)} batches")
            break
        sample = await measurer.sample(batch)
        samples.append(sample)
        announce(f"{spent:6.1f} s  {batch.name}: {sample.seconds:.3f} s")
    return SampleSet(
        engine=engine,
        model=model,
        device=device,
        samples=tuple(samples),
        facts={"seed": seed, "spent_s": clock.now_s() - started},
    )


def _interleaved(left: Sequence[PlannedBatch], right: Sequence[PlannedBatch]) -> list[PlannedBatch]:
    """Both in their own orders, spread evenly over each other."""
    places = [((i + 0.5) / len(left), batch) for i, batch in enumerate(left)]
    places += [((i + 0.5) / len(right), batch) for i, batch in enumerate(right)]
    return [batch for _, batch in sorted(places, key=lambda place: place[0])]
