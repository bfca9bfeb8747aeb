"""Prefills in which not every token passes every layer: FastKV and SwiftKV.

Both are approximations unless their rate is 1, and both are mechanisms here, not quality claims:
SwiftKV expects distilled weights, and FastKV drops what a prompt's end does not look at.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from runtime.backends.torch_engine.arrays import to_tensor
from runtime.backends.torch_engine.attention import attend
from runtime.backends.torch_engine.kv_pool import KVPool
from runtime.backends.torch_engine.linear import Linear, make_linear
from runtime.backends.torch_engine.model import Model, RmsNorm, Rotation, rotate
from runtime.backends.torch_engine.scheduler import kept_tokens
from runtime.backends.torch_engine.sequence import SequenceState, TokenSelection

POOL_WIDTH = 7
"""FastKV smooths token scores over this many neighbours, as its released code does."""


# ---- FastKV


def top_positions(scores: torch.Tensor, n_keep: int, window: int) -> torch.Tensor:
    """The `n_keep` tokens of highest score along the last dimension, in order; the last `window`
    are always among them.

    Example:
        >>> top_positions(torch.tensor([0.1, 0.9, 0.2, 0.8, 0.0, 0.0]), 4, 2)
        tensor([1, 3, 4, 5])
    """
    n = scores.shape[-1]
    if n_keep >= n:
        return torch.arange(n, device=scores.device).expand(scores.shape)
    free = max(0, n_keep - window)
    best = scores[..., : n - window].topk(free, dim=-1).indices
    tail = torch.arange(n - n_keep + free, n, device=scores.device)
    return torch.cat((best, tail.expand(*scores.shape[:-1], -1)), -1).sort(-1).values


def window_scores(q: torch.Tensor, k: torch.Tensor, window: int) -> torch.Tensor:
    """How much the last `window` queries look at each key: [heads, keys], smoothed.

    `q` is [rows, heads, dim], `k` [rows, kv heads, dim] of the same rows. Attention weights are
    summed over the window's queries and averaged over `POOL_WIDTH` neighbours.
    """
    n, heads, dim = q.shape
    window = min(window, n)
    keys = k.repeat_interleave(heads // k.shape[1], 1)
    scores = torch.einsum("qhd,khd->hqk", q[n - window :].float(), keys.float()) / math.sqrt(dim)
    later = torch.ones(window, n, dtype=torch.bool, device=q.device).triu(n - window + 1)
    weights = torch.softmax(scores.masked_fill(later, -math.inf), -1).sum(1)
    return F.avg_pool1d(weights[:, None], POOL_WIDTH, 1, POOL_WIDTH // 2)[:, 0]


@torch.inference_mode()
def selective_prefill(model: Model, pool: KVPool, sequence: SequenceState) -> torch.Tensor:
    """Prefill one prompt under its `TokenSelection` into the sequence's own slots.

    All tokens pass the layers up to `selection.layer`; there the most attended go on, with their
    true positions. Each layer keeps the most attended keys of each head, the same number in all
    layers, so that one row of slots serves them all. Returns the last token's final hidden row.
    """
    selection = sequence.request.selection
    assert selection is not None
    shape = model.shape
    ids = to_tensor(sequence.prompt, model.device)
    n_prompt = len(ids)
    n_kept = kept_tokens(n_prompt, selection.retain, selection.window)
    n_on = kept_tokens(n_prompt, selection.rate, selection.window)
    slots = torch.tensor(sequence.private, device=model.device)
    positions = torch.arange(n_prompt, device=model.device)
    x, rotation = model.embed(ids), model.rotation(positions)
    for layer in model.layers:
        q, k, v = layer.qkv_of(x, rotation)
        scores = window_scores(q, k, selection.window)
        by_kv_head = scores.view(shape.n_kv_heads, shape.group, -1).sum(1)
        kept = top_positions(by_kv_head, n_kept, selection.window)
        index = kept.T[:, :, None].expand(-1, -1, shape.head_dim)
        pool.k[layer.index].index_copy_(0, slots, k.gather(0, index))
        pool.v[layer.index].index_copy_(0, slots, v.gather(0, index))
        out, _ = attend(*(t.transpose(0, 1)[None] for t in (q, k, v)), causal=True)
        x = layer.finish(x, out[0].transpose(0, 1).reshape(len(x), -1))
        model.counters.linear_flops += 2 * len(k) * layer.weights
        if layer.index == selection.layer and n_on < n_prompt:
            on = top_positions(scores.sum(0), n_on, selection.window)
            x = x.index_select(0, on)
            rotation = model.rotation(positions.index_select(0, on))
    return x[-1:]


def selection_problem(selection: TokenSelection, n_layers: int) -> str | None:
    """Why a selection cannot be run, or None."""
    if not 0 <= selection.layer < n_layers:
        return f"layer {selection.layer} of a model with layers 0 to {n_layers - 1}"
    if not 0 < selection.retain <= selection.rate <= 1:
        return (
            f"rate {selection.rate} and retain {selection.retain}: 0 < retain <= rate <= 1 is "
            "needed, since every layer keeps the same number of tokens"
        )
    return None if selection.window >= 1 else "the window is empty"


# ---- SwiftKV


@dataclass(frozen=True, slots=True)
class SwiftKV:
    """Prompt tokens stop after `keep_layers`; the later layers' keys and values come from that
    layer's output (SingleInputKV), one set for each `group` of neighbouring layers (AcrossKV)."""

    keep_layers: int
    group: int = 1

    def problem(self, n_layers: int) -> str | None:
        """Why a model of `n_layers` cannot run this, or None."""
        if not 1 <= self.keep_layers <= n_layers:
            return f"keep_layers is {self.keep_layers}; the model has {n_layers} layers"
        return None if self.group >= 1 else f"group is {self.group}; it must be at least 1"

    def kv_layers(self, n_layers: int) -> int:
        """Sets of keys and values that the pool holds: f + (1 - f) / g of a plain cache's."""
        return self.keep_layers + -(-(n_layers - self.keep_layers) // self.group)

    def kv_layer(self, layer: int) -> int:
        """Where the pool holds what `layer` attends to."""
        late = layer - self.keep_layers
        return layer if late < 0 else self.keep_layers + late // self.group

    @property
    def namespace(self) -> str:
        """Prefixes computed this way are of no use to an exact engine."""
        return f"swiftkv({self.keep_layers},{self.group})"


class LateKV:
    """The projections of the later layers' keys and values from one hidden state.

    Initialised as the method's training starts: the mean of the sharing layers' own projections and
    the norm of the first later layer. Distilled weights would take their place.
    """

    def __init__(self, model: Model, swiftkv: SwiftKV) -> None:
        precision = model.precision
        self._shape = model.shape
        self._first = swiftkv.keep_layers
        late = model.layers[swiftkv.keep_layers :]
        self._norm = late[0].input_norm if late else None
        self._sets: list[tuple[Linear, RmsNorm | None]] = []
        for start in range(0, len(late), swiftkv.group):
            layers = late[start : start + swiftkv.group]
            weight = torch.stack([torch.cat(m.qkv_weight[1:]).float() for m in layers]).mean(0)
            bias = None
            if layers[0].qkv_bias is not None:
                rows = [torch.cat((m.qkv_bias or [])[1:]).float() for m in layers]
                bias = torch.stack(rows).mean(0)
            linear = make_linear(weight, bias, precision, model.device)
            self._sets.append((linear, layers[0].k_norm))
        self._queries = [
            make_linear(
                m.qkv_weight[0],
                None if m.qkv_bias is None else m.qkv_bias[0],
                precision,
                model.device,
            )
            for m in late
        ]
        self._model = model

    def keys_and_values(
        self, x: torch.Tensor, rotation: Rotation
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """For each set of later layers, keys (rotated) and values of all rows."""
        assert self._norm is not None
        s = self._shape
        x = self._norm(x)
        pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
        for linear, k_norm in self._sets:
            k, v = linear(x).view(-1, 2, s.n_kv_heads, s.head_dim).unbind(1)
            if k_norm is not None:
                k = k_norm(k)
            pairs.append((rotate(k, rotation), v))
            self._model.counters.linear_flops += 2 * len(x) * linear.weights
        return pairs

    def query(self, layer: int, x: torch.Tensor, rotation: Rotation) -> torch.Tensor:
        """Queries of rows `x` in a later layer."""
        block = self._model.layers[layer]
        s = self._shape
        linear = self._queries[layer - self._first]
        q = linear(block.input_norm(x)).view(-1, s.n_heads, s.head_dim)
        if block.q_norm is not None:
            q = block.q_norm(q)
        weights = linear.weights + block.out.weights + block.mlp.weights
        self._model.counters.linear_flops += 2 * len(x) * weights
        return rotate(q, rotation)
