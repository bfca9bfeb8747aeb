"""The cheap operators, compiled: one synchronous function each, over the values of a scope.

They run between two calls on the event loop's thread, so none of them waits or does I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from planner.errors import InvariantError
from planner.logical import (
    Column,
    Compare,
    Const,
    Field,
    Format,
    Json,
    Op,
    Ordered,
    Param,
    Project,
    Prompt,
    Recover,
    Ref,
    Relation,
    Result,
    Segment,
    render_value,
)
from runtime.errors import ValueTypeError
from runtime.null_logic import SQL_UNARY, sql_compared
from runtime.values import BINARY, UNARY, checked, compared, excerpt, member

Compute: TypeAlias = Callable[[list[Json], Any], Json]
"""Of the values of the scope and its environment: the row (a mapping) in the row scope, the
arguments (a sequence) in a body."""

_MISSING = object()


def compile_inline(op: Op, at: Sequence[int]) -> Compute | None:
    """The function of a cheap operator whose inputs are at the positions `at` of its scope; None
    for an operator that is a call or has bodies."""
    match op:
        case Column():
            return _column(op.name)
        case Const():
            return _const(op)
        case Param(index=index):
            return lambda values, env: env[index]
        case Relation():
            return lambda values, env: True
        case Field():
            return _field(op, at[0])
        case Format():
            render = compile_prompt(op.prompt, at)
            return lambda values, env: render(values)
        case Project():
            return _project(op, at)
        case Compare():
            return _compare(op, at)
        case Recover():
            return _recover(op, at[0])
        case Ordered() | Result():
            first = at[0]
            return lambda values, env: values[first]
        case _:
            return None


def compile_prompt(prompt: Prompt, at: Sequence[int]) -> Callable[[list[Json]], str]:
    """The function that renders `prompt` from the values of a scope."""
    if not prompt.references:
        text = prompt.render(())
        return lambda values: text
    parts = [at[s.index] if isinstance(s, Ref) else s for s in prompt.segments]

    def render(values: list[Json]) -> str:
        return "".join([p if isinstance(p, str) else render_value(values[p]) for p in parts])

    return render


def compile_opening(
    prompt: Prompt, at: Sequence[int], position: int
) -> Callable[[list[Json]], str]:
    """As `compile_prompt`, up to where the value at `position` comes first."""
    begin: list[Segment] = []
    for segment in prompt.segments:
        if isinstance(segment, Ref) and at[segment.index] == position:
            break
        begin.append(segment)
    return compile_prompt(Prompt(tuple(begin)), at)


def _column(name: str) -> Compute:
    what = f"column {name!r}"

    def column(values: list[Json], env: Any) -> Json:
        value = env.get(name, _MISSING)
        if type(value) is str:
            return value
        if value is _MISSING:
            have = ", ".join(str(key) for key in env) or "none"
            raise ValueTypeError(f"the row has no column {name!r}; it has: {excerpt(have)}")
        return checked(value, what)

    return column


def _const(op: Const) -> Compute:
    value = checked(op.value, "a constant of the workflow")
    return lambda values, env: value


def _field(op: Field, at: int) -> Compute:
    key, label = op.key, repr(op)
    return lambda values, env: member(values[at], key, label)


def _project(op: Project, at: Sequence[int]) -> Compute:
    members = tuple(zip(op.names, at, strict=True))
    return lambda values, env: {name: values[i] for name, i in members}


def _compare(op: Compare, at: Sequence[int]) -> Compute:
    symbol, label = op.operator, repr(op)
    unary = (SQL_UNARY if op.nulls else UNARY).get(symbol)
    if unary is not None:
        only = at[0]
        return lambda values, env: unary(values[only])
    if symbol not in BINARY:
        known = ", ".join([*BINARY, *UNARY])
        raise InvariantError(f"{label} has the operator {symbol!r}; there are: {known}")
    left, right = at[0], at[1]
    if op.nulls:
        return lambda values, env: sql_compared(symbol, values[left], values[right], label)
    return lambda values, env: compared(symbol, values[left], values[right], label)


def _recover(op: Recover, at: int) -> Compute:
    """The value of a recovered operator that has not failed."""
    if op.detail:
        return lambda values, env: {"value": values[at], "error": None}
    return lambda values, env: values[at]
