"""The prefix cache agrees with one that is written the slow, obvious way."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodel.prefix_cache import PrefixCache, block_chain
from costmodel.tokens import estimate_tokens

Prefix = tuple[tuple[int, ...], ...]


class SlowCache:
    """Prefixes as tuples of blocks; every eviction looks at all leaves."""

    def __init__(self, capacity_blocks: int) -> None:
        self.capacity_blocks = capacity_blocks
        self.used_at: dict[Prefix, int] = {}
        self.now = 0

    def prefixes(self, tokens: tuple[int, ...], block: int) -> list[Prefix]:
        blocks = [tokens[i : i + block] for i in range(0, len(tokens) - block + 1, block)]
        return [tuple(blocks[: i + 1]) for i in range(len(blocks))]

    def touch(self, prefix: Prefix) -> None:
        self.used_at[prefix] = self.now

    def match(self, prefixes: list[Prefix]) -> int:
        self.now += 1
        hits = 0
        while hits < len(prefixes) and prefixes[hits] in self.used_at:
            self.touch(prefixes[hits])
            hits += 1
        return hits

    def insert(self, prefixes: list[Prefix]) -> None:
        self.now += 1
        for prefix in prefixes[: self.capacity_blocks]:
            self.touch(prefix)
        while len(self.used_at) > self.capacity_blocks:
            parents = {p[:-1] for p in self.used_at}
            leaves = [p for p in self.used_at if p not in parents]
            del self.used_at[min(leaves, key=lambda p: self.used_at[p])]


prompts = st.lists(st.integers(0, 2), max_size=14).map(tuple)
steps = st.lists(st.tuples(st.booleans(), prompts), max_size=40)


@given(steps=steps, block=st.integers(1, 3), capacity_blocks=st.integers(0, 12))
def test_agrees_with_brute_force(
    steps: list[tuple[bool, tuple[int, ...]]], block: int, capacity_blocks: int
) -> None:
    cache = PrefixCache(capacity_blocks * block, block)
    slow = SlowCache(capacity_blocks)
    for insert, tokens in steps:
        chain, prefixes = block_chain(tokens, block), slow.prefixes(tokens, block)
        assert len(chain) == len(prefixes)
        if insert:
            cache.insert(chain)
            slow.insert(prefixes)
        else:
            assert cache.match(chain) == slow.match(prefixes)
        assert len(cache) == len(slow.used_at)
        assert [block in cache for block in chain] == [p in slow.used_at for p in prefixes]


@given(left=st.text(max_size=40), right=st.text(max_size=40), block=st.integers(1, 8))
def test_equal_blocks_are_the_common_prefix(left: str, right: str, block: int) -> None:
    common = 0
    while common < min(len(left), len(right)) and left[common] == right[common]:
        common += 1
    a, b = block_chain(left, block), block_chain(right, block)
    assert [x == y for x, y in zip(a, b, strict=False)].count(True) == common // block


def test_peek_does_not_keep_a_prefix_alive() -> None:
    cache = PrefixCache(capacity_tokens=2)
    old, new, newest = (block_chain((n,), 1) for n in (1, 2, 3))
    cache.insert(old)
    cache.insert(new)
    assert cache.peek(old) == 1
    cache.insert(newest)
    assert (cache.peek(old), cache.peek(new), cache.peek(newest)) == (0, 1, 1)


def test_stats_count_blocks() -> None:
    cache = PrefixCache(capacity_tokens=4, block_tokens=2)
    first, second = block_chain((1, 2, 3, 4), 2), block_chain((1, 2, 5, 6), 2)
    assert cache.insert(first) == 2
    assert cache.match(second) == 1
    assert cache.insert(second) == 1
    stats = cache.stats
    assert (stats.looked_up_blocks, stats.hit_blocks) == (2, 1)
    assert (stats.inserted_blocks, stats.evicted_blocks) == (3, 1)


def test_without_a_capacity_nothing_is_evicted() -> None:
    cache = PrefixCache()
    chain = block_chain(tuple(range(5000)), 1)
    cache.insert(chain)
    assert cache.match(chain) == 5000


@pytest.mark.parametrize("settings", [{"block_tokens": 0}, {"capacity_tokens": -1}])
def test_impossible_sizes_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        PrefixCache(**settings)


@given(st.text(alphabet=st.characters(), max_size=60))
def test_an_estimate_is_between_one_token_and_one_a_byte(text: str) -> None:
    size_bytes = len(text.encode(errors="surrogatepass"))
    assert (1 if text else 0) <= estimate_tokens(text) <= size_bytes
