"""Lazy values: what a workflow function handles while it is traced.

A lazy value stands for a row's value that does not exist yet. It formats into a marker, compares
into another lazy value, gives its members, and refuses what would need the value itself, naming the
Halo function that does it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from halo.dsl.trace import LIFETIME, TEXT_REMEDY, Scope, current_scope, fault
from halo.dsl.value_types import (
    Member,
    Record,
    bare,
    element_type,
    is_enum,
    is_list,
    is_scalar,
    is_text,
    is_unknown,
    members,
    type_name,
    value_type,
)
from halo.errors import WorkflowError
from planner.logical import Column, Compare, Field, Op


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """What a lazy value is inside: its operator, the scope it was made in, its declared type."""

    op: Op
    scope: Scope
    type: Any


class Lazy:
    """A value of the row that is known when the workflow runs, not while it is traced."""

    __slots__ = ("__halo__",)
    __halo__: Value

    def __init__(self, value: Value) -> None:
        object.__setattr__(self, "__halo__", value)

    # --- text ------------------------------------------------------------------------------------

    def __format__(self, spec: str) -> str:
        if spec:
            raise _refused(self, f"the format {spec!r} was applied to", _TOOL)
        return marker_of(self)

    def __str__(self) -> str:
        return marker_of(self)

    def __repr__(self) -> str:
        # The nonce makes a text that was built with !r recognizable as damaged.
        inside = self.__halo__
        return f"<Lazy {_described(inside)} {inside.scope.tracer.nonce}>"

    def __add__(self, other: object) -> str:
        return self._concatenated(other, self, other)

    def __radd__(self, other: object) -> str:
        return self._concatenated(other, other, self)

    def _concatenated(self, other: object, left: object, right: object) -> str:
        mine, theirs = self.__halo__.type, type_of(other)
        texts = (is_text(mine) or is_unknown(mine)) and (is_text(theirs) or is_unknown(theirs))
        if texts and (is_text(mine) or is_text(theirs)):
            return f"{left}{right}"
        raise _refused(self, "`+` was applied to", f"An f-string joins texts; {_TOOL_SHORT}")

    # --- comparison ------------------------------------------------------------------------------

    def __eq__(self, other: object) -> Any:
        return compare("==", self, other)

    def __ne__(self, other: object) -> Any:
        return compare("!=", self, other)

    def __lt__(self, other: object) -> Any:
        return compare("<", self, other)

    def __le__(self, other: object) -> Any:
        return compare("<=", self, other)

    def __gt__(self, other: object) -> Any:
        return compare(">", self, other)

    def __ge__(self, other: object) -> Any:
        return compare(">=", self, other)

    def __and__(self, other: object) -> Any:
        return compare("and", self, other)

    def __rand__(self, other: object) -> Any:
        return compare("and", other, self)

    def __or__(self, other: object) -> Any:
        return compare("or", self, other)

    def __ror__(self, other: object) -> Any:
        return compare("or", other, self)

    def __invert__(self) -> Any:
        return compare("not", self)

    def __hash__(self) -> int:
        return id(self)

    # --- members ---------------------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        type_ = self.__halo__.type
        known = members(type_)
        if known is not None:
            # A plain dict's own methods win, as they do when the workflow runs eagerly.
            method = isinstance(bare(type_), Record) and hasattr(dict, name)
            if name in known and not method:
                return make(Field((op_of(self),), known[name].key, label=name), known[name].type)
            raise _no_member(self, name, known)
        if is_enum(type_) and name == "value":
            return self
        if is_list(type_):
            raise _refused(self, f".{name} was taken from", _LIST)
        if is_text(type_) or hasattr(str, name):
            raise _refused(self, f"the string method .{name} was taken from", TEXT_REMEDY)
        raise _refused(
            self,
            f".{name} was taken from",
            f'Its type is not known to have members: use ["{name}"], or declare the type where the '
            "value is made (out=, the tool's return annotation, the parameter's annotation)",
        )

    def __getitem__(self, key: object) -> Any:
        type_ = self.__halo__.type
        if isinstance(key, slice):
            raise _refused(self, "a slice was taken of", _LIST if is_list(type_) else TEXT_REMEDY)
        if isinstance(key, bool) or not isinstance(key, str | int):
            raise _refused(
                self,
                "a member was taken by a key that is not a plain string or integer from",
                "A key is fixed when the workflow is written; to look up a computed one, write a "
                "@halo.tool(pure=True) function",
            )
        if is_text(type_):
            raise _refused(self, f"[{key!r}] was taken from", TEXT_REMEDY)
        known = members(type_)
        if isinstance(key, str) and known is not None:
            if key not in known:
                raise _no_member(self, key, known)
            return make(Field((op_of(self),), known[key].key, label=key), known[key].type)
        if is_scalar(type_) or (isinstance(key, str) and is_list(type_)):
            raise _refused(self, f"[{key!r}] was taken from", "It has no such member")
        member = value_type(type_) if isinstance(key, str) else element_type(type_, key)
        return make(Field((op_of(self),), key, label=str(key)), member)

    # --- what needs the value itself -------------------------------------------------------------

    def __bool__(self) -> NoReturn:
        raise _refused(
            self,
            "the truth was asked (if, while, and, or, not, in) of",
            "halo.when(condition, then, otherwise) branches on it and halo.loop(step, state, "
            "until=...) repeats on it; combine conditions with &, | and ~, and write `x in [a, b]` "
            "as (x == a) | (x == b)",
        )

    def __iter__(self) -> NoReturn:
        raise _refused(
            self,
            "iteration (for, unpacking, list(), join) was started over",
            "halo.map(function, values) runs a body for each element, halo.reduce merges them",
        )

    def __contains__(self, item: object) -> NoReturn:
        raise _refused(self, "`in` was asked of", _TOOL)

    def __len__(self) -> NoReturn:
        raise _refused(self, "len() was asked of", _TOOL)

    def __index__(self) -> NoReturn:
        raise _refused(self, "an integer (range(), an index) was made of", _number_remedy(self))

    def __int__(self) -> NoReturn:
        raise _refused(self, "int() was applied to", _TOOL)

    def __float__(self) -> NoReturn:
        raise _refused(self, "float() was applied to", _TOOL)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise _refused(self, f".{name} was set on", _FIXED)

    def __setitem__(self, key: object, value: object) -> NoReturn:
        raise _refused(self, "an element was set on", _FIXED)

    def __copy__(self) -> Lazy:
        return self

    def __deepcopy__(self, memo: object) -> Lazy:
        return self


_TOOL_SHORT = "compute with values in a @halo.tool(pure=True) function"
_TOOL = "Compute with values in a @halo.tool(pure=True) function and call it here"
_LIST = (
    "halo.map(function, values) runs a body for each element; for anything else write a "
    "@halo.tool(pure=True) function"
)
_FIXED = "Values of a workflow are never changed: return a new one, for example a dict"


def _refuse(symbol: str) -> Callable[..., NoReturn]:
    def operation(self: Lazy, *_: object) -> NoReturn:
        raise _refused(self, f"`{symbol}` was applied to", _TOOL)

    return operation


for _name, _symbol in (
    ("sub", "-"), ("mul", "*"), ("truediv", "/"), ("floordiv", "//"), ("mod", "%"), ("pow", "**"),
    ("matmul", "@"), ("lshift", "<<"), ("rshift", ">>"), ("xor", "^"), ("divmod", "divmod"),
):  # fmt: skip
    setattr(Lazy, f"__{_name}__", _refuse(_symbol))
    setattr(Lazy, f"__r{_name}__", _refuse(_symbol))
for _name, _symbol in (
    ("neg", "-"), ("pos", "+"), ("abs", "abs"), ("round", "round"), ("reversed", "reversed"),
):  # fmt: skip
    setattr(Lazy, f"__{_name}__", _refuse(_symbol))


def make(op: Op, type_: Any) -> Any:
    """The lazy value of an operator made in the current scope. Typed Any, because the workflow's
    code sees it as a value of `type_`."""
    scope = current_scope()
    if scope is None:
        raise WorkflowError("a lazy value was made outside a trace")
    return Lazy(Value(scope.add(op), scope, type_))


def op_of(lazy: Lazy) -> Op:
    """The operator of a lazy value that may be used here.

    Raises `WorkflowError` when its trace has ended, it belongs to another trace, or it was made
    inside a body that has been left.
    """
    inside, here = lazy.__halo__, current_scope()
    name = _described(inside)
    if here is None or not inside.scope.tracer.open:
        raise fault(f"{name} was used after its trace ended", LIFETIME)
    if here.tracer is not inside.scope.tracer:
        raise fault(f"{name} was used in another trace than its own", LIFETIME)
    if inside.scope not in here.lineage:
        raise fault(
            f"{name} was made inside the body of a map, reduce, when or loop and used outside it",
            "Return it from the body: the value of halo.map, halo.reduce, halo.when or halo.loop "
            "is what the body returns",
        )
    return inside.op


def marker_of(lazy: Lazy) -> str:
    """The text that stands for a lazy value in f-strings."""
    scope = lazy.__halo__.scope
    return scope.tracer.marker(lazy, op_of(lazy), scope)


def compare(operator: str, *operands: object) -> Any:
    """A lazy boolean."""
    from halo.dsl.lift import lift

    return make(Compare(tuple(lift(each) for each in operands), operator), bool)


def type_of(value: object) -> Any:
    """The declared type of a lazy value, the type of a plain one."""
    if isinstance(value, Lazy):
        return value.__halo__.type
    return Any if value is None else type(value)


def _described(inside: Value) -> str:
    what = inside.op.label or inside.op.kind
    return f"the lazy {type_name(inside.type)} {what!r}"


def _refused(lazy: Lazy, what: str, remedy: str) -> WorkflowError:
    name = _described(lazy.__halo__)
    return fault(f"{what} {name}, whose value is not known while the workflow is traced", remedy)


def _no_member(lazy: Lazy, name: str, known: dict[str, Member]) -> WorkflowError:
    have = ", ".join(known) or "none"
    return fault(f"{_described(lazy.__halo__)} has no field {name!r}", f"Its fields are: {have}")


def _number_remedy(lazy: Lazy) -> str:
    op = lazy.__halo__.op
    if isinstance(op, Column):
        return (
            f"{op.name!r} is a column of the rows here. A number that is known when the workflow "
            "is traced (a parameter's default without such a column, a constant) unrolls a `for`; "
            "for a number that differs by row use halo.loop(step, state, until=...)"
        )
    return f"halo.loop(step, state, until=...) repeats by a lazy value. {_TOOL}"
