"""Plans as JSON documents, and back: same fingerprints, same labels.

A document is flat. Operators are listed inputs first and refer to each other by position; bodies
are listed innermost first, each with a list of its own, and operators refer to them by position
too. So a chain of thousands of operators is a long list, not a deep tree, and what is shared in the
plan is written once. A field that was added to an operator type later (`planner.op.ADDED`) is
there only when it is not at its default.

    {"format": "halo.plan", "version": 1,
     "bodies": [{"n_params": 1, "nodes": [...], "result": 3}],
     "nodes": [{"kind": "Scan", "source": "rows", "columns": ["question"]},
               {"kind": "Column", "inputs": [0], "name": "question"}, ...],
     "outputs": [["debate", 7]]}
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import Field, dataclass, fields
from functools import cache
from typing import Any, Union, cast

from planner.bodies import bodies_innermost_first
from planner.errors import PlanError
from planner.logical import OPS, Body, Effect, LogicalPlan, Op, Prompt, Ref, Result, ToolRef
from planner.op import is_added, is_left_out

FORMAT = "halo.plan"
VERSION = 1

_KINDS: Mapping[str, type[Op]] = {op.kind: op for op in OPS}
_LINKS = ("inputs", "after")


def to_json(plan: LogicalPlan, *, added: bool = True) -> dict[str, Any]:
    """The plan as a JSON object that `from_json` reads. Without `added`, fields that operator types
    got later are left out: what a Halo from before them would have planned."""
    bodies: dict[str, int] = {}
    body_tables: list[dict[str, Any]] = []
    for body in bodies_innermost_first(plan.walk()):
        nodes, index = _table(body.walk(), bodies, added)
        body_tables.append(
            {"n_params": body.n_params, "nodes": nodes, "result": index[body.result]}
        )
        bodies[body.fingerprint] = len(bodies)
    nodes, index = _table(plan.walk(), bodies, added)
    return {
        "format": FORMAT,
        "version": VERSION,
        "bodies": body_tables,
        "nodes": nodes,
        "outputs": [[name, index[op]] for name, op in plan.outputs],
    }


def _table(
    ops: Iterable[Op], bodies: Mapping[str, int], added: bool
) -> tuple[list[dict[str, Any]], dict[Op, int]]:
    index: dict[Op, int] = {}
    nodes: list[dict[str, Any]] = []
    for op in ops:
        node: dict[str, Any] = {"kind": op.kind}
        for name in _LINKS:
            links: tuple[Op, ...] = getattr(op, name)
            if links:
                node[name] = [index[each] for each in links]
        if op.label:
            node["label"] = op.label
        for own in _own_fields(op.kind).values():
            if not is_left_out(op, own.field) and (added or not is_added(own.field)):
                node[own.field.name] = _encode(getattr(op, own.field.name), bodies)
        index[op] = len(nodes)
        nodes.append(node)
    return nodes, index


def _encode(value: object, bodies: Mapping[str, int]) -> Any:
    if isinstance(value, Body):
        return bodies[value.fingerprint]
    if isinstance(value, Prompt):
        return [s if isinstance(s, str) else {"input": s.index} for s in value.segments]
    if isinstance(value, ToolRef):
        return {"name": value.name, "digest": value.digest, "effect": value.effect.value}
    if isinstance(value, tuple):
        return [_encode(each, bodies) for each in cast("tuple[object, ...]", value)]
    return value


# --- reading -------------------------------------------------------------------------------------


def from_json(obj: Mapping[str, Any]) -> LogicalPlan:
    """The plan that `to_json` wrote.

    Raises `PlanError` naming the node and the field when the document is of another format or
    version, has an unknown kind, lacks a field or has one too many, holds a value of the wrong
    type, or refers to a node that does not come before (which also rules out cycles).
    """
    if obj.get("format") != FORMAT:
        raise PlanError(f"no plan document: 'format' is {obj.get('format')!r}, not {FORMAT!r}")
    if obj.get("version") != VERSION:
        raise PlanError(
            f"plan document of version {obj.get('version')!r}; this Halo reads version {VERSION}"
        )
    top = _Place("plan document", ())
    _exact(obj, ("format", "version", "bodies", "nodes", "outputs"), top)
    bodies: list[Body] = []
    for number, table in enumerate(_list(obj["bodies"], top.at("bodies"))):
        place = _Place(f"body {number}", tuple(bodies))
        entry = _object(table, place)
        _exact(entry, ("n_params", "nodes", "result"), place)
        ops = _read_table(entry["nodes"], place)
        result = ops[_index(entry["result"], len(ops), place.at("result"), "node")]
        bodies.append(Body(_integer(entry["n_params"], place.at("n_params")), result))
    ops = _read_table(obj["nodes"], _Place("", tuple(bodies)))
    outputs: list[tuple[str, Result]] = []
    for number, output in enumerate(_list(obj["outputs"], top.at("outputs"))):
        place = _Place(f"output {number}", ())
        pair = _list(output, place)
        if len(pair) != 2 or not isinstance(pair[0], str):
            raise place.error("expected [name, node]")
        op = ops[_index(pair[1], len(ops), place, "node")]
        if not isinstance(op, Result):
            raise place.error(f"node {pair[1]} is a {op.kind}, not a Result")
        outputs.append((pair[0], op))
    return LogicalPlan(tuple(outputs))


@dataclass(frozen=True, slots=True)
class _Place:
    """Where in the document, for messages; and the bodies that may be referred to there."""

    name: str
    bodies: tuple[Body, ...]

    def at(self, field: str) -> _Place:
        return _Place(f"{self.name}, field {field!r}" if self.name else field, self.bodies)

    def node(self, number: int) -> _Place:
        return _Place(f"{self.name}, node {number}" if self.name else f"node {number}", self.bodies)

    def error(self, message: str) -> PlanError:
        return PlanError(f"{self.name}: {message}")


def _read_table(nodes: Any, place: _Place) -> list[Op]:
    ops: list[Op] = []
    for number, entry in enumerate(_list(nodes, place.at("nodes"))):
        ops.append(_read_node(_object(entry, place.node(number)), ops, place.node(number)))
    return ops


def _read_node(node: Mapping[str, Any], ops: Sequence[Op], place: _Place) -> Op:
    kind = node.get("kind")
    cls = _KINDS.get(kind) if isinstance(kind, str) else None
    if cls is None:
        raise place.at("kind").error(f"unknown operator {kind!r}; there are: {', '.join(_KINDS)}")
    own = _own_fields(cls.kind)
    added = tuple(name for name, each in own.items() if is_added(each.field))
    needed = ("kind", *(name for name in own if name not in added))
    _exact(node, needed, place, optional=("inputs", "after", "label", *added))
    values: dict[str, Any] = {}
    for name in _LINKS:
        links = _list(node.get(name, []), place.at(name))
        at = place.at(name)
        values[name] = tuple(ops[_index(each, len(ops), at, "node")] for each in links)
    values["label"] = _text(node.get("label", ""), place.at("label"))
    for name, each in own.items():
        if name in node:
            values[name] = each.decode(node[name], place.at(name))
    try:
        return cls(**values)
    except PlanError as error:
        raise place.error(str(error)) from None


def _exact(
    obj: Mapping[str, Any], needed: tuple[str, ...], place: _Place, optional: tuple[str, ...] = ()
) -> None:
    for name in needed:
        if name not in obj:
            raise place.at(name).error("missing")
    for name in obj:
        if name not in needed and name not in optional:
            have = ", ".join((*needed, *optional))
            raise place.at(str(name)).error(f"unknown field; the fields are: {have}")


def _index(value: Any, count: int, place: _Place, what: str) -> int:
    index = _integer(value, place)
    if not 0 <= index < count:
        known = f"0 to {count - 1}" if count else "none"
        raise place.error(
            f"refers to {what} {index}, which does not come before it (those that do: {known})"
        )
    return index


# --- values by their declared type ---------------------------------------------------------------

_Decode = Callable[[Any, _Place], Any]


def _wrong(expected: str, value: Any, place: _Place) -> PlanError:
    return place.error(f"expected {expected}, got {value!r:.80}")


def _list(value: object, place: _Place) -> list[Any]:
    if not isinstance(value, list):
        raise _wrong("a list", value, place)
    return cast("list[object]", value)


def _object(value: object, place: _Place) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong("an object", value, place)
    return cast("dict[str, Any]", value)


def _text(value: Any, place: _Place) -> str:
    if not isinstance(value, str):
        raise _wrong("a text", value, place)
    return value


def _integer(value: Any, place: _Place) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise _wrong("an integer", value, place)
    return value


def _number(value: Any, place: _Place) -> int | float:
    # An integer stays one: 0 and 0.0 are different texts in a fingerprint.
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise _wrong("a number", value, place)
    return value


def _boolean(value: Any, place: _Place) -> bool:
    if not isinstance(value, bool):
        raise _wrong("true or false", value, place)
    return value


def _null(value: Any, place: _Place) -> None:
    if value is not None:
        raise _wrong("null", value, place)


def _prompt(value: Any, place: _Place) -> Prompt:
    segments: list[str | Ref] = []
    for segment in _list(value, place):
        if isinstance(segment, str):
            segments.append(segment)
            continue
        reference = _object(segment, place)
        _exact(reference, ("input",), place)
        index = _integer(reference["input"], place)
        if index < 0:
            raise _wrong("the position of an input", index, place)
        segments.append(Ref(index))
    return Prompt(tuple(segments))


def _tool(value: Any, place: _Place) -> ToolRef:
    tool = _object(value, place)
    _exact(tool, ("name", "digest", "effect"), place)
    effects = {effect.value: effect for effect in Effect}
    effect = effects.get(_text(tool["effect"], place))
    if effect is None:
        raise _wrong(f"an effect ({', '.join(effects)})", tool["effect"], place)
    return ToolRef(_text(tool["name"], place), _text(tool["digest"], place), effect)


def _body(value: Any, place: _Place) -> Body:
    return place.bodies[_index(value, len(place.bodies), place, "body")]


_DECODERS: Mapping[Any, _Decode] = {
    str: _text, int: _integer, float: _number, bool: _boolean, type(None): _null,
    Prompt: _prompt, ToolRef: _tool, Body: _body,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Own:
    """A field of an operator type, and how its value is read."""

    field: Field[Any]
    decode: _Decode


@cache
def _own_fields(kind: str) -> Mapping[str, _Own]:
    """The fields that an operator type adds to those of all operators."""
    cls = _KINDS[kind]
    of_all = {f.name for f in fields(Op)}
    hints = typing.get_type_hints(cls)
    return {f.name: _Own(f, _decoder(hints[f.name])) for f in fields(cls) if f.name not in of_all}


def _decoder(annotation: Any) -> _Decode:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        element = _decoder(arguments[0])
        return lambda value, place: tuple(element(each, place) for each in _list(value, place))
    if origin is tuple:
        return _fixed([_decoder(each) for each in arguments])
    if origin in (Union, types.UnionType):
        return _either([_decoder(each) for each in arguments])
    decode = _DECODERS.get(annotation)
    if decode is None:
        raise TypeError(f"plan documents have no form for fields of type {annotation}")
    return decode


def _fixed(elements: Sequence[_Decode]) -> _Decode:
    def decode(value: Any, place: _Place) -> Any:
        found = _list(value, place)
        if len(found) != len(elements):
            raise _wrong(f"a list of {len(elements)}", value, place)
        return tuple(element(each, place) for element, each in zip(elements, found, strict=True))

    return decode


def _either(alternatives: Sequence[_Decode]) -> _Decode:
    def decode(value: Any, place: _Place) -> Any:
        errors: list[str] = []
        for alternative in alternatives:
            try:
                return alternative(value, place)
            except PlanError as error:
                errors.append(str(error))
        raise PlanError(errors[0])

    return decode
