"""Which replica gets a prompt: the one whose cache holds its prefix, unless that one is too
busy."""

from __future__ import annotations

from collections.abc import Sequence

from costmodel.prefix_cache import PrefixCache
from costmodel.tokens import BYTES_PER_TOKEN

BLOCK_CHARS = 128
REMEMBERED_TOKENS = 131_072
IMBALANCE_CALLS = 8
IMBALANCE_RATIO = 1.5
"""Cached prefixes are followed as long as no other replica has much less to do: at most this many
times, and this many calls more than the least busy one."""


class PrefixRouter:
    """Remembers what each replica has been sent, as chains of prompt blocks.

    Example:
        >>> router = PrefixRouter([1000, 1000])
        >>> router.choose([1, 2, 3], [0, 0]), router.choose([7, 8], [1, 0])
        (0, 1)
        >>> router.choose([1, 2, 9], [1, 1]), router.choose([1, 2, 4], [20, 1])
        (0, 1)
    """

    def __init__(self, cache_tokens: Sequence[int | None]) -> None:
        block_tokens = BLOCK_CHARS // BYTES_PER_TOKEN
        self._caches = [
            PrefixCache(tokens or REMEMBERED_TOKENS, block_tokens) for tokens in cache_tokens
        ]

    def choose(
        self, chain: list[int], busy: Sequence[int], usable: Sequence[bool] | None = None
    ) -> int:
        """The replica for a prompt whose blocks are `chain`; it is remembered there. `busy` counts
        the calls of each replica; at least one replica must be usable."""
        candidates = [i for i in range(len(busy)) if usable is None or usable[i]]
        least = min(busy[i] for i in candidates)
        room = max(least + IMBALANCE_CALLS, int(least * IMBALANCE_RATIO))
        matches = {i: self._caches[i].peek(chain) for i in candidates if busy[i] <= room}
        # A prefix that all of them have, such as a system prompt, ties and leaves it to the load.
        chosen = max(matches, key=lambda i: (matches[i], -busy[i], -i))
        self._caches[chosen].insert(chain)
        return chosen

    def forget(self, replica: int, cache_tokens: int | None) -> None:
        """A replica lost its cache: it restarted or was flushed."""
        self._caches[replica] = PrefixCache(
            cache_tokens or REMEMBERED_TOKENS, BLOCK_CHARS // BYTES_PER_TOKEN
        )
