"""One query block (a SELECT): its clauses, where calls stand, what a harvest may use of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

from sqlglot import exp

INNER_SIDES = ("", "INNER", "CROSS")

_VOLATILE = frozenset(
    {"random", "uuid", "gen_random_uuid", "uuidv4", "uuidv7", "nextval", "setseed", "rand"}
)
"""Functions whose answer differs from row to row or from call to call."""


def own_nodes(root: Any, is_call: Callable[[Any], bool] | None = None) -> Iterator[Any]:
    """The nodes of an expression that belong to its block: not those of subqueries in it, and not
    what is inside a node for which `is_call` holds (that node itself is given)."""
    stack = [root]
    while stack:
        node = stack.pop()
        yield node
        if node is not root and isinstance(node, exp.Query):
            continue
        if is_call is not None and node is not root and is_call(node):
            continue
        stack.extend(
            child
            for child in reversed(list(node.iter_expressions()))
            if not isinstance(child, exp.Query)
        )


def subqueries(root: Any) -> list[Any]:
    """The queries directly inside an expression, outermost alone, in order."""
    found: list[Any] = []
    stack = [root]
    while stack:
        node = stack.pop()
        if isinstance(node, exp.Query) and node is not root:
            found.append(node)
            continue
        stack.extend(reversed(list(node.iter_expressions())))
    return found


def clauses(block: exp.Select) -> list[tuple[str, Any]]:
    """(name, root) of the clauses of a block in which calls may stand, in the order in which they
    are answered: joins, where, group, having, qualify, select, order."""
    found: list[tuple[str, Any]] = [("join", join) for join in block.args.get("joins") or ()]
    for name in ("where", "group", "having", "windows", "qualify"):
        each: Any = block.args.get(name)
        several: list[Any] = cast("list[Any]", each) if isinstance(each, list) else [each]
        found.extend((name, one) for one in several if one)
    if distinct := block.args.get("distinct"):
        found.append(("select", distinct))
    found.extend(("select", each) for each in block.expressions)
    if order := block.args.get("order"):
        found.append(("order", order))
    for name in ("limit", "offset"):
        if each := block.args.get(name):
            found.append((name, each))
    return found


def join_side(join: exp.Join) -> str:
    """ "" for inner joins, commas and cross joins, else LEFT, RIGHT, FULL, SEMI, ANTI, ..."""
    kind = str(join.args.get("kind") or "").upper()
    side = str(join.args.get("side") or "").upper()
    if kind in ("SEMI", "ANTI"):
        return kind
    if str(join.args.get("method") or "").upper() in ("ASOF", "POSITIONAL"):
        return str(join.args["method"]).upper()
    return side if side not in INNER_SIDES else ""


def is_inner(block: exp.Select) -> bool:
    """Whether every join of the block keeps matching pairs alone."""
    return not any(join_side(join) for join in block.args.get("joins") or ())


def is_volatile(node: Any) -> bool:
    """Whether a tree holds what may answer differently each time it is asked."""
    for each in node.walk():
        if isinstance(each, exp.Rand | exp.Uuid | exp.TableSample | exp.NextValueFor):
            return True
        if isinstance(each, exp.Anonymous) and str(each.this).lower() in _VOLATILE:
            return True
    return False


def has_window(node: Any) -> bool:
    return any(isinstance(each, exp.Window) for each in own_nodes(node))


def output_names(block: exp.Select) -> dict[str, Any] | None:
    """The select list by output name, lower case; None with a star or COLUMNS in it."""
    names: dict[str, Any] = {}
    for each in block.expressions:
        inner = each.this if isinstance(each, exp.Alias) else each
        if isinstance(inner, exp.Star) or (
            isinstance(inner, exp.Column) and isinstance(inner.this, exp.Star)
        ):
            return None
        if isinstance(inner, exp.Columns):
            return None
        if each.alias_or_name:
            names[each.alias_or_name.lower()] = inner
    return names
