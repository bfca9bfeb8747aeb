"""Sampling by a request's own seed, and what cuts and masks do."""

from __future__ import annotations

import collections
from dataclasses import replace

import numpy as np
import torch
from test_exactness import engine_of
from tiny_models import Tiny

from runtime.backends.torch_engine.sampling import chosen_logprobs, sample
from runtime.backends.torch_engine.scheduler import SchedulerConfig
from runtime.backends.torch_engine.sequence import Flags, GenerationRequest, SequenceState

HOT = GenerationRequest([1], 20, temperature=1.0)


def draw(logits: list[float], request: GenerationRequest, n: int = 2_000) -> dict[int, float]:
    """Shares of the tokens in `n` draws of one request."""
    state = SequenceState(1, request)
    rows = torch.tensor([logits] * n)
    counts = collections.Counter(sample(rows, [state] * n))
    return {token: count / n for token, count in counts.items()}


def test_shares_follow_the_probabilities() -> None:
    odds = [0.5, 0.3, 0.15, 0.05]
    shares = draw([float(np.log(p)) for p in odds], HOT)
    assert all(abs(shares[i] - p) < 0.04 for i, p in enumerate(odds))
    cold = draw([float(np.log(p)) for p in odds], replace(HOT, temperature=0.25))
    assert cold[0] > 0.85


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    logits = [float(np.log(p)) for p in (0.15, 0.5, 0.05, 0.3)]
    assert set(draw(logits, replace(HOT, top_p=0.79))) == {1, 3}
    assert set(draw(logits, replace(HOT, top_p=0.81))) == {0, 1, 3}
    assert set(draw(logits, replace(HOT, top_p=0.01))) == {1}


def test_top_k_keeps_the_likeliest() -> None:
    logits = [float(np.log(p)) for p in (0.15, 0.5, 0.05, 0.3)]
    assert set(draw(logits, replace(HOT, top_k=2))) == {1, 3}
    shares = draw(logits, replace(HOT, top_k=3, top_p=0.85))  # of 0.95: 0.53, 0.84, 1.0
    assert set(shares) == {0, 1, 3}


def test_flat_rows_need_more_than_the_head() -> None:
    """Top-p over a nearly flat distribution reaches beyond the tokens that are looked at first."""
    shares = draw([0.0] * 3_000, replace(HOT, top_p=0.9), 3_000)
    assert len(shares) > 1_200 and max(shares) < 3_000


def test_equal_seeds_answer_alike_in_any_batch(tiny: Tiny) -> None:
    hot = [
        replace(HOT, ids=p, seed=i, temperature=0.9, top_p=0.9 if i % 2 else 1.0)
        for i, p in enumerate(tiny.prompts)
    ]
    together = engine_of(tiny).generate(hot)
    alone = [engine_of(tiny).generate([r])[0] for r in hot]
    narrow = engine_of(tiny, 130, scheduler=SchedulerConfig(chunk_tokens=9)).generate(hot)
    assert [r.ids for r in together] == [r.ids for r in alone] == [r.ids for r in narrow]
    other = engine_of(tiny).generate([replace(r, seed=r.seed + 100) for r in hot])
    assert [r.ids for r in other] != [r.ids for r in together]


class Odd:
    """Allows odd tokens only, three of them."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def allowed(self) -> Flags:
        return np.arange(100) % 2 == 1

    def accept(self, token: int) -> None:
        self.seen.append(token)

    @property
    def finished(self) -> bool:
        return len(self.seen) == 3


def test_a_constraint_masks_and_ends_an_answer(tiny: Tiny) -> None:
    odd = Odd()
    requests = [GenerationRequest(tiny.prompts[0], 10, constraint=odd)]
    requests.append(GenerationRequest(tiny.prompts[0], 10))
    constrained, free = engine_of(tiny).generate(requests)
    assert constrained.ids == odd.seen and all(t % 2 and t < 100 for t in odd.seen)
    assert constrained.finish_reason == "stop"
    assert free.ids == tiny.answers[0]


def test_logprobs_are_of_the_chosen_tokens(tiny: Tiny) -> None:
    (result,) = engine_of(tiny).generate([GenerationRequest(tiny.prompts[2], 6, logprobs=True)])
    ids = [*tiny.prompts[2], *result.ids]
    (scored,) = engine_of(tiny).generate(
        [GenerationRequest(ids, 0, score_from=len(tiny.prompts[2]))]
    )
    assert np.allclose(result.logprobs, scored.logprobs, atol=1e-4)
    assert chosen_logprobs(torch.zeros(1, 4), [2]) == [float(np.log(np.float32(0.25)))]
