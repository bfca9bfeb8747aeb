"""The templated radix tree: what the prompts of a plan begin with, before any of them is rendered.

A template is a prompt as segments: static text, and references by what they are the value of. Two
calls with equal leading segments share a prefix on every row; with equal static text, on all rows.
The tree holds the templates of all model calls of a plan, whatever query or body they are in, with
text split where they part.

The idea of a tree over templates is Helium's (arXiv 2603.16104, section 4); this tree also knows
the values of columns, so that it can tell which rows share what (`planner.prefix_hits`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from planner.row_profile import Dependency


@dataclass(frozen=True, slots=True)
class Reference:
    """A value in a prompt.

    Attributes:
        producer: what it is the value of: equal producers have equal values on every row.
        paths: the columns that decide the value.
        is_column: whether it is the value at `paths[0]` itself.
        varies: whether it differs even between rows that are equal in `paths`, or within a row.
        tokens: its mean length.
    """

    producer: str
    paths: tuple[Dependency, ...] = ()
    is_column: bool = False
    varies: bool = False
    tokens: float = 0.0


@dataclass(frozen=True, slots=True)
class Turn:
    """The end of a turn of the conversation: the engine's chat template parts it from the next."""


Segment: TypeAlias = "str | Reference | Turn"
TURN = Turn()


@dataclass(frozen=True, slots=True)
class Template:
    """The prompt of one model operator (fingerprint `op`), asked of `model` in `calls` calls."""

    op: str
    model: str
    segments: tuple[Segment, ...]
    calls: float = 0.0


@dataclass(slots=True)
class PrefixNode:
    """A place where prompts may part. `edge` is what leads to it from its parent, `depth` how many
    edges there are above it.

    Attributes:
        number: unique in the tree; equal numbers of two prompts mean equal beginnings.
        ops: operators whose prompts end here.
        calls: expected calls of all operators that pass through.
        is_static: whether there is only text above it.
    """

    number: int
    edge: Segment
    depth: int
    is_static: bool
    ops: list[str] = field(default_factory=list[str])
    calls: float = 0.0
    children: dict[object, PrefixNode] = field(default_factory=dict[object, "PrefixNode"])


@dataclass(frozen=True, slots=True)
class StaticPrefix:
    """Text that prompts begin with on every row.

    Attributes:
        model: whose prompts they are.
        turns: the text of each turn of the conversation so far; the last one goes on.
        tokens: its length; `calls`: how many calls begin with it.
        ops: the operators that begin with it.
    """

    model: str
    turns: tuple[str, ...]
    tokens: int
    calls: float
    ops: tuple[str, ...]


class PrefixTree:
    """The templates of a plan, by model: an engine shares no prefix between models."""

    def __init__(self, templates: Sequence[Template]) -> None:
        self._numbers = 0
        self.templates = tuple(templates)
        self.roots: dict[str, PrefixNode] = {}
        for template in templates:
            self._insert(template)
        self.paths = {template.op: self._path(template) for template in templates}

    def walk(self) -> Iterator[PrefixNode]:
        """Every node, parents first."""
        stack = list(reversed(self.roots.values()))
        while stack:
            node = stack.pop()
            yield node
            stack.extend(reversed(node.children.values()))

    def static_prefixes(
        self, count_tokens: Callable[[str], int], least_tokens: int = 64
    ) -> list[StaticPrefix]:
        """The static prefixes worth computing once before calls fan out, longest first.

        Those of at least `least_tokens` that more than one call begins with, at every place where
        the calls that share text part; shorter ones are of no use to an engine that reuses blocks.
        """
        found: list[StaticPrefix] = []
        for model, root in self.roots.items():
            stack: list[tuple[PrefixNode, tuple[str, ...]]] = [(root, ("",))]
            while stack:
                node, turns = stack.pop()
                static = [child for child in node.children.values() if child.is_static]
                parts = len(node.children) != 1 or node.ops or len(static) != 1
                tokens = sum(count_tokens(turn) for turn in turns)
                if parts and node.calls > 1 and tokens >= least_tokens:
                    ops = tuple(op for each in _below(node) for op in each.ops)
                    found.append(StaticPrefix(model, turns, tokens, node.calls, ops))
                for child in static:
                    if isinstance(child.edge, str):
                        stack.append((child, (*turns[:-1], turns[-1] + child.edge)))
                    else:
                        stack.append((child, (*turns, "")))
        return sorted(found, key=lambda each: (-each.tokens, each.turns))

    # --- building --------------------------------------------------------------------------------

    def _node(self, edge: Segment, parent: PrefixNode | None) -> PrefixNode:
        self._numbers += 1
        static = not isinstance(edge, Reference) and (parent is None or parent.is_static)
        return PrefixNode(self._numbers, edge, parent.depth + 1 if parent else 0, static)

    def _insert(self, template: Template) -> None:
        node = self.roots.get(template.model)
        if node is None:
            node = self.roots[template.model] = self._node("", None)
        node.calls += template.calls
        for segment in template.segments:
            rest = segment
            while rest != "":
                node, rest = self._step(node, rest, template.calls)
        node.ops.append(template.op)

    def _step(self, node: PrefixNode, segment: Segment, calls: float) -> tuple[PrefixNode, Segment]:
        """The child that `segment` leads to, and what of it is left behind the child."""
        key = _key(segment)
        child = node.children.get(key)
        if child is None:
            child = node.children[key] = self._node(segment, node)
            child.calls = calls
            return child, ""
        if isinstance(segment, str) and isinstance(child.edge, str):
            common = _common(segment, child.edge)
            if common < len(child.edge):
                child = self._split(node, key, child, common)
            child.calls += calls
            return child, segment[common:]
        child.calls += calls
        return child, ""

    def _split(self, parent: PrefixNode, key: object, old: PrefixNode, at: int) -> PrefixNode:
        assert isinstance(old.edge, str)
        upper = parent.children[key] = self._node(old.edge[:at], parent)
        upper.calls = old.calls
        old.edge = old.edge[at:]
        upper.children[_key(old.edge)] = old
        stack = [old]
        while stack:
            node = stack.pop()
            node.depth += 1
            stack.extend(node.children.values())
        return upper

    def _path(self, template: Template) -> tuple[PrefixNode, ...]:
        """The nodes of a template, from below the root to its end."""
        node = self.roots[template.model]
        path: list[PrefixNode] = []
        for segment in template.segments:
            rest: Segment = segment
            while rest != "":
                node = node.children[_key(rest)]
                path.append(node)
                if isinstance(rest, str) and isinstance(node.edge, str):
                    rest = rest[len(node.edge) :]
                else:
                    rest = ""
        return tuple(path)


def _below(node: PrefixNode) -> Iterator[PrefixNode]:
    stack = [node]
    while stack:
        each = stack.pop()
        yield each
        stack.extend(reversed(each.children.values()))


def _key(segment: Segment) -> object:
    """Children of a node: at most one for each first character of a text."""
    if isinstance(segment, str):
        return segment[0]
    return (segment.producer,) if isinstance(segment, Reference) else segment


def _common(left: str, right: str) -> int:
    """How many characters two texts begin with in common."""
    most = min(len(left), len(right))
    if left[:most] == right[:most]:
        return most
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if left[:middle] == right[:middle]:
            low = middle
        else:
            high = middle - 1
    return low
