"""A JSON Schema as a grammar (EBNF as xgrammar reads it) of its documents in one compact form.

Engines that enforce a schema by themselves allow any whitespace between tokens. A small model that
is not allowed to go on with a string then often writes blanks until its token limit: the answer is
lost. Here there is one way to write a document (`{"a": 1, "b": [2, 3]}`), so whitespace costs no
decision, and fewer tokens.

The grammar covers what types of workflows are made of. For anything else `json_grammar` gives None,
and the engine's own support for schemas is used. What a grammar leaves open (uniqueness, lengths
beyond `MOST_LENGTH`) is checked on the answer, as always.
"""

from __future__ import annotations

import json
from typing import Any, cast

from runtime.backends.choice_grammar import quoted, tree_rules

MOST_LENGTH = 2000
"""Longer bounds of strings, and arrays of more than `MOST_ITEMS`, are left to the check of the
answer: a grammar grows with its bounds."""

MOST_ITEMS = 100

MOST_VALUES = 256
"""A range of integers up to this size is listed."""

_SAYS_NOTHING = frozenset(
    {
        *("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"),
        *("$schema", "$id", "$comment", "$defs", "definitions", "discriminator"),
    }
)
_BY_TYPE: dict[str, frozenset[str]] = {
    "object": frozenset({"properties", "required", "additionalProperties"}),
    "array": frozenset({"items", "prefixItems", "minItems", "maxItems", "uniqueItems"}),
    "string": frozenset({"minLength", "maxLength"}),
    "integer": frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}),
    "number": frozenset(),
    "boolean": frozenset(),
    "null": frozenset(),
}
_PLAIN = r"[^\"\\\x00-\x1f\x7f]"
_COMMON = (
    r"""
escape ::= [\"\\/bfnrt] | "u" [0-9a-fA-F] [0-9a-fA-F] [0-9a-fA-F] [0-9a-fA-F]
string ::= "\"" rest
rest ::= "\"" | [^\"\\\x00-\x1f\x7f] rest | "\\" escape rest
integer ::= "-"? ("0" | [1-9] [0-9]{0,17})
number ::= "-"? ("0" | [1-9] [0-9]{0,17}) ("." [0-9]{1,17})? ([eE] [+-]? [0-9]{1,3})?
boolean ::= "true" | "false"
null ::= "null"
any ::= string | number | boolean | null | anyarray | anyobject
anyarray ::= "[" (any (", " any)*)? "]"
anyobject ::= "{" (string ": " any (", " string ": " any)*)? "}"
""".strip()
    + f"\ntenplain ::= {' '.join([_PLAIN] * 10)}"
)


class _UnsupportedError(Exception):
    """The schema says what this grammar cannot."""


def json_grammar(schema_json: str) -> str | None:
    """The grammar of the documents of a schema, or None where it cannot be written.

    Raises `ValueError` when `schema_json` is not JSON.

    Example:
        >>> print(json_grammar('{"enum": ["yes", "no"]}').splitlines()[0])
        root ::= r0
    """
    schema = json.loads(schema_json)
    try:
        return _Grammar(schema).text()
    except (_UnsupportedError, RecursionError):
        return None


class _Grammar:
    def __init__(self, schema: Any) -> None:
        self._schema = schema
        self._names: dict[str, str] = {}
        self._rules: list[str] = []

    def text(self) -> str:
        root = self._rule(self._schema)
        return "\n".join([f"root ::= {root}", *self._rules, _COMMON])

    def _rule(self, schema: Any) -> str:
        """The name of the rule of a schema. It is known before its body: types may be recursive."""
        key = json.dumps(schema, sort_keys=True)
        name = self._names.get(key)
        if name is None:
            name = self._names[key] = f"r{len(self._names)}"
            self._add(name, self._body(schema, name))
        return name

    def _add(self, name: str, body: str) -> str:
        self._rules.append(f"{name} ::= {body}")
        return name

    def _body(self, schema: Any, name: str) -> str:
        if schema is True or schema == {}:
            return "any"
        if not isinstance(schema, dict):
            raise _UnsupportedError
        node = {k: v for k, v in cast("dict[str, Any]", schema).items() if k not in _SAYS_NOTHING}
        if not node:
            return "any"
        if "$ref" in node:
            return self._reference(node)
        if "const" in node or "enum" in node:
            return self._values([node["const"]] if "const" in node else list(node["enum"]), name)
        for union in ("anyOf", "oneOf"):
            if union in node:
                if len(node) > 1:
                    raise _UnsupportedError
                return " | ".join(self._rule(each) for each in node[union])
        types: Any = node.get("type")
        if isinstance(types, list):
            kinds = cast("list[str]", types)
            return " | ".join(self._rule(_of_type(node, kind)) for kind in kinds)
        if not isinstance(types, str) or node.keys() - _BY_TYPE.get(types, frozenset()) != {"type"}:
            raise _UnsupportedError
        match types:
            case "object":
                return self._object(node, name)
            case "array":
                return self._array(node)
            case "string":
                return self._string(node)
            case "integer":
                return self._integer(node, name)
            case _:
                return types

    def _reference(self, node: dict[str, Any]) -> str:
        path = str(node["$ref"]).split("/")
        if len(node) > 1 or path[0] != "#":
            raise _UnsupportedError
        found: Any = self._schema
        for step in path[1:]:
            if not isinstance(found, dict) or step not in found:
                raise _UnsupportedError
            found = cast("dict[str, Any]", found)[step]
        return self._rule(found)

    def _values(self, values: list[Any], name: str) -> str:
        if not values:
            raise _UnsupportedError
        texts = [json.dumps(value, ensure_ascii=False) for value in values]
        first, *rest = tree_rules(texts, f"{name}v")
        self._rules.extend(rest)
        return first.partition(" ::= ")[2]

    def _object(self, node: dict[str, Any], name: str) -> str:
        members = cast("dict[str, Any]", node.get("properties", {}))
        required = set(cast("list[str]", node.get("required", [])))
        more = node.get("additionalProperties", not members)
        if more is not False:
            if members or required:
                raise _UnsupportedError
            pair = f'string ": " {self._rule(more)}'
            return f'"{{" ({pair} (", " {pair})*)? "}}"'
        if required - members.keys():
            raise _UnsupportedError
        return f'"{{" {self._members(list(members.items()), required, name)} "}}"'

    def _members(self, members: list[tuple[str, Any]], required: set[str], name: str) -> str:
        """The members in their order. One that may be missing doubles the ways in which what
        follows begins (with a comma or without), so what follows is a rule for each way."""
        pairs = [f"{quoted(json.dumps(k, ensure_ascii=False) + ': ')} {self._rule(v)}"
                 for k, v in members]  # fmt: skip

        def follow(at: int, begun: bool) -> str:
            if at == len(pairs):
                return '""'
            with_it = f'", " {pairs[at]}' if begun else pairs[at]
            if members[at][0] in required:
                return f"{with_it} {follow(at + 1, True)}"
            rest = f"{name}m{at}{'b' if begun else ''}"
            if not any(rule.startswith(f"{rest} ::=") for rule in self._rules):
                self._add(rest, f"{with_it} {follow(at + 1, True)} | {follow(at + 1, begun)}")
            return rest

        return follow(0, False)

    def _array(self, node: dict[str, Any]) -> str:
        if "prefixItems" in node:
            items = [self._rule(each) for each in cast("list[Any]", node["prefixItems"])]
            least, most = node.get("minItems", 0), node.get("maxItems")
            if node.get("items", False) is not False and most != len(items):
                raise _UnsupportedError
            if least != len(items):
                raise _UnsupportedError
            between = ' ", " '
            return f'"[" {between.join(items)} "]"' if items else '"[]"'
        item = self._rule(node.get("items", True))
        least = int(node.get("minItems", 0))
        most = node.get("maxItems")
        if most is not None and (most < least or most == 0):
            if most == 0 and least == 0:
                return '"[]"'
            raise _UnsupportedError
        repeat = _repeat(max(0, least - 1), None if most is None else most - 1)
        inner = f'{item} (", " {item}){repeat}'
        return f'"[" {inner} "]"' if least else f'"[" ({inner})? "]"'

    def _string(self, node: dict[str, Any]) -> str:
        least, most = int(node.get("minLength", 0)), node.get("maxLength")
        if most is not None and most < least:
            raise _UnsupportedError
        if most is None or most > MOST_LENGTH:
            wanted = f"{_PLAIN}{{{min(least, MOST_LENGTH)}}} " if least else ""
            return f'"\\"" {wanted}rest' if least else "string"
        # What is left after the least, in tens and a rest: the engine's time to compile a bound
        # grows with its square, and tens keep it small. Each length has at least one way. Bounded
        # strings have no escapes, as where the engine reads the schema itself: a counted choice of
        # character or escape makes each step of decoding three times as slow.
        free = most - least
        tens = max(0, (free - 9) // 10)
        parts = [f"{_PLAIN}{{{least}}}"] if least else []
        parts += [f"tenplain{{0,{tens}}}"] if tens else []
        parts += [f"{_PLAIN}{{0,{free - 10 * tens}}}"] if free else []
        return " ".join(['"\\""', *parts, '"\\""'])

    def _integer(self, node: dict[str, Any], name: str) -> str:
        bounds = {k: v for k, v in node.items() if k != "type"}
        if not bounds:
            return "integer"
        low = max(
            bounds.get("minimum", float("-inf")), bounds.get("exclusiveMinimum", float("-inf")) + 1
        )
        high = min(
            bounds.get("maximum", float("inf")), bounds.get("exclusiveMaximum", float("inf")) - 1
        )
        if not 0 <= high - low < MOST_VALUES or low != int(low) or high != int(high):
            raise _UnsupportedError
        return self._values(list(range(int(low), int(high) + 1)), name)


def _of_type(node: dict[str, Any], kind: str) -> dict[str, Any]:
    """What a schema of several types says of one of them."""
    said = _BY_TYPE.get(kind, frozenset[str]())
    others = frozenset[str]().union(*_BY_TYPE.values()) - said
    return {**{k: v for k, v in node.items() if k not in others}, "type": kind}


def _repeat(least: int, most: int | None) -> str:
    if most is not None and most > MOST_ITEMS:
        most = None
    least = min(least, MOST_ITEMS)
    if most is None:
        return "*" if least == 0 else f"{{{least},}}"
    return f"{{{least},{most}}}"
