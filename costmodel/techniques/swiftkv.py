"""SwiftKV: prompt tokens stop halfway; later layers take K and V from there (SingleInputKV), and
neighbouring later layers may share one KV cache (AcrossKV)."""

from __future__ import annotations

from dataclasses import replace

from costmodel.attention import AttentionProfile, Use
from costmodel.errors import ProfileError
from costmodel.layers import LayerSpec
from costmodel.models import ModelProfile

KEPT_LAYERS = {
    "llama-3.1-8b": 16, "llama-3.1-70b": 40, "qwen2.5-7b": 21, "qwen2.5-14b": 36, "qwen2.5-32b": 48,
}  # fmt: skip
"""Layers that all prompt tokens pass, in the recipes of the released training code."""


def swiftkv(keep_layers: int | None = None, group: int = 1) -> AttentionProfile:
    """SwiftKV with `keep_layers` full layers (None: the released recipe, else half) and `group`
    later layers to one KV cache.

    FLOP a prompt token = L F_kv + keep (F_q + F_o + F_mlp + F_attention); KV bytes =
    m_kv (f + (1 - f) / group) with f = keep / L; decoding reads all weights.
    """
    if group < 1:
        raise ProfileError(f"group is {group}; it must be at least 1", field="group")

    def transform(model: ModelProfile, layers: tuple[LayerSpec, ...]) -> tuple[LayerSpec, ...]:
        keep = keep_layers or KEPT_LAYERS.get(model.name, len(layers) // 2)
        if not 0 < keep <= len(layers):
            raise ProfileError(
                f"keep_layers is {keep}; {model.name} has {len(layers)} layers", field="keep_layers"
            )
        return tuple(
            layer if i < keep else _late(model, layer, group) for i, layer in enumerate(layers)
        )

    def refuse(model: ModelProfile, use: Use) -> str | None:
        if model.linear is not None or model.window_tokens:
            return f"SwiftKV was made for full attention; {model.name} has other layers"
        return None

    return AttentionProfile(
        name=f"swiftkv({keep_layers or 'recipe'},{group})",
        title="SwiftKV",
        exactness="approximate",
        requires="distilled_checkpoint",
        transform=transform,
        refuse=refuse,
        source="SwiftKV: abstract and released code",
        evidence="derived",
    )


def _late(model: ModelProfile, layer: LayerSpec, group: int) -> LayerSpec:
    saved = layer.params_kv * (1 - 1 / group)
    return replace(
        layer,
        params_kv=layer.params_kv - saved,
        weight_bytes=layer.weight_bytes - saved * model.weight_bytes_per_param,
        rest_tokens_share=0.0,
        last_tokens=1.0,
        kv_share_group=group,
    )
