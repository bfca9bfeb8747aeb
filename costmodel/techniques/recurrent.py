"""Recurrent Transformer: a layer's K and V come from its output, so that prefill goes position by
position and depth comes cheaper."""

from __future__ import annotations

import math
from dataclasses import replace

from costmodel.attention import AttentionProfile, Use
from costmodel.layers import LayerSpec
from costmodel.models import ModelProfile

LONG_PROMPT_TOKENS = 512
AMORTISING_BATCH = 8
"""Prompts that must advance together before a sequential prefill of a long prompt is offered."""


def recurrent_transformer() -> AttentionProfile:
    """The architecture as a transform: the same shapes, prefill sequential in position."""

    def transform(model: ModelProfile, layers: tuple[LayerSpec, ...]) -> tuple[LayerSpec, ...]:
        return tuple(replace(layer, sequential=True) for layer in layers)

    def refuse(model: ModelProfile, use: Use) -> str | None:
        if use.prompt_tokens > LONG_PROMPT_TOKENS and use.batch < AMORTISING_BATCH:
            return (
                f"a Recurrent Transformer prefills one position at a time: {use.prompt_tokens:.0f} "
                f"prompt tokens with {use.batch:g} calls at once read the weights once a position"
            )
        return None

    return AttentionProfile(
        name="recurrent-transformer",
        title="Recurrent Transformer",
        exactness="different_weights",
        requires="pretrained_architecture",
        transform=transform,
        refuse=refuse,
        source="Recurrent Transformer: abstract, sections 1 to 2.2, code",
        evidence="derived",
    )


def kv_loads(tokens: int, *, tiled: bool) -> float:
    """Key-value pairs that one layer's prefill loads: N (N - 1) / 2 position by position,
    N/2 log2 N tiled."""
    if tiled:
        return tokens / 2 * math.log2(tokens)
    return tokens * (tokens - 1) / 2
