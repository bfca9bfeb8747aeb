"""The prefix cache of a serving engine, without the engine: which tokens of a sequence of prompts
hit, and what is evicted to make room.

A radix tree holds runs of tokens. A request takes the longest prefix that is held, at most all but
its last token (that one must be computed to have logits), locks it, and makes room for the rest by
dropping unlocked leaves, the least recently used first and whole runs at a time. When it ends, its
prompt and answer stay, all but the last answer token, whose keys and values were never computed.
These are SGLang's rules with one token a page; larger pages round hits and what is kept down.

`PrefixCache` is the other kind of cache: fixed blocks named by hashes, evicted block by block.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from costmodel.errors import ProfileError


@dataclass(frozen=True, slots=True)
class Served:
    """What one request did: tokens of its prompt, how many of them hit, tokens evicted for it."""

    prompt_tokens: int
    cached_tokens: int
    evicted_tokens: int


@dataclass(slots=True)
class RadixStats:
    """Tokens so far: asked for, found, stored, evicted."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    inserted_tokens: int = 0
    evicted_tokens: int = 0


class _Node:
    __slots__ = ("children", "last_used", "locks", "parent", "tokens")

    def __init__(self, tokens: tuple[int, ...], parent: _Node | None) -> None:
        self.tokens = tokens
        self.parent = parent
        self.children: dict[tuple[int, ...], _Node] = {}
        self.locks = 0
        self.last_used = 0


class RadixCache:
    """Prefixes in at most `capacity_tokens` tokens (None: no limit), in pages of `page_tokens`.

    Namespaces keep apart what equal tokens do not make equal: adapters, tenants.
    """

    def __init__(self, capacity_tokens: int | None = None, page_tokens: int = 1) -> None:
        if page_tokens < 1:
            raise ProfileError(f"page_tokens is {page_tokens}; it must be at least 1")
        if capacity_tokens is not None and capacity_tokens < page_tokens:
            raise ProfileError(
                f"capacity_tokens is {capacity_tokens}; it must be at least one page of "
                f"{page_tokens}"
            )
        self.capacity_tokens = capacity_tokens
        self.page_tokens = page_tokens
        self.stats = RadixStats()
        self.held_tokens = 0
        self._roots: dict[str, _Node] = {}
        self._tick = 0
        self._leaves: list[tuple[int, int, _Node]] = []
        self._offers = 0

    # --- what users of a simulated engine call ---------------------------------------------------

    def serve(
        self, prompt: Sequence[int], answer: Sequence[int] = (), namespace: str = ""
    ) -> Served:
        """One request from beginning to end, alone in the engine.

        Raises `ProfileError` for a request that does not fit the cache at all.
        """
        ticket = self.start(prompt, namespace)
        evicted = ticket.evicted_tokens + self.finish(ticket, answer)
        return Served(len(prompt), ticket.cached_tokens, evicted)

    def start(self, prompt: Sequence[int], namespace: str = "") -> Ticket:
        """Admit a request: find and lock its prefix, make room for the rest of its prompt.

        What it computes is not visible to others before `finish`, as in one batch of an engine.
        """
        tokens = tuple(prompt)
        root = self._roots.setdefault(namespace, _Node((), None))
        node, cached = self._descend(root, tokens[: max(0, len(tokens) - 1)])
        self._touch(node)
        self._lock(node, 1)
        missing = len(tokens) - cached
        evicted = self._make_room(missing, node)
        self.held_tokens += missing
        self.stats.prompt_tokens += len(tokens)
        self.stats.cached_tokens += cached
        return Ticket(tokens, cached, evicted, node, root)

    def finish(self, ticket: Ticket, answer: Sequence[int] = ()) -> int:
        """End a request: its prompt and answer stay in the cache, all but the last answer token.
        Returns tokens evicted to hold the answer."""
        evicted = self._make_room(len(answer), ticket.node)
        # Slots of the request itself: some turn out to be held by another by now.
        self.held_tokens -= len(ticket.prompt) - ticket.cached_tokens
        whole = ticket.prompt + tuple(answer)
        keep = whole[:-1] if answer else whole
        self._insert(ticket.root, keep)
        self._lock(ticket.node, -1)
        return evicted

    def peek(self, prompt: Sequence[int], namespace: str = "") -> int:
        """Tokens of `prompt` that would hit now. Changes nothing."""
        root = self._roots.get(namespace)
        if root is None:
            return 0
        tokens = tuple(prompt)[: max(0, len(prompt) - 1)]
        node, hit = root, 0
        while (child := node.children.get(self._first(tokens, hit))) is not None:
            same = self._whole_pages(common_length(child.tokens, tokens, hit))
            hit += same
            if same < len(child.tokens):
                break
            node = child
        return hit

    # --- the tree --------------------------------------------------------------------------------

    def _first(self, tokens: tuple[int, ...], at: int) -> tuple[int, ...]:
        """The page that names a child."""
        return tokens[at : at + self.page_tokens]

    def _whole_pages(self, tokens: int) -> int:
        return tokens // self.page_tokens * self.page_tokens

    def _descend(self, root: _Node, tokens: tuple[int, ...]) -> tuple[_Node, int]:
        """The node whose path spells the longest held prefix of `tokens`; runs are split there."""
        node, hit = root, 0
        while (child := node.children.get(self._first(tokens, hit))) is not None:
            same = self._whole_pages(common_length(child.tokens, tokens, hit))
            if same == 0:
                break
            hit += same
            if same < len(child.tokens):
                return self._split(child, same), hit
            node = child
        return node, hit

    def _insert(self, root: _Node, tokens: tuple[int, ...]) -> None:
        tokens = tokens[: self._whole_pages(len(tokens))]
        node, hit = self._descend(root, tokens)
        if hit < len(tokens):
            leaf = _Node(tokens[hit:], node)
            node.children[self._first(tokens, hit)] = leaf
            self.held_tokens += len(leaf.tokens)
            self.stats.inserted_tokens += len(leaf.tokens)
            node = leaf
        self._touch(node)

    def _split(self, node: _Node, at: int) -> _Node:
        """Put the first `at` tokens of a run into a new node above it."""
        parent = node.parent
        assert parent is not None
        upper = _Node(node.tokens[:at], parent)
        upper.locks, upper.last_used = node.locks, node.last_used
        parent.children[self._first(node.tokens, 0)] = upper
        node.tokens = node.tokens[at:]
        node.parent = upper
        upper.children[self._first(node.tokens, 0)] = node
        return upper

    def _touch(self, node: _Node) -> None:
        self._tick += 1
        current: _Node | None = node
        while current is not None:
            current.last_used = self._tick
            current = current.parent
        self._offer(node)

    def _lock(self, node: _Node, change: int) -> None:
        current: _Node | None = node
        while current is not None:
            current.locks += change
            if change < 0:
                self._offer(current)
            current = current.parent

    def _offer(self, node: _Node) -> None:
        """Note a leaf that may be evicted; stale entries are dropped when they come up."""
        if node.parent is not None and not node.children and not node.locks:
            self._offers += 1
            heapq.heappush(self._leaves, (node.last_used, self._offers, node))

    def _make_room(self, tokens: int, keep: _Node) -> int:
        """Evict until `tokens` more fit. Returns what was evicted."""
        if self.capacity_tokens is None:
            return 0
        evicted = 0
        while self.held_tokens + tokens > self.capacity_tokens:
            leaf = self._oldest_leaf()
            if leaf is None:
                self._lock(keep, -1)
                raise ProfileError(
                    f"{tokens} tokens do not fit beside the {self.held_tokens} in use of a cache "
                    f"of {self.capacity_tokens}"
                )
            parent = leaf.parent
            assert parent is not None
            del parent.children[self._first(leaf.tokens, 0)]
            leaf.parent = None
            evicted += len(leaf.tokens)
            self.held_tokens -= len(leaf.tokens)
            self._offer(parent)
        self.stats.evicted_tokens += evicted
        return evicted

    def _oldest_leaf(self) -> _Node | None:
        while self._leaves:
            last_used, _, node = heapq.heappop(self._leaves)
            current = (
                node.parent is not None
                and not node.children
                and not node.locks
                and node.last_used == last_used
            )
            if current:
                return node
        return None


@dataclass(frozen=True, slots=True, eq=False)
class Ticket:
    """A request in the engine: what `RadixCache.finish` needs to end it."""

    prompt: tuple[int, ...]
    cached_tokens: int
    evicted_tokens: int
    node: _Node
    root: _Node


def serve_all(
    prompts: Iterable[Sequence[int]],
    capacity_tokens: int | None = None,
    *,
    page_tokens: int = 1,
    answers: Iterable[Sequence[int]] | None = None,
) -> list[Served]:
    """What hits and what is evicted for prompts that run after each other in an empty cache.

    Example:
        >>> [s.cached_tokens for s in serve_all([(1, 2, 3), (1, 2, 4), (1, 2, 3)])]
        [0, 2, 2]
    """
    cache = RadixCache(capacity_tokens, page_tokens)
    if answers is None:
        return [cache.serve(prompt) for prompt in prompts]
    return [cache.serve(p, a) for p, a in zip(prompts, answers, strict=True)]


def serve_batches(
    batches: Iterable[Sequence[Sequence[int]]],
    capacity_tokens: int | None = None,
    *,
    page_tokens: int = 1,
) -> list[list[Served]]:
    """The same for batches whose prompts are admitted together, and so share nothing with each
    other, only with earlier batches."""
    cache = RadixCache(capacity_tokens, page_tokens)
    served: list[list[Served]] = []
    for batch in batches:
        tickets = [cache.start(prompt) for prompt in batch]
        for ticket in tickets:
            cache.finish(ticket)
        served.append([Served(len(t.prompt), t.cached_tokens, t.evicted_tokens) for t in tickets])
    return served


def common_length(run: tuple[int, ...], tokens: tuple[int, ...], start: int) -> int:
    """Length of the longest common prefix of `run` and `tokens[start:]`, comparing whole slices.

    Example:
        >>> common_length((1, 2, 3, 4), (9, 1, 2, 3, 5), 1)
        3
    """
    low, high = 0, min(len(run), len(tokens) - start)
    if run[:high] == tokens[start : start + high]:
        return high
    # Invariant: the first `low` agree, the first `high` do not.
    while low + 1 < high:
        middle = (low + high) // 2
        if run[low:middle] == tokens[start + low : start + middle]:
            low = middle
        else:
            high = middle
    return low
