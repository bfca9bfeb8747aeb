"""Which expressions over its parameters are all that a query knows of them.

    SELECT count(*) AS n FROM lineitem
    WHERE year(l_shipdate) = CAST(split_part($p, ' ', 3) AS INTEGER)

asks the same for every `$p` with the same third word. So calls are equal when their texts are, the
values of such expressions, and the parameters that the text uses in other ways. Which expressions
these are is read from the text alone; DuckDB computes the values (`runtime.sql_keys`). What runs
is the text as it was written, with the parameters of whoever asked first.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain, count
from typing import Any

from planner.logical import Json
from planner.sql_effects import query_effects
from planner.sql_pure import JOINS, PURE_FUNCTIONS, PURE_OPERATORS, ZONED
from planner.sql_tree import Node, expression_text, expressions_in, parse_query

NUMBER, TYPE, VALUE = "number", "type", "value"
"""Columns of an evaluation: which tuple of parameters a row is about, and the types and values of
the expressions (`type0`, `value0`, ...)."""

_PURE_CLASSES = frozenset(("COMPARISON", "CONJUNCTION", "BETWEEN", "CASE"))
_OPAQUE_CLASSES = frozenset(("LAMBDA", "STAR"))
_OPAQUE_TABLES = frozenset(("TABLE_FUNCTION", "PIVOT", "SHOW_REF"))
"""What they are given is no expression of the query: it may decide which columns there are."""
_COARSE_TYPES = frozenset(("DATE", "BOOLEAN"))
"""A cast to them makes one value of many."""


@dataclass(frozen=True, slots=True)
class ParameterExpressions:
    """How a query text uses its parameters.

    Attributes:
        params: all of them, sorted.
        kept: those that equal calls must have equal, sorted.
        expressions: what the others are known by, as DuckDB prints it.
    """

    params: tuple[str, ...]
    kept: tuple[str, ...]
    expressions: tuple[str, ...]
    _prefix: str
    _numbered: tuple[tuple[str, tuple[int, ...]], ...]
    """The expressions over parameters that are named by their place in `params`; which they are."""

    def evaluation(self, tuples: Sequence[Mapping[str, Json]]) -> tuple[str, dict[str, Json]]:
        """A query, and its parameters, that gives a row for each tuple of parameters: its number,
        and the type and the value (as text) of each expression."""
        argument = re.compile(rf"\${self._prefix}(\d+)")
        selects: list[str] = []
        params: dict[str, Json] = {}
        for number, given in enumerate(tuples):
            columns = [f"{number} AS {NUMBER}"]
            for place, (expression, arguments) in enumerate(self._numbered):
                own = argument.sub(rf"\g<0>_{number}", expression)
                columns.append(f"typeof({own}) AS {TYPE}{place}")
                columns.append(f"CAST({own} AS VARCHAR) AS {VALUE}{place}")
                for index in arguments:
                    params[f"{self._prefix}{index}_{number}"] = given[self.params[index]]
            selects.append(f"SELECT {', '.join(columns)}")
        return " UNION ALL ".join(selects), params


@lru_cache(maxsize=1024)
def parameter_expressions(text: str) -> ParameterExpressions | None:
    """How a query in DuckDB's dialect uses its parameters. None when its answer can be told by
    nothing less than the parameters, for volatile texts, and for those that are no single SELECT.

    The expressions are the largest that have a parameter and, besides, only parameters, literals,
    and functions, operators and casts that are known to be pure. Parameters of one that keeps them
    apart anyway (`'%' || $word || '%'`) are kept; and when all parameters of an expression are
    kept, its value tells nothing more.

    Example:
        >>> use = parameter_expressions("SELECT n FROM t WHERE k = lower($name) AND y = $year")
        >>> use.kept, use.expressions
        (('year',), ('lower($name)',))
        >>> parameter_expressions("SELECT n FROM t WHERE k = lower($name) OR n = $name") is None
        True
    """
    if "$" not in text:
        return None
    effects = query_effects(text)
    if effects.understood and (effects.volatile or not effects.reads_only):
        return None
    tree = parse_query(text)
    try:
        return _read(tree, text) if tree is not None else None
    except RecursionError:
        return None


def _read(tree: Node, text: str) -> ParameterExpressions | None:
    found = _Found()
    found.look(tree["statements"])
    telling = [node for node in found.candidates if not _params(node) <= found.kept]
    params = tuple(sorted(found.params))
    if not telling or not all(name.isidentifier() for name in params):  # `?` and `$1` are numbers
        return None
    prefix = _unused_prefix(text)
    places = {name: place for place, name in enumerate(params)}
    numbered: dict[str, tuple[str, tuple[int, ...]]] = {}
    for node in telling:
        printed = expression_text(node)
        if printed is None:
            return None
        if printed not in numbered:
            arguments = tuple(sorted(places[name] for name in _params(node)))
            for parameter in _parameters(node):
                parameter["identifier"] = f"{prefix}{places[parameter['identifier']]}"
            over_places = expression_text(node)
            if over_places is None:
                return None
            numbered[printed] = over_places, arguments
    kept = tuple(sorted(found.kept))
    return ParameterExpressions(params, kept, tuple(numbered), prefix, tuple(numbered.values()))


@dataclass(slots=True)
class _Found:
    """What a tree has: its parameters, those of them that equal calls must have equal, and
    expressions that may stand for the others."""

    params: set[str] = field(default_factory=set[str])
    kept: set[str] = field(default_factory=set[str])
    candidates: list[Node] = field(default_factory=list[Node])

    def look(self, node: Any) -> None:
        """Look into a node, an object or a list of them."""
        inside: Any = node
        if isinstance(node, list):
            for each in inside:
                self.look(each)
        elif isinstance(node, dict):
            fields: Node = inside
            if "class" in fields and self._expression(fields):
                return
            if fields.get("type") in _OPAQUE_TABLES:
                self._keep(fields)
                return
            for value in fields.values():
                self.look(value)

    def _expression(self, node: Node) -> bool:
        """Whether that was all there is to an expression."""
        if node["class"] in _OPAQUE_CLASSES:
            self._keep(node)
        elif not _is_pure(node):
            return False
        elif _joins_values(node):
            self.params |= _params(node)
            self.candidates.append(node)
        else:
            self._keep(node)
        return True

    def _keep(self, node: Node) -> None:
        self.params |= _params(node)
        self.kept |= _params(node)


def _is_pure(node: Node) -> bool:
    """Whether an expression follows from its parameters alone."""
    kind: str = node["class"]
    below = list(expressions_in(node))
    if kind in ("PARAMETER", "CONSTANT"):
        return True
    if kind == "TYPE":
        return not any(zoned in json.dumps(node).lower() for zoned in ZONED)
    if kind == "FUNCTION":
        plain = not any(node.get(part) for part in ("filter", "distinct", "catalog"))
        orders: Node = node.get("order_bys") or {}
        if not plain or orders.get("orders") or node.get("schema") not in ("", "main"):
            return False
        if node["function_name"] not in PURE_FUNCTIONS:
            return False
    elif kind == "OPERATOR":
        # Of one value, COALESCE is that value.
        alone = node["type"] == "OPERATOR_COALESCE" and len(below) < 2
        if alone or node["type"] not in PURE_OPERATORS:
            return False
    elif kind == "CAST":
        if any(zoned in json.dumps(node.get("cast_type", "")).lower() for zoned in ZONED):
            return False
    elif kind not in _PURE_CLASSES:
        return False
    return all(map(_is_pure, below))


def _joins_values(node: Node) -> bool:
    """Whether a pure expression is likely to have one value for different parameters."""
    kind: str = node["class"]
    if kind in ("PARAMETER", "CONSTANT", "TYPE"):
        return False
    below = list(expressions_in(node))
    if any(map(_joins_values, below)):
        return True
    if kind == "CAST":
        written: Node = node.get("type_expr") or node.get("cast_type") or {}
        name = str(written.get("type_name") or written.get("id") or "")
        return bool(_params(node)) and name.upper() in _COARSE_TYPES
    if kind == "FUNCTION" and node["function_name"] in JOINS:
        return False
    if kind == "FUNCTION" and node["function_name"] in ("+", "-"):
        return sum(bool(_params(each)) for each in below) > 1
    return bool(_params(node))


def _params(node: Node) -> set[str]:
    return {parameter["identifier"] for parameter in _parameters(node)}


def _parameters(node: Node) -> Iterator[Node]:
    return (each for each in _nodes(node) if each.get("class") == "PARAMETER")


def _nodes(node: Node) -> Iterator[Node]:
    """A node and all expressions below it."""
    yield node
    for each in expressions_in(node):
        yield from _nodes(each)


def _unused_prefix(text: str) -> str:
    """What no word of the text begins with."""
    return next(
        prefix
        for prefix in chain(("halo_",), (f"halo{number}_" for number in count(2)))
        if prefix not in text.lower()
    )
