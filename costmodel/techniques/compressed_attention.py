"""CCA and CCGQA: the whole attention in a compressed latent; and the table that compares attention
kinds by weights, KV and FLOP."""

from __future__ import annotations

from dataclasses import dataclass, replace

from costmodel.attention import AttentionProfile
from costmodel.errors import ProfileError
from costmodel.layers import LayerSpec
from costmodel.models import ModelProfile


def ccgqa(query_compression: float = 2, kv_compression: float = 8) -> AttentionProfile:
    """CCGQA with queries compressed by C1 and keys and values by C2 >= C1 (CCA: C1 = C2).

    Attention FLOP fall by C1, projections to (1/C1 + 1/C2) / 2 of full multi-head attention, KV to
    2E / C2 elements a token. Kernels reach less than dense ones: `kernel_efficiency` of the
    hardware, never raw FLOP.
    """
    c1, c2 = query_compression, kv_compression
    if not 1 <= c1 <= c2:
        raise ProfileError(
            f"query_compression {c1} and kv_compression {c2}; 1 <= C1 <= C2 is needed",
            field="query_compression",
        )

    def transform(model: ModelProfile, layers: tuple[LayerSpec, ...]) -> tuple[LayerSpec, ...]:
        return tuple(_compressed(model, layer, c1, c2) for layer in layers)

    return AttentionProfile(
        name=f"ccgqa({c1:g},{c2:g})" if c1 != c2 else f"cca({c1:g})",
        title="compressed convolutional attention",
        exactness="different_weights",
        requires="pretrained_architecture",
        transform=transform,
        source="CCA: Table II and latency results",
        evidence="fitted",
    )


def _compressed(model: ModelProfile, layer: LayerSpec, c1: float, c2: float) -> LayerSpec:
    if layer.keys == "none":
        return layer
    width = model.d_model
    own = model.attention_params_kv + model.attention_params_q_and_o
    q_and_o, kv = 2 * width * width / c1, 2 * width * width / c2
    return replace(
        layer,
        params_kv=kv,
        params_rest=layer.params_rest - model.attention_params_q_and_o + q_and_o,
        weight_bytes=layer.weight_bytes + (q_and_o + kv - own) * model.weight_bytes_per_param,
        attention_flops_per_pair=4.0 * width / c1,
        decode_flops_per_pair=4.0 * width / c1,
        kv_bytes_per_token=2.0 * width / c2 * model.kv_bytes_per_element,
        # The last two columns before the convolutions and one value input, per layer.
        state_bytes=layer.state_bytes
        + (2 * (width / c1 + width / c2) + width) * model.activation_bytes_per_element,
        kernel="cca-4x" if c1 >= 4 else "ccgqa-2-8",
    )


@dataclass(frozen=True, slots=True)
class AttentionBlock:
    """Weights, KV elements a token, and FLOP of one attention block (projections and attention) of
    width E, as CCA's Table II counts them: attention without a causal mask."""

    params: float
    kv_elements: float
    linear_flops_per_token: float
    pair_flops: float

    def prefill_flops(self, tokens: float, *, causal: bool = False) -> float:
        """FLOP of a prompt."""
        pairs = tokens * (tokens + 1) / 2 if causal else tokens * tokens
        return self.linear_flops_per_token * tokens + self.pair_flops * pairs

    def decode_flops(self, context: float) -> float:
        """FLOP of one decoded token behind `context` tokens."""
        return self.linear_flops_per_token + self.pair_flops * context


def mha_block(width: float) -> AttentionBlock:
    """Multi-head attention."""
    return ccgqa_block(width, 1, 1)


def gqa_block(width: float, group: float) -> AttentionBlock:
    """Grouped-query attention: K and V of `group` query heads are one."""
    params = 2 * width**2 + 2 * width**2 / group
    return AttentionBlock(params, 2 * width / group, 2 * params, 4 * width)


def ccgqa_block(width: float, c1: float, c2: float) -> AttentionBlock:
    """CCGQA; CCA with c1 = c2; multi-head attention with both 1."""
    params = 2 * width**2 / c1 + 2 * width**2 / c2
    return AttentionBlock(params, 2 * width / c2, 2 * params, 4 * width / c1)


def mla_block(width: float, kv_compression: float, q_compression: float) -> AttentionBlock:
    """Latent attention in a prefill (decoding works on latents and costs other FLOP). The shared
    rotary key is left out of `kv_elements`."""
    params = width**2 + 3 * width**2 / kv_compression + 2 * width**2 / q_compression
    return AttentionBlock(params, width / kv_compression, 2 * params, 4 * width)


def mla_decode_flops(
    width: float, kv_compression: float, q_compression: float, n_heads: float, context: float
) -> float:
    """FLOP of one token decoded with latent attention on latents (Table II)."""
    square = width**2
    return (
        (2 * square + 2 * n_heads * square) / kv_compression
        + 2 * n_heads * square / (q_compression * kv_compression)
        + 2 * square / q_compression
        + 4 * width * context * n_heads / kv_compression
    )
