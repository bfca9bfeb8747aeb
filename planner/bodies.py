"""Walking the nested scopes of a plan."""

from __future__ import annotations

from collections.abc import Iterable

from planner.logical import Body, Op


def bodies_innermost_first(ops: Iterable[Op]) -> list[Body]:
    """The bodies of `ops` (operators of one scope) and those inside them, each fingerprint once,
    every body after the bodies that its operators hold. Iterative."""
    ordered: list[Body] = []
    done: set[str] = set()
    stack = [(body, False) for op in ops for body in op.bodies]
    stack.reverse()
    while stack:
        body, expanded = stack.pop()
        if body.fingerprint in done:
            continue
        if expanded:
            done.add(body.fingerprint)
            ordered.append(body)
            continue
        stack.append((body, True))
        stack.extend((inner, False) for op in body.walk() for inner in op.bodies)
    return ordered
