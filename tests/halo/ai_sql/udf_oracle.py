"""The oracle: the same statement with its AI calls as DuckDB functions, called row by row.

Shares nothing with the splitter or the executor: it lifts the calls, registers one Python function
for each, and lets DuckDB run the statement as it was written. The functions answer what the
simulated engine answers, by asking its answer function directly.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import duckdb
from sqlglot import exp

from halo.ai_sql.calls import Call, CallSpec
from halo.ai_sql.chunking import chunks
from halo.ai_sql.embedding import simulated_embedding
from halo.ai_sql.lift import Lifter
from halo.ai_sql.questions import answer_op, prompt_of
from halo.ai_sql.statements import read_batch
from planner.logical import (
    Choose,
    Column,
    Compare,
    Const,
    Field,
    Generate,
    Json,
    Op,
    Param,
    Reduce,
    Scan,
)
from runtime.backends.base import Message, Request
from runtime.backends.simulated import SimulatedBackend, render_prompt
from runtime.clock import LoopClock


class Engine:
    """The simulated engine's answers without the engine. `calls` counts what was asked of it."""

    def __init__(self, seed: int = 0) -> None:
        loop = asyncio.new_event_loop()
        try:
            self._backend = loop.run_until_complete(self._make(seed))
        finally:
            loop.close()
        self.calls = 0

    async def _make(self, seed: int) -> SimulatedBackend:
        return SimulatedBackend("any", LoopClock(), seed=seed)

    def ask(self, op: Generate | Choose, values: Sequence[Json]) -> Json:
        """The value of one call; raises ValueError where the answer does not fit."""
        messages = [Message("user", op.prompt.render(values))]
        if op.system is not None:
            messages.insert(0, Message("system", op.system.render(values)))
        schema = op.schema_json if isinstance(op, Generate) else None
        options = op.options if isinstance(op, Choose) else ()
        request = Request(
            "", op.model or "simulated", tuple(messages), op.max_tokens, schema_json=schema,
            options=options,
        )  # fmt: skip
        self.calls += 1
        text, finish, _ = self._backend._answer(request, render_prompt(request))
        if schema is None:
            return text
        if finish == "length":
            raise ValueError("cut")
        value: Json = json.loads(text)
        return value


def evaluate(op: Op, inputs: Mapping[Op, Json], engine: Engine) -> Json:
    """The value of an operator graph over known inputs."""
    if op in inputs:
        return inputs[op]
    values = [evaluate(each, inputs, engine) for each in op.inputs]
    match op:
        case Generate() | Choose():
            return engine.ask(op, values)
        case Const():
            return op.value
        case Compare(operator="=="):
            return values[0] == values[1]
        case Field(key=key):
            found = values[0]
            assert isinstance(found, dict)
            return found[str(key)]
        case Reduce(body=body, fan_in=fan_in):
            items = values[0]
            assert isinstance(items, list)
            level = 0
            while level == 0 or len(items) > 1:
                groups = [items[i : i + fan_in] for i in range(0, len(items), fan_in)]
                items = [
                    group[0]
                    if level and len(group) == 1
                    else evaluate(body.result, {Param((), 0): group}, engine)
                    for group in groups
                ]
                level += 1
            return items[0]
    raise AssertionError(op)


class Oracle:
    """Runs statements with UDFs on a DuckDB connection that has the tables. A UDF is a function of
    its arguments, so what it answered once is remembered; `asked` counts every use all the same."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, seed: int = 0) -> None:
        self._connection = connection
        self._engine = Engine(seed)
        self._registered: dict[CallSpec, str] = {}
        self._answers: dict[tuple[CallSpec, tuple[str, ...]], tuple[str | None, int]] = {}
        self.asked = 0

    def run(self, text: str) -> list[tuple[Any, ...]]:
        """The rows of one SELECT."""
        (statement,) = read_batch(text)
        holder = exp.Subquery(this=statement.query.copy())
        lifter = Lifter(text, lambda name: True, lambda name: "")
        for node in list(holder.find_all(exp.Anonymous)):
            if str(node.this).upper() == "ZZ_SIMILARITY":
                node.replace(lifter.similarity(node))
        for table in list(holder.find_all(exp.Table)):
            if isinstance(table.this, exp.Anonymous) and str(table.this.this) == "ZZ_CHUNKS":
                raise AssertionError("chunks in FROM have no oracle")
        while True:
            calls = [
                node
                for node in holder.find_all(exp.Anonymous)
                if lifter.is_call(node)
                and not any(
                    n is not node and isinstance(n, exp.Anonymous) and lifter.is_call(n)
                    for n in node.walk()
                )
            ]
            if not calls:
                break
            self._replace(lifter.lift(calls[0]))
        return self._connection.sql(holder.this.sql("duckdb")).fetchall()

    def _replace(self, call: Call) -> None:
        spec = call.spec
        name = self._register(call)
        if spec.is_aggregate:
            text = f"CAST(({call.args[0].sql('duckdb')}) AS VARCHAR)"
            order = (
                ", ".join(each.sql("duckdb") for each in call.order.expressions)
                if call.order is not None
                else ""
            )
            order = f"{order}, {text}" if order else text
            node = call.node
            condition = f"{text} IS NOT NULL"
            if isinstance(node.parent, exp.Filter):
                node = node.parent
                condition = f"({node.expression.this.sql('duckdb')}) AND {condition}"
            gathered = f"list({text} ORDER BY {order}) FILTER (WHERE {condition})"
            replacement = f"{name}(to_json({gathered})::VARCHAR)"
            call.node = node
        else:
            args = ", ".join(f"CAST(({each.sql('duckdb')}) AS VARCHAR)" for each in call.args)
            replacement = f"{name}({args})"
        kind = spec.type
        import sqlglot

        text = f"CAST(CAST({replacement} AS JSON) AS {kind})"
        if kind in ("VARCHAR", "BOOLEAN", "DOUBLE"):
            text = f"CAST({replacement} AS {kind})"
        node = call.node
        if isinstance(node.parent, exp.Select) and node.arg_key == "expressions":
            text += ' AS "out"'
        node.replace(sqlglot.parse_one(text, read="duckdb"))

    def _register(self, call: Call) -> str:
        spec = call.spec
        if spec in self._registered:
            return self._registered[spec]
        name = self._registered[spec] = f"udf_{len(self._registered)}"
        scan = Scan((), "rows", tuple(f"a{i}" for i in range(max(1, spec.n_args))))
        args = [Column((scan,), f"a{i}") for i in range(spec.n_args)]
        engine = self._engine
        is_tool = spec.function in ("AI_EMBED", "AI_CHUNKS")
        asked = Const() if is_tool else answer_op(spec, args)

        def answer(*values: str) -> str | None:
            known = self._answers.get((spec, values))
            if known is None:
                before = engine.calls
                value = compute(values)
                uses = 1 if is_tool else engine.calls - before
                known = self._answers[spec, values] = value, uses
            self.asked += known[1]
            return known[0]

        def compute(values: tuple[str, ...]) -> str | None:
            if spec.function == "AI_EMBED":
                return json.dumps(simulated_embedding(prompt_of(spec).render(values)))
            if spec.function == "AI_CHUNKS":
                settings = {key: int(number) for key, number in spec.settings}
                return json.dumps(chunks(values[0], **settings))
            given: dict[Op, Json] = dict(zip(args, values, strict=True))
            if spec.is_aggregate:
                given = {args[0]: json.loads(values[0])}
            try:
                value = evaluate(asked, given, engine)
            except ValueError:
                return None
            if isinstance(value, str):
                return value
            return json.dumps(value, ensure_ascii=False)

        n = 1 if spec.is_aggregate else spec.n_args
        fixed: Any = {
            0: lambda: answer(),
            1: lambda a: answer(a),
            2: lambda a, b: answer(a, b),
            3: lambda a, b, c: answer(a, b, c),
        }[n]
        kinds: Any = ["VARCHAR"] * n
        self._connection.create_function(name, fixed, kinds, "VARCHAR")  # type: ignore[arg-type]
        return name


def same_rows(left: Sequence[Sequence[Any]], right: Sequence[Sequence[Any]]) -> bool:
    """Whether two results hold the same rows, in any order; numbers to nine digits."""
    return Counter(map(canonical, left)) == Counter(map(canonical, right))


def canonical(row: Sequence[Any]) -> str:
    """A row as text, equal for equal rows."""
    return repr([_plain(value) for value in row])


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return "nan" if math.isnan(value) else float(f"{value:.9g}")
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return value
