"""The radix cache agrees with one that keeps every prefix in a set and looks at all of them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodel.errors import ProfileError
from costmodel.radix_cache import RadixCache, common_length, serve_all, serve_batches

Tokens = tuple[int, ...]


class SlowCache:
    """Every held prefix as a tuple; runs end where a match or an insertion ended."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.used_at: dict[Tokens, int] = {}
        self.ends: set[Tokens] = set()
        self.now = 0

    def serve(self, prompt: Tokens, answer: Tokens) -> tuple[int, int]:
        """(hits, evicted) of one request alone."""
        hit = max(n for n in range(len(prompt)) if n == 0 or prompt[:n] in self.used_at)
        self.end_run(prompt[:hit])
        self.touch(prompt[:hit])
        evicted = self.make_room(len(prompt) - hit + len(answer), prompt[:hit])
        keep = prompt + answer[:-1]
        held = max(n for n in range(len(keep) + 1) if n == 0 or keep[:n] in self.used_at)
        self.end_run(keep[:held])
        for n in range(held + 1, len(keep) + 1):
            self.used_at[keep[:n]] = 0
        self.end_run(keep)
        self.touch(keep)
        return hit, evicted

    def end_run(self, prefix: Tokens) -> None:
        self.ends.add(prefix)

    def touch(self, prefix: Tokens) -> None:
        self.now += 1
        for n in range(1, len(prefix) + 1):
            self.used_at[prefix[:n]] = self.now

    def make_room(self, tokens: int, locked: Tokens) -> int:
        evicted = 0
        while len(self.used_at) + tokens > self.capacity:
            leaves = [
                p
                for p in self.used_at
                if p != locked[: len(p)] and not any(q[:-1] == p for q in self.used_at)
            ]
            if not leaves:
                raise ProfileError("full")
            leaf = min(leaves, key=self.used_at.__getitem__)
            # The whole run: back to where the run before it ended.
            while leaf and leaf in self.used_at:
                del self.used_at[leaf]
                self.ends.discard(leaf)
                evicted += 1
                leaf = leaf[:-1]
                if leaf in self.ends or any(q[:-1] == leaf for q in self.used_at):
                    break
        return evicted


tokens = st.lists(st.integers(0, 2), min_size=1, max_size=9).map(tuple)
answers = st.lists(st.integers(0, 2), max_size=4).map(tuple)


@settings(max_examples=100)
@given(requests=st.lists(st.tuples(tokens, answers), max_size=25), capacity=st.integers(13, 40))
def test_agrees_with_brute_force(requests: list[tuple[Tokens, Tokens]], capacity: int) -> None:
    cache, slow = RadixCache(capacity), SlowCache(capacity)
    for prompt, answer in requests:
        expected = cache.peek(prompt)
        served = cache.serve(prompt, answer)
        assert served.cached_tokens == expected
        assert (served.cached_tokens, served.evicted_tokens) == slow.serve(prompt, answer)
        assert cache.held_tokens == len(slow.used_at) <= capacity


@given(prompts=st.lists(tokens, max_size=12))
def test_without_pressure_hits_are_the_longest_common_prefix(prompts: list[Tokens]) -> None:
    served = serve_all(prompts)
    for i, (prompt, one) in enumerate(zip(prompts, served, strict=True)):
        longest = max((common_length(earlier, prompt, 0) for earlier in prompts[:i]), default=0)
        assert one.cached_tokens == min(longest, len(prompt) - 1)
        assert one.evicted_tokens == 0


@given(prompts=st.lists(tokens, max_size=10), page=st.integers(1, 4))
def test_pages_round_hits_down(prompts: list[Tokens], page: int) -> None:
    served = serve_all(prompts, page_tokens=page)
    for i, (prompt, one) in enumerate(zip(prompts, served, strict=True)):
        kept = [earlier[: len(earlier) // page * page] for earlier in prompts[:i]]
        longest = max((common_length(e, prompt[:-1], 0) for e in kept), default=0)
        assert one.cached_tokens == longest // page * page


def test_an_answer_is_reused_in_the_next_turn_but_for_its_last_token() -> None:
    cache = RadixCache()
    cache.serve((1, 2, 3), (4, 5, 6))
    assert cache.serve((1, 2, 3, 4, 5, 6, 7)).cached_tokens == 5


def test_prompts_of_one_batch_share_nothing_and_later_ones_do() -> None:
    together, later = serve_batches([[(1, 2, 3), (1, 2, 4)], [(1, 2, 5)]])
    assert [s.cached_tokens for s in together] == [0, 0]
    assert [s.cached_tokens for s in later] == [2]


def test_namespaces_share_nothing() -> None:
    cache = RadixCache()
    cache.serve((1, 2, 3), namespace="a")
    assert cache.serve((1, 2, 3), namespace="b").cached_tokens == 0
    assert cache.serve((1, 2, 3), namespace="a").cached_tokens == 2


def test_the_least_recently_used_branch_goes_first() -> None:
    cache = RadixCache(capacity_tokens=9)
    cache.serve((1, 2, 3))
    cache.serve((4, 5, 6))
    cache.serve((1, 2, 3))
    assert cache.serve((7, 8, 9, 10)).evicted_tokens == 3
    assert (cache.peek((1, 2, 3)), cache.peek((4, 5, 6))) == (2, 0)
    assert cache.stats.evicted_tokens == 3


def test_a_request_larger_than_the_cache_is_refused() -> None:
    cache = RadixCache(capacity_tokens=4)
    with pytest.raises(ProfileError, match="do not fit"):
        cache.serve((1, 2, 3, 4, 5))
    assert cache.serve((1, 2, 3)).cached_tokens == 0


@pytest.mark.parametrize("sizes", [{"page_tokens": 0}, {"capacity_tokens": 0}])
def test_impossible_sizes_are_refused(sizes: dict[str, int]) -> None:
    with pytest.raises(ProfileError, match=next(iter(sizes))):
        RadixCache(**sizes)


@given(st.lists(st.integers(0, 1)).map(tuple), st.lists(st.integers(0, 1)).map(tuple))
def test_common_length_counts_one_by_one(left: Tokens, right: Tokens) -> None:
    n = 0
    while n < min(len(left), len(right)) and left[n] == right[n]:
        n += 1
    assert common_length(left, right, 0) == n
