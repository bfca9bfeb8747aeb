"""What one layer computes, reads and keeps: the unit that techniques transform and steps price."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from costmodel.models import Experts, ModelProfile

KeysSeen = Literal["dense", "window", "budget", "none"]


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """One layer of a model under an attention technique.

    Attributes:
        params_kv: weights that a token multiplies to make its K and V.
        params_rest: all other weights that a token multiplies here (q, o, MLP, its experts).
        weight_bytes: weights read by a step with any token in this layer, routed experts excluded.
        expert_bytes: all routed experts of the layer; a step reads the share it touches.
        experts: routing, for that share; None for a dense layer.
        kv_tokens_share, rest_tokens_share: share of a prompt's tokens that reach K and V, and the
            rest of the layer.
        last_tokens: tokens of each prompt that reach the rest beyond that share (SwiftKV: 1).
        attention_flops_per_pair: FLOP of one query-key pair, all heads.
        decode_flops_per_pair: the same for decoding, where a kernel may work on latents.
        keys: what a query sees: everything before it, the last `keys_limit` tokens, the best
            `keys_limit` once the prompt is longer than `keys_threshold`, or nothing (a state).
        decode_keys_limit: keys that a decoded token reads at most; 0 for no limit.
        kernel: name of the prefill kernel, for `HardwareProfile.kernel_efficiency`.
        kv_bytes_per_token: KV cache a token, before retention and sharing.
        kv_retain: share of a prompt's KV that stays for decoding.
        kv_share_group: layers that share one KV cache.
        state_bytes: recurrent state of a sequence, read and written once a step.
        state_flops_per_token: FLOP of the state's update and use.
        select_flops_per_token: FLOP of choosing tokens or keys, for each prompt token.
        select_pairs_share: share of all causal pairs that is scored to choose keys.
        sequential: whether prefill goes position by position.
    """

    params_kv: float
    params_rest: float
    weight_bytes: float
    attention_flops_per_pair: float
    decode_flops_per_pair: float
    kv_bytes_per_token: float
    expert_bytes: float = 0.0
    experts: Experts | None = None
    kv_tokens_share: float = 1.0
    rest_tokens_share: float = 1.0
    last_tokens: float = 0.0
    keys: KeysSeen = "dense"
    keys_limit: float = 0.0
    keys_threshold: float = 0.0
    decode_keys_limit: float = 0.0
    kernel: str = "dense"
    kv_retain: float = 1.0
    kv_share_group: int = 1
    state_bytes: float = 0.0
    state_flops_per_token: float = 0.0
    select_flops_per_token: float = 0.0
    select_pairs_share: float = 0.0
    sequential: bool = False

    @property
    def kv_kept_bytes_per_token(self) -> float:
        """KV cache that a prompt token costs after retention and sharing."""
        return self.kv_bytes_per_token * self.kv_retain / self.kv_share_group

    @property
    def kv_decode_bytes_per_token(self) -> float:
        """KV cache that a decode reads a token: layers that share a cache read it each, unless a
        fused kernel keeps it on chip, which no engine here has."""
        return self.kv_bytes_per_token * self.kv_retain

    def pairs(self, tokens: float, context: float) -> float:
        """Query-key pairs of `tokens` prompt tokens behind `context` tokens, causal.

        Example:
            >>> layer = LayerSpec(0, 0, 0, 1, 1, 1)
            >>> layer.pairs(3, 10)
            36.0
            >>> replace(layer, keys="window", keys_limit=4).pairs(3, 0)
            6.0
        """
        share = self.rest_tokens_share
        queries, keys_before = tokens * share, context * share
        last = self.last_tokens * (context + tokens) if self.last_tokens else 0.0
        if self.keys == "none":
            return 0.0
        limited = self.keys == "window" or (
            self.keys == "budget" and context + tokens > self.keys_threshold
        )
        if limited:
            return capped_pairs(queries, keys_before, self.keys_limit) + last
        return queries * (keys_before + (queries + 1) / 2) + last

    def select_flops(self, tokens: float, context: float) -> float:
        """FLOP of choosing tokens or keys for a chunk of a prompt."""
        flops = self.select_flops_per_token * tokens
        if self.select_pairs_share and context + tokens > self.keys_threshold:
            pairs = tokens * (context + (tokens + 1) / 2)
            # Scores alone: half of the multiply-adds of an attention pair.
            flops += self.select_pairs_share * pairs * self.attention_flops_per_pair / 2
        return flops

    def keys_read(self, tokens: float, context: float) -> float:
        """Keys that a chunk of a prompt reads from the cache or writes to it."""
        if self.keys == "none":
            return 0.0
        if self.keys == "window":
            context = min(context, self.keys_limit)
        if self.last_tokens and not self.rest_tokens_share:
            return context + tokens
        return (context + tokens) * self.rest_tokens_share


def capped_pairs(queries: float, before: float, limit: float) -> float:
    """Sum of min(before + i, limit) over i = 1 .. queries.

    Example:
        >>> capped_pairs(4, 0, 2)
        7.0
    """
    rising = min(max(limit - before, 0.0), queries)
    return rising * before + rising * (rising + 1) / 2 + (queries - rising) * limit


def model_layers(model: ModelProfile) -> tuple[LayerSpec, ...]:
    """The layers of a model as it was trained."""
    base = _attention(model)
    by_kind: Mapping[str, LayerSpec] = {
        "full": base,
        "window": replace(
            base,
            keys="window",
            keys_limit=float(model.window_tokens),
            decode_keys_limit=float(model.window_tokens),
        ),
        "linear": _linear_attention(model),
    }
    plain = {kind: _with_dense_mlp(model, layer) for kind, layer in by_kind.items()}
    routed = {kind: _with_experts(model, layer) for kind, layer in by_kind.items()}
    return tuple(
        (routed if model.is_moe_layer(i) else plain)[kind] for i, kind in enumerate(model.kinds)
    )


def _attention(model: ModelProfile) -> LayerSpec:
    params = model.attention_params_kv + model.attention_params_q_and_o
    pair = decode_pair = 4.0 * model.n_query_heads * model.head_dim
    if (m := model.latent) is not None:
        heads = model.n_query_heads
        pair = 2.0 * heads * (m.nope_head_dim + m.rope_head_dim + m.value_head_dim)
        # Decoding multiplies queries with the latents themselves (DeepSeek-V2, section 2.1.2).
        decode_pair = 2.0 * heads * (2 * m.kv_lora_rank + m.rope_head_dim)
    return LayerSpec(
        params_kv=model.attention_params_kv,
        params_rest=model.attention_params_q_and_o,
        weight_bytes=params * model.weight_bytes_per_param,
        attention_flops_per_pair=pair,
        decode_flops_per_pair=decode_pair,
        kv_bytes_per_token=model.kv_elements_per_layer * model.kv_bytes_per_element,
    )


def _linear_attention(model: ModelProfile) -> LayerSpec:
    state_elements = 0
    if (m := model.linear) is not None:
        state_elements = m.n_value_heads * m.key_head_dim * m.value_head_dim
    n_linear = max(model.kinds.count("linear"), 1)
    return LayerSpec(
        params_kv=0.0,
        params_rest=model.linear_attention_params,
        weight_bytes=model.linear_attention_params * model.weight_bytes_per_param,
        attention_flops_per_pair=0.0,
        decode_flops_per_pair=0.0,
        kv_bytes_per_token=0.0,
        keys="none",
        state_bytes=model.state_bytes_per_sequence / n_linear,
        # Decay, read, rank-one update and query: three multiply-adds an element.
        state_flops_per_token=6.0 * state_elements,
    )


def _with_dense_mlp(model: ModelProfile, layer: LayerSpec) -> LayerSpec:
    return replace(
        layer,
        params_rest=layer.params_rest + model.dense_mlp_params,
        weight_bytes=layer.weight_bytes + model.dense_mlp_params * model.weight_bytes_per_param,
    )


def _with_experts(model: ModelProfile, layer: LayerSpec) -> LayerSpec:
    if (e := model.experts) is None:
        return layer
    shared = model.shared_expert_params
    return replace(
        layer,
        params_rest=layer.params_rest + shared + e.top_k * model.expert_params,
        weight_bytes=layer.weight_bytes + shared * model.weight_bytes_per_param,
        expert_bytes=e.n_experts * model.expert_params * model.expert_bytes_per_param,
        experts=e,
    )
