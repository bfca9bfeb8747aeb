"""Small questions about sqlglot trees, and small pieces of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sqlglot import exp

from halo.ai_sql.block import own_nodes
from halo.ai_sql.calls import CallSpec
from halo.ai_sql.guards import conjuncts
from halo.ai_sql.literals import literal


def tables_in(text: str) -> tuple[str, ...]:
    """The answer and document tables that a text reads, by their names."""
    import re

    return tuple(dict.fromkeys(re.findall(r"\bhalo_(?:ai|doc)_[0-9a-f]{12}\b", text)))


def is_unnesting(select: exp.Select) -> bool:
    """Whether the select list makes several rows of one."""
    return any(
        isinstance(node, exp.Explode | exp.Unnest)
        or (
            isinstance(node, exp.Anonymous)
            and str(node.this).lower() in ("unnest", "generate_series")
        )
        for each in select.expressions
        for node in own_nodes(each)
    )


def prompt_order(spec: CallSpec, n_keys: int) -> list[int]:
    """Argument numbers in the order in which the prompt shows them: rows that share what comes
    first stand together, which is what a prefix cache wants."""
    shown = [each for each in spec.segments if isinstance(each, int) and each < n_keys]
    return list(dict.fromkeys([*shown, *range(n_keys)]))


def rejects_null(condition: Any) -> bool:
    """Whether a condition is surely not true of a row whose columns are all null."""
    while isinstance(condition, exp.Paren):
        condition = condition.this
    if isinstance(condition, exp.Not):
        inner = condition.this
        return isinstance(inner, exp.Is) and isinstance(inner.this, exp.Column)
    compared = (exp.EQ, exp.NEQ, exp.GT, exp.GTE, exp.LT, exp.LTE, exp.Like, exp.Between)
    if not isinstance(condition, compared):
        return False
    return isinstance(condition.this, exp.Column)


def named(table: exp.Table, name: str) -> exp.Table:
    """A table under the name that its columns are written with."""
    copied = table.copy()
    if not copied.alias:
        copied.set("alias", exp.TableAlias(this=exp.to_identifier(name)))
    return copied


def is_list(query: Any) -> bool:
    """Whether a subquery is the one list that a limited chain compares with."""
    inner = query.this if isinstance(query, exp.Subquery) else query
    return isinstance(inner, exp.Select) and isinstance(inner.expressions[0], exp.ArrayAgg)


def in_filter(node: Any) -> bool:
    where = node.find_ancestor(exp.Where, exp.Select)
    return isinstance(where, exp.Where) and isinstance(where.parent, exp.Filter)


def table_of(name: str) -> Any:
    return exp.Table(this=exp.to_identifier(name))


def as_text(node: Any) -> Any:
    """`CAST((node) AS VARCHAR)`."""
    kind = exp.DataType(this=exp.DataType.Type.VARCHAR)
    return exp.Cast(this=exp.Paren(this=node.copy()), to=kind)


def plain_part(part: Any) -> tuple[Any, bool]:
    """A conjunct without its parentheses and one NOT."""
    negated = False
    while isinstance(part, exp.Paren | exp.Not):
        negated ^= isinstance(part, exp.Not)
        part = part.this
    return part, negated


def limit_rows(select: exp.Select) -> int | None:
    """LIMIT and OFFSET as one number of rows; None when they are no literals."""
    limit, offset = select.args.get("limit"), select.args.get("offset")
    if limit is None:
        return None
    counts: list[int] = []
    for each in (limit, offset):
        if each is None:
            continue
        value = literal(each.expression) if each.expression is not None else None
        if isinstance(value, bool) or not isinstance(value, int):
            return None
        counts.append(value)
    if limit.args.get("limit_options") is not None or limit.args.get("percent"):
        return None
    return sum(counts)


def without_calls(join: Any, free: Callable[[Any], bool]) -> Any:
    """A join with the parts of its condition that can be evaluated."""
    copied = join.copy()
    on = join.args.get("on")
    if on is not None and not free(on):
        ready = [each.copy() for each in conjuncts(on) if free(each)]
        copied.set("on", exp.and_(*ready) if ready else exp.true())
    return copied


def index_of(items: Sequence[Any], item: Any) -> int:
    return next(i for i, each in enumerate(items) if each is item)


def is_inside(node: Any, root: Any) -> bool:
    while node is not None:
        if node is root:
            return True
        node = node.parent
    return False


def place_of(reason: str, text: str, default: int, start: int = 0) -> int:
    """Where in the text, from `start`, the name that a binder error talks about stands."""
    import re

    said = reason.partition("LINE ")[0]
    names = re.findall(r"with name (\S+) does not exist", said) + re.findall(r'"([^"]+)"', said)
    for name in names:
        found = re.compile(rf"(?<!\w){re.escape(name)}(?!\w)", re.IGNORECASE).search(text, start)
        if found:
            return found.start()
    return default
