"""`halo.map`, `halo.reduce`, `halo.when`, `halo.loop` (and `halo.agent`, which has its own file).

In a trace, the functions given to them are called once, with lazy values, in a scope of their own.
Over plain values they are what they say in plain Python.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeVar, cast, overload

from halo.dsl.agent import agent as agent
from halo.dsl.body import share_captures, trace_body
from halo.dsl.lazy import Lazy, make, type_of
from halo.dsl.lift import declared_type, lift
from halo.dsl.readable import JsonList, readable
from halo.dsl.trace import current_scope, fault, located
from halo.dsl.value_types import (
    Record,
    bare,
    element_type,
    is_list,
    is_mapping,
    is_text,
    is_unknown,
    list_of,
    type_name,
)
from planner.logical import Compare, Const, Loop, Map, Op, Reduce, When

A = TypeVar("A")
B = TypeVar("B")
T = TypeVar("T")


def map(function: Callable[[A], B], values: Iterable[A], /, *, name: str | None = None) -> list[B]:
    """`function` of each element of a list whose length is known at run time, in order.

    The body runs for all elements concurrently. In a trace it is called once.
    """
    if current_scope() is None:
        return JsonList(readable(function(each)) for each in _listed(values, "halo.map"))
    source, element = _source(values, "halo.map")
    traced = trace_body(function, [("element", element)])
    op = Map((source, *traced.captures), body=traced.body, label=name or "map")
    return make(op, list_of(traced.type))  # type: ignore[no-any-return]


def reduce(
    function: Callable[[list[A]], A],
    values: Iterable[A],
    /,
    *,
    fan_in: int = 16,
    name: str | None = None,
) -> A:
    """One value from a list: `function` merges groups of at most `fan_in` neighbours until one is
    left, so that no call sees more than `fan_in` values. A list of one goes through it once; an
    empty list is an error of the row."""
    if current_scope() is None:
        return _reduced(function, values, fan_in)
    source, element = _source(values, "halo.reduce")
    traced = trace_body(function, [("group", list_of(element))])
    with located():
        inputs = (source, *traced.captures)
        op = Reduce(inputs, body=traced.body, fan_in=fan_in, label=name or "reduce")
    return make(op, traced.type)  # type: ignore[no-any-return]


@overload
def when(
    condition: object,
    then: Callable[[], A],
    otherwise: Callable[[], B],
    /,
    *,
    name: str | None = ...,
) -> A | B: ...


@overload
def when(
    condition: object, then: Callable[[], A], otherwise: B, /, *, name: str | None = ...
) -> A | B: ...


@overload
def when(condition: object, then: Callable[[], A], /, *, name: str | None = ...) -> A | None: ...


@overload
def when(
    condition: object, then: A, otherwise: Callable[[], B], /, *, name: str | None = ...
) -> A | B: ...


@overload
def when(condition: object, then: A, otherwise: B, /, *, name: str | None = ...) -> A | B: ...


@overload
def when(condition: object, then: A, /, *, name: str | None = ...) -> A | None: ...


def when(condition: object, then: Any, otherwise: Any = None, /, *, name: str | None = None) -> Any:
    """`then` if the condition holds, else `otherwise`.

    Each is a function without arguments or a value. The calls inside a function are made only when
    its branch is taken; a value that was computed before is computed in any case.
    """
    if current_scope() is None:
        return _branch(then if truth(condition) else otherwise)
    tested = lift(condition)
    if isinstance(tested, Const):
        return _branch(then if truth(tested.value) else otherwise)
    traced = [trace_body(partial(_branch, branch), []) for branch in (then, otherwise)]
    bodies, captures = share_captures(traced, own=0)
    op = When((tested, *captures), then=bodies[0], otherwise=bodies[1], label=name or "when")
    return make(op, _either(traced[0].type, traced[1].type))


def loop(
    step: Callable[[T], T],
    state: T,
    /,
    *,
    until: Callable[[T], object],
    max_rounds: int = 8,
    name: str | None = None,
) -> T:
    """`state = step(state)` until `until(state)` holds, at most `max_rounds` times.

    `until` is asked before each round, the first included. The state is a text, a number, a typed
    value, or a dict of values, whose entries are `state["key"]` in both functions.
    """
    if max_rounds < 1:
        raise fault(f"max_rounds of halo.loop is {max_rounds}", "It is at least 1")
    if current_scope() is None:
        plain: Any = readable(state)
        for _ in range(max_rounds):
            if truth(until(plain)):
                break
            plain = readable(step(plain))
        return cast("T", plain)
    initial, type_ = lift(state), declared_type(state)
    params = [("state", type_)]

    def goes_on(current: T) -> Any:
        return make(Compare((lift(until(current)),), "not"), bool)

    condition, stepped = trace_body(goes_on, params), trace_body(step, params)
    _check_state(type_, stepped.type)
    bodies, captures = share_captures([condition, stepped], own=1)
    op = Loop(
        (initial, *captures),
        condition=bodies[0],
        step=bodies[1],
        max_rounds=max_rounds,
        label=name or "loop",
    )
    return make(op, _either(type_, stepped.type))  # type: ignore[no-any-return]


def truth(value: object) -> bool:
    """The truth of a condition over plain values."""
    # `~` of a plain bool is -1 or -2 in Python, both true; its last bit is what was meant.
    if type(value) is int and value in (-1, -2):
        return bool(value & 1)
    return bool(value)


def _branch(branch: Any) -> Any:
    value = branch() if not isinstance(branch, Lazy) and callable(branch) else branch
    return value if current_scope() is not None else readable(value)


def _either(first: Any, second: Any) -> Any:
    """The type of one value or the other; None beside a value leaves the value's type."""
    if is_unknown(first) or is_unknown(second):
        return second if is_unknown(first) else first
    return first if bare(first) == bare(second) else Any


def _listed(values: Any, what: str) -> list[Any]:
    if isinstance(values, str) or is_mapping(values):
        raise fault(f"{what} got a {type(values).__name__}", "It takes a list")
    try:
        return list(values)
    except TypeError:
        raise fault(f"{what} got a {type(values).__name__}", "It takes a list") from None


def _source(values: object, what: str) -> tuple[Op, Any]:
    """The operator of the list that a body runs over, and the type of its elements."""
    if not isinstance(values, Lazy):
        values = _listed(values, what)
        return lift(values), element_type(declared_type(values))
    type_ = type_of(values)
    if is_text(type_) or not (is_list(type_) or is_unknown(type_)):
        raise fault(f"{what} got a lazy {type_name(type_)}", "It takes a list")
    return lift(values), element_type(type_)


def _reduced(function: Callable[[list[A]], A], values: Iterable[A], fan_in: int) -> A:
    if fan_in < 2:
        raise fault(f"fan_in of halo.reduce is {fan_in}", "It is at least 2")
    left = [readable(each) for each in _listed(values, "halo.reduce")]
    if not left:
        raise fault("halo.reduce got an empty list", "There is nothing to merge")
    groups = _groups(left, fan_in)
    left = [readable(function(group)) for group in groups]
    while len(left) > 1:
        groups = _groups(left, fan_in)
        left = [g[0] if len(g) == 1 else readable(function(g)) for g in groups]
    return cast("A", left[0])


def _groups(values: list[Any], fan_in: int) -> list[JsonList]:
    return [JsonList(values[i : i + fan_in]) for i in range(0, len(values), fan_in)]


def _check_state(before: Any, after: Any) -> None:
    before, after = bare(before), bare(after)
    if isinstance(before, Record) and isinstance(after, Record):
        old, new = {n for n, _ in before.fields}, {n for n, _ in after.fields}
        if old != new:
            raise fault(
                f"the state of halo.loop has the keys {', '.join(sorted(old))}, and step returns "
                f"{', '.join(sorted(new))}",
                "Return every key from step",
            )
