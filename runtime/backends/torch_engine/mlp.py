"""What follows attention in a layer: one gated MLP, or a mixture of them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from runtime.backends.torch_engine.arrays import to_ints
from runtime.backends.torch_engine.linear import Linear
from runtime.backends.torch_engine.shape import MoeShape


@dataclass(slots=True)
class Counters:
    """Work done so far: floating point operations in weight products, and expert banks read (one
    for each expert that at least one row of a layer's call went to)."""

    linear_flops: int = 0
    expert_loads: int = 0
    expert_loads_by_layer: list[int] = field(default_factory=list[int])


class Mlp:
    """Gate, up and down of a dense layer; gate and up in one product."""

    def __init__(self, gate_up: Linear, down: Linear) -> None:
        self._gate_up, self._down = gate_up, down
        self.weights = gate_up.weights + down.weights

    def __call__(self, x: torch.Tensor, *, add: torch.Tensor | None = None) -> torch.Tensor:
        gate, up = self._gate_up(x).chunk(2, -1)
        return self._down(F.silu(gate).mul_(up), add=add)


class MoeMlp:
    """A router and its experts: every row goes to `top_k` of them, weighted by the router."""

    def __init__(
        self, router: Linear, experts: list[Mlp], shape: MoeShape, layer: int, counters: Counters
    ) -> None:
        self._router, self._experts, self._shape = router, experts, shape
        self._layer, self._counters = layer, counters
        # What a row is multiplied with; the bank that a call may have to read is larger.
        self.weights = router.weights + shape.top_k * experts[0].weights

    def __call__(self, x: torch.Tensor, *, add: torch.Tensor | None = None) -> torch.Tensor:
        odds = torch.softmax(self._router(x).float(), -1)
        weights, chosen = torch.topk(odds, self._shape.top_k, dim=-1)
        if self._shape.renormalize:
            weights = weights / weights.sum(-1, keepdim=True)
        weights = weights.to(x.dtype)
        # Rows sorted by expert: one product per expert that has any.
        flat = chosen.flatten()
        order = torch.argsort(flat, stable=True)
        rows = order // self._shape.top_k
        counts = to_ints(torch.bincount(flat, minlength=self._shape.n_experts))
        out = torch.zeros_like(x)
        start = 0
        for expert, count in enumerate(counts):
            if not count:
                continue
            at = slice(start, start + count)
            start += count
            y = self._experts[expert](x.index_select(0, rows[at]))
            out.index_add_(0, rows[at], y * weights.flatten()[order[at], None])
            self._counters.expert_loads += 1
            self._counters.expert_loads_by_layer[self._layer] += 1
        return out if add is None else out + add
