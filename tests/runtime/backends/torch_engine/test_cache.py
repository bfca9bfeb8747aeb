"""What the radix cache holds, to the token."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_exactness import engine_of
from tiny_models import ANSWER_TOKENS, Tiny

from runtime.backends.torch_engine.engine import StepMetrics
from runtime.backends.torch_engine.radix import RadixTree
from runtime.backends.torch_engine.scheduler import SchedulerConfig
from runtime.backends.torch_engine.sequence import GenerationRequest


def distinct_prefix_tokens(prompts: list[list[int]]) -> int:
    """Nodes of the trie of the prompts: each token once for each different prefix it ends."""
    return len({tuple(p[: i + 1]) for p in prompts for i in range(len(p))})


@pytest.mark.parametrize("max_step_tokens", [2048, 37])
def test_each_distinct_prefix_token_is_computed_once(tiny: Tiny, max_step_tokens: int) -> None:
    engine = engine_of(tiny, scheduler=SchedulerConfig(max_step_tokens=max_step_tokens))
    prefilled = hits = 0

    def count(metrics: StepMetrics) -> None:
        nonlocal prefilled, hits
        prefilled += metrics.prefilled_tokens
        hits += metrics.usage.cached_tokens or 0

    engine._on_step = count
    engine.generate([GenerationRequest(p, 3) for p in tiny.prompts])
    assert prefilled == distinct_prefix_tokens(tiny.prompts)
    assert prefilled + hits == sum(map(len, tiny.prompts))


def test_requests_that_arrive_together_share_in_their_first_step(tiny: Tiny) -> None:
    engine = engine_of(tiny)
    stem = list(range(100))
    sequences = [engine.submit(GenerationRequest([*stem, 100 + i], 4)) for i in range(8)]
    metrics = engine.step()
    assert metrics is not None
    assert metrics.prefilled_tokens == 108
    assert metrics.usage.cached_tokens == 700
    assert all(len(s.output) == 1 for s in sequences)


def test_the_least_recently_used_leaf_goes_first(tiny: Tiny) -> None:
    engine = engine_of(tiny, 100)
    old, new = list(range(40)), list(range(50, 90))
    engine.generate([GenerationRequest(old, 1)])
    engine.generate([GenerationRequest(new, 1)])
    engine.generate([GenerationRequest(old, 1)])  # used again: `new` is now the oldest
    engine.generate([GenerationRequest(list(range(100, 130)), 1)])
    peek = engine.tree.peek
    root = engine.scheduler.root
    assert peek(root, np.array(old)) == 40
    assert peek(root, np.array(new)) == 0
    assert engine.tree.stats.evicted_tokens == 40


def test_a_locked_prefix_is_never_evicted(tiny: Tiny) -> None:
    engine = engine_of(tiny, 120)
    holder = engine.submit(GenerationRequest(list(range(50)), 30))
    engine.step()
    engine.generate([GenerationRequest(list(range(60, 100)), 5)])
    engine.generate([GenerationRequest(list(range(100, 140)), 5)])
    assert engine.tree.peek(engine.scheduler.root, np.arange(50)) == 50 or holder.result
    engine.check()


def test_longest_cached_prefix_goes_first_and_priority_before_it(tiny: Tiny) -> None:
    engine = engine_of(tiny, scheduler=SchedulerConfig(max_running=1))
    engine.generate([GenerationRequest(list(range(60)), 1)])
    done: list[str] = []

    def submit(name: str, ids: list[int], priority: int) -> None:
        engine.submit(GenerationRequest(ids, 1, priority=priority), lambda _: done.append(name))

    submit("cold", list(range(70, 90)), 0)
    submit("half", [*range(30), 1, 1], 0)
    submit("warm", [*range(59), 2, 2], 0)
    submit("urgent", list(range(90, 99)), -1)
    while engine.has_work:
        engine.step()
    assert done == ["urgent", "warm", "half", "cold"]


def test_a_passed_over_request_gets_its_turn(tiny: Tiny) -> None:
    engine = engine_of(tiny, scheduler=SchedulerConfig(max_running=1))
    engine.generate([GenerationRequest(list(range(40)), 1)])
    cold = engine.submit(GenerationRequest(list(range(70, 90)), 1))
    for i in range(200):
        if cold.result is not None:
            break
        engine.submit(GenerationRequest([*range(39), 100 + i % 50], 1))
        engine.step()
    assert cold.result is not None and i < 140


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=12), max_size=20), st.data())
def test_the_tree_is_a_dictionary_of_prefixes(texts: list[list[int]], data: st.DataObject) -> None:
    tree, held, next_slot = RadixTree(), dict[tuple[int, ...], int](), 0
    root = tree.root()
    locked = []
    for text in texts:
        ids = np.array(text)
        known = max(i for i in range(len(text) + 1) if i == 0 or tuple(text[:i]) in held)
        assert tree.peek(root, ids) == known
        node, hit = tree.match(root, ids)
        assert hit == known
        slots = [s for n in node.path() for s in n.slots.tolist()]
        assert slots == [held[tuple(text[: i + 1])] for i in range(hit)]
        if hit < len(text):
            fresh = np.arange(next_slot, next_slot + len(text) - hit)
            next_slot += len(fresh)
            node = tree.insert(node, ids[hit:], fresh)
            held.update({tuple(text[: hit + i + 1]): int(s) for i, s in enumerate(fresh)})
        if data.draw(st.booleans()):
            tree.lock(node)
            locked.append((node, text))
        if locked and data.draw(st.booleans()):
            tree.unlock(locked.pop(0)[0])
        if data.draw(st.integers(0, 4)) == 0:
            gone = {int(s) for run in tree.evict(3) for s in run}
            held = {prefix: slot for prefix, slot in held.items() if slot not in gone}
            for _, kept in locked:
                assert all(tuple(kept[: i + 1]) in held for i in range(len(kept)))
        assert tree.tokens == len(held)
        used = {prefix for _, t in locked for i in range(len(t)) for prefix in [tuple(t[: i + 1])]}
        assert tree.evictable_tokens == len(held) - len(used)


def test_a_lost_slot_is_found_when_the_engine_is_idle(tiny: Tiny) -> None:
    engine = engine_of(tiny)
    engine.pool.take(1)
    with pytest.raises(AssertionError, match="pool of 2000 that nobody uses"):
        engine.generate([GenerationRequest([1, 2, 3], 2)])


def test_many_uses_do_not_let_the_list_of_leaves_grow() -> None:
    tree = RadixTree()
    root = tree.root()
    leaf = tree.insert(root, np.arange(5), np.arange(5))
    for _ in range(10_000):
        tree.lock(leaf)
        tree.unlock(leaf)
    assert len(tree._leaves) < 2_000
    assert [run.tolist() for run in tree.evict(1)] == [[0, 1, 2, 3, 4]]


def test_seeds_of_prompts_with_equal_text_need_their_last_token(tiny: Tiny) -> None:
    """Two equal prompts at once: the second computes its last token again, and no more."""
    engine = engine_of(tiny)
    prompt = [random.Random(2).randrange(100) for _ in range(30)]
    sequences = [engine.submit(GenerationRequest(prompt, ANSWER_TOKENS)) for _ in range(2)]
    metrics = engine.step()
    assert metrics is not None and metrics.prefilled_tokens == 31
    while engine.has_work:
        engine.step()
    engine.check()
    first, second = (s.result for s in sequences)
    assert first is not None and second is not None
    assert first.ids == second.ids
    assert (first.cached_tokens, second.cached_tokens) == (0, 29)
