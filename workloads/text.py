"""Seeded text: the same seed gives the same words on every machine."""

from __future__ import annotations

import hashlib

WORDS = (
    *("amber", "basin", "cedar", "delta", "ember", "fjord", "grove", "harbor", "inlet", "juniper"),
    *("kelp", "lagoon", "meadow", "nectar", "orchid", "prairie", "quartz", "river", "summit"),
    *("tundra", "valley", "willow", "zenith", "anchor", "bridge", "candle", "desert", "engine"),
    *("forest", "garden", "hollow", "island"),
)


def words(seed: str, n_chars: int) -> str:
    """Exactly `n_chars` characters of words, chosen by `seed`.

    Example:
        >>> words("a", 20) == words("a", 20), len(words("b", 333))
        (True, 333)
    """
    parts: list[str] = []
    size, round_ = 0, 0
    while size < n_chars:
        for byte in hashlib.sha256(f"{seed}/{round_}".encode()).digest():
            word = WORDS[byte % len(WORDS)]
            parts.append(word)
            size += len(word) + 1
        round_ += 1
    return " ".join(parts)[:n_chars]


def below(seed: str, n: int) -> int:
    """A number from 0 to `n` - 1, chosen by `seed`."""
    return int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big") % n
