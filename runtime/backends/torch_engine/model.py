"""The layers of a decoder-only transformer, without attention over the past: that is handed in.

Rows are tokens of any number of requests, packed without padding. Only what a row needs of its
neighbours, attention, is done elsewhere (`attention`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F

from runtime.backends.torch_engine.errors import bad_file
from runtime.backends.torch_engine.linear import Linear, Precision, compute_dtype, make_linear
from runtime.backends.torch_engine.mlp import Counters, Mlp, MoeMlp
from runtime.backends.torch_engine.shape import ModelShape, MoeShape
from runtime.backends.torch_engine.weights import WeightSource

Attend = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Layer, queries [rows, heads, dim], keys and values [rows, kv heads, dim] of the rows at hand;
returns [rows, heads * dim]."""

Rotation = tuple[torch.Tensor, torch.Tensor]

TWO_LAYOUTS_BYTES = 1 << 30
"""Layers' weights in float32 up to which they are kept in two layouts where that is faster."""


class Layer:
    """One layer's weights and the arithmetic between them."""

    def __init__(
        self, index: int, shape: ModelShape, source: WeightSource, build: _Builder
    ) -> None:
        p = f"model.layers.{index}."
        a = p + "self_attn."
        nq, nk = shape.n_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim
        self.index, self.shape = index, shape
        self.input_norm = build.norm(p + "input_layernorm.weight", shape.d_model)
        self.mlp_norm = build.norm(p + "post_attention_layernorm.weight", shape.d_model)
        self.q_norm = self.k_norm = None
        if shape.qk_norm:
            self.q_norm = build.norm(a + "q_norm.weight", shape.head_dim)
            self.k_norm = build.norm(a + "k_norm.weight", shape.head_dim)
        sizes = (("q_proj", nq), ("k_proj", nk), ("v_proj", nk))
        self.qkv_weight = [build.matrix(f"{a}{n}.weight", r, shape.d_model) for n, r in sizes]
        self.qkv_bias = None
        if shape.qkv_bias:
            self.qkv_bias = [build.raw(f"{a}{n}.bias", (r,)) for n, r in sizes]
        self.qkv = build.linear(
            torch.cat(self.qkv_weight), None if self.qkv_bias is None else torch.cat(self.qkv_bias)
        )
        if not build.keep_projections:
            self.qkv_weight = []
        o_bias = None
        if source.has(a + "o_proj.bias"):
            o_bias = build.raw(a + "o_proj.bias", (shape.d_model,))
        self.out = build.linear(build.matrix(a + "o_proj.weight", shape.d_model, nq), o_bias)
        self.mlp = build.mlp(p + "mlp.", index)

    def qkv_of(
        self, x: torch.Tensor, rotation: Rotation
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys (both rotated) and values of rows `x`."""
        s = self.shape
        y = self.qkv(self.input_norm(x))
        nq, nk = s.n_heads * s.head_dim, s.n_kv_heads * s.head_dim
        v = y[:, nq + nk :].view(-1, s.n_kv_heads, s.head_dim)
        if self.q_norm is None or self.k_norm is None:
            heads = y[:, : nq + nk].view(-1, s.n_heads + s.n_kv_heads, s.head_dim)
            heads = rotate(heads, rotation)
            return heads[:, : s.n_heads], heads[:, s.n_heads :], v
        q = self.q_norm(y[:, :nq].view(-1, s.n_heads, s.head_dim))
        k = self.k_norm(y[:, nq : nq + nk].view(-1, s.n_kv_heads, s.head_dim))
        return rotate(q, rotation), rotate(k, rotation), v

    def finish(self, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """The layer's output rows, from its input rows and what attention returned."""
        x = self.out(attended, add=x)
        return self.mlp(self.mlp_norm(x), add=x)

    @property
    def weights(self) -> int:
        """Parameters every row is multiplied with."""
        return self.qkv.weights + self.out.weights + self.mlp.weights


class Model:
    """Embedding, layers and output of one checkpoint on one device."""

    def __init__(
        self,
        shape: ModelShape,
        source: WeightSource,
        precision: Precision = "float32",
        device: torch.device | None = None,
        *,
        keep_projections: bool = False,
    ) -> None:
        self.shape = shape
        self.device = device or torch.device("cpu")
        self.precision: Precision = precision
        self.dtype = compute_dtype(precision)
        self.counters = Counters(expert_loads_by_layer=[0] * shape.n_layers)
        build = _Builder(shape, source, precision, self.device, self.counters, keep_projections)
        table = build.raw("model.embed_tokens.weight", (shape.vocab_size, shape.d_model))
        self.embedding = table.to(device=self.device, dtype=self.dtype)
        output = table
        if not shape.tied:
            output = build.matrix("lm_head.weight", shape.vocab_size, shape.d_model)
        self.head = build.head(output)
        self.norm = build.norm("model.norm.weight", shape.d_model)
        self.layers = [Layer(i, shape, source, build) for i in range(shape.n_layers)]
        self._inverse_frequencies = inverse_frequencies(shape).to(self.device)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        return self.embedding.index_select(0, ids)

    def rotation(self, positions: torch.Tensor) -> Rotation:
        """What `rotate` needs for rows at `positions`: cosines, and sines with their signs."""
        angles = positions.to(torch.float32)[:, None, None] * self._inverse_frequencies
        cos, sin = angles.cos().to(self.dtype), angles.sin().to(self.dtype)
        return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)

    def run(
        self,
        x: torch.Tensor,
        rotation: Rotation,
        attend: Attend,
        first: int = 0,
        last: int | None = None,
    ) -> torch.Tensor:
        """Rows `x` through layers `first` to `last` (not included)."""
        for layer in self.layers[first:last]:
            q, k, v = layer.qkv_of(x, rotation)
            x = layer.finish(x, attend(layer.index, q, k, v))
            self.counters.linear_flops += 2 * len(x) * layer.weights
        return x

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Float32 scores of the next token for rows `x`."""
        return self.head(self.norm(x)).float()


class RmsNorm:
    """Rows over the root of their mean square, times a weight."""

    def __init__(self, weight: torch.Tensor, eps: float) -> None:
        self.weight, self._eps = weight, eps
        size = len(weight)
        # On the CPU torch puts its norm together from eight operations; four do for float32:
        # x / sqrt(mean(x^2) + eps) = sqrt(n) x / sqrt(|x|^2 + n eps).
        self._composed = weight.device.type == "cpu" and weight.dtype == torch.float32
        self._scaled = weight * math.sqrt(size)
        self._floor = torch.tensor(math.sqrt(size * eps))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if not self._composed:
            return F.rms_norm(x, self.weight.shape, self.weight, self._eps)
        norm = cast("Any", torch.linalg).vector_norm
        length = cast("torch.Tensor", norm(x, dim=-1, keepdim=True))
        return (x / torch.hypot(length, self._floor)).mul_(self._scaled)


def rotate(x: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """RoPE over the last dimension, whose two halves are the coordinates of the rotated planes."""
    cos, sin = rotation
    half = x.shape[-1] // 2
    turned = torch.cat((x[..., half:], x[..., :half]), -1)
    return torch.addcmul(x * cos, turned, sin)


def inverse_frequencies(shape: ModelShape) -> torch.Tensor:
    """RoPE's angle a position for each plane, scaled as the checkpoint asks."""
    steps = torch.arange(0, shape.head_dim, 2, dtype=torch.int64).float() / shape.head_dim
    plain = 1.0 / (shape.rope_base**steps)
    scaling = shape.rope_scaling
    if scaling is None:
        return plain
    if scaling.kind == "linear":
        return plain / scaling.factor
    # Llama 3.1: wavelengths that fit often into the original context stay, long ones are divided.
    original = scaling.original_context_tokens
    turns = original * plain / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return plain * keep + plain / scaling.factor * (1 - keep)


class _Builder:
    """Turns named tensors into ready weights, checking sizes on the way."""

    def __init__(
        self,
        shape: ModelShape,
        source: WeightSource,
        precision: Precision,
        device: torch.device,
        counters: Counters,
        keep_projections: bool,
    ) -> None:
        self._shape, self._source = shape, source
        self._precision: Precision = precision
        self._device = device
        self._counters = counters
        self.keep_projections = keep_projections
        layer_bytes = 4 * shape.n_layers * shape.d_model * (4 * shape.d_model + 3 * shape.d_ff)
        self._twice = shape.moe is None and layer_bytes <= TWO_LAYOUTS_BYTES

    def raw(self, name: str, sizes: tuple[int, ...]) -> torch.Tensor:
        tensor = self._source.get(name)
        if tuple(tensor.shape) != sizes:
            raise bad_file(
                f"tensor {name!r} has shape {tuple(tensor.shape)}; the configuration asks for "
                f"{sizes}"
            )
        return tensor

    def matrix(self, name: str, rows: int, columns: int) -> torch.Tensor:
        return self.raw(name, (rows, columns))

    def norm(self, name: str, size: int) -> RmsNorm:
        dtype = compute_dtype(self._precision)
        weight = self.raw(name, (size,)).to(device=self._device, dtype=dtype)
        return RmsNorm(weight, self._shape.norm_eps)

    def linear(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
        return make_linear(weight, bias, self._precision, self._device, twice=self._twice)

    def head(self, weight: torch.Tensor) -> Linear:
        """The output matrix, which few rows pass."""
        return make_linear(weight, None, self._precision, self._device)

    def mlp(self, prefix: str, layer: int) -> Mlp | MoeMlp:
        s = self._shape
        if s.moe is not None:
            return self._moe(prefix, layer, s.moe)
        gate = self.matrix(prefix + "gate_proj.weight", s.d_ff, s.d_model)
        up = self.matrix(prefix + "up_proj.weight", s.d_ff, s.d_model)
        down = self.matrix(prefix + "down_proj.weight", s.d_model, s.d_ff)
        return Mlp(self.linear(torch.cat((gate, up)), None), self.linear(down, None))

    def _moe(self, prefix: str, layer: int, moe: MoeShape) -> MoeMlp:
        router = self.matrix(prefix + "gate.weight", moe.n_experts, self._shape.d_model)
        experts = [
            Mlp(self.linear(gate_up, None), self.linear(down, None))
            for gate_up, down in self._experts(prefix + "experts.", moe)
        ]
        return MoeMlp(self.linear(router, None), experts, moe, layer, self._counters)

    def _experts(self, p: str, moe: MoeShape) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Gate-and-up and down of each expert, from whichever of three layouts the file has: one
        tensor an expert, gate and up in one stack, or a stack for each (GGUF)."""
        n, ff, d = moe.n_experts, moe.d_ff_expert, self._shape.d_model
        if self._source.has(p + "gate"):
            gate, up = self.raw(p + "gate", (n, ff, d)), self.raw(p + "up", (n, ff, d))
            stacked, down = torch.cat((gate, up), 1), self.raw(p + "down", (n, d, ff))
        elif self._source.has(p + "gate_up_proj"):
            stacked = self.raw(p + "gate_up_proj", (n, 2 * ff, d))
            down = self.raw(p + "down_proj", (n, d, ff))
        else:
            for e in range(n):
                gate = self.matrix(f"{p}{e}.gate_proj.weight", ff, d)
                up = self.matrix(f"{p}{e}.up_proj.weight", ff, d)
                yield torch.cat((gate, up)), self.matrix(f"{p}{e}.down_proj.weight", d, ff)
            return
        for e in range(n):
            yield stacked[e], down[e]
