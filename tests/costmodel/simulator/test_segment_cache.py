"""The cache over prompt pieces finds what the cache over blocks finds."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from costmodel.prefix_cache import PrefixCache, block_chain
from costmodel.simulator.segment_cache import SegmentCache


@given(
    st.lists(
        st.tuples(st.integers(0, 1), st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30
    ),
    st.sampled_from([None, 60, 120]),
)
@settings(max_examples=200)
def test_pieces_and_single_tokens_agree(
    prompts: list[tuple[int, int, int]], capacity: int | None
) -> None:
    """Prompts of three pieces of 10 tokens. With room for whole pieces both caches evict the same
    leaves, piece by piece or token by token, up to one piece that tokens lose in part."""
    blocks = PrefixCache(capacity, 10)
    pieces = SegmentCache(float("inf") if capacity is None else capacity)
    for prompt in prompts:
        text = "".join(f"{level}{part}".ljust(10) for level, part in enumerate(prompt))
        chain = block_chain(text, 10)
        keys = [hash(prompt[: i + 1]) for i in range(3)]
        held = 0
        while held < 3 and pieces.overlap(keys[held], 0, 1):
            held += 1
        assert held == blocks.match(chain)
        blocks.insert(chain)
        for key in reversed(keys):
            pieces.put(key, 0, 1, 10)
        if capacity is not None:
            pieces.shrink(capacity)
        assert pieces.tokens == 10 * len(blocks)


def test_ranges_grow_shrink_and_are_replaced() -> None:
    cache = SegmentCache(100)
    cache.put(1, 0, 4, 10)
    cache.put(1, 4, 6, 10)
    assert (cache.tokens, cache.overlap(1, 2, 9)) == (60, 4)
    cache.put(2, 0, 1, 50)
    cache.shrink(100)
    assert (cache.tokens, cache.overlap(1, 0, 6), cache.evicted_tokens) == (100, 5, 10)
    cache.put(2, 7, 8, 50)
    assert (cache.tokens, cache.overlap(2, 0, 1), cache.overlap(2, 7, 8)) == (100, 0, 1)
    cache.clear()
    assert cache.tokens == 0
