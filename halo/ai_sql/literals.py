"""Literals in sqlglot trees as Python values, and where a node stands in the text."""

from __future__ import annotations

from typing import Any

from sqlglot import exp

NO_LITERAL = object()


def literal(node: Any) -> Any:
    """The Python value of a literal node; a marker for anything else."""
    if isinstance(node, exp.Paren):
        return literal(node.this)
    if isinstance(node, exp.Literal):
        if node.is_string:
            return str(node.this)
        text = str(node.this)
        return int(text) if text.isdigit() else float(text)
    if isinstance(node, exp.Boolean):
        return bool(node.this)
    if isinstance(node, exp.Null):
        return None
    if isinstance(node, exp.Neg):
        value = literal(node.this)
        return -value if isinstance(value, int | float) else NO_LITERAL
    if isinstance(node, exp.Array | exp.List):
        values = [literal(each) for each in node.expressions]
        return NO_LITERAL if NO_LITERAL in values else values
    if isinstance(node, exp.Struct):
        found = {name: literal(value) for name, value in members(node).items()}
        whole = len(found) == len(node.expressions) and NO_LITERAL not in found.values()
        return found if whole else NO_LITERAL
    if isinstance(node, exp.Anonymous) and str(node.this).upper() == "ARRAY":
        values = [literal(each) for each in node.expressions]
        return NO_LITERAL if NO_LITERAL in values else values
    return NO_LITERAL


def is_literal(node: Any) -> bool:
    """Whether a node is a literal value."""
    return literal(node) is not NO_LITERAL


_PARAMETER = "halo_parameter"


def parameter_text(value: str) -> exp.Literal:
    """The literal of a parameter's text: data, also where a text of the author is a template."""
    node = exp.Literal.string(value)
    node.meta[_PARAMETER] = True
    return node


def is_parameter(node: Any) -> bool:
    """Whether a node is the text of a parameter."""
    return isinstance(node, exp.Literal) and bool(node.meta.get(_PARAMETER))


def offset_of(node: Any) -> int | None:
    """Where a node starts in the masked text, which is where it starts in the text."""
    starts = [each.meta["start"] for each in node.walk() if each.meta and "start" in each.meta]
    return min(starts, default=None)


def members(struct: Any) -> dict[str, Any]:
    return {
        str(each.this.name if hasattr(each.this, "name") else each.this): each.expression
        for each in struct.expressions
        if isinstance(each, exp.PropertyEQ)
    }
