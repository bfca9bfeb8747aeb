"""Keys and values of the running requests, laid out for decoding.

The pool scatters a request's tokens; reading them through a table of slots costs a copy a step and
a layer. Here each running request has a lane, a contiguous copy of the keys that it alone needs, to
which every step appends one; requests of about one length share a bucket and one attention call.
Runs of keys that several running requests share are kept once and read once for all their rows
(cascade attention). The pool stays the truth: all of this can be dropped at any time, and lanes are
refilled from it when requests come and go.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from runtime.backends.torch_engine.arrays import to_tensor, zeros
from runtime.backends.torch_engine.attention import (
    Merge,
    Part,
    attend,
    attend_shared,
    rows_of,
)
from runtime.backends.torch_engine.kv_pool import KVPool
from runtime.backends.torch_engine.radix import Ids
from runtime.backends.torch_engine.sequence import SequenceState

SMALLEST_LANE_TOKENS = 64
FEWEST_LANES = 4
CPU_LANES = 64
"""Lanes that a bucket begins with."""

MIN_SAVED_READS = 1024
"""Keys that a shared run must save reading each step to become a part of its own: below that, the
extra call and the merge cost more than they save."""

Signature = tuple[int, ...]


@dataclass(slots=True, eq=False)
class _Lane:
    """Where a request's own keys are. `signature` names the tree nodes among them."""

    sequence: SequenceState
    signature: Signature
    length: int


def _nothing() -> torch.Tensor:
    return torch.empty(0, dtype=torch.int64)


@dataclass(slots=True)
class _Bucket:
    """Lanes of one capacity. `k` and `v` are [layer, lane, kv head, token, dim]; the first
    `len(lanes)` lanes are in use.

    Of a step: `places` has where each lane's and head's new token goes, among the tokens of one
    layer, and `mask` hides what is behind it.
    """

    capacity: int
    k: torch.Tensor
    v: torch.Tensor
    lanes: list[_Lane] = field(default_factory=list[_Lane])
    lengths: torch.Tensor = field(default_factory=_nothing)
    places: torch.Tensor = field(default_factory=_nothing)
    mask: torch.Tensor = field(default_factory=_nothing)
    longest: int = 0

    def append(self) -> None:
        """Make place for one more token in every lane."""
        n, heads = len(self.lanes), self.k.shape[2]
        device = self.lengths.device
        first = torch.arange(0, n * heads * self.capacity, self.capacity, device=device)
        self.places = (first.view(n, heads) + self.lengths[:, None]).flatten()
        for lane in self.lanes:
            lane.length += 1
        self.longest += 1
        behind = torch.arange(self.longest, device=device) > self.lengths[:, None, None, None]
        self.mask = torch.zeros(behind.shape, dtype=self.k.dtype, device=device)
        self.mask.masked_fill_(behind, -math.inf)
        self.lengths += 1


@dataclass(slots=True)
class _SharedRun:
    """Keys of one run [layer, tokens, kv heads, dim] and the rows that attend to it."""

    k: torch.Tensor
    v: torch.Tensor
    rows: slice | torch.Tensor


class DecodeBatch:
    """The rows of a decode step and their attention. With `cascade` off nothing is shared."""

    def __init__(self, pool: KVPool, device: torch.device, *, cascade: bool = True) -> None:
        self._pool, self._device, self._cascade = pool, device, cascade
        self._buckets: dict[int, _Bucket] = {}
        self._active: list[_Bucket] = []
        self._shared: dict[Signature, _SharedRun] = {}
        self._members: set[tuple[int, int]] = set()
        self._slots = torch.empty(0, dtype=torch.int64)
        self.rows: list[SequenceState] = []

    @property
    def shared_tokens(self) -> int:
        """Tokens in runs that are read once for several requests."""
        return sum(run.k.shape[1] for run in self._shared.values())

    def prepare(self, sequences: Sequence[SequenceState]) -> list[SequenceState]:
        """Get ready for a step of `sequences`, whose last slot is the new token's. Returns them in
        the order of the rows."""
        # A preempted request comes back with other slots.
        members = {(s.uid, s.preemptions) for s in sequences}
        if self._members != members or any(
            bucket.longest >= bucket.capacity for bucket in self._active
        ):
            self._rebuild(sequences)
            self._members = members
        for bucket in self._active:
            bucket.append()
        self._slots = torch.tensor([s.private[-1] for s in self.rows], device=self._device)
        return self.rows

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Append the rows' keys and values, then attend. Returns [rows, heads * dim]."""
        self._pool.k[layer].index_copy_(0, self._slots, k)
        self._pool.v[layer].index_copy_(0, self._slots, v)
        heads, dim = q.shape[1:]
        kv_heads = k.shape[1]
        parts: list[Part] = []
        start = 0
        for bucket in self._active:
            n, longest = len(bucket.lanes), bucket.longest
            end = start + n
            keys, values = bucket.k[layer], bucket.v[layer]
            keys.view(-1, dim).index_copy_(0, bucket.places, k[start:end].reshape(-1, dim))
            values.view(-1, dim).index_copy_(0, bucket.places, v[start:end].reshape(-1, dim))
            out, lse = attend(
                q[start:end].view(n, kv_heads, heads // kv_heads, dim),
                keys[:n, :, :longest],
                values[:n, :, :longest],
                mask=bucket.mask,
            )
            parts.append((out.reshape(n, heads, dim), lse.reshape(n, heads)))
            start = end
        outs, sums = zip(*parts, strict=True)
        merge = Merge(*parts[0]) if len(parts) == 1 else Merge(torch.cat(outs), torch.cat(sums))
        for run in self._shared.values():
            merge.add(run.rows, attend_shared(q[run.rows], run.k[layer], run.v[layer]))
        return merge.result()

    def clear(self) -> None:
        """Forget all lanes (the pool was reset)."""
        self._buckets, self._active, self._shared, self._members = {}, [], {}, set()

    # ---- who is where

    def _rebuild(self, sequences: Sequence[SequenceState]) -> None:
        users: dict[int, list[int]] = {}
        paths = {s.uid: s.node.path() if s.node is not None else [] for s in sequences}
        for sequence in sequences:
            for node in paths[sequence.uid]:
                users.setdefault(node.uid, []).append(sequence.uid)
        # Nodes with the same users are one run: they follow on each other.
        runs: dict[tuple[int, ...], list[tuple[int, Ids]]] = {}
        for path in paths.values():
            for node in path:
                standing = users.pop(node.uid, None)
                if standing is not None:
                    runs.setdefault(tuple(standing), []).append((node.uid, node.slots))
        shared: dict[Signature, tuple[tuple[int, ...], Ids]] = {}
        shared_uids: set[int] = set()
        for who, parts in runs.items():
            tokens = sum(len(slots) for _, slots in parts)
            if self._cascade and (len(who) - 1) * tokens >= MIN_SAVED_READS:
                name = tuple(uid for uid, _ in parts)
                shared[name] = (who, np.concatenate([slots for _, slots in parts]))
                shared_uids.update(name)
        own: dict[int, tuple[SequenceState, Signature, list[Ids]]] = {}
        for sequence in sequences:
            nodes = [n for n in paths[sequence.uid] if n.uid not in shared_uids]
            slots = [n.slots for n in nodes]
            slots.append(np.asarray(sequence.private[:-1], np.int64))
            own[sequence.uid] = (sequence, tuple(n.uid for n in nodes), slots)
        self._place_lanes(own)
        self._place_runs(shared)

    def _place_lanes(self, own: dict[int, tuple[SequenceState, Signature, list[Ids]]]) -> None:
        missing = dict(own)
        for bucket in self._buckets.values():
            for lane in list(bucket.lanes):
                wanted = own.get(lane.sequence.uid)
                if (
                    wanted is not None
                    and wanted[0] is lane.sequence
                    and wanted[1] == lane.signature
                    and lane.length == sum(map(len, wanted[2]))
                    and lane.length < bucket.capacity
                ):
                    del missing[lane.sequence.uid]
                else:
                    self._drop_lane(bucket, lane)
        for sequence, signature, slots in missing.values():
            self._add_lane(sequence, signature, np.concatenate(slots))
        self._buckets = {c: b for c, b in sorted(self._buckets.items()) if b.lanes}
        self._active = list(self._buckets.values())
        self.rows = [lane.sequence for bucket in self._active for lane in bucket.lanes]
        for bucket in self._active:
            lengths = [lane.length for lane in bucket.lanes]
            bucket.lengths = torch.tensor(lengths, device=self._device)
            bucket.longest = max(lengths)

    def _place_runs(self, shared: dict[Signature, tuple[tuple[int, ...], Ids]]) -> None:
        row_of = {sequence.uid: row for row, sequence in enumerate(self.rows)}
        placed: dict[Signature, _SharedRun] = {}
        for signature, (who, slots) in shared.items():
            rows = sorted(row_of[uid] for uid in who)
            index = rows_of([(row, row + 1) for row in rows], self._device)
            run = self._shared.get(signature)
            if run is None:
                at = to_tensor(slots, self._device)
                k, v = self._pool.k.index_select(1, at), self._pool.v.index_select(1, at)
                run = _SharedRun(k, v, index)
            run.rows = index
            placed[signature] = run
        self._shared = placed

    def _add_lane(self, sequence: SequenceState, signature: Signature, slots: Ids) -> None:
        capacity = SMALLEST_LANE_TOKENS
        while capacity < len(slots) + 1:
            capacity *= 2
        bucket = self._bucket_with_room(capacity)
        i, n = len(bucket.lanes), len(slots)
        at = to_tensor(slots, self._device)
        bucket.k[:, i, :, :n] = self._pool.k.index_select(1, at).transpose(1, 2)
        bucket.v[:, i, :, :n] = self._pool.v.index_select(1, at).transpose(1, 2)
        bucket.lanes.append(_Lane(sequence, signature, n))

    def _drop_lane(self, bucket: _Bucket, lane: _Lane) -> None:
        """Take a lane out; the last one moves into its place."""
        hole = bucket.lanes.index(lane)
        last = bucket.lanes.pop()
        if last is not lane:
            bucket.lanes[hole] = last
            j, n = len(bucket.lanes), last.length
            bucket.k[:, hole, :, :n] = bucket.k[:, j, :, :n]
            bucket.v[:, hole, :, :n] = bucket.v[:, j, :, :n]

    def _bucket_with_room(self, capacity: int) -> _Bucket:
        """The bucket of `capacity` with a free row, made or enlarged where needed."""
        old = self._buckets.get(capacity)
        used = 0 if old is None else len(old.lanes)
        if old is not None and used < old.k.shape[1]:
            return old
        layers, slots, heads, dim = self._pool.k.shape
        rows = max(FEWEST_LANES, 2 * used)
        if self._device.type == "cpu":
            # Unused lanes cost nothing there, a larger copy of the used ones does. A lane is more
            # than half full, so that the pool's tokens never need more lanes than these.
            rows = max(rows, min(CPU_LANES, 2 * slots // capacity))
        size = (layers, rows, heads, capacity, dim)
        k, v = (zeros(size, t.dtype, t.device) for t in (self._pool.k, self._pool.v))
        bucket = _Bucket(capacity, k, v)
        if old is not None:
            k[:, :used], v[:, :used] = old.k, old.v
            bucket.lanes = old.lanes
        self._buckets[capacity] = bucket
        return bucket
