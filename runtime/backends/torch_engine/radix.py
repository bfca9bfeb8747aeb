"""The radix tree over token ids: which prefixes have their keys and values in the pool, and where.

A node holds a run of tokens and their slots; a path from the root spells a prefix. Requests lock
the path that they stand on; what nobody locks stays as cache and is evicted leaf by leaf, the least
recently used first. A slot belongs to one node or to one request, never to both.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]


@dataclass(slots=True)
class RadixStats:
    """Tokens looked up, found, stored and evicted so far."""

    looked_up_tokens: int = 0
    hit_tokens: int = 0
    inserted_tokens: int = 0
    evicted_tokens: int = 0


class Node:
    """A run of tokens. `locks` counts the requests that stand on it or below it."""

    __slots__ = ("children", "ids", "last_used", "locks", "parent", "slots", "uid")

    def __init__(self, uid: int, ids: Ids, slots: Ids, parent: Node | None) -> None:
        self.uid = uid
        self.ids = ids
        self.slots = slots
        self.parent = parent
        self.children: dict[int, Node] = {}
        self.locks = 0
        self.last_used = 0

    def path(self) -> list[Node]:
        """The nodes from below the root to this one."""
        nodes: list[Node] = []
        node = self
        while node.parent is not None:
            nodes.append(node)
            node = node.parent
        nodes.reverse()
        return nodes


class RadixTree:
    """Prefixes by token ids. Namespaces keep apart what equal tokens do not make equal (KV of
    another approximation)."""

    def __init__(self) -> None:
        self.stats = RadixStats()
        self.tokens = 0
        self.evictable_tokens = 0
        self._uids = 0
        self._ticks = 0
        self._roots: dict[str, Node] = {}
        self._n_nodes = 0
        self._offers = 0
        self._leaves: list[tuple[int, int, Node]] = []  # last use, offer (breaks ties), leaf

    def root(self, namespace: str = "") -> Node:
        """The empty prefix of a namespace."""
        root = self._roots.get(namespace)
        if root is None:
            root = self._roots[namespace] = self._new_node(_EMPTY, _EMPTY, None)
        return root

    def peek(self, node: Node, ids: Ids) -> int:
        """How many leading tokens of `ids` are held below `node`. Changes nothing."""
        hit = 0
        while hit < len(ids):
            child = node.children.get(int(ids[hit]))
            if child is None:
                break
            same = _common(child.ids, ids[hit:])
            hit += same
            if same < len(child.ids):
                break
            node = child
        return hit

    def match(self, node: Node, ids: Ids) -> tuple[Node, int]:
        """`descend` for a request that asks the cache: counts as a look-up."""
        found, hit = self.descend(node, ids)
        self.stats.looked_up_tokens += len(ids)
        self.stats.hit_tokens += hit
        return found, hit

    def descend(self, node: Node, ids: Ids) -> tuple[Node, int]:
        """The deepest node below `node` whose path spells a prefix of `ids`, and the length of that
        prefix. A run that matches in part is split, so that a node ends where the match does."""
        hit = 0
        while hit < len(ids):
            child = node.children.get(int(ids[hit]))
            if child is None:
                break
            same = _common(child.ids, ids[hit:])
            hit += same
            if same < len(child.ids):
                return self._split(child, same), hit
            node = child
        return node, hit

    def insert(self, node: Node, ids: Ids, slots: Ids) -> Node:
        """Hold `ids` below `node` in `slots`, as a new leaf. `node` must have no child that begins
        with the same token: match first."""
        if int(ids[0]) in node.children:
            raise ValueError("insert below a node that already continues with this token")
        leaf = self._new_node(ids, slots, node)
        node.children[int(ids[0])] = leaf
        self.touch(leaf)
        self.tokens += len(ids)
        self.evictable_tokens += len(ids)
        self.stats.inserted_tokens += len(ids)
        return leaf

    def lock(self, node: Node) -> None:
        """Keep the path to `node` from eviction."""
        self.touch(node)
        current = node
        while current.parent is not None:
            if current.locks == 0:
                self.evictable_tokens -= len(current.ids)
            current.locks += 1
            current = current.parent

    def unlock(self, node: Node) -> None:
        """Undo one `lock`."""
        self.touch(node)
        current = node
        while current.parent is not None:
            current.locks -= 1
            if current.locks == 0:
                self.evictable_tokens += len(current.ids)
                self._offer(current)
            current = current.parent

    def evict(self, n_tokens: int) -> list[Ids]:
        """Drop unlocked leaves, the least recently used first, until `n_tokens` are gone or none is
        left. Returns their slots."""
        freed: list[Ids] = []
        gone = 0
        while gone < n_tokens and self._leaves:
            entry = heapq.heappop(self._leaves)
            leaf = entry[2]
            parent = leaf.parent
            if parent is None or not _is_current(entry):
                continue  # it was used, locked, extended or dropped since it was offered
            del parent.children[int(leaf.ids[0])]
            leaf.parent = None
            self._n_nodes -= 1
            freed.append(leaf.slots)
            gone += len(leaf.ids)
            self._offer(parent)
        self.tokens -= gone
        self.evictable_tokens -= gone
        self.stats.evicted_tokens += gone
        return freed

    def nodes(self) -> Iterator[Node]:
        """All nodes but the roots."""
        stack = list(self._roots.values())
        while stack:
            node = stack.pop()
            if node.parent is not None:
                yield node
            stack.extend(node.children.values())

    def _new_node(self, ids: Ids, slots: Ids, parent: Node | None) -> Node:
        self._uids += 1
        self._n_nodes += 1
        return Node(self._uids, ids, slots, parent)

    def _split(self, node: Node, at: int) -> Node:
        """Put the first `at` tokens of `node` into a new node above it. `node` stays the lower
        part, so that whoever stands on it still does."""
        upper = self._new_node(node.ids[:at], node.slots[:at], node.parent)
        upper.locks = node.locks
        upper.last_used = node.last_used
        if node.parent is not None:
            node.parent.children[int(node.ids[0])] = upper
        # Copies, so that a short run does not keep a long array alive.
        node.ids, node.slots = node.ids[at:].copy(), node.slots[at:].copy()
        node.parent = upper
        self._uids += 1
        node.uid = self._uids  # another run of tokens: what was cached about the old one is stale
        upper.children[int(node.ids[0])] = node
        return upper

    def touch(self, node: Node) -> None:
        """Make the path to `node` the most recently used."""
        self._ticks += 1
        current: Node | None = node
        while current is not None:
            current.last_used = self._ticks
            current = current.parent
        self._offer(node)

    def _offer(self, node: Node) -> None:
        if not node.locks and not node.children and node.parent is not None:
            self._offers += 1
            heapq.heappush(self._leaves, (node.last_used, self._offers, node))
            if len(self._leaves) > 4 * self._n_nodes + 1024:
                self._leaves = [
                    entry
                    for entry in {id(e[2]): e for e in sorted(self._leaves, key=_offer_of)}.values()
                    if _is_current(entry)
                ]
                heapq.heapify(self._leaves)


_EMPTY: Ids = np.empty(0, np.int64)


def _is_current(entry: tuple[int, int, Node]) -> bool:
    last_used, _, leaf = entry
    return (
        not leaf.locks
        and not leaf.children
        and leaf.parent is not None
        and leaf.last_used == last_used
    )


def _offer_of(entry: tuple[int, int, Node]) -> int:
    return entry[1]


def _common(left: Ids, right: Ids) -> int:
    """Length of the longest common prefix."""
    n = min(len(left), len(right))
    differ = np.flatnonzero(left[:n] != right[:n])
    return int(differ[0]) if len(differ) else n
