"""Which tokens the next step computes: continuous batching with one token budget.

Decodes come first, one token each; prompts that are part done go on; then waiting requests are let
in, as much of each as the budget still allows (chunked prefill with decodes riding along, SARATHI).
Tokens enter the radix tree when they are scheduled, not when they are done: all of a step is
computed at once and each layer writes its keys before it reads any, so a request scheduled later in
the same step shares the prefix of an earlier one and no token of a prefix is computed twice.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from runtime.backends.torch_engine.kv_pool import KVPool
from runtime.backends.torch_engine.radix import Ids, Node, RadixTree
from runtime.backends.torch_engine.sequence import Chunk, SequenceState, Stage

ADMISSION_WINDOW = 128
"""Waiting requests that are compared for the longest cached prefix."""

PATIENCE = 64
"""How often a request may be passed over for others with a longer cached prefix."""


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """Limits of a step.

    Attributes:
        max_step_tokens: rows of a step, decodes and prompt tokens together.
        chunk_tokens: prompt tokens of one request in one step; None for the budget.
        max_running: requests that hold KV at once, open prompts not counted.
        layer_groups: with a number, prompts are prefilled whole, one group of layers a step
            (Layered Prefill); 0 chooses the number by prompt length; None is chunked prefill.
        cohort_tokens: prompt tokens prefilled together under layer groups.
    """

    max_step_tokens: int = 2048
    chunk_tokens: int | None = None
    max_running: int = 64
    layer_groups: int | None = None
    cohort_tokens: int = 8192


@dataclass(slots=True)
class Cohort:
    """Prompts on their way through the layer groups, all at the same group. `hidden` are their
    rows between two groups."""

    chunks: list[Chunk]
    n_groups: int
    group: int = 0
    hidden: torch.Tensor | None = None


@dataclass(slots=True)
class Step:
    """What to compute: one token of each of `decodes`, and `chunks`. Under layer groups the chunks
    pass only group `cohort.group`. `selective` are prompts prefilled with `TokenSelection`."""

    decodes: list[SequenceState]
    chunks: list[Chunk]
    cohort: Cohort | None = None
    selective: list[SequenceState] = field(default_factory=list[SequenceState])
    hit_tokens: int = 0

    def __bool__(self) -> bool:
        return bool(self.decodes or self.chunks or self.selective)


class Scheduler:
    """Requests by stage, and the slots and tree nodes that they hold."""

    def __init__(self, pool: KVPool, tree: RadixTree, config: SchedulerConfig, namespace: str = ""):
        self.pool, self.tree, self.config = pool, tree, config
        self.namespace = namespace
        self.root = tree.root(namespace)
        self.waiting: list[SequenceState] = []
        self.prefilling: list[SequenceState] = []
        self.decoding: list[SequenceState] = []
        self.preempted = 0
        self.cohort: Cohort | None = None

    # ---- requests in and out

    def add(self, sequence: SequenceState) -> None:
        bisect.insort(self.waiting, sequence, key=_rank)

    def resort(self, sequence: SequenceState) -> None:
        """Its rank changed (an open prompt was closed)."""
        if sequence in self.waiting:
            self.waiting.sort(key=_rank)

    def remove(self, sequence: SequenceState, *, keep_kv: bool = True) -> None:
        """The sequence is finished or given up: free what it holds. With `keep_kv` its tokens stay
        in the tree as cache."""
        if self._in_cohort(sequence):
            sequence.cancelled = True  # others of the cohort may need its tokens: see `advance`
            return
        for queue in (self.waiting, self.prefilling, self.decoding):
            if sequence in queue:
                queue.remove(sequence)
        self._release(sequence, keep_kv=keep_kv)
        sequence.stage = Stage.DONE

    def rewind(self, sequence: SequenceState) -> None:
        """The prompt of an open sequence was replaced: what is still a prefix of it is found again
        in the tree, the rest becomes cache."""
        old = sequence.node
        if old is None:
            return
        end = max(0, min(sequence.match_limit, sequence.target))
        node, hit = self.tree.descend(self.root, sequence.tokens(0, end))
        self.tree.lock(node)
        self.tree.unlock(old)
        sequence.node, sequence.tree_tokens = node, hit
        self._free(np.asarray(sequence.private, np.int64))
        sequence.private = []

    def fail_all(self) -> list[SequenceState]:
        """Give up every request and every token: after a step that broke down nothing that it
        was to write can be trusted."""
        sequences = [*self.waiting, *self.prefilling, *self.decoding]
        self.cohort = None
        for sequence in sequences:
            self.remove(sequence, keep_kv=False)
        self.clear_cache()
        return sequences

    def clear_cache(self) -> int:
        """Drop all that is not in use. Returns tokens dropped."""
        before = self.pool.free_slots
        for slots in self.tree.evict(self.tree.evictable_tokens):
            self._free(slots)
        return self.pool.free_slots - before

    def make_room_for_cache(self, n: int) -> bool:
        """Free `n` slots by eviction alone."""
        if self.pool.free_slots + self.tree.evictable_tokens < n:
            return False
        while self.pool.free_slots < n:
            for slots in self.tree.evict(n - self.pool.free_slots):
                self._free(slots)
        return True

    @property
    def idle(self) -> bool:
        return not (self.waiting or self.prefilling or self.decoding)

    # ---- a step

    def schedule(self) -> Step:
        """The next step; false when there is nothing to compute. Takes slots, evicts, preempts."""
        step = Step(self._schedule_decodes(), [])
        if self.cohort is not None:
            step.cohort, step.chunks = self.cohort, self.cohort.chunks
            return step
        layered = self.config.layer_groups is not None
        budget = self.config.max_step_tokens - len(step.decodes)
        if layered:
            budget = self.config.cohort_tokens
        budget = self._continue_prefills(step, budget)
        self._admit(step, budget)
        if layered and step.chunks:
            longest = max(c.end - c.start for c in step.chunks)
            n_groups = self.config.layer_groups or layer_groups(longest)
            step.cohort = self.cohort = Cohort(step.chunks, n_groups)
        return step

    def advance(self, step: Step) -> list[Chunk]:
        """The step is computed: move on. Returns the chunks that are done in all layers."""
        cohort = step.cohort
        if cohort is not None:
            cohort.group += 1
            if cohort.group < cohort.n_groups:
                return []
            self.cohort = None
        for chunk in step.chunks:
            sequence = chunk.sequence
            if sequence.cancelled:
                self.remove(sequence)
            elif chunk.is_last:
                self.prefilling.remove(sequence)
                self.decoding.append(sequence)
                sequence.stage = Stage.DECODING
        return [c for c in step.chunks if not c.sequence.cancelled]

    # ---- parts of a step

    def _schedule_decodes(self) -> list[SequenceState]:
        self.decoding.sort(key=_rank)
        for sequence in list(self.decoding):
            if sequence.stage is not Stage.DECODING:
                continue  # preempted for the sake of one before it
            if sequence.reserved:
                sequence.private.append(sequence.reserved.pop())
                continue
            if not self._make_room(1, sequence, (*self.prefilling, *self.decoding)):
                self._preempt(sequence)
                continue
            sequence.private.append(int(self.pool.take(1)[0]))
        return list(self.decoding)

    def _continue_prefills(self, step: Step, budget: int) -> int:
        self.prefilling.sort(key=_rank)
        for sequence in list(self.prefilling):
            if sequence.stage is Stage.PREFILLING:
                budget -= self._take_chunk(step, sequence, budget)
        return budget

    def _admit(self, step: Step, budget: int) -> None:
        # Open prompts may wait for long: they take nobody's place.
        prefilling = sum(not s.is_open for s in self.prefilling)
        room = self.config.max_running - prefilling - len(self.decoding)
        if budget <= 0 or room <= 0 or not self.waiting:
            return
        window = self._by_longest_prefix()
        newest = -1
        for sequence in window:
            if budget <= 0 or room <= 0:
                break
            if sequence.target < 1:
                continue  # an open prompt with nothing to compute yet
            if sequence.request.selection is not None:
                if not self._admit_selective(step, sequence):
                    break
                budget -= len(sequence.prompt)
            elif self._fits(sequence):
                self.waiting.remove(sequence)
                sequence.stage = Stage.PREFILLING
                self.prefilling.append(sequence)
                budget -= self._take_chunk(step, sequence, budget)
            else:
                break
            room -= not sequence.is_open
            newest = max(newest, sequence.uid)
        for sequence in window:
            if sequence.stage is Stage.WAITING and sequence.uid < newest:
                sequence.passed_over += 1

    def _by_longest_prefix(self) -> list[SequenceState]:
        """The first waiting requests; within a priority those with the longest cached prefix."""
        window = self.waiting[:ADMISSION_WINDOW]
        if len(window) == 1:
            return window

        def key(sequence: SequenceState) -> tuple[bool, int, int, int]:
            is_open, priority, uid = sequence.rank
            if sequence.passed_over >= PATIENCE:
                return (is_open, priority, -(1 << 60), uid)
            ids = sequence.tokens(0, max(0, sequence.match_limit))
            return (is_open, priority, -self.tree.peek(self.root, ids), uid)

        return sorted(window, key=key)

    def _fits(self, sequence: SequenceState) -> bool:
        """Whether what the prompt still needs can be had without preempting anybody. A request
        alone always fits: it was checked against the pool when it came."""
        ids = sequence.tokens(0, max(0, min(sequence.match_limit, sequence.target)))
        node, hit = self.tree.descend(self.root, ids)
        self.tree.lock(node)
        needed = sequence.target - hit + len(self.decoding)
        available = self.pool.free_slots + self.tree.evictable_tokens
        self.tree.unlock(node)
        if needed <= available:
            return True
        # Open prompts cannot answer: they give way to one that can, when nothing else runs.
        return not self.decoding and all(s.is_open for s in self.prefilling)

    def _admit_selective(self, step: Step, sequence: SequenceState) -> bool:
        selection = sequence.request.selection
        assert selection is not None
        keep = kept_tokens(len(sequence.prompt), selection.retain, selection.window)
        n = keep + sequence.request.max_tokens
        waiting_alone = not self.decoding and all(s.is_open for s in self.prefilling)
        available = self.pool.free_slots + self.tree.evictable_tokens
        if available < n + len(self.decoding) and not waiting_alone:
            return False
        if not self._make_room(n, sequence, self.prefilling if waiting_alone else ()):
            return False
        self.waiting.remove(sequence)
        sequence.node = self.root
        slots = self.pool.take(n).tolist()
        sequence.private, sequence.reserved = slots[:keep], slots[keep:]
        sequence.cached_tokens = 0
        sequence.stage = Stage.DECODING
        self.decoding.append(sequence)
        step.selective.append(sequence)
        return True

    def _take_chunk(self, step: Step, sequence: SequenceState, budget: int) -> int:
        """Schedule the next tokens of a prompt. Returns how many; 0 when there is no room."""
        if sequence.node is None:
            sequence.node = self.root
            self.tree.lock(self.root)
        step.hit_tokens += self._match(sequence)
        start = sequence.n_kv
        size = min(sequence.target - start, budget)
        if self.config.layer_groups is not None:
            size = sequence.target - start  # whole, or in the next cohort
            if size > budget and step.chunks:
                return 0
        elif self.config.chunk_tokens is not None:
            size = min(size, self.config.chunk_tokens)
        # Decodes of this step have their slots already: only other prompts may give way.
        planned = {c.sequence.uid for c in step.chunks}
        others = [s for s in self.prefilling if s.uid not in planned]
        if size <= 0 or not self._make_room(size, sequence, others):
            return 0
        slots = self.pool.take(size)
        before = np.asarray(sequence.private, np.int64)
        step.chunks.append(Chunk(sequence, start, start + size, slots, sequence.node, before))
        sequence.computed_tokens += size
        ids = sequence.tokens(start, start + size)
        # The last prompt token of an equal prompt is in the tree already: this one keeps its own.
        if sequence.private or int(ids[0]) in sequence.node.children:
            sequence.private.extend(slots.tolist())
        else:
            leaf = self.tree.insert(sequence.node, ids, slots)
            self._move(sequence, leaf)
            sequence.tree_tokens += size
        return size

    def _match(self, sequence: SequenceState) -> int:
        """Let the sequence stand on the longest cached prefix of what it still needs. Others may
        have computed it since its last chunk."""
        assert sequence.node is not None
        if sequence.private:
            return 0
        limit = min(sequence.match_limit, sequence.target)
        ids = sequence.tokens(sequence.tree_tokens, max(limit, sequence.tree_tokens))
        node, hit = self.tree.match(sequence.node, ids)
        if hit:
            self._move(sequence, node)
            sequence.tree_tokens += hit
        if sequence.cached_tokens is None:
            sequence.cached_tokens = hit
        elif sequence.preemptions == 0:
            sequence.cached_tokens += hit
        return hit

    def _move(self, sequence: SequenceState, node: Node) -> None:
        assert sequence.node is not None
        self.tree.lock(node)
        self.tree.unlock(sequence.node)
        sequence.node = node

    # ---- memory

    def _make_room(self, n: int, sequence: SequenceState, others: Sequence[SequenceState]) -> bool:
        """Free `n` slots: cache first, then those of `others` that rank behind `sequence`."""
        while self.pool.free_slots < n:
            freed = self.tree.evict(n - self.pool.free_slots)
            for slots in freed:
                self._free(slots)
            if freed:
                continue
            victims = [
                s
                for s in others
                if s.rank > sequence.rank
                and s.node is not None
                and s.request.selection is None
                and not self._in_cohort(s)
            ]
            if not victims:
                return False
            self._preempt(max(victims, key=_rank))
        return True

    def _preempt(self, sequence: SequenceState) -> None:
        """Take a sequence's slots and let it wait: it is computed again, or found in the cache."""
        for queue in (self.prefilling, self.decoding):
            if sequence in queue:
                queue.remove(sequence)
        self._release(sequence, keep_kv=True)
        sequence.stage = Stage.WAITING
        sequence.preemptions += 1
        self.preempted += 1
        self.add(sequence)

    def _release(self, sequence: SequenceState, *, keep_kv: bool) -> None:
        node = sequence.node
        if node is None:
            return
        self._free(np.asarray(sequence.reserved, np.int64))
        slots = np.asarray(sequence.private, np.int64)
        if keep_kv and sequence.request.selection is None and len(slots):
            ids = sequence.tokens(sequence.tree_tokens, sequence.n_kv)
            below, hit = self.tree.descend(node, ids)
            self._free(slots[:hit])
            self.tree.touch(below)  # it was used, though through a copy of its own
            if hit < len(ids):
                self.tree.insert(below, ids[hit:], slots[hit:])
        else:
            self._free(slots)
        self.tree.unlock(node)
        sequence.node, sequence.tree_tokens, sequence.private = None, 0, []
        sequence.reserved = []

    def _free(self, slots: Ids) -> None:
        self.pool.give_back(slots)

    def _in_cohort(self, sequence: SequenceState) -> bool:
        return self.cohort is not None and any(c.sequence is sequence for c in self.cohort.chunks)

    def check_idle(self) -> None:
        """Raise when, with no request left, a slot is neither free nor cache. Costs nothing."""
        free, held, loose = self.pool.free_slots, self.tree.tokens, self.tree.evictable_tokens
        if self.idle and (free + held != self.pool.n_slots or held != loose):
            raise AssertionError(
                f"{free} slots free, {held} in the cache and {held - loose} of them locked, in a "
                f"pool of {self.pool.n_slots} that nobody uses"
            )

    def check(self) -> None:
        """Raise when slots are lost, held twice, or locks do not add up."""
        held = [n.slots for n in self.tree.nodes()]
        active = [*self.waiting, *self.prefilling, *self.decoding]
        held += [np.asarray(s.private + s.reserved, np.int64) for s in active]
        everything = np.concatenate([self.pool.free_list(), *held])
        if len(everything) != self.pool.n_slots or len(np.unique(everything)) != len(everything):
            raise AssertionError(
                f"{len(everything)} slots accounted for ({len(np.unique(everything))} different) "
                f"in a pool of {self.pool.n_slots}"
            )
        locks: dict[int, int] = {}
        for sequence in active:
            for node in sequence.node.path() if sequence.node is not None else []:
                locks[node.uid] = locks.get(node.uid, 0) + 1
        tokens = evictable = 0
        for node in self.tree.nodes():
            tokens += len(node.ids)
            evictable += 0 if node.locks else len(node.ids)
            if node.locks != locks.get(node.uid, 0):
                raise AssertionError(
                    f"node {node.uid} has {node.locks} locks, {locks.get(node.uid, 0)} holders"
                )
        if (tokens, evictable) != (self.tree.tokens, self.tree.evictable_tokens):
            raise AssertionError("the tree's token counts are wrong")


def layer_groups(prompt_tokens: int) -> int:
    """Layer groups for a prompt: one for each 512 tokens (Layered Prefill, as its paper chooses).

    Example:
        >>> [layer_groups(n) for n in (100, 512, 513, 4096)]
        [1, 1, 2, 8]
    """
    return max(1, -(-prompt_tokens // 512))


def kept_tokens(prompt_tokens: int, retain: float, window: int) -> int:
    """Keys that each layer keeps of a prompt under FastKV: the share, at least the window."""
    return max(min(window, prompt_tokens), int(retain * prompt_tokens))


def _rank(sequence: SequenceState) -> tuple[bool, int, int]:
    return sequence.rank
