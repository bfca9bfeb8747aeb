"""Splitting: a statement becomes harvests, calls and look-ups; DuckDB runs ordinary SQL only.

For every query block, innermost first: pick the next call whose arguments hold no call; *harvest*
the distinct arguments that can matter, with a query made of the block's own FROM and the conditions
that are free of calls; have them answered; *substitute* a look-up in the answers for the call. When
no call is left, what remains is the statement to run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from sqlglot import exp

from halo.sql.block import (
    clauses,
    has_window,
    is_inner,
    is_volatile,
    join_side,
    output_names,
    own_nodes,
    subqueries,
)
from halo.sql.calls import Call, CallSpec
from halo.sql.errors import SqlError
from halo.sql.functions import FOREIGN, MASKED
from halo.sql.guards import Guard, conjuncts, guards_of
from halo.sql.lift import Lifter, literal, offset_of
from halo.sql.types import quoted

KEY, VALUE, ERROR, NUMBER = "halo_k", "halo_v", "halo_e", "halo_n"
"""Columns of answer tables: arguments (numbered), answer, error, and the number of a row among
those with equal arguments (for `sample := 'per_row'`)."""


MAX_SLICED_LIMIT = 1000
"""LIMITs above this do not stop filters early: rows are compared with a list of so many."""


@dataclass(frozen=True)
class Harvest:
    """A query for the inputs of a call. `columns` are its own, `reads` the answer tables in it."""

    text: str
    columns: tuple[str, ...]
    reads: tuple[str, ...]


@dataclass(frozen=True)
class Chain:
    """Filters of one conjunction over the same rows: `specs[i]` takes the columns `columns[i]`,
    `negated[i]` says whether false is wanted. `limit`: rows that are enough, None for all."""

    specs: tuple[CallSpec, ...]
    columns: tuple[tuple[str, ...], ...]
    negated: tuple[bool, ...]
    limit: int | None = None


class Host(Protocol):
    """What the splitter needs: someone who plans the calls, and DuckDB to bind texts."""

    rules: frozenset[str]

    def answer(self, call: Call, harvest: Harvest) -> str:
        """Plan the call for every row of the harvest; the name of its answer table."""
        ...

    def keep(self, chain: Chain, calls: Sequence[Call], harvest: Harvest) -> str:
        """Plan a conjunction of filters; the name of the table of the rows that pass."""
        ...

    def document_table(self, pattern: str, offset: int) -> str:
        """Plan the reading of documents; the name of their table."""
        ...

    def errors_table(self) -> str:
        """The name of the table of the errors of the statements before this one."""
        ...

    def binds(self, text: str) -> str:
        """Why DuckDB cannot bind a query; empty when it can."""
        ...

    def is_aggregate(self, name: str) -> bool:
        """Whether a function name is an aggregate of DuckDB."""
        ...


@dataclass
class _Scope:
    """What a block sees of the statement around it."""

    ctes: list[Any] = field(default_factory=list[Any])
    outer: _Block | None = None
    place: Any = None
    """The query node inside the outer block that this scope is for, and the clause it stands in."""
    root: Any = None
    lateral: bool = False


@dataclass
class _Block:
    select: exp.Select
    scope: _Scope
    conditions: list[Any]
    grouped: bool = False
    pending: list[Call] = field(default_factory=list[Call])
    answered: dict[tuple[CallSpec, tuple[str, ...]], str] = field(
        default_factory=dict[tuple[CallSpec, "tuple[str, ...]"], str]
    )


class Splitter:
    """Splits one statement. `split` changes the tree that it is given."""

    def __init__(self, host: Host, lifter: Lifter) -> None:
        self._host = host
        self._lifter = lifter
        self._root: Any = None

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
        self._query(holder.this, _Scope(), [])
        if left := self._calls_in(holder):
            raise self._refuse("S200", left[0], "this place is not supported for an AI function")
        return holder.this

    # --- sources ---------------------------------------------------------------------------------

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

    # --- queries ---------------------------------------------------------------------------------

    def _query(self, query: Any, scope: _Scope, conditions: list[Any]) -> None:
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
                    cte.this, _Scope(list(ctes), scope.outer, scope.place, scope.root), pushed
                )
                ctes.append(cte)
        inner = _Scope(ctes, scope.outer, scope.place, scope.root, scope.lateral)
        if isinstance(query, exp.Select):
            self._block(_Block(query, inner, conditions))
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

    def _block(self, block: _Block) -> None:
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

    def _from(self, block: _Block) -> None:
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
                scope = _Scope(block.scope.ctes, block, item, item, lateral=True)
                self._query(query, scope, pushed)
            # Calls in a table function, such as unnest(ai_chunks(text)).
            while pending := self._ready_calls(source):
                self._one(block, "from", item, pending[0])

    def _clause(self, block: _Block, name: str, root: Any) -> None:
        def inside() -> Any:
            # What a join is with has been seen to already.
            return root.args.get("on") if isinstance(root, exp.Join) else root

        if inside() is None:
            return
        for query in subqueries(inside()):
            self._query(query, _Scope(block.scope.ctes, block, query, root), [])
        if name == "where":
            self._chain(block, root)
        while pending := self._ready_calls(inside()):
            self._one(block, name, root, pending[0])

    # --- calls -----------------------------------------------------------------------------------

    def _calls_in(self, root: Any) -> list[Any]:
        return [
            node
            for node in root.walk()
            if isinstance(node, exp.Anonymous) and self._lifter.is_call(node)
        ]

    def _calls_in_block(self, select: exp.Select) -> list[Any]:
        found: list[Any] = []
        for _, root in clauses(select):
            found += [
                n
                for n in own_nodes(root)
                if isinstance(n, exp.Anonymous) and self._lifter.is_call(n)
            ]
        return found

    def _ready_calls(self, root: Any) -> list[Any]:
        """Calls of this block whose arguments hold no call, in the order in which to ask: tests of
        CASE before arms, plain calls before those under OR and CASE, as written otherwise."""
        if root is None:
            return []
        ready: list[Any] = []
        for node in own_nodes(root):
            if not isinstance(node, exp.Anonymous) or not self._lifter.is_call(node):
                continue
            inner = [
                n
                for each in node.expressions
                for n in each.walk()
                if isinstance(n, exp.Anonymous) and self._lifter.is_call(n)
            ]
            if not inner:
                ready.append(node)
        # The condition of an aggregate's FILTER guards what the aggregate is of.
        return sorted(ready, key=lambda node: 0 if _in_filter(node) else 1)

    def _one(self, block: _Block, clause: str, root: Any, node: Any) -> None:
        """Answer one call and put a look-up in its place."""
        call = self._lift(node)
        frame = self._frame(block, clause, root, call)
        self._check_arguments(call, frame)
        keys = self._keys(call)
        identity = (call.spec, tuple(key.sql("duckdb") for key in keys))
        known = block.answered.get(identity)
        if known is None or call.spec.per_row:
            known = self._harvest(block, call, keys, frame)
            if frame.lasting:
                block.answered[identity] = known
        self._substitute(call, keys, known, frame)

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

    def _keys(self, call: Call) -> list[Any]:
        """The arguments as the harvest selects them and the look-up compares them."""
        if call.spec.is_aggregate:
            return [self._gathered(call)]
        if call.spec.function == "AI_RUN":
            return [
                _as_text(exp.Anonymous(this="to_json", expressions=[each.copy()]))
                for each in call.args
            ]
        return [_as_text(each) for each in call.args] or [exp.Literal.string("")]

    def _gathered(self, call: Call) -> Any:
        """`AI_AGG(x ORDER BY o) FILTER (WHERE f)` as the list that it is asked about. The order of
        the list is fixed, or the same group would be another question in another run."""
        text = _as_text(call.args[0])
        order = call.order.expressions if call.order is not None else None
        ordered = [each.copy() for each in order or [exp.Ordered(this=text.copy())]]
        if order is not None:
            ordered.append(exp.Ordered(this=text.copy()))
        condition: Any = exp.Not(this=exp.Is(this=text.copy(), expression=exp.null()))
        if call.filter is not None:
            condition = exp.and_(exp.paren(call.filter.this.copy()), condition)
        gathered = exp.ArrayAgg(this=exp.Order(this=text, expressions=ordered))
        return exp.Filter(this=gathered, expression=exp.Where(this=condition))

    def _harvest(self, block: _Block, call: Call, keys: list[Any], frame: _Frame) -> str:
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
        order = _prompt_order(call.spec, len(keys))
        query = self._wrap(inner, columns, extra, order, frame)
        harvest = self._bound(block, query, call)
        return self._host.answer(call, Harvest(harvest, (*columns, *extra), tables_in(harvest)))

    def _wrap(
        self, inner: Any, columns: list[str], extra: list[str], order: list[int], frame: _Frame
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
            return query.order_by(*(exp.column(columns[i]) for i in order), *extra, copy=False)

        wrap.inner = inner  # type: ignore[attr-defined]
        return wrap

    def _bound(self, block: _Block, wrap: Any, call: Call) -> str:
        """The text of a harvest that DuckDB can bind: of the block alone, or, when the block looks
        at columns of a query around it, of the block beside the rows of that query."""
        inner = wrap.inner
        reasons: list[str] = []
        scope: _Scope | None = block.scope
        source = inner
        while scope is not None:
            text = self._with(wrap(source.copy()), block.scope.ctes).sql("duckdb")
            reason = self._host.binds(text)
            if not reason:
                return text
            reasons.append(reason)
            if scope.outer is None:
                break
            source = self._beside(source, scope)
            scope = scope.outer.scope
        raise SqlError(
            "S003", reasons[0], text=self._lifter.text,
            offset=_place_of(reasons[0], self._lifter.text, call.offset),
        )  # fmt: skip

    def _beside(self, inner: Any, scope: _Scope) -> Any:
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
        query.set("joins", [_without_calls(each, self._free) for each in joins])
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

    # --- substitution ----------------------------------------------------------------------------

    def _substitute(self, call: Call, keys: list[Any], table: str, frame: _Frame) -> None:
        where = [
            exp.EQ(this=exp.column(f"{KEY}{i}", table, quoted=False), expression=key.copy())
            for i, key in enumerate(keys)
        ]
        value: Any = exp.column(VALUE, table)
        if call.on_error == "detail":
            message = exp.Dot(
                this=exp.column(ERROR, table), expression=exp.to_identifier("message")
            )
            value = exp.Struct(
                expressions=[
                    exp.PropertyEQ(this=exp.to_identifier("value"), expression=value),
                    exp.PropertyEQ(this=exp.to_identifier("error"), expression=message),
                ]
            )
        if call.spec.per_row:
            value = exp.ArrayAgg(
                this=exp.Order(
                    this=value, expressions=[exp.Ordered(this=exp.column(NUMBER, table))]
                )
            )
        if frame.checked:
            value = exp.Struct(
                expressions=[exp.PropertyEQ(this=exp.to_identifier("v"), expression=value)]
            )
        lookup: Any = exp.Subquery(
            this=exp.select(value).from_(_table(table), copy=False).where(*where, copy=False)
        )
        if frame.checked:
            missing = exp.or_(*(exp.Is(this=key.copy(), expression=exp.null()) for key in keys))
            failed = exp.func(
                "error",
                exp.Literal.string(f"Halo did not harvest an input of {call.spec.label}: a defect"),
                dialect="duckdb",
            )
            found = exp.Coalesce(this=lookup, expressions=[failed])
            lookup = exp.Case(
                ifs=[exp.If(this=missing, true=exp.null())],
                default=exp.Dot(this=exp.paren(found), expression=exp.to_identifier("v")),
            )
            lookup = exp.paren(lookup)
        if call.spec.per_row:
            window = exp.Window(this=exp.RowNumber(), partition_by=[key.copy() for key in keys])
            lookup = exp.Anonymous(this="list_extract", expressions=[lookup, window])
        call.node.replace(lookup)

    # --- chains ----------------------------------------------------------------------------------

    def _chain(self, block: _Block, where: Any) -> None:
        """Filters that are parts of WHERE, over each other: the planner chooses which comes first,
        and LIMIT stops them early."""
        parts = conjuncts(where.this)
        members: list[tuple[Any, Call, bool]] = []
        others = 0
        for part in parts:
            node, negated = _plain(part)
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

    def _later_calls(self, block: _Block, where: Any) -> bool:
        """Whether calls outside WHERE may still drop rows before LIMIT counts them."""
        return any(
            self._calls_in(each)
            for name, each in clauses(block.select)
            if name in ("qualify", "having", "group", "limit", "offset")
        )

    def _row_limit(self, block: _Block) -> int | None:
        """The rows that LIMIT needs, when any of the rows that pass will do."""
        select = block.select
        if block.grouped or any(
            select.args.get(each) for each in ("order", "distinct", "qualify", "group", "having")
        ):
            return None
        if any(has_window(each) for each in select.expressions) or is_unnesting(select):
            return None
        return _limit_rows(select)

    def _filter_rows(
        self, block: _Block, where: Any, members: list[tuple[Any, Call, bool]], limit: int | None
    ) -> None:
        calls = [call for _, call, _ in members]
        keys: list[Any] = []
        columns: list[tuple[str, ...]] = []
        texts: dict[str, int] = {}
        for call in calls:
            names: list[str] = []
            for key in self._keys(call):
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
        frame = _Frame(block.select, [*guards, *self._pushed(block)], self._free)
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
                this=exp.select(exp.ArrayAgg(this=columns_of)).from_(_table(table), copy=False)
            )
            row = exp.func("row", *(key.copy() for key in keys), dialect="duckdb")
            kept = exp.func("list_contains", listed, row, dialect="duckdb")
        else:
            conditions = [
                exp.EQ(this=exp.column(name, table), expression=key.copy())
                for name, key in zip(all_columns, keys, strict=True)
            ]
            found = exp.select(exp.Literal.number(1)).from_(_table(table), copy=False)
            kept = exp.Exists(this=found.where(*conditions, copy=False))
        chained[0].replace(kept)
        for part in chained[1:]:
            part.replace(exp.true())

    # --- frames ----------------------------------------------------------------------------------

    def _frame(self, block: _Block, clause: str, root: Any, call: Call) -> _Frame:
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
            return _Frame(select, [], self._free, before=root, lasting=False)
        if clause == "join":
            if join_side(root) or not is_inner(select):
                own = [guard for guard in guards if not guard.lasting]
                if "push-predicates" in rules:
                    own += self._outer_guards(select, root)
                return _Frame(select, own, self._free, join=root, lasting=False)
            pushed = self._pushed(block)
            if "push-predicates" in rules:
                pushed += self._where_guards(select)
            # What holds of the whole condition stands in the join already.
            own = [guard for guard in guards if not guard.lasting]
            return _Frame(select, [*own, *pushed], self._free, lasting=lasting)
        if clause == "where":
            return _Frame(select, [*guards, *self._pushed(block)], self._free, lasting=lasting)
        pushed = [*guards, *self._pushed(block)]
        frame = _Frame(select, pushed, self._free, whole_where=True, lasting=lasting)
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

    def _limited(self, block: _Block, frame: _Frame, call: Call) -> None:
        """Projections are needed for the rows that LIMIT keeps alone."""
        select = block.select
        rows = _limit_rows(select)
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
        if where is not None and any(not _is_list(query) for query in subqueries(where)):
            # A join: its order may depend on what else is selected.
            return False
        if any(has_window(each) for each in select.expressions) or select.args.get("group"):
            return False
        table = from_.this
        name = table.alias or table.name
        inner = exp.select("*").from_(_named(table, name), copy=False)
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

    def _where_guards(self, select: exp.Select) -> list[Guard]:
        where = select.args.get("where")
        if where is None:
            return []
        return [Guard(c.copy(), True) for c in conjuncts(where.this) if self._free(c)]

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
            if kept or (one_side and _rejects_null(condition)):
                found.append(Guard(condition.copy(), False))
        return found

    def _pushed(self, block: _Block) -> list[Guard]:
        return [Guard(condition.copy(), True) for condition in block.conditions]

    def _free(self, node: Any) -> bool:
        """Whether a condition can be evaluated now: it holds no call, and always answers alike."""
        return not self._calls_in(node) and not is_volatile(node)

    def _ready_condition(self, pre: bool) -> Callable[[Any], bool]:
        def ready(node: Any) -> bool:
            if not self._free(node) or has_window(node):
                return False
            return not pre or not any(self._is_aggregate(each) for each in own_nodes(node))

        return ready

    def _is_aggregate(self, node: Any) -> bool:
        if isinstance(node, exp.AggFunc):
            return not isinstance(node.parent, exp.Window)
        if isinstance(node, exp.Anonymous) and not isinstance(node.parent, exp.Window):
            return self._host.is_aggregate(str(node.this).lower()) or (
                str(node.this).upper() in ("ZZ_AGG", "ZZ_SUMMARIZE_AGG", "ZZM_REDUCE")
            )
        return False

    def _is_grouped(self, select: exp.Select) -> bool:
        if select.args.get("group") or select.args.get("having"):
            return True
        roots = [root for name, root in clauses(select) if name in ("select", "order", "qualify")]
        return any(self._is_aggregate(node) for root in roots for node in own_nodes(root))

    def _is_pre(self, block: _Block, clause: str, call: Call) -> bool:
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

    # --- pruning and pushing ---------------------------------------------------------------------

    def _prune(self, block: _Block) -> None:
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
            targets = [
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
            items = [from_] if from_ is not None else []
            for item in [*items, *(query.args.get("joins") or [])]:
                source = item.this
                if isinstance(source, exp.Subquery) and source.alias == alias:
                    return query, {alias.lower()}
                if isinstance(source, exp.Table) and source.name.lower() == alias.lower():
                    return query, {(source.alias or source.name).lower()}
        return None

    def _aggregates(self, root: Any) -> bool:
        return any(self._is_aggregate(node) for node in own_nodes(root))

    # --- checks ----------------------------------------------------------------------------------

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
                if name == "select" and _inside(column, target):
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

    def _check_place(self, node: Any, block: _Block) -> None:
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
            if not plain or (frame is not None and frame.grouped) or self._is_grouped(holder):
                raise self._refuse(
                    "S207", call.node,
                    "sample := 'per_row' is for the select list of a query without groups",
                )  # fmt: skip

    def _refuse(self, code: str, node: Any, message: str) -> SqlError:
        name = ""
        if isinstance(node, exp.Anonymous):
            name = MASKED.get(str(node.this).upper(), str(node.this).upper())
            name = FOREIGN.get(name, name) + ": "
        return SqlError(code, f"{name}{message}", text=self._lifter.text, offset=offset_of(node))


@dataclass
class _Frame:
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
            joins = [] if self.before is from_ else joins[: _index(joins, self.before)]
        elif self.join is not None:
            joins = joins[: _index(joins, self.join) + 1]
        copied = [_without_calls(each, self.free) for each in joins]
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


def _prompt_order(spec: CallSpec, n_keys: int) -> list[int]:
    """Argument numbers in the order in which the prompt shows them: rows that share what comes
    first stand together, which is what a prefix cache wants."""
    shown = [each for each in spec.segments if isinstance(each, int) and each < n_keys]
    return list(dict.fromkeys([*shown, *range(n_keys)]))


def _rejects_null(condition: Any) -> bool:
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


def _named(table: exp.Table, name: str) -> exp.Table:
    """A table under the name that its columns are written with."""
    copied = table.copy()
    if not copied.alias:
        copied.set("alias", exp.TableAlias(this=exp.to_identifier(name)))
    return copied


def _is_list(query: Any) -> bool:
    """Whether a subquery is the one list that a limited chain compares with."""
    inner = query.this if isinstance(query, exp.Subquery) else query
    return isinstance(inner, exp.Select) and isinstance(inner.expressions[0], exp.ArrayAgg)


def _in_filter(node: Any) -> bool:
    where = node.find_ancestor(exp.Where, exp.Select)
    return isinstance(where, exp.Where) and isinstance(where.parent, exp.Filter)


def _table(name: str) -> Any:
    return exp.Table(this=exp.to_identifier(name))


def _as_text(node: Any) -> Any:
    """`CAST((node) AS VARCHAR)`."""
    kind = exp.DataType(this=exp.DataType.Type.VARCHAR)
    return exp.Cast(this=exp.Paren(this=node.copy()), to=kind)


def _plain(part: Any) -> tuple[Any, bool]:
    """A conjunct without its parentheses and one NOT."""
    negated = False
    while isinstance(part, exp.Paren | exp.Not):
        negated ^= isinstance(part, exp.Not)
        part = part.this
    return part, negated


def _limit_rows(select: exp.Select) -> int | None:
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


def _without_calls(join: Any, free: Callable[[Any], bool]) -> Any:
    """A join with the parts of its condition that can be evaluated."""
    copied = join.copy()
    on = join.args.get("on")
    if on is not None and not free(on):
        ready = [each.copy() for each in conjuncts(on) if free(each)]
        copied.set("on", exp.and_(*ready) if ready else exp.true())
    return copied


def _index(items: Sequence[Any], item: Any) -> int:
    return next(i for i, each in enumerate(items) if each is item)


def _inside(node: Any, root: Any) -> bool:
    while node is not None:
        if node is root:
            return True
        node = node.parent
    return False


def _place_of(reason: str, text: str, default: int) -> int:
    """Where in the text the name that a binder error talks about stands."""
    import re

    for name in re.findall(r'"([^"]+)"', reason.partition("LINE ")[0]):
        found = re.search(rf"(?<![\w]){re.escape(name)}(?![\w])", text, re.IGNORECASE)
        if found:
            return found.start()
    return default


__all__ = ["ERROR", "KEY", "NUMBER", "VALUE", "Chain", "Harvest", "Host", "Splitter", "quoted"]
