"""The next token of each request, from its row of logits and its own random numbers.

A request draws one number a token from a generator of its own, so what it is batched with, or how
often it was preempted, changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from runtime.backends.torch_engine.arrays import to_floats, to_ints, to_tensor
from runtime.backends.torch_engine.sequence import GenerationRequest, SequenceState

HEAD_TOKENS = 512


def sample(logits: torch.Tensor, sequences: Sequence[SequenceState]) -> list[int]:
    """One token for each row of `logits` [rows, vocabulary] (float32; masked in place where a
    constraint allows less)."""
    for row, sequence in enumerate(sequences):
        constraint = sequence.request.constraint
        if constraint is not None:
            allowed = to_tensor(constraint.allowed(), logits.device)
            logits[row, : len(allowed)].masked_fill_(~allowed, float("-inf"))
            logits[row, len(allowed) :] = float("-inf")
    tokens = to_ints(logits.argmax(-1))
    for row, sequence in enumerate(sequences):
        if sequence.request.temperature > 0:
            tokens[row] = _draw(logits[row], sequence.request, sequence.random.random())
    return tokens


def _draw(row: torch.Tensor, request: GenerationRequest, u: float) -> int:
    """Inverse transform sampling with the draw `u` in [0, 1). Looks at nothing but the row, so a
    request's tokens do not depend on its neighbours."""
    scaled = row.double() / request.temperature
    if not request.top_k and request.top_p >= 1.0:
        return _pick(torch.softmax(scaled, -1).cumsum(-1), u)
    # Likeliest first, cut by top-k and top-p. Few tokens hold nearly all mass, so sorting all
    # is kept for the rows where they do not.
    total = torch.logsumexp(scaled, -1)
    n = min(len(scaled), max(HEAD_TOKENS, request.top_k))
    while True:
        head, order = scaled.topk(n)
        odds = (head - total).exp()
        mass = odds.cumsum(-1)
        if request.top_k or n == len(scaled) or float(mass[-1]) >= request.top_p:
            break
        n = len(scaled)
    if request.top_k:
        odds = odds[: request.top_k]
        odds = odds / odds.sum()
        mass = odds.cumsum(-1)
    kept = int((mass - odds < request.top_p).sum())
    return int(order[_pick(mass[: max(1, kept)], u)])


def _pick(mass: torch.Tensor, u: float) -> int:
    """The first index whose cumulated mass exceeds the share `u` of all."""
    draw = (mass[-1] * u).reshape(1)
    return min(int(torch.searchsorted(mass, draw, right=True)), len(mass) - 1)


def chosen_logprobs(logits: torch.Tensor, tokens: Sequence[int]) -> list[float]:
    """Log-probabilities, at temperature 1, of one token a row."""
    at = to_tensor(np.asarray(tokens, np.int64), logits.device)[:, None]
    return to_floats(logits.gather(1, at)[:, 0] - torch.logsumexp(logits, -1))
