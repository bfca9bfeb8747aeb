"""FastKV: after a middle layer the most attended tokens alone go on, and every layer keeps a share
of its KV for decoding."""

from __future__ import annotations

from dataclasses import replace

from costmodel.attention import AttentionProfile, Use
from costmodel.errors import ProfileError
from costmodel.layers import LayerSpec
from costmodel.models import ModelProfile

WINDOW_QUERIES = 8
"""The last tokens of a prompt, whose attention chooses."""


def fastkv(
    tsp_layer: int | None = None, tsp_rate: float = 0.2, retain: float = 0.1
) -> AttentionProfile:
    """FastKV that selects at layer `tsp_layer` (0-based, itself still full; None: L/2 - 1), sends
    on `tsp_rate` of the tokens and keeps `retain` of the KV.

    With n1 = (tsp_layer + 1) / L: linear work n1 + (1 - n1) rate, attention n1 + (1 - n1) rate^2,
    KV for decoding retain m_kv S. A step of decodes counts generated tokens as retained too, which
    is low by (1 - retain) of them.
    """
    for name, share in (("tsp_rate", tsp_rate), ("retain", retain)):
        if not 0 < share <= 1:
            raise ProfileError(f"{name} is {share}; it must be in (0, 1]", field=name)

    def transform(model: ModelProfile, layers: tuple[LayerSpec, ...]) -> tuple[LayerSpec, ...]:
        tsp = len(layers) // 2 - 1 if tsp_layer is None else tsp_layer
        if not 0 <= tsp < len(layers):
            raise ProfileError(
                f"tsp_layer is {tsp}; {model.name} has layers 0 to {len(layers) - 1}",
                field="tsp_layer",
            )
        score = 2.0 * WINDOW_QUERIES * model.n_query_heads * model.head_dim
        return tuple(
            replace(
                layer,
                kv_retain=retain,
                kv_tokens_share=1.0 if i <= tsp else tsp_rate,
                rest_tokens_share=1.0 if i <= tsp else tsp_rate,
                select_flops_per_token=score * (1.0 if i <= tsp else tsp_rate),
            )
            for i, layer in enumerate(layers)
        )

    def refuse(model: ModelProfile, use: Use) -> str | None:
        if use.prompt_tokens * retain < WINDOW_QUERIES:
            return (
                f"FastKV keeps {retain:.0%} of {use.prompt_tokens:.0f} prompt tokens, fewer than "
                f"its window of {WINDOW_QUERIES}"
            )
        if model.linear is not None:
            return f"FastKV prunes a KV cache; {model.name} has layers without one"
        return None

    return AttentionProfile(
        name=f"fastkv({'mid' if tsp_layer is None else tsp_layer},{tsp_rate:g},{retain:g})",
        title="FastKV",
        exactness="approximate",
        prefix_reuse="exact_prompt",
        transform=transform,
        refuse=refuse,
        source="FastKV: cost equations, defaults of the released code",
        evidence="printed",
    )
