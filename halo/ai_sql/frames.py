"""Frames: the rows that a harvest looks at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlglot import exp

from halo.ai_sql.block import (
    has_window,
    is_inner,
    is_volatile,
    join_side,
    output_names,
    own_nodes,
    subqueries,
)
from halo.ai_sql.calls import Call
from halo.ai_sql.guards import Guard, conjuncts, guards_of
from halo.ai_sql.pushdown import Pushdown
from halo.ai_sql.scope import Block
from halo.ai_sql.trees import index_of, is_list, is_unnesting, limit_rows, named, without_calls


@dataclass
class Frame:
    """The rows that a harvest looks at: parts of a block, without what holds calls."""

    block: exp.Select
    guards: list[Guard]
    free: Callable[[Any], bool]
    join: Any = None
    before: Any = None
    whole_where: bool = False
    grouped: bool = False
    having: bool = False
    guards_having: bool = False
    qualify: bool = False
    pre_window: bool = False
    limit: int | None = None
    rank: list[Any] | None = None
    checked: bool = False
    lasting: bool = False

    def select(self, expressions: list[Any]) -> Any:
        """The query of `expressions` over the frame."""
        block = self.block
        query = exp.Select(expressions=expressions)
        if (from_ := block.args.get("from_")) is not None and self.before is not from_:
            query.set("from_", from_.copy())
        joins = list(block.args.get("joins") or [])
        if self.before is not None:
            joins = [] if self.before is from_ else joins[: index_of(joins, self.before)]
        elif self.join is not None:
            joins = joins[: index_of(joins, self.join) + 1]
        copied = [without_calls(each, self.free) for each in joins]
        if self.join is not None:
            # The pairs themselves are wanted, whatever becomes of rows without a partner.
            copied[-1].set("side", None)
            copied[-1].set("kind", None)
            if not copied[-1].args.get("using"):
                copied[-1].set("kind", "INNER")
        if copied:
            query.set("joins", copied)
        conditions: list[Any] = []
        if self.whole_where and (where := block.args.get("where")) is not None:
            conditions.append(where.this.copy())
        having: list[Any] = []
        for guard in self.guards:
            groups = self.guards_having and not guard.lasting
            (having if groups else conditions).append(guard.condition.copy())
        for condition in conditions:
            query = query.where(condition, copy=False)
        if self.grouped:
            if (group := block.args.get("group")) is not None:
                query.set("group", group.copy())
            own = block.args.get("having")
            if own is not None:
                having += [c.copy() for c in conjuncts(own.this) if self.free(c)]
            if having:
                query.set("having", exp.Having(this=exp.and_(*having)))
        if windows := block.args.get("windows"):
            query.set("windows", [each.copy() for each in windows])
        own_qualify = block.args.get("qualify")
        if self.rank is not None and self.limit is not None:
            rank = exp.Window(
                this=exp.Anonymous(this="rank"), order=exp.Order(expressions=self.rank)
            )
            query.set(
                "qualify",
                exp.Qualify(this=exp.LTE(this=rank, expression=exp.Literal.number(self.limit))),
            )
        elif self.qualify and own_qualify is not None and self.free(own_qualify):
            query.set("qualify", own_qualify.copy())
        elif self.limit is not None:
            query = query.limit(self.limit, copy=False)
        return query


class FrameMaker(Pushdown):
    """Decides which rows a call is asked about."""

    def _frame(self, block: Block, clause: str, root: Any, call: Call) -> Frame:
        select = block.select
        pre = self._is_pre(block, clause, call)
        rules = self._host.rules
        ready = self._ready_condition(pre)
        guards = guards_of(call.node, root, ready, self._is_aggregate)
        if "guard-branches" not in rules:
            guards = [guard for guard in guards if guard.lasting]
        if "push-predicates" not in rules:
            guards = [guard for guard in guards if not guard.lasting]
        guards = [g for g in guards if not is_volatile(g.condition)]
        lasting = clause in ("where", "join") or pre
        lasting = lasting and all(guard.lasting for guard in guards)
        if clause == "from":
            return Frame(select, [], self._free, before=root, lasting=False)
        if clause == "join":
            if join_side(root) or not is_inner(select):
                own = [guard for guard in guards if not guard.lasting]
                if "push-predicates" in rules:
                    own += self._outer_guards(select, root)
                return Frame(select, own, self._free, join=root, lasting=False)
            pushed = self._pushed(block)
            if "push-predicates" in rules:
                pushed += self._where_guards(select)
            # What holds of the whole condition stands in the join already.
            own = [guard for guard in guards if not guard.lasting]
            return Frame(select, [*own, *pushed], self._free, lasting=lasting)
        if clause == "where":
            return Frame(select, [*guards, *self._pushed(block)], self._free, lasting=lasting)
        pushed = [*guards, *self._pushed(block)]
        frame = Frame(select, pushed, self._free, whole_where=True, lasting=lasting)
        if block.grouped and not pre:
            frame.grouped = True
            frame.having = clause != "having"
            frame.guards_having = True
            frame.lasting = False
        if clause in ("select", "order") and not call.spec.per_row:
            frame.qualify = not frame.pre_window
            if clause == "select" and "limit-harvest" in rules:
                self._limited(block, frame, call)
        return frame

    def _limited(self, block: Block, frame: Frame, call: Call) -> None:
        """Projections are needed for the rows that LIMIT keeps alone."""
        select = block.select
        rows = limit_rows(select)
        if rows is None or select.args.get("distinct") or select.args.get("qualify"):
            return
        if call.spec.is_aggregate and not select.args.get("group"):
            return
        if (block.grouped and not frame.grouped) or is_unnesting(select):
            return
        if any(has_window(each) for each in call.args):
            return
        order = select.args.get("order")
        if order is None:
            frame.checked = frame.lasting = self._limit_first(select)
            return
        keys = self._sort_keys(select, order)
        if keys is not None and all(self._free(key) for key in keys):
            frame.rank, frame.limit, frame.lasting = keys, rows, False

    def _limit_first(self, select: exp.Select) -> bool:
        """Let LIMIT choose its rows in FROM, so that the harvest and the statement are about the
        same ones: SELECT f(a) FROM t WHERE c LIMIT n becomes SELECT f(a) FROM (SELECT * FROM t
        WHERE c LIMIT n) AS t."""
        from_ = select.args.get("from_")
        if from_ is None or not isinstance(from_.this, exp.Table) or select.args.get("joins"):
            return False
        where = select.args.get("where")
        if where is not None and any(not is_list(query) for query in subqueries(where)):
            # A join: its order may depend on what else is selected.
            return False
        if any(has_window(each) for each in select.expressions) or select.args.get("group"):
            return False
        table = from_.this
        name = table.alias or table.name
        inner = exp.select("*").from_(named(table, name), copy=False)
        for part in ("where", "limit", "offset"):
            if (each := select.args.get(part)) is not None:
                inner.set(part, each.copy())
                select.set(part, None)
        from_.set(
            "this", exp.Subquery(this=inner, alias=exp.TableAlias(this=exp.to_identifier(name)))
        )
        return True

    def _sort_keys(self, select: exp.Select, order: Any) -> list[Any] | None:
        """ORDER BY with its numbers and names of outputs resolved; None when it cannot be."""
        outputs = output_names(select)
        keys: list[Any] = []
        for each in order.expressions:
            if not isinstance(each, exp.Ordered):
                return None
            by = each.this
            target: Any = by
            if isinstance(by, exp.Literal) and not by.is_string:
                index = int(by.this) - 1
                if outputs is None or not 0 <= index < len(select.expressions):
                    return None
                target = select.expressions[index].unalias()
            elif isinstance(by, exp.Column) and not by.table:
                if outputs is not None:
                    target = outputs.get(by.name.lower(), by)
                elif any(each.alias.lower() == by.name.lower() for each in select.expressions):
                    return None
            elif isinstance(by, exp.Column | exp.Literal) is False and any(
                isinstance(n, exp.Column)
                and not n.table
                and outputs is not None
                and n.name.lower() in outputs
                and outputs[n.name.lower()] != n
                for n in by.find_all(exp.Column)
            ):
                return None
            if has_window(target) or str(getattr(by, "name", "")).upper() == "ALL":
                return None
            copied = each.copy()
            copied.set("this", target.copy())
            keys.append(copied)
        return keys

    def _is_pre(self, block: Block, clause: str, call: Call) -> bool:
        """Whether a call is about rows (before grouping) rather than about groups."""
        if not block.grouped or clause in ("where", "join", "group", "from"):
            return True
        if call.spec.is_aggregate:
            return False
        if any(self._is_aggregate(n) for each in call.args for n in own_nodes(each)):
            return False
        node = call.node.parent
        while node is not None and not isinstance(node, exp.Select):
            filtered = node.this if isinstance(node, exp.Filter) else node
            if self._is_aggregate(filtered):
                return True
            node = node.parent
        return False
