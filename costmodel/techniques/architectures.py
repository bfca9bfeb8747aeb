"""Attention kinds that a checkpoint is trained for: windows, hybrids with recurrent layers."""

from __future__ import annotations

from dataclasses import replace

from costmodel.attention import AttentionProfile
from costmodel.errors import ProfileError
from costmodel.layers import LayerSpec
from costmodel.models import LinearAttention, ModelProfile


def sliding_window(window_tokens: int, full_every: int = 0) -> AttentionProfile:
    """Layers that see the last `window_tokens` tokens; each `full_every`-th is full (0: none)."""
    if window_tokens < 1:
        raise ProfileError(f"window_tokens is {window_tokens}; it must be at least 1")

    def transform(model: ModelProfile, layers: tuple[LayerSpec, ...]) -> tuple[LayerSpec, ...]:
        return tuple(
            layer
            if _is_full(i, full_every)
            else replace(
                layer,
                keys="window",
                keys_limit=float(window_tokens),
                decode_keys_limit=float(window_tokens),
            )
            for i, layer in enumerate(layers)
        )

    return AttentionProfile(
        name=f"sliding-window({window_tokens},{full_every})",
        title="sliding-window attention",
        exactness="different_weights",
        requires="pretrained_architecture",
        prefix_reuse="exact_length_state",
        transform=transform,
        source="the layers' definition",
        evidence="derived",
    )


def hybrid_linear(state: LinearAttention, full_every: int = 4) -> AttentionProfile:
    """Recurrent layers with a state of constant size; each `full_every`-th layer stays full.

    Projections keep the size of the layer they replace.
    """

    def transform(model: ModelProfile, layers: tuple[LayerSpec, ...]) -> tuple[LayerSpec, ...]:
        elements = state.n_value_heads * state.key_head_dim * state.value_head_dim
        inputs = 2 * state.n_key_heads * state.key_head_dim
        inputs += state.n_value_heads * state.value_head_dim
        conv = inputs * (state.conv_kernel - 1) * model.activation_bytes_per_element
        return tuple(
            layer
            if _is_full(i, full_every)
            else replace(
                layer,
                keys="none",
                attention_flops_per_pair=0.0,
                decode_flops_per_pair=0.0,
                kv_bytes_per_token=0.0,
                state_bytes=elements * state.state_bytes + conv,
                state_flops_per_token=6.0 * elements,
            )
            for i, layer in enumerate(layers)
        )

    return AttentionProfile(
        name=f"hybrid-linear({full_every})",
        title="hybrid attention with recurrent layers",
        exactness="different_weights",
        requires="pretrained_architecture",
        prefix_reuse="exact_length_state",
        transform=transform,
        source="the layers' definition",
        evidence="derived",
    )


def _is_full(layer: int, full_every: int) -> bool:
    return full_every > 0 and (layer + 1) % full_every == 0
