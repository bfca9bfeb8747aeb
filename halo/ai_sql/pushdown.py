"""Conditions from elsewhere in a statement that restrict what is harvested, and outputs that nobody
reads."""

from __future__ import annotations

from typing import Any

from sqlglot import exp

from halo.ai_sql.block import has_window, is_inner, join_side, output_names, subqueries
from halo.ai_sql.finder import CallFinder
from halo.ai_sql.guards import Guard, conjuncts
from halo.ai_sql.scope import Block
from halo.ai_sql.trees import is_unnesting, rejects_null


class Pushdown(CallFinder):
    """Moves conditions to the harvests that they restrict. A harvest alone is changed, never what a
    query returns."""

    def _prune(self, block: Block) -> None:
        """Drop calls whose output nobody reads: SELECT a FROM (SELECT a, AI_...(b) AS c ...)."""
        select = block.select
        holder = select.parent
        while isinstance(holder, exp.Subquery | exp.Paren) and not holder.alias:
            holder = holder.parent
        is_cte = isinstance(holder, exp.CTE)
        if holder is None or not (is_cte or isinstance(holder, exp.Subquery)):
            return
        if holder is self._root or select.args.get("distinct"):
            return
        if holder.args.get("alias") is None or holder.args["alias"].args.get("columns"):
            return
        if any(
            isinstance(n, exp.Star | exp.Columns)
            for n in self._root.find_all(exp.Star, exp.Columns)
            if not isinstance(n.parent, exp.Count)
        ):
            return
        used = {column.name.lower() for column in self._root.find_all(exp.Column)}
        for each in select.expressions:
            unused = isinstance(each, exp.Alias) and each.alias.lower() not in used
            if unused and self._calls_in(each):
                each.set("this", exp.null())

    def _uses(self, cte: Any) -> int:
        name = cte.alias.lower()
        return sum(1 for table in self._root.find_all(exp.Table) if table.name.lower() == name)

    def _pushed_into(self, query: Any, alias: str, inner: Any, count: int) -> list[Any]:
        """Conditions on the rows of a derived table or named query, as conditions inside it: they
        restrict what is harvested there, never what it returns."""
        if "push-predicates" not in self._host.rules or count != 1:
            return []
        while isinstance(inner, exp.Subquery | exp.Paren):
            inner = inner.this
        if not isinstance(inner, exp.Select) or not self._calls_in_block(inner):
            return []
        if any(
            inner.args.get(each)
            for each in ("group", "having", "distinct", "limit", "offset", "qualify")
        ) or any(has_window(each) or self._aggregates(each) for each in inner.expressions):
            return []
        if is_unnesting(inner):
            return []
        outer = self._user_of(query, alias)
        if outer is None:
            return []
        select, names = outer
        where = select.args.get("where")
        if where is None or not is_inner(select):
            return []
        outputs = output_names(inner)
        if outputs is None:
            return []
        alone = not select.args.get("joins")
        found: list[Any] = []
        for condition in conjuncts(where.this):
            if not self._free(condition) or subqueries(condition) or condition.find(exp.Lambda):
                continue
            moved = condition.copy()
            columns = [moved] if isinstance(moved, exp.Column) else list(moved.find_all(exp.Column))
            targets: list[Any] = [
                outputs.get(column.name.lower())
                if (column.table.lower() in names or (not column.table and alone))
                and not column.args.get("db")
                else None
                for column in columns
            ]
            if not columns or any(
                target is None or not self._free(target) or subqueries(target) for target in targets
            ):
                continue
            for column, target in zip(columns, targets, strict=True):
                replaced = exp.paren(target.copy())
                if column is moved:
                    moved = replaced
                else:
                    column.replace(replaced)
            found.append(exp.paren(moved))
        return found

    def _user_of(self, query: Any, alias: str) -> tuple[exp.Select, set[str]] | None:
        """The block that reads a table of that name, and the names that it has there."""
        if isinstance(query, exp.Select):
            from_ = query.args.get("from_")
            items: list[Any] = [from_] if from_ is not None else []
            for item in [*items, *(query.args.get("joins") or [])]:
                source = item.this
                if isinstance(source, exp.Subquery) and source.alias == alias:
                    return query, {alias.lower()}
                if isinstance(source, exp.Table) and source.name.lower() == alias.lower():
                    return query, {(source.alias or source.name).lower()}
        return None

    def _outer_guards(self, select: exp.Select, join: exp.Join) -> list[Guard]:
        """The conditions of WHERE that make a pair of an outer join needless: those on a side that
        is kept, and those on the other side that no row without a partner can meet."""
        joins = list(select.args.get("joins") or [])
        where, side = select.args.get("where"), join_side(join)
        if where is None or joins[-1] is not join or side not in ("LEFT", "RIGHT", "FULL"):
            return []
        if any(join_side(each) for each in joins[:-1]):
            return []
        from_ = select.args["from_"]
        left = {each.this.alias_or_name.lower() for each in (from_, *joins[:-1])}
        right = {join.this.alias_or_name.lower()}
        found: list[Guard] = []
        for condition in conjuncts(where.this):
            tables = {column.table.lower() for column in condition.find_all(exp.Column)}
            if not tables or not self._free(condition) or subqueries(condition):
                continue
            kept = (tables <= left and side == "LEFT") or (tables <= right and side == "RIGHT")
            one_side = tables <= left or tables <= right
            if kept or (one_side and rejects_null(condition)):
                found.append(Guard(condition.copy(), False))
        return found

    def _where_guards(self, select: exp.Select) -> list[Guard]:
        where = select.args.get("where")
        if where is None:
            return []
        return [Guard(c.copy(), True) for c in conjuncts(where.this) if self._free(c)]

    def _pushed(self, block: Block) -> list[Guard]:
        return [Guard(condition.copy(), True) for condition in block.conditions]
