"""The KV pool: slots for the keys and values of one token each, in all layers.

A slot is a page of one token, so a prefix is shared to the token and no page is ever part full.
Whoever takes slots gives them back; the pool does not know who holds what.
"""

from __future__ import annotations

import numpy as np
import torch

from runtime.backends.torch_engine.radix import Ids


class KVPool:
    """Keys and values as [layer, slot, kv head, head dim], RoPE already applied to keys.

    Memory is reserved, not touched: pages of the operating system that no token has used yet cost
    nothing.
    """

    def __init__(
        self,
        n_layers: int,
        n_slots: int,
        n_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.n_slots = n_slots
        shape = (n_layers, n_slots, n_kv_heads, head_dim)
        self.k = torch.empty(shape, dtype=dtype, device=device)
        self.v = torch.empty(shape, dtype=dtype, device=device)
        self._free: Ids = np.arange(n_slots - 1, -1, -1, dtype=np.int64)
        self._n_free = n_slots

    @property
    def free_slots(self) -> int:
        return self._n_free

    def take(self, n: int) -> Ids:
        """`n` free slots; ask `free_slots` before."""
        if n > self._n_free:
            raise ValueError(f"{n} slots asked of a pool with {self._n_free} free")
        self._n_free -= n
        return self._free[self._n_free : self._n_free + n][::-1].copy()

    def give_back(self, slots: Ids) -> None:
        """Free `slots`."""
        n = len(slots)
        if self._n_free + n > self.n_slots:
            raise ValueError(f"{n} slots given back to a pool that lacks fewer")
        self._free[self._n_free : self._n_free + n] = slots[::-1]
        self._n_free += n

    def free_list(self) -> Ids:
        """A copy of the free slots, for checks."""
        return self._free[: self._n_free].copy()

    def bytes_per_token(self) -> int:
        layers, _, heads, dim = self.k.shape
        return 2 * layers * heads * dim * self.k.element_size()
