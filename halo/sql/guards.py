"""Guards: the conditions under which a call's answer can matter.

From a call up to the root of its clause, every AND, OR, CASE, COALESCE, IF and FILTER says when the
call does not decide anything: `cheap AND ai` only where `cheap` is not false, `cheap OR ai` only
where it is not true, an arm of CASE only where no earlier arm was taken. A harvest adds these
conditions, so that no model is asked what SQL has already answered.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlglot import exp


@dataclass(frozen=True)
class Guard:
    """A condition of a harvest. `lasting`: a row for which it does not hold is in no result, so an
    answer harvested under it serves the rest of the block too."""

    condition: Any
    lasting: bool


def guards_of(
    node: Any, root: Any, is_ready: Callable[[Any], bool], is_aggregate: Callable[[Any], bool]
) -> list[Guard]:
    """The guards of `node` below `root`, whose own truth keeps a row (WHERE, ON, HAVING) when it is
    an `exp.Where`, `exp.Having`, `exp.Qualify` or `exp.Join`.

    Conditions that are not ready (they hold calls without an answer yet) guard nothing. The walk
    ends at an aggregate: what is above it is about groups, not rows.
    """
    keeps = isinstance(root, exp.Where | exp.Having | exp.Qualify | exp.Join)
    found: list[tuple[Any, bool]] = []
    path: list[Any] = []
    child, parent = node, node.parent
    while parent is not None and child is not root:
        path.append(parent)
        if parent is root:
            break
        child, parent = parent, parent.parent
    # Whether only AND (and parentheses) lie between the root and each step.
    conjunctive = [True] * (len(path) + 1)
    for i in range(len(path) - 2, -1, -1):
        conjunctive[i] = conjunctive[i + 1] and isinstance(path[i], exp.And | exp.Paren)
    child = node
    for i, parent in enumerate(path):
        if parent is root:
            break
        if is_aggregate(parent):
            break
        inside = keeps and conjunctive[i]
        found.extend((condition, inside) for condition in _at(parent, child, inside, is_ready))
        if isinstance(parent, exp.Filter):
            break
        child = parent
    return [Guard(condition.copy(), lasting) for condition, lasting in found]


def conjuncts(condition: Any) -> list[Any]:
    """The parts of a conjunction, parentheses around conjunctions opened."""
    parts: list[Any] = []
    pending = [condition]
    while pending:
        each = pending.pop()
        inner = each
        while isinstance(inner, exp.Paren):
            inner = inner.this
        if isinstance(inner, exp.And):
            pending.extend((inner.expression, inner.this))
        else:
            parts.append(each)
    return parts


def _at(parent: Any, child: Any, inside: bool, is_ready: Callable[[Any], bool]) -> list[Any]:
    match parent:
        case exp.And() | exp.Or():
            other = parent.expression if child is parent.this else parent.this
            parts = conjuncts(other) if isinstance(parent, exp.And) else _disjuncts(other)
            ready = [each for each in parts if is_ready(each)]
            if isinstance(parent, exp.Or):
                return [_is_not(each, True) for each in ready]
            return [exp.paren(each.copy()) if inside else _is_not(each, False) for each in ready]
        case exp.Case():
            return _case(parent, child, is_ready)
        case exp.If() if not isinstance(parent.parent, exp.Case):
            condition = parent.this
            if child is condition or not is_ready(condition):
                return []
            if child is parent.args.get("true"):
                return [exp.paren(condition.copy())]
            return [_is_not(condition, True)]
        case exp.Coalesce():
            earlier: list[Any] = []
            for each in (parent.this, *parent.expressions):
                if each is child:
                    break
                earlier.append(each)
            return [
                exp.Is(this=exp.paren(each.copy()), expression=exp.null())
                for each in earlier
                if is_ready(each)
            ]
        case exp.Filter() if child is parent.this:
            condition = parent.expression.this
            return [exp.paren(each.copy()) for each in conjuncts(condition) if is_ready(each)]
        case _:
            return []


def _case(case: Any, child: Any, is_ready: Callable[[Any], bool]) -> list[Any]:
    operand = case.this
    if child is operand or (operand is not None and not is_ready(operand)):
        return []
    conditions: list[Any] = []
    for arm in case.args.get("ifs") or ():
        test = arm.this.copy()
        if operand is not None:
            test = exp.EQ(this=exp.paren(operand.copy()), expression=exp.paren(test))
        if arm is child:
            # The call is in the test or the value of this arm.
            return [*conditions, *(_taken(arm, test, case) if is_ready(arm.this) else [])]
        if is_ready(arm.this):
            conditions.append(_is_not(test, True))
    return conditions


def _taken(arm: Any, test: Any, case: Any) -> list[Any]:
    return [exp.paren(test)]


def _is_not(condition: Any, value: bool) -> Any:
    # `IS DISTINCT FROM` takes any boolean; `IS NOT TRUE` is not understood by every printer.
    return exp.NullSafeNEQ(this=exp.paren(condition.copy()), expression=exp.Boolean(this=value))


def _disjuncts(condition: Any) -> list[Any]:
    inner = condition
    while isinstance(inner, exp.Paren):
        inner = inner.this
    if isinstance(inner, exp.Or):
        return [*_disjuncts(inner.this), *_disjuncts(inner.expression)]
    return [condition]
