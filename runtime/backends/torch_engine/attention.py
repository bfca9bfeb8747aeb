"""Exact attention put together from parts that share keys.

softmax over a set of keys can be computed over pieces of it: each piece gives its output and the
logarithm of its sum of exponentials, and the pieces add up weighted by those sums. So the keys that
many requests share are read once, for the query rows of all of them together (cascade attention),
and the rest request by request. No piece needs a mask but the padded rows of a decode bucket.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch

from runtime.backends.torch_engine.arrays import to_tensor
from runtime.backends.torch_engine.kv_pool import KVPool
from runtime.backends.torch_engine.radix import Ids
from runtime.backends.torch_engine.sequence import Chunk

PADDING = 1.25
"""How much longer than the shortest a chunk may be to be computed beside it."""

Part = tuple[torch.Tensor, torch.Tensor]
"""An output and its log-sum-exp."""


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    causal: bool = False,
    mask: torch.Tensor | None = None,
) -> Part:
    """Attention of `q` [batch, heads, rows, dim] over `k`, `v` [batch, kv heads, keys, dim].

    Returns the output in q's layout and type and the log-sum-exp [batch, heads, rows] in float32.
    `mask` is added to the scores. A causal call has as many rows as keys.
    """
    if mask is not None:
        return _masked(q, k, v, mask)
    if q.device.type == "cpu":
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal)
        return out, lse
    group = q.shape[1] // k.shape[1]
    if group > 1:
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    out, lse, _, _ = torch.ops.aten._scaled_dot_product_efficient_attention(
        q, k, v, None, True, 0.0, causal
    )
    return out, lse[..., : q.shape[2]]


def _masked(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> Part:
    """Attention of the few rows that each decoding request has, as plain products: for so few rows
    the fused kernels are slower. As many heads in `k` as in `q`."""
    scores = torch.matmul(q * (1 / math.sqrt(q.shape[-1])), k.transpose(2, 3)).float().add_(mask)
    largest = scores.amax(-1, keepdim=True)
    weights = scores.sub_(largest).exp_()
    total = weights.sum(-1, keepdim=True)
    out = torch.matmul(weights.to(v.dtype), v) / total
    return out.to(v.dtype), (largest + total.log())[..., 0]


def attend_shared(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Part:
    """All rows of `q` [rows, heads, dim] over the same keys `k`, `v` [keys, kv heads, dim].

    The query heads of one key-value head become rows of one product. Returns [rows, heads, dim]
    and [rows, heads].
    """
    rows, heads, dim = q.shape
    kv_heads = k.shape[1]
    group = heads // kv_heads
    folded = q.view(rows, kv_heads, group, dim).transpose(0, 1).reshape(1, kv_heads, -1, dim)
    out, lse = attend(folded, k.transpose(0, 1)[None], v.transpose(0, 1)[None])
    out = out.reshape(kv_heads, rows, group, dim).transpose(0, 1).reshape(rows, heads, dim)
    return out, lse.reshape(kv_heads, rows, group).transpose(0, 1).reshape(rows, heads)


class Merge:
    """Adds parts up, from nothing or from a first part that has every row."""

    def __init__(self, out: torch.Tensor, lse: torch.Tensor) -> None:
        self._dtype = out.dtype
        self._out, self._lse = out, lse
        self._owned = False

    @classmethod
    def of_nothing(cls, q: torch.Tensor) -> Merge:
        """For rows `q` [rows, heads, dim] that all get a part later."""
        lse = torch.full(q.shape[:2], -math.inf, dtype=torch.float32, device=q.device)
        return cls(torch.zeros_like(q), lse)

    def add(self, rows: slice | torch.Tensor, part: Part) -> None:
        """Let `rows` attend also to what `part` covered."""
        if not self._owned:
            # The first part may be a view of what a kernel returned.
            self._out, self._lse = self._out.float(), self._lse.clone()
            self._owned = True
        out, lse = part[0].float(), part[1]
        mine, sums = self._out[rows], self._lse[rows]
        total = torch.logaddexp(sums, lse)
        # In place, where the rows follow on each other: what is put back then is there already.
        mine.mul_((sums - total).exp_()[..., None]).addcmul_(out, (lse - total).exp_()[..., None])
        self._out[rows], self._lse[rows] = mine, total

    def result(self) -> torch.Tensor:
        """[rows, heads * dim] in the type of the first part."""
        return self._out.to(self._dtype).flatten(1)


Run = tuple[int, Ids]
"""A name and the slots of some tokens: equal names are equal slots."""


class SharedKeys:
    """Runs of slots in the pool and the rows that attend to each. Runs with the same rows are
    joined into one part."""

    def __init__(
        self,
        spans: Sequence[tuple[int, int]],
        runs: Sequence[Sequence[Run]],
        pool: KVPool,
        device: torch.device,
    ) -> None:
        self._pool = pool
        users: dict[int, list[int]] = {}
        slots_of: dict[int, Ids] = {}
        for i, own in enumerate(runs):
            for uid, slots in own:
                users.setdefault(uid, []).append(i)
                slots_of[uid] = slots
        joined: dict[tuple[int, ...], list[Ids]] = {}
        for uid, members in users.items():
            joined.setdefault(tuple(members), []).append(slots_of[uid])
        self._parts = [
            (
                rows_of([spans[i] for i in members], device),
                to_tensor(np.concatenate(parts), device),
            )
            for members, parts in joined.items()
        ]

    def add_to(self, merge: Merge, layer: int, q: torch.Tensor) -> None:
        """Let the rows of `q` attend to the runs."""
        keys, values = self._pool.k[layer], self._pool.v[layer]
        for rows, slots in self._parts:
            k, v = keys.index_select(0, slots), values.index_select(0, slots)
            merge.add(rows, attend_shared(q[rows], k, v))


class PrefillPlan:
    """How the chunks of one step attend: made once, used in every layer.

    A chunk attends to itself causally and to everything before it. What is before it is in the pool
    already, or written there by another chunk of this step: each layer writes before it reads, so
    requests of one step share a prefix that none of them had before the step.
    """

    def __init__(self, chunks: Sequence[Chunk], pool: KVPool, device: torch.device) -> None:
        self._pool = pool
        ends = list(itertools.accumulate(len(c.slots) for c in chunks))
        self.spans = list(zip([0, *ends[:-1]], ends, strict=True))
        self.n_rows = ends[-1]
        slots = to_tensor(np.concatenate([c.slots for c in chunks]))
        self._slots = slots.to(device)
        self._groups = [
            _CausalGroup([self.spans[i] for i in members], device)
            for members in group_by_length([len(c.slots) for c in chunks])
        ]
        in_order = len(self._groups) == 1 and isinstance(self._groups[0].rows, slice)
        self._only_group = self._groups[0] if in_order else None
        self._context = SharedKeys(self.spans, [c.context() for c in chunks], pool, device)

    def write(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
        """Put the rows' keys and values into the pool."""
        self._pool.k[layer].index_copy_(0, self._slots, k)
        self._pool.v[layer].index_copy_(0, self._slots, v)

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Write the rows' keys and values, then attend. Returns [rows, heads * dim]."""
        self.write(layer, k, v)
        if self._only_group is not None:
            out, lse = self._only_group.attend(q, k, v)
        else:
            out = torch.empty_like(q)
            lse = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
            for group in self._groups:
                out[group.rows], lse[group.rows] = group.attend(q, k, v)
        merge = Merge(out, lse)
        self._context.add_to(merge, layer, q)
        return merge.result()


class _CausalGroup:
    """Chunks of about one length, attending to themselves side by side. The short ones are padded
    at the end, where no row of theirs looks."""

    def __init__(self, spans: list[tuple[int, int]], device: torch.device) -> None:
        self._n = len(spans)
        self._longest = longest = max(end - start for start, end in spans)
        self.rows = rows_of(spans, device)
        self._gather: torch.Tensor | None = None
        self._keep: torch.Tensor | None = None
        if any(end - start != longest for start, end in spans):
            padded = [min(start + i, end - 1) for start, end in spans for i in range(longest)]
            self._gather = torch.tensor(padded, device=device)
            keep = [j * longest + i for j, (a, b) in enumerate(spans) for i in range(b - a)]
            self._keep = torch.tensor(keep, device=device)

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Part:
        """Output [rows of the group, heads, dim] and log-sum-exp [rows, heads]."""
        heads, dim = q.shape[1:]
        take: slice | torch.Tensor = self.rows if self._gather is None else self._gather
        shape = (self._n, self._longest, -1, dim)
        q, k, v = (t[take].view(shape).transpose(1, 2) for t in (q, k, v))
        out, lse = attend(q, k, v, causal=True)
        out = out.transpose(1, 2).reshape(-1, heads, dim)
        lse = lse.transpose(1, 2).reshape(-1, heads)
        if self._keep is not None:
            out, lse = out.index_select(0, self._keep), lse.index_select(0, self._keep)
        return out, lse


def group_by_length(lengths: Sequence[int]) -> list[list[int]]:
    """Indices grouped so that within a group no length is more than `PADDING` times another.

    Example:
        >>> group_by_length([32, 500, 30, 32, 510])
        [[0, 2, 3], [1, 4]]
    """
    groups: list[list[int]] = []
    shortest = 0
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if not groups or lengths[i] > shortest * PADDING:
            groups.append([])
            shortest = lengths[i]
        groups[-1].append(i)
    return [sorted(group) for group in groups]


def rows_of(spans: Sequence[tuple[int, int]], device: torch.device) -> slice | torch.Tensor:
    """The rows of `spans`, as a slice where they follow on each other."""
    if all(before[1] == after[0] for before, after in itertools.pairwise(spans)):
        return slice(spans[0][0], spans[-1][1])
    return torch.tensor([row for start, end in spans for row in range(start, end)], device=device)
