"""What a model file says about the model: sizes, and which of the known variations it has."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from typing import Literal

Architecture = Literal["llama", "qwen2", "qwen3", "qwen3moe"]
ARCHITECTURES: tuple[Architecture, ...] = ("llama", "qwen2", "qwen3", "qwen3moe")


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the trained length.

    `linear` divides all frequencies by `factor`; `llama3` divides the slow ones and blends between
    (Llama 3.1's rule, with its two frequency factors and the original context length).
    """

    kind: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context_tokens: int = 8192


@dataclass(frozen=True, slots=True)
class MoeShape:
    """Experts of a mixture: each token goes to `top_k` of `n_experts`."""

    n_experts: int
    top_k: int
    d_ff_expert: int
    renormalize: bool = True


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of a decoder-only transformer with RoPE, RMS norm, grouped heads and a gated MLP.

    Attributes:
        head_dim: of queries, keys and values; not always d_model / n_heads.
        context_tokens: longest prompt and answer together.
        qkv_bias: Qwen2's biases on the three projections.
        qk_norm: Qwen3's RMS norm of each query and key head before RoPE.
        tied: whether the output matrix is the embedding.
        moe: the mixture of every layer's MLP, None for dense models.
    """

    architecture: Architecture
    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_ff: int
    vocab_size: int
    context_tokens: int
    norm_eps: float = 1e-5
    rope_base: float = 10000.0
    rope_scaling: RopeScaling | None = None
    qkv_bias: bool = False
    qk_norm: bool = False
    tied: bool = True
    moe: MoeShape | None = None

    @property
    def group(self) -> int:
        """Query heads a key-value head serves."""
        return self.n_heads // self.n_kv_heads

    def problem(self) -> str | None:
        """Why no model can have this shape, or None."""
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int) and not isinstance(value, bool) and value < 1:
                return f"{field.name} is {value}; it must be at least 1"
        if self.n_heads % self.n_kv_heads:
            return f"{self.n_heads} query heads cannot share {self.n_kv_heads} key-value heads"
        if self.head_dim % 2:
            return f"head_dim is {self.head_dim}; RoPE needs an even number"
        if self.moe is not None and not 1 <= self.moe.top_k <= self.moe.n_experts:
            return f"{self.moe.top_k} of {self.moe.n_experts} experts a token"
        return None

    def digest(self) -> str:
        """A short name of this shape."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:16]
