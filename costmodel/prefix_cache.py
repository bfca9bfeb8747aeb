"""A prefix cache without a GPU: which blocks of a prompt an engine would still have.

The cache is a forest of fixed-size blocks. A block is named by the chain of everything before it
(`block_chain`), so equal names mean equal prefixes, and a flat ordered dictionary holds the forest.
Touching a chain moves its blocks to the recent end, deepest first: every block is then more recent
than all of its descendants, so the oldest block is always a leaf, and dropping from the old end is
exactly LRU eviction of leaves, at constant cost a block.

Names are 64-bit hashes of this process: they never leave it, and two prefixes of a million blocks
collide with a probability near 3e-8.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass


def block_chain(items: str | bytes | tuple[Hashable, ...], block_size: int) -> list[int]:
    """The names of the full blocks of `items` (token ids, or the characters or
    bytes of a text). A last
    block that is not full has no name: engines reuse whole blocks alone.

    Example:
        >>> ask, tell = block_chain("Be brief. Ask.", 5), block_chain("Be brief. Tell.", 5)
        >>> len(ask), len(tell), ask == tell[:2]
        (2, 3, True)
    """
    if block_size < 1:
        raise ValueError(f"block_size is {block_size}; it must be at least 1")
    names: list[int] = []
    name = 0
    for end in range(block_size, len(items) + 1, block_size):
        name = hash((name, items[end - block_size : end]))
        names.append(name)
    return names


@dataclass(slots=True)
class PrefixCacheStats:
    """Blocks looked up, found, stored and evicted so far."""

    looked_up_blocks: int = 0
    hit_blocks: int = 0
    inserted_blocks: int = 0
    evicted_blocks: int = 0


class PrefixCache:
    """Blocks of `block_tokens` tokens in at most `capacity_tokens` tokens, evicted leaves first,
    the least recently used before others. No capacity means that nothing is evicted."""

    def __init__(self, capacity_tokens: int | None = None, block_tokens: int = 1) -> None:
        if block_tokens < 1:
            raise ValueError(f"block_tokens is {block_tokens}; it must be at least 1")
        if capacity_tokens is not None and capacity_tokens < 0:
            raise ValueError(f"capacity_tokens is {capacity_tokens}; it must not be negative")
        self.block_tokens = block_tokens
        self.capacity_blocks = None if capacity_tokens is None else capacity_tokens // block_tokens
        self.stats = PrefixCacheStats()
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def __len__(self) -> int:
        """Blocks held."""
        return len(self._blocks)

    def __contains__(self, block: int) -> bool:
        return block in self._blocks

    def peek(self, chain: Sequence[int]) -> int:
        """Leading blocks of `chain` that are held. Changes nothing."""
        blocks = self._blocks
        hits = 0
        for block in chain:
            if block not in blocks:
                break
            hits += 1
        return hits

    def match(self, chain: Sequence[int]) -> int:
        """Leading blocks of `chain` that are held, which become the most recently used."""
        hits = self.peek(chain)
        for block in reversed(chain[:hits]):
            self._blocks.move_to_end(block)
        self.stats.looked_up_blocks += len(chain)
        self.stats.hit_blocks += hits
        return hits

    def insert(self, chain: Sequence[int]) -> int:
        """Hold `chain` as the most recently used; of one that is larger than the cache, its
        beginning. Evicts what no longer fits. Returns how many blocks are new."""
        blocks = self._blocks
        capacity = self.capacity_blocks
        before = len(blocks)
        for block in reversed(chain if capacity is None else chain[:capacity]):
            blocks[block] = None
            blocks.move_to_end(block)
        new = len(blocks) - before
        self.stats.inserted_blocks += new
        if capacity is not None:
            for _ in range(len(blocks) - capacity):
                blocks.popitem(last=False)
                self.stats.evicted_blocks += 1
        return new
