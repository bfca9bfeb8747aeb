"""Qwen2.5-1M's sparse prefill: each query sees a budget of vertical columns and diagonals, chosen
chunk by chunk; and the activations that chunking saves."""

from __future__ import annotations

from dataclasses import replace

from costmodel.attention import AttentionProfile, Use
from costmodel.errors import ProfileError
from costmodel.layers import LayerSpec
from costmodel.models import ModelProfile

CHUNK_TOKENS = 32_768
SCORING_QUERIES = 64
"""Queries at the end of each chunk that score all keys."""
BUDGETS = {"qwen2.5-14b-1m": (2357, 6055), "qwen2.5-7b-1m": (3920, 7650)}
"""Mean vertical and diagonal budgets of the released sparse-attention configs."""


def sparse_prefill(
    vertical: float | None = None,
    diagonal: float | None = None,
    chunk_tokens: int = CHUNK_TOKENS,
    threshold_tokens: int = CHUNK_TOKENS,
) -> AttentionProfile:
    """Vertical-slash attention above `threshold_tokens`; None takes the model's released budget.

    Attention = 4 n_q head_dim sum over queries of min(q, vertical + diagonal), at the hardware's
    `vertical-slash` kernel efficiency; the last 64 queries of a chunk score all keys.
    """
    if chunk_tokens < 1:
        raise ProfileError(f"chunk_tokens is {chunk_tokens}; it must be at least 1")

    def budget(model: ModelProfile) -> float | None:
        known = BUDGETS.get(model.name)
        if vertical is not None and diagonal is not None:
            return vertical + diagonal
        return None if known is None else float(sum(known))

    def transform(model: ModelProfile, layers: tuple[LayerSpec, ...]) -> tuple[LayerSpec, ...]:
        limit = budget(model)
        if limit is None:
            raise ProfileError(
                f"no sparse budget is known for {model.name}; pass vertical and diagonal",
                field="vertical",
            )
        return tuple(
            layer
            if layer.keys != "dense"
            else replace(
                layer,
                keys="budget",
                keys_limit=limit,
                keys_threshold=float(threshold_tokens),
                kernel="vertical-slash",
                select_pairs_share=SCORING_QUERIES / chunk_tokens,
            )
            for layer in layers
        )

    def refuse(model: ModelProfile, use: Use) -> str | None:
        if use.prompt_tokens <= threshold_tokens:
            return (
                f"sparse prefill starts above {threshold_tokens} prompt tokens; "
                f"this prompt has {use.prompt_tokens:.0f}"
            )
        if budget(model) is None:
            return f"no sparse budget is known for {model.name}"
        if use.prompt_tokens + use.output_tokens > model.max_context_tokens:
            return f"{model.name} reads {model.max_context_tokens} tokens at most"
        return None

    return AttentionProfile(
        name="sparse-prefill",
        title="Qwen2.5-1M sparse prefill",
        exactness="approximate",
        requires="calibration",
        prefix_reuse="chunk_aligned",
        chunk_tokens=chunk_tokens,
        transform=transform,
        refuse=refuse,
        source="Qwen2.5-1M report, released configs",
        evidence="fitted",
    )


def mlp_activation_bytes(model: ModelProfile, tokens: float) -> float:
    """Activations inside a gated MLP: the gate's and the up projection's outputs of all tokens that
    are computed at once. Chunked prefill holds those of one chunk."""
    return 2.0 * model.d_ff * model.activation_bytes_per_element * tokens
