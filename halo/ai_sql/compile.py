"""From statements to the logical plan: harvests are `SqlRows`, calls are model operators over their
columns, answers are `Collect`ed into the tables that look-ups read, and the rest is one `SqlRows`.

Tables are named after their content, so that equal work of different statements has equal texts
and becomes one operator when the batch is merged.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from sqlglot import exp

from halo.ai_sql import label_join
from halo.ai_sql.access import check_target
from halo.ai_sql.bind_errors import bind_error
from halo.ai_sql.calls import Call, CallSpec
from halo.ai_sql.cascade import cascade_rows
from halo.ai_sql.errors import SqlError
from halo.ai_sql.host import ERROR, KEY, NUMBER, VALUE, Chain, Harvest
from halo.ai_sql.lift import Lifter
from halo.ai_sql.literals import offset_of
from halo.ai_sql.questions import answer_op, prompt_of
from halo.ai_sql.split import Splitter
from halo.ai_sql.statements import Statement
from halo.ai_sql.targets import is_there, nothing_of, why_not_insert
from halo.ai_sql.trees import place_of, tables_in
from halo.ai_sql.types import quoted
from halo.ai_sql.workflows import inline
from halo.flow import Flow, Traced
from planner.logical import (
    Collect,
    Column,
    Compare,
    Const,
    Effect,
    Field,
    Filter,
    Format,
    Limit,
    LogicalPlan,
    Op,
    Project,
    Recover,
    Relation,
    Result,
    SqlRows,
    Tool,
    ToolRef,
)
from runtime.tools import ToolSpec

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

RULES: tuple[str, ...] = (
    "push-predicates",  # plain conditions restrict what is harvested, through subqueries too
    "guard-branches",  # CASE, OR, COALESCE and FILTER restrict it further
    "prune-outputs",  # calls whose output nobody reads are not made
    "order-predicates",  # filters of one WHERE are a chain that the planner may reorder
    "slice-limits",  # LIMIT stops the filters before it early
    "limit-harvest",  # calls in the select list are made for the rows that LIMIT keeps
)
"""What the splitter does beside what it must; each can be switched off by name."""

UNSAFE_RULES: tuple[str, ...] = ("join-as-labels",)
"""Rules that change the text a model sees: off unless asked for."""


@dataclass(frozen=True)
class Compiled:
    """One statement, compiled.

    Attributes:
        plan: its one output has one row: the number of result rows, which stay in DuckDB.
        columns: (name, DuckDB type) of the result.
        tools: what the plan names.
        calls: the AI calls, in the order in which they are answered.
    """

    statement: Statement
    plan: LogicalPlan
    columns: tuple[tuple[str, str], ...]
    tools: Mapping[str, ToolSpec]
    calls: tuple[CallSpec, ...]
    warnings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.statement.name

    def trace(self, source: str, columns: Sequence[str]) -> Traced:
        """A statement is a `Flow`: its rows are its own."""
        return Traced(self.plan, self.tools)


@dataclass
class Setting:
    """What statements are compiled with.

    Attributes:
        text: the whole batch, for positions.
        cursor: a connection to bind with; its temporary tables stand for answers.
        model: the default model; "" leaves it to the session.
        context_tokens: of a model, None when unknown.
        check_model: the reason why a model cannot be used, or "".
        workflows: for AI_RUN, by name.
        document_tool, embed_tool, chunk_tool: tools that read documents, embed and cut texts.
    """

    text: str
    cursor: DuckDBPyConnection
    model: str = ""
    rules: frozenset[str] = frozenset(RULES)
    knows_model: Callable[[str], bool] = lambda name: False
    check_model: Callable[[str], str] = lambda name: ""
    context_tokens: Callable[[str], int | None] = lambda name: None
    workflows: Mapping[str, Flow] = field(default_factory=dict[str, Flow])
    tools: Mapping[str, ToolSpec] = field(default_factory=dict[str, ToolSpec])
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    aggregates: frozenset[str] = frozenset()
    resumed: bool = False
    """Whether the batch goes on with a run, which may have written its tables already."""
    written: set[str] = field(default_factory=set[str])
    """Tables that earlier statements write."""


def compile_statement(statement: Statement, setting: Setting) -> Compiled:
    """The plan of one statement. Raises `SqlError`."""
    return _Compiler(statement, setting).run()


class _Compiler:
    """Plans the calls of one statement: the splitter's host."""

    def __init__(self, statement: Statement, setting: Setting) -> None:
        self.rules = setting.rules
        self._statement = statement
        self._setting = setting
        self._tables: dict[str, Relation] = {}
        self._tools: dict[str, ToolSpec] = {}
        self._calls: list[CallSpec] = []
        self._sampled: dict[CallSpec, int] = {}
        self._lifter = Lifter(
            setting.text,
            setting.knows_model,
            setting.check_model,
            tuple(setting.workflows),
            dict(setting.options),
        )

    def run(self) -> Compiled:
        statement = self._statement
        splitter = Splitter(self, self._lifter)
        tree = splitter.split(self._query().copy())
        text = tree.sql("duckdb")
        columns = self._describe(text)
        final = self._final(tree, text)
        rows = Project((Column((final,), "rows"),), ("rows",))
        plan = LogicalPlan(((statement.name, Result((rows, final), label=statement.name)),))
        return Compiled(
            statement,
            plan,
            columns,
            dict(sorted(self._tools.items())),
            tuple(self._calls),
            tuple(dict.fromkeys(self._lifter.warnings)),
        )

    def _query(self) -> Any:
        """The query inside the statement; one for no rows where the statement will do nothing."""
        statement, setting = self._statement, self._setting
        tree = statement.tree
        if (
            statement.kind != "create"
            or setting.resumed
            or tree.args.get("replace")
            or not is_there(tree, setting.cursor)
        ):
            return statement.query
        if tree.args.get("exists"):
            self._lifter.warnings.append(
                f"there is a table {statement.target!r}: nothing is asked or written"
            )
            return nothing_of(tree)
        raise SqlError(
            "S003",
            f"there is a table {statement.target!r} already; write CREATE OR REPLACE TABLE, or "
            "INSERT INTO",
            text=setting.text, offset=offset_of(tree.find(exp.Table)),
        )  # fmt: skip

    def _final(self, tree: Any, text: str) -> SqlRows:
        """What is left of the statement, run once. A SELECT keeps its rows under its name."""
        statement = self._statement
        reads = tables_in(text)
        inputs = tuple(self._tables[name] for name in reads)
        if statement.kind == "select":
            return SqlRows(
                inputs, text=text, columns=("rows",), tables=reads, into=statement.name,
                label=statement.name,
            )  # fmt: skip
        whole = statement.tree.copy()
        inner = whole.this if statement.kind == "copy" else whole
        if statement.kind == "copy":
            check_target(statement.tree, self._setting.text)
            inner.set("this", tree)
        else:
            whole.set("expression", tree)
        op = SqlRows(
            inputs, text=whole.sql("duckdb"), columns=("rows",), tables=reads, read_only=False,
            label=statement.name,
        )  # fmt: skip
        to_check = statement.kind == "insert" and statement.target not in self._setting.written
        if to_check and (reason := why_not_insert(op.text, self._setting.cursor)):
            raise self.unbound(reason)
        if statement.target:
            self._setting.written.add(statement.target)
            self._stub(statement.target, text)
        return op

    def _stub(self, name: str, text: str) -> None:
        """An empty table of the target's columns, so that later statements can be bound."""
        if self._statement.kind == "create":
            self._setting.cursor.execute(
                f"CREATE OR REPLACE TEMP TABLE {quoted(name)} AS SELECT * FROM ({text}) LIMIT 0"
            )

    def _describe(self, text: str) -> tuple[tuple[str, str], ...]:
        import duckdb

        try:
            found = self._setting.cursor.sql(text)
        except duckdb.Error as error:
            raise self.unbound(str(error)) from None
        return tuple((str(n), str(t)) for n, t in zip(found.columns, found.types, strict=True))

    # --- the splitter's host ---------------------------------------------------------------------

    def binds(self, text: str) -> str:
        import duckdb

        try:
            self._setting.cursor.sql(text)
        except duckdb.PermissionException as error:
            raise self.unbound(str(error)) from None
        except duckdb.Error as error:
            return str(error)
        return ""

    def unbound(self, reason: str, offset: int = -1) -> SqlError:
        found = self._setting.cursor.sql(
            "SELECT table_name FROM duckdb_tables() WHERE table_name NOT LIKE 'halo_%' "
            "UNION SELECT view_name FROM duckdb_views() WHERE NOT internal"
        )
        tables = [str(name) for (name,) in found.fetchall()]
        text = self._setting.text
        place = place_of(reason, text, offset, start=self._statement.offset)
        return bind_error(reason, text, tables, place)

    def is_aggregate(self, name: str) -> bool:
        return name in self._setting.aggregates

    def errors_table(self) -> str:
        return "halo_errors"

    def document_table(self, pattern: str, offset: int) -> str:
        from halo.ai_sql.documents import TOOL, check_pattern, document_rows

        check_pattern(pattern, self._setting.text, offset)
        tool = self._setting.tools[TOOL]
        self.use_tool(tool)
        return self.add_table("doc", document_rows(pattern, tool))

    def answer(self, call: Call, harvest: Harvest) -> str:
        spec = self._with_model(call.spec)
        self._calls.append(spec)
        rows = self._rows(harvest)
        args = [Column((rows,), f"{KEY}{i}") for i in range(spec.n_args)]
        numbered = NUMBER in harvest.columns
        source: Relation = rows
        keys: list[Op] = [Column((rows,), name) for name in harvest.columns]
        key_type = "VARCHAR[]" if spec.is_aggregate else "VARCHAR"
        types = [*(key_type for _ in keys), spec.type, "VARCHAR"]
        if numbered:
            types[len(keys) - 1] = "BIGINT"
        outcome: tuple[Op, Op]
        if call.joins and label_join.RULE in self.rules and label_join.applies(spec, call.on_error):
            source, keys, *both = label_join.labelled_pairs(spec, rows, harvest.columns, self)
            outcome = both[0], both[1]
        else:
            if spec.cascade is not None:
                value, source, keys = cascade_rows(spec, rows, harvest.columns, self)
            else:
                value = self._value(spec, args)
            detail = Recover((value,), detail=True)
            outcome = Field((detail,), "value"), Field((detail,), "error")
            if call.on_error == "fail":
                outcome = value, Const.of(None)
        answers = Collect(
            (source, *keys, *outcome), (*harvest.columns, VALUE, ERROR), tuple(types),
            label=spec.label,
        )  # fmt: skip
        return self.add_table("ai", answers)

    def keep(self, chain: Chain, calls: Sequence[Call], harvest: Harvest) -> str:
        base = self._rows(harvest)
        kept: Relation = base
        for spec, columns, negated in zip(chain.specs, chain.columns, chain.negated, strict=True):
            spec = self._with_model(spec)
            self._calls.append(spec)
            answer = self._value(spec, [Column((base,), name) for name in columns])
            predicate = Recover((Compare((answer,), "not") if negated else answer,))
            kept = Filter((kept, predicate), label=spec.label)
        if chain.limit is not None:
            kept = Limit((kept,), chain.limit)
        keys = [Column((base,), name) for name in harvest.columns]
        answers = Collect((kept, *keys), harvest.columns, tuple("VARCHAR" for _ in keys))
        return self.add_table("ai", answers)

    # --- operators -------------------------------------------------------------------------------

    def _rows(self, harvest: Harvest) -> SqlRows:
        inputs = tuple(self._tables[name] for name in harvest.reads)
        return SqlRows(inputs, text=harvest.text, columns=harvest.columns, tables=harvest.reads)

    def use_tool(self, tool: ToolSpec) -> None:
        """The plan calls `tool`."""
        self._tools[tool.name] = tool

    def add_table(self, prefix: str, relation: Collect) -> str:
        """Name a table after its content, and let texts that read it be bound."""
        digest = hashlib.sha256(relation.fingerprint.encode()).hexdigest()[:12]
        name = f"halo_{prefix}_{digest}"
        if name not in self._tables:
            self._tables[name] = relation
            columns = ", ".join(
                f"{quoted(column)} {kind}"
                for column, kind in zip(relation.columns, relation.types, strict=True)
            )
            self._setting.cursor.execute(f"CREATE TEMP TABLE IF NOT EXISTS {name} ({columns})")
        return name

    def _value(self, spec: CallSpec, args: Sequence[Op], model: str | None = None) -> Op:
        if spec.function == "AI_RUN":
            return self._workflow(spec, args)
        if spec.function in ("AI_EMBED", "AI_CHUNKS"):
            return self._tool(spec, args)
        # A sampled call is shared within its statement and not beyond.
        key = f"{self._statement.name}/{spec.function}:{spec_digest(spec)}"
        context = self._setting.context_tokens(model or spec.model)
        return answer_op(spec, args, model=model, key=key, context_tokens=context)

    def _with_model(self, spec: CallSpec) -> CallSpec:
        model = self._setting.options.get("model") or self._setting.model
        return replace(spec, model=model) if not spec.model and model else spec

    def _tool(self, spec: CallSpec, args: Sequence[Op]) -> Op:
        from planner.logical import Const

        name = "halo_embed" if spec.function == "AI_EMBED" else "halo_chunk"
        tool = self._setting.tools[name]
        self.use_tool(tool)
        text = Format(tuple(args), prompt_of(spec)) if spec.segments != (0,) else args[0]
        inputs: list[Op] = [text]
        params = ["text"]
        if spec.function == "AI_EMBED":
            inputs.append(Const.of(spec.model))
            params.append("model")
        for setting, number in spec.settings:
            inputs.append(Const.of(int(number)))
            params.append(setting)
        return Tool(
            tuple(inputs), tool=ToolRef(name, tool.digest, Effect.PURE), params=tuple(params),
            label=spec.label, fresh=not spec.cache,
        )  # fmt: skip

    def _workflow(self, spec: CallSpec, args: Sequence[Op]) -> Op:
        value, tools = inline(
            spec, self._setting.workflows[spec.workflow], args, self._setting.text
        )
        self._tools.update(tools)
        return value


def spec_digest(spec: CallSpec) -> str:
    """What two written calls of one statement have in common when they are one call."""
    return hashlib.sha256(repr(spec).encode()).hexdigest()[:16]


__all__ = ["RULES", "UNSAFE_RULES", "Compiled", "Setting", "compile_statement"]
