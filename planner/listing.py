"""A plan as a numbered listing: what every format of EXPLAIN prints.

Operators are numbered in plan order, inputs before users, those of a body after the operator that
holds it: equal plans get equal numbers. `#3` is operator 3; `%0` is parameter 0 of the body around.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

from planner.logical import (
    Body,
    LogicalPlan,
    Loop,
    Map,
    Op,
    Param,
    Reduce,
    Result,
    Scan,
    walk,
)


@dataclass(frozen=True, slots=True)
class Node:
    """One operator of the listing.

    Attributes:
        number: its number; `depth`: how many bodies it is inside.
        inputs, after: references to what it reads and to what must have happened before.
        queries: the queries that use it.
        first_number: the smallest number of an equal operator of another scope (its own if there is
            none): estimates and metrics are kept by fingerprint, for all its places together.
        bodies: its bodies.
    """

    op: Op
    number: int
    depth: int
    inputs: tuple[str, ...]
    after: tuple[str, ...]
    queries: tuple[str, ...]
    first_number: int
    bodies: tuple[BodyListing, ...]

    @property
    def reference(self) -> str:
        return f"#{self.number}"


@dataclass(frozen=True, slots=True)
class BodyListing:
    """A body: `title` says its role, `bindings` what each parameter is, `result` what it gives."""

    title: str
    bindings: tuple[str, ...]
    nodes: tuple[Node, ...]
    result: str


@dataclass(frozen=True, slots=True)
class Output:
    """One query: its value and the relation whose rows it is for, as references, and the source of
    that relation when it is a scan."""

    name: str
    value: str
    rows: str
    source: str


@dataclass(frozen=True, slots=True)
class Listing:
    """The operators of the row scope (with their bodies inside) and the outputs."""

    nodes: tuple[Node, ...]
    outputs: tuple[Output, ...]

    @classmethod
    def of(cls, plan: LogicalPlan) -> Listing:
        """Number the operators of a plan. Iterative over operators; recursive over nesting."""
        numberer = _Numberer(plan.users)
        nodes, references = numberer.scope(plan.walk(), depth=0, queries=())
        outputs = tuple(
            Output(name, references[r.value], references[r.rows], _source(r))
            for name, r in plan.outputs
        )
        return cls(nodes, outputs)

    def walk(self) -> Iterator[Node]:
        """Every node in the order of its number."""
        stack = list(reversed(self.nodes))
        while stack:
            node = stack.pop()
            yield node
            stack.extend(n for body in reversed(node.bodies) for n in reversed(body.nodes))


class _Numberer:
    def __init__(self, users: Mapping[Op, tuple[str, ...]]) -> None:
        self._users = users
        self._numbers = count()
        self._first: dict[str, int] = {}

    def scope(
        self, ops: Iterator[Op], depth: int, queries: tuple[str, ...]
    ) -> tuple[tuple[Node, ...], dict[Op, str]]:
        nodes: list[Node] = []
        references: dict[Op, str] = {}
        for op in ops:
            if isinstance(op, Param):
                references[op] = f"%{op.index}"
            elif not isinstance(op, Result):
                node = self._node(op, depth, self._users[op] if not depth else queries, references)
                references[op] = node.reference
                nodes.append(node)
        return tuple(nodes), references

    def _node(
        self, op: Op, depth: int, queries: tuple[str, ...], references: Mapping[Op, str]
    ) -> Node:
        number = next(self._numbers)
        inputs = tuple(references[i] for i in op.inputs)
        return Node(
            op=op,
            number=number,
            depth=depth,
            inputs=inputs,
            after=tuple(references[a] for a in op.after),
            queries=queries,
            first_number=self._first.setdefault(op.fingerprint, number),
            bodies=tuple(
                self._body(title, body, bind(inputs), depth + 1, queries)
                for title, body, bind in _roles(op)
            ),
        )

    def _body(
        self,
        title: str,
        body: Body,
        bindings: tuple[str, ...],
        depth: int,
        queries: tuple[str, ...],
    ) -> BodyListing:
        nodes, references = self.scope(walk((body.result,)), depth, queries)
        named = tuple(f"%{i} = {what}" for i, what in enumerate(bindings))
        return BodyListing(title, named, nodes, references[body.result])


def _source(result: Result) -> str:
    base = result.rows.base
    return base.source if isinstance(base, Scan) else ""


Bind = Callable[[Sequence[str]], tuple[str, ...]]


def _roles(op: Op) -> list[tuple[str, Body, Bind]]:
    """Title of each body, and what its parameters are in terms of the operator's inputs."""
    match op:
        case Map(body=body):
            return [("each", body, lambda i: (f"each of {i[0]}", *i[1:]))]
        case Reduce(body=body, fan_in=fan_in):
            return [("merge", body, lambda i: (f"up to {fan_in} of {i[0]}", *i[1:]))]
        case Loop(condition=condition, step=step):

            def state(inputs: Sequence[str]) -> tuple[str, ...]:
                return (f"state, first {inputs[0]}", *inputs[1:])

            return [("while", condition, state), ("step", step, state)]
        case _:
            titles = ("then", "otherwise")
            return [
                (title, body, lambda i: tuple(i[1:]))
                for title, body in zip(titles, op.bodies, strict=False)
            ]
