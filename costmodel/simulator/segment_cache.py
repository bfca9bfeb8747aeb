"""A prefix cache over the pieces of templated prompts, for simulations.

A prompt is a path of pieces. An entry holds one piece for a range of rows of a group (or for all,
when the piece does not differ between rows). Entries are evicted least recently used first; a
lookup touches a path from its end to its beginning, so a piece is always more recent than what
follows it, and eviction takes leaves first. It agrees with `costmodel.prefix_cache` on rendered
prompts up to the rounding of blocks and pieces.
"""

from __future__ import annotations

from collections import OrderedDict


class SegmentCache:
    """Entries by integer key, at most `capacity_tokens` tokens together.

    Attributes:
        tokens: held.
        evicted_tokens: so far.
        host_tokens: held by the host tier, which takes what the device evicts.
    """

    __slots__ = (
        "_entries",
        "_host",
        "capacity_tokens",
        "evicted_tokens",
        "host_capacity_tokens",
        "host_tokens",
        "tokens",
    )

    def __init__(self, capacity_tokens: float, host_capacity_tokens: float = 0) -> None:
        self.capacity_tokens = capacity_tokens
        self.host_capacity_tokens = host_capacity_tokens
        self.tokens = 0.0
        self.evicted_tokens = 0.0
        self.host_tokens = 0.0
        # key -> [first row, row after the last, tokens of a row]
        self._entries: OrderedDict[int, list[int]] = OrderedDict()
        self._host: OrderedDict[int, list[int]] = OrderedDict()

    def overlap(self, key: int, first: int, end: int) -> int:
        """Rows of [first, end) whose piece is held on the device. Changes nothing."""
        entry = self._entries.get(key)
        if entry is None:
            return 0
        low = first if first > entry[0] else entry[0]
        high = end if end < entry[1] else entry[1]
        return high - low if high > low else 0

    def host_overlap(self, key: int, first: int, end: int) -> int:
        """The same for the host tier."""
        entry = self._host.get(key)
        if entry is None:
            return 0
        return max(0, min(end, entry[1]) - max(first, entry[0]))

    def put(self, key: int, first: int, end: int, row_tokens: int) -> None:
        """Hold the piece for rows [first, end) as the most recent. A range that does not touch
        what is held replaces it."""
        entries = self._entries
        entry = entries.get(key)
        if entry is None:
            entries[key] = [first, end, row_tokens]
            self.tokens += (end - first) * row_tokens
            return
        entries.move_to_end(key)
        low, high = entry[0], entry[1]
        if first > high or end < low:
            self.tokens += ((end - first) - (high - low)) * row_tokens
            entry[0], entry[1] = first, end
            return
        if first < low:
            self.tokens += (low - first) * row_tokens
            entry[0] = first
        if end > high:
            self.tokens += (end - high) * row_tokens
            entry[1] = end

    def shrink(self, capacity_tokens: float) -> None:
        """Evict until at most `capacity_tokens` are held."""
        entries = self._entries
        while self.tokens > capacity_tokens and entries:
            key, entry = next(iter(entries.items()))
            first, end, row_tokens = entry
            excess = self.tokens - capacity_tokens
            rows = end - first
            drop = rows
            if row_tokens and rows > 1:
                drop = min(rows, int(-(-excess // row_tokens)))
            self.tokens -= drop * row_tokens
            self.evicted_tokens += drop * row_tokens
            if self.host_capacity_tokens:
                self._to_host(key, first, first + drop, row_tokens)
            if drop == rows:
                del entries[key]
            else:
                entry[0] = first + drop

    def clear(self) -> None:
        """Forget everything on the device: the model left it."""
        self._entries.clear()
        self.tokens = 0.0

    def _to_host(self, key: int, first: int, end: int, row_tokens: int) -> None:
        host = self._host
        entry = host.get(key)
        if entry is not None and first <= entry[1] and end >= entry[0]:
            low, high = min(first, entry[0]), max(end, entry[1])
            self.host_tokens += ((high - low) - (entry[1] - entry[0])) * row_tokens
            entry[0], entry[1] = low, high
            host.move_to_end(key)
        else:
            if entry is not None:
                self.host_tokens -= (entry[1] - entry[0]) * row_tokens
            host[key] = [first, end, row_tokens]
            host.move_to_end(key)
            self.host_tokens += (end - first) * row_tokens
        while self.host_tokens > self.host_capacity_tokens and host:
            _, old = host.popitem(last=False)
            self.host_tokens -= (old[1] - old[0]) * old[2]
