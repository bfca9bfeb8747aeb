"""Tracing the bodies of map, reduce, when and loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from halo.dsl.lazy import Lazy, Value
from halo.dsl.lift import declared_type, lift, scope_here
from halo.dsl.trace import Scope
from planner.logical import Body, Op, Param, close_body, transform


@dataclass(frozen=True, slots=True)
class TracedBody:
    """A closed body, the outer operators that it captures, and the type of what it returns."""

    body: Body
    captures: tuple[Op, ...]
    type: Any


def trace_body(function: Callable[..., Any], params: Sequence[tuple[str, Any]]) -> TracedBody:
    """Call `function` with a lazy value for each of `params` (name for people, type) in a scope of
    its own."""
    outer = scope_here()
    inner = Scope(outer.tracer, outer)
    own = [Param((), i, inner.id, label=name) for i, (name, _) in enumerate(params)]
    arguments = [Lazy(Value(p, inner, type_)) for p, (_, type_) in zip(own, params, strict=True)]
    with inner.entered():
        returned = function(*arguments)
        type_ = declared_type(returned)
        result = inner.finish(lift(returned))
    body, captures = close_body(result, own, inner.is_local)
    return TracedBody(body, captures, type_)


def share_captures(traced: Sequence[TracedBody], own: int) -> tuple[list[Body], tuple[Op, ...]]:
    """The bodies over one common tuple of captures, after `own` parameters each."""
    union = tuple(dict.fromkeys(op for each in traced for op in each.captures))
    bodies: list[Body] = []
    for each in traced:
        places = {own + i: own + union.index(op) for i, op in enumerate(each.captures)}

        def move(op: Op, places: dict[int, int] = places) -> Op:
            if isinstance(op, Param) and op.index in places:
                return replace(op, index=places[op.index])
            return op

        (result,) = transform((each.body.result,), move)
        bodies.append(Body(own + len(union), result))
    return bodies, union
