"""Splitting: a statement becomes harvests, calls and look-ups; DuckDB runs ordinary SQL only.

For every query block, innermost first: pick the next call whose arguments hold no call; *harvest*
the distinct arguments that can matter, with a query made of the block's own FROM and the conditions
that are free of calls; have them answered; *substitute* a look-up in the answers for the call. When
no call is left, what remains is the statement to run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sqlglot import exp

from halo.ai_sql.block import clauses, has_window, is_inner, join_side, subqueries
from halo.ai_sql.calls import Call, CallSpec
from halo.ai_sql.frames import Frame, FrameMaker
from halo.ai_sql.guards import Guard, conjuncts, guards_of
from halo.ai_sql.host import KEY, MAX_SLICED_LIMIT, NUMBER, Chain, Harvest, Host
from halo.ai_sql.lift import Lifter
from halo.ai_sql.literals import literal, offset_of
from halo.ai_sql.lookups import keys_of, substitute
from halo.ai_sql.places import Places
from halo.ai_sql.scope import Block, Scope
from halo.ai_sql.trees import (
    is_unnesting,
    limit_rows,
    plain_part,
    prompt_order,
    table_of,
    tables_in,
    without_calls,
)


class Splitter(FrameMaker, Places):
    """Splits one statement. `split` changes the tree that it is given."""

    def __init__(self, host: Host, lifter: Lifter) -> None:
        super().__init__(host, lifter)
        self._sampled: dict[CallSpec, tuple[str, ...]] = {}

    def split(self, tree: Any) -> Any:
        """The statement with every call replaced by a look-up. Raises `SqlError`."""
        holder = exp.Subquery(this=tree)
        self._root = holder
        self._sources(holder)
        for node in list(holder.find_all(exp.Anonymous)):
            if str(node.this).upper() == "ZZ_SIMILARITY":
                node.replace(self._lifter.similarity(node))
        for node in holder.find_all(exp.Anonymous):
            self._lifter.check_name(node)
        self._query(holder.this, Scope(), [])
        if left := self._calls_in(holder):
            raise self._refuse("S200", left[0], "this place is not supported for an AI function")
        return holder.this

    def _sources(self, root: Any) -> None:
        """Replace Halo's table functions, and the errors table."""
        for table in list(root.find_all(exp.Table)):
            function = table.this
            if isinstance(function, exp.Anonymous):
                name = str(function.this).upper()
                if name == "READ_DOCUMENT":
                    self._document(table, function)
                elif name == "ZZ_CHUNKS":
                    self._chunks(table, function)
                elif self._lifter.is_call(function):
                    raise self._refuse(
                        "S204", function, "an AI function gives one value and is no table"
                    )
            elif function.name.lower() == "halo_errors" and not table.args.get("db"):
                table.set("this", exp.to_identifier(self._host.errors_table()))
                if not table.alias:
                    table.set("alias", exp.TableAlias(this=exp.to_identifier("halo_errors")))

    def _document(self, table: exp.Table, function: exp.Anonymous) -> None:
        offset = offset_of(function) or 0
        pattern = literal(function.expressions[0]) if len(function.expressions) == 1 else None
        if not isinstance(pattern, str):
            raise self._refuse("S105", function, "read_document takes one literal path or glob")
        name = self._host.document_table(pattern, offset)
        table.set("this", exp.to_identifier(name))
        if not table.alias:
            table.set("alias", exp.TableAlias(this=exp.to_identifier("read_document")))

    def _chunks(self, table: exp.Table, function: exp.Anonymous) -> None:
        alias = table.args.get("alias") or exp.TableAlias(this=exp.to_identifier("ai_chunks"))
        if not alias.args.get("columns"):
            alias.set("columns", [exp.to_identifier("chunk")])
        table.replace(exp.Unnest(expressions=[function.copy()], alias=alias, offset=False))

    def _query(self, query: Any, scope: Scope, conditions: list[Any]) -> None:
        ctes = list(scope.ctes)
        with_ = query.args.get("with_")
        if with_ is not None:
            for cte in with_.expressions:
                if with_.args.get("recursive") and self._calls_in(cte):
                    raise self._refuse(
                        "S206", self._calls_in(cte)[0],
                        "a recursive query would ask again in every round; an AI function cannot "
                        "stand in it",
                    )  # fmt: skip
                pushed = self._pushed_into(query, cte.alias, cte.this, count=self._uses(cte))
                self._query(
                    cte.this, Scope(list(ctes), scope.outer, scope.place, scope.root), pushed
                )
                ctes.append(cte)
        inner = Scope(ctes, scope.outer, scope.place, scope.root, scope.lateral)
        if isinstance(query, exp.Select):
            self._block(Block(query, inner, conditions))
        elif isinstance(query, exp.SetOperation):
            for part in ("order", "limit", "offset"):
                if (each := query.args.get(part)) and (left := self._calls_in(each)):
                    raise self._refuse(
                        "S208", left[0],
                        "ORDER BY of a UNION sorts finished rows; put the UNION in a subquery",
                    )  # fmt: skip
            self._query(query.this, inner, [])
            self._query(query.expression, inner, [])
        elif isinstance(query, exp.Subquery):
            self._query(query.this, inner, conditions)
        else:
            for nested in subqueries(query):
                self._query(nested, inner, [])
            if left := self._calls_in(query):
                raise self._refuse(
                    "S209", left[0],
                    f"an AI function cannot stand in {type(query).__name__.upper()}; put it in a "
                    "subquery",
                )  # fmt: skip

    def _block(self, block: Block) -> None:
        select = block.select
        self._from(block)
        for call in self._calls_in_block(select):
            self._check_place(call, block)
        block.grouped = self._is_grouped(select)
        if self._calls_in_block(select):
            self._normalize(select)
        if "prune-outputs" in self._host.rules:
            self._prune(block)
        for name, root in clauses(select):
            self._clause(block, name, root)

    def _from(self, block: Block) -> None:
        """The derived tables of FROM; those after the first may look at those before (LATERAL)."""
        select = block.select
        from_ = select.args.get("from_")
        items = [from_] if from_ is not None else []
        items += select.args.get("joins") or []
        for item in items:
            source = item.this
            while isinstance(source, exp.Paren):
                source = source.this
            for query in [source] if isinstance(source, exp.Query) else subqueries(source):
                alias = source.alias if isinstance(source, exp.Subquery) else ""
                pushed: list[Any] = []
                if alias and not (isinstance(item, exp.Join) and join_side(item)):
                    pushed = self._pushed_into(select, alias, source.this, count=1)
                scope = Scope(block.scope.ctes, block, item, item, lateral=True)
                self._query(query, scope, pushed)
            # Calls in a table function, such as unnest(ai_chunks(text)).
            while pending := self._ready_calls(source):
                self._one(block, "from", item, pending[0])

    def _clause(self, block: Block, name: str, root: Any) -> None:
        def inside() -> Any:
            # What a join is with has been seen to already.
            return root.args.get("on") if isinstance(root, exp.Join) else root

        if inside() is None:
            return
        for query in subqueries(inside()):
            self._query(query, Scope(block.scope.ctes, block, query, root), [])
        if name == "where":
            self._chain(block, root)
        while pending := self._ready_calls(inside()):
            self._one(block, name, root, pending[0])

    def _one(self, block: Block, clause: str, root: Any, node: Any) -> None:
        """Answer one call and put a look-up in its place."""
        call = self._lift(node)
        call.joins = clause == "join"
        frame = self._frame(block, clause, root, call)
        self._check_arguments(call, frame)
        keys = keys_of(call)
        identity = (call.spec, tuple(key.sql("duckdb") for key in keys))
        known = block.answered.get(identity)
        if known is None or call.spec.per_row:
            known = (*self._earlier(call.spec), self._harvest(block, call, keys, frame))
            if frame.lasting:
                block.answered[identity] = known
            if call.spec.temperature > 0 and not call.spec.per_row:
                self._sampled[call.spec] = known
        substitute(call, keys, known, frame)

    def _earlier(self, spec: CallSpec) -> tuple[str, ...]:
        """Answer tables of the same sampled call in this statement: within a statement a call is a
        function of its arguments, so inputs that have an answer are not asked about again."""
        return () if spec.per_row else self._sampled.get(spec, ())

    def _lift(self, node: Any) -> Call:
        call = self._lifter.lift(node)
        parent = node.parent
        if call.spec.is_aggregate and isinstance(parent, exp.Filter):
            call.filter = parent.expression
            call.node = parent
        if call.spec.is_aggregate and call.order is not None and self._calls_in(call.order):
            raise self._refuse(
                "S201", node,
                "an AI function in an aggregate's ORDER BY would be asked for every row of every "
                "group only to sort them; compute it in a subquery and sort by its column",
            )  # fmt: skip
        return call

    def _harvest(self, block: Block, call: Call, keys: list[Any], frame: Frame) -> str:
        columns = [f"{KEY}{i}" for i in range(len(keys))]
        inner = frame.select(
            [exp.alias_(key.copy(), name) for key, name in zip(keys, columns, strict=True)]
        )
        extra: list[str] = []
        if call.spec.per_row:
            window = exp.Window(
                this=exp.RowNumber(), partition_by=[key.copy() for key in keys] if keys else None
            )
            inner.append("expressions", exp.alias_(window, NUMBER))
            extra = [NUMBER]
        order = prompt_order(call.spec, len(keys))
        query = self._wrap(inner, columns, extra, order, self._earlier(call.spec))
        harvest = self._bound(block, query, call)
        return self._host.answer(call, Harvest(harvest, (*columns, *extra), tables_in(harvest)))

    def _wrap(
        self,
        inner: Any,
        columns: list[str],
        extra: list[str],
        order: list[int],
        answered: tuple[str, ...],
    ) -> Callable[[Any], Any]:
        """What makes the harvest of `inner`, or of a query that gives the same columns."""

        def wrap(source: Any) -> Any:
            query = exp.select(*(exp.column(name) for name in [*columns, *extra]))
            query = query.from_(
                exp.Subquery(this=source, alias=exp.to_identifier("halo_h")), copy=False
            )
            if not extra:
                query = query.distinct(copy=False)
            for name in columns:
                query = query.where(
                    exp.Not(this=exp.Is(this=exp.column(name), expression=exp.null())), copy=False
                )
            for table in answered:
                same = [
                    exp.EQ(this=exp.column(c, table), expression=exp.column(c, "halo_h"))
                    for c in columns
                ]
                found = exp.select(exp.Literal.number(1)).from_(table_of(table), copy=False)
                found.where(*same, copy=False)
                query.where(exp.Not(this=exp.Exists(this=found)), copy=False)
            return query.order_by(*(exp.column(columns[i]) for i in order), *extra, copy=False)

        wrap.inner = inner  # type: ignore[attr-defined]
        return wrap

    def _bound(self, block: Block, wrap: Any, call: Call) -> str:
        """The text of a harvest that DuckDB can bind: of the block alone, or, when the block looks
        at columns of a query around it, of the block beside the rows of that query."""
        inner = wrap.inner
        reasons: list[str] = []
        scope = block.scope
        source = inner
        while True:
            text = str(self._with(wrap(source.copy()), block.scope.ctes).sql("duckdb"))
            reason = self._host.binds(text)
            if not reason:
                return text
            reasons.append(reason)
            if scope.outer is None:
                break
            source = self._beside(source, scope)
            scope = scope.outer.scope
        raise self._host.unbound(reasons[0], call.offset)

    def _beside(self, inner: Any, scope: Scope) -> Any:
        outer = scope.outer
        assert outer is not None
        select = outer.select
        from_ = select.args.get("from_")
        joins = list(select.args.get("joins") or [])
        names = [each.alias_or_name for each in inner.expressions]
        query = exp.select(*(exp.column(name, "halo_l") for name in names))
        lateral = exp.Lateral(
            this=exp.Subquery(this=inner), alias=exp.TableAlias(this=exp.to_identifier("halo_l"))
        )
        if scope.lateral:
            # A derived table sees what is before it.
            joins = joins[: joins.index(scope.place)] if scope.place in joins else []
            where = None
        else:
            where = select.args.get("where")
        if from_ is None or (scope.lateral and scope.place is from_):
            return query.from_(lateral, copy=False)
        query.set("from_", from_.copy())
        query.set("joins", [without_calls(each, self._free) for each in joins])
        query = query.join(lateral, join_type="CROSS", copy=False)
        conditions: list[Any] = []
        if scope.root is not None and not scope.lateral:
            ready = self._ready_condition(pre=True)
            guards = guards_of(scope.place, scope.root, ready, self._is_aggregate)
            conditions += [guard.condition for guard in guards]
            if where is not None and scope.root is not where and is_inner(select):
                conditions += [c.copy() for c in conjuncts(where.this) if self._free(c)]
        for condition in conditions:
            query = query.where(condition, copy=False)
        return query

    def _with(self, query: Any, ctes: Sequence[Any]) -> Any:
        """`query` with those of the named queries around it that it needs."""
        needed: list[Any] = []
        names = {each.name.lower() for each in query.find_all(exp.Table)}
        for cte in reversed(list(ctes)):
            if cte.alias.lower() in names:
                needed.insert(0, cte.copy())
                names |= {each.name.lower() for each in cte.find_all(exp.Table)}
        if needed:
            recursive = any(
                cte.parent is not None and cte.parent.args.get("recursive") for cte in ctes
            )
            query.set("with_", exp.With(expressions=needed, recursive=recursive or None))
        return query

    def _chain(self, block: Block, where: Any) -> None:
        """Filters that are parts of WHERE, over each other: the planner chooses which comes first,
        and LIMIT stops them early."""
        parts = conjuncts(where.this)
        members: list[tuple[Any, Call, bool]] = []
        others = 0
        for part in parts:
            node, negated = plain_part(part)
            if not self._calls_in(part):
                continue
            if isinstance(node, exp.Anonymous) and self._lifter.is_call(node):
                call = self._lift(node)
                simple = (
                    call.spec.function == "AI_FILTER"
                    and call.on_error == "null"
                    and not call.spec.per_row
                    and call.spec.cascade is None
                    and call.args
                    and not any(self._calls_in(each) for each in call.args)
                )
                if simple:
                    members.append((part, call, negated))
                    continue
            others += 1
        limit = None if others or self._later_calls(block, where) else self._row_limit(block)
        if limit is not None and (
            "slice-limits" not in self._host.rules or limit > MAX_SLICED_LIMIT
        ):
            limit = None
        if not members or (len(members) == 1 and limit is None):
            return
        if len(members) > 1 and limit is None and "order-predicates" not in self._host.rules:
            return
        self._filter_rows(block, where, members, limit)

    def _later_calls(self, block: Block, where: Any) -> bool:
        """Whether calls outside WHERE may still drop rows before LIMIT counts them."""
        return any(
            self._calls_in(each)
            for name, each in clauses(block.select)
            if name in ("qualify", "having", "group", "limit", "offset")
        )

    def _row_limit(self, block: Block) -> int | None:
        """The rows that LIMIT needs, when any of the rows that pass will do."""
        select = block.select
        if block.grouped or any(
            select.args.get(each) for each in ("order", "distinct", "qualify", "group", "having")
        ):
            return None
        if any(has_window(each) for each in select.expressions) or is_unnesting(select):
            return None
        return limit_rows(select)

    def _filter_rows(
        self, block: Block, where: Any, members: list[tuple[Any, Call, bool]], limit: int | None
    ) -> None:
        calls = [call for _, call, _ in members]
        keys: list[Any] = []
        columns: list[tuple[str, ...]] = []
        texts: dict[str, int] = {}
        for call in calls:
            names: list[str] = []
            for key in keys_of(call):
                text = key.sql("duckdb")
                if text not in texts:
                    texts[text] = len(keys)
                    keys.append(key)
                names.append(f"{KEY}{texts[text]}")
            columns.append(tuple(names))
        for call in calls:
            self._check_arguments(call, None)
        chained = [part for part, _, _ in members]
        guards = [
            Guard(part.copy(), True)
            for part in conjuncts(where.this)
            if not any(part is each for each in chained) and self._free(part)
        ]
        if "push-predicates" not in self._host.rules:
            guards = []
            limit = None
        frame = Frame(block.select, [*guards, *self._pushed(block)], self._free)
        all_columns = [f"{KEY}{i}" for i in range(len(keys))]
        inner = frame.select(
            [exp.alias_(key.copy(), name) for key, name in zip(keys, all_columns, strict=True)]
        )

        def wrap(source: Any) -> Any:
            query = exp.select(*(exp.column(name) for name in all_columns))
            query = query.from_(
                exp.Subquery(this=source, alias=exp.to_identifier("halo_h")), copy=False
            )
            for name in all_columns:
                query = query.where(
                    exp.Not(this=exp.Is(this=exp.column(name), expression=exp.null())), copy=False
                )
            if limit is None:
                query = query.distinct(copy=False).order_by(
                    *(exp.column(name) for name in all_columns), copy=False
                )
            return query

        wrap.inner = inner  # type: ignore[attr-defined]
        text = self._bound(block, wrap, calls[0])
        table = self._host.keep(
            Chain(
                tuple(call.spec for call in calls),
                tuple(columns),
                tuple(negated for _, _, negated in members),
                limit,
            ),
            calls,
            Harvest(text, tuple(all_columns), tables_in(text)),
        )
        kept: Any
        if limit is not None:
            # No join: rows keep the order of the scan, so that what is harvested for the rows that
            # LIMIT keeps is what the statement itself keeps.
            columns_of = exp.func(
                "row", *(exp.column(n, table) for n in all_columns), dialect="duckdb"
            )
            listed = exp.Subquery(
                this=exp.select(exp.ArrayAgg(this=columns_of)).from_(table_of(table), copy=False)
            )
            row = exp.func("row", *(key.copy() for key in keys), dialect="duckdb")
            kept = exp.func("list_contains", listed, row, dialect="duckdb")
        else:
            conditions = [
                exp.EQ(this=exp.column(name, table), expression=key.copy())
                for name, key in zip(all_columns, keys, strict=True)
            ]
            found = exp.select(exp.Literal.number(1)).from_(table_of(table), copy=False)
            kept = exp.Exists(this=found.where(*conditions, copy=False))
        chained[0].replace(kept)
        for part in chained[1:]:
            part.replace(exp.true())
