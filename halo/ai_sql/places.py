"""Where calls may not stand, and names and numbers of outputs that hide where they do."""

from __future__ import annotations

from typing import Any

from sqlglot import exp

from halo.ai_sql.block import clauses, has_window, is_volatile, own_nodes
from halo.ai_sql.calls import Call
from halo.ai_sql.finder import CallFinder
from halo.ai_sql.functions import FOREIGN, MASKED
from halo.ai_sql.scope import Block
from halo.ai_sql.trees import is_inside


class Places(CallFinder):
    """Checks and normalizes the places of calls."""

    def _normalize(self, select: exp.Select) -> None:
        """Give every output that holds a call a name, and resolve names and numbers of outputs, so
        that every clause shows what it depends on."""
        for each in select.expressions:
            if self._calls_in(each) and not isinstance(each, exp.Alias):
                each.replace(exp.alias_(each.copy(), self._title(each), quoted=True))
        outputs = {
            each.alias.lower(): each.this
            for each in select.expressions
            if isinstance(each, exp.Alias) and self._calls_in(each.this)
        }
        group = select.args.get("group")
        if group is not None:
            if group.args.get("all"):
                keys = [
                    each.unalias().copy()
                    for each in select.expressions
                    if not self._aggregates(each)
                ]
                if self._calls_in_block(select):
                    select.set("group", exp.Group(expressions=keys))
                    group = select.args["group"]
            for each in list(group.expressions):
                if isinstance(each, exp.Literal) and not each.is_string:
                    index = int(each.this) - 1
                    if 0 <= index < len(select.expressions):
                        target = select.expressions[index].unalias()
                        if self._calls_in(target):
                            each.replace(target.copy())
        for name, root in clauses(select):
            if name in ("join",) or not outputs:
                continue
            for column in [n for n in own_nodes(root) if isinstance(n, exp.Column)]:
                target = outputs.get(column.name.lower())
                if target is None or column.table:
                    continue
                if name == "select" and is_inside(column, target):
                    continue
                if name == "order" and column.parent.__class__ is exp.Ordered:
                    # Sorting by the name of an output needs nothing more than the output.
                    continue
                column.replace(exp.paren(target.copy()))

    def _title(self, node: Any) -> str:
        """The name of an output that was given none: of a bare call, that of its function."""
        if isinstance(node, exp.Filter):
            node = node.this
        if isinstance(node, exp.Anonymous):
            name = MASKED.get(str(node.this).upper(), str(node.this).upper())
            return FOREIGN.get(name, name).lower()
        return str(node.sql("duckdb")).replace("ZZ_", "ai_").lower()

    def _check_place(self, node: Any, block: Block) -> None:
        parent = node.parent
        inside_window = False
        while parent is not None and not isinstance(parent, exp.Select):
            if isinstance(parent, exp.Lambda | exp.Comprehension):
                raise self._refuse(
                    "S202", node,
                    "an AI function cannot stand in a lambda: its inputs are not rows; unnest the "
                    "list in a subquery",
                )  # fmt: skip
            if isinstance(parent, exp.Window):
                inside_window = True
            if isinstance(parent, exp.Order) and self._orders_aggregate(parent):
                raise self._refuse(
                    "S201", node,
                    "an AI function in an aggregate's ORDER BY would be asked for every row of "
                    "every group only to sort them; compute it in a subquery and sort by its "
                    "column",
                )  # fmt: skip
            parent = parent.parent
        name = str(node.this).upper()
        if inside_window and name in ("ZZ_AGG", "ZZ_SUMMARIZE_AGG", "ZZM_REDUCE"):
            raise self._refuse("S203", node, "AI_AGG cannot be a window function; use GROUP BY")
        for limit in ("limit", "offset"):
            each = block.select.args.get(limit)
            if each is not None and any(n is node for n in each.walk()):
                raise self._refuse("S200", node, f"an AI function cannot stand in {limit.upper()}")

    def _orders_aggregate(self, order: Any) -> bool:
        parent = order.parent
        if isinstance(parent, exp.Select | exp.Window):
            return False
        while parent is not None and not isinstance(parent, exp.Select):
            if self._is_aggregate(parent) or isinstance(parent, exp.AggFunc):
                return True
            parent = parent.parent
        return False

    def _check_arguments(self, call: Call, frame: Any) -> None:
        for each in [*call.args, *([call.filter] if call.filter is not None else [])]:
            if is_volatile(each):
                raise self._refuse(
                    "S207", call.node,
                    "an argument of an AI function answers differently each time (random and the "
                    "like); compute it in a table first",
                )  # fmt: skip
            if has_window(each):
                raise self._refuse(
                    "S203", call.node,
                    "a window function cannot stand in the arguments of an AI function; compute it "
                    "in a subquery",
                )  # fmt: skip
        if call.spec.per_row:
            holder = call.node.find_ancestor(exp.Select)
            parent: Any = call.node
            while parent.parent is not None and parent.parent is not holder:
                parent = parent.parent
            plain = holder is not None and any(each is parent for each in holder.expressions)
            grouped = frame is not None and frame.grouped
            if not plain or grouped or holder is None or self._is_grouped(holder):
                raise self._refuse(
                    "S207", call.node,
                    "sample := 'per_row' is for the select list of a query without groups",
                )  # fmt: skip
