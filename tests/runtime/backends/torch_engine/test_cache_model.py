"""The cost model's radix cache predicts this engine's own count of cached tokens."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from test_exactness import engine_of
from tiny_models import Tiny

from costmodel.radix_cache import RadixCache
from runtime.backends.torch_engine.sequence import GenerationRequest

Tokens = list[int]
VOCAB = 160


def text(rng: random.Random, length: int) -> Tokens:
    return [rng.randrange(VOCAB) for _ in range(length)]


def questions_over_documents(rng: random.Random) -> Callable[[int, Tokens], Tokens]:
    system, documents = text(rng, 20), [text(rng, rng.randint(60, 150)) for _ in range(6)]
    return lambda _, answer: system + rng.choice(documents) + text(rng, rng.randint(3, 12))


def growing_chats(rng: random.Random) -> Callable[[int, Tokens], Tokens]:
    """Five chats in turns; each prompt is the one before, its answer and a new message."""
    chats = [text(rng, 30) for _ in range(5)]

    def prompt(i: int, answer: Tokens) -> Tokens:
        if i:
            chats[(i - 1) % 5] += answer + text(rng, rng.randint(3, 15))
        return list(chats[i % 5])

    return prompt


def experts_over_rows(rng: random.Random) -> Callable[[int, Tokens], Tokens]:
    roles = [text(rng, 90) for _ in range(4)]
    rows = [text(rng, rng.randint(10, 40)) for _ in range(5)]
    return lambda i, answer: roles[i % 4] + rows[i // 4 % 5]


@pytest.mark.parametrize(
    "workload", [questions_over_documents, growing_chats, experts_over_rows],
    ids=lambda workload: workload.__name__,
)  # fmt: skip
@pytest.mark.parametrize("cache_tokens", [20_000, 700], ids=["room", "pressure"])
def test_predicted_cached_tokens(
    tiny: Tiny,
    workload: Callable[[random.Random], Callable[[int, Tokens], Tokens]],
    cache_tokens: int,
) -> None:
    prompt_of = workload(random.Random(5))
    engine, model = engine_of(tiny, cache_tokens), RadixCache(cache_tokens)
    answer: Tokens = []
    predicted = reported = prompted = 0
    for i in range(40):
        prompt = prompt_of(i, answer)
        (result,) = engine.generate([GenerationRequest(prompt, 6)])
        answer = list(result.ids)
        prompted += len(prompt)
        reported += result.cached_tokens
        predicted += model.serve(prompt, answer).cached_tokens
    assert reported > 0.1 * prompted
    assert predicted == pytest.approx(reported, rel=0.02)
    if cache_tokens == 700:
        assert engine.tree.stats.evicted_tokens > 0
        assert model.stats.evicted_tokens > 0
