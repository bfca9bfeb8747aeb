"""SQL as a node: parameters instead of formatted text, model-written queries, databases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel

import halo
from halo.errors import WorkflowError
from planner.logical import Effect, Field, Sql
from planner.verify import verify

lm = halo.Model("m")
db = halo.sql.readonly("shop.duckdb")


class Query(BaseModel):
    sql: str


def value_of(function: Callable[..., Any]) -> Any:
    plan = halo.workflow(function).trace("rows", ["q"]).plan
    verify(plan)
    return plan.outputs[0][1].value


def test_values_are_parameters() -> None:
    op = value_of(lambda q: halo.sql("SELECT * FROM d WHERE a = $t AND b = $n", t=q, n=3))
    assert isinstance(op, Sql)
    assert (op.database, op.params, op.read_only) == ("", ("n", "t"), True)
    assert op.effect is Effect.PURE and op.text == "SELECT * FROM d WHERE a = $t AND b = $n"


def test_a_parameter_may_be_called_text() -> None:
    op = value_of(lambda q: halo.sql("SELECT $text", text=q))
    assert isinstance(op, Sql) and op.params == ("text",)


def test_formatting_a_value_into_a_query_is_refused() -> None:
    with pytest.raises(WorkflowError, match=r"\$name"):
        value_of(lambda q: halo.sql(f"SELECT * FROM d WHERE a = '{q}'"))
    with pytest.raises(WorkflowError, match=r"\$name"):
        value_of(lambda q: db.query(f"{q} LIMIT 3"))


def test_a_wholly_lazy_text_is_sql_that_a_model_wrote() -> None:
    op = value_of(lambda q: db.query(lm.gen(q, out=Query).sql, max_rows=50))
    assert isinstance(op, Sql) and op.text is None
    assert (op.database, op.max_rows, op.read_only) == ("shop.duckdb", 50, True)
    assert isinstance(op.inputs[0], Field)
    same = value_of(lambda q: db.query(f"{lm.gen(q, out=Query).sql}", max_rows=50))
    assert same == op


def test_parameters_are_checked_against_the_text() -> None:
    with pytest.raises(WorkflowError, match=r"names \$t"):
        value_of(lambda q: halo.sql("SELECT $t"))
    with pytest.raises(WorkflowError, match="does not use the parameters u"):
        value_of(lambda q: halo.sql("SELECT $t", t=q, u=1))
    text = "SELECT '$a', \"$b\", $$ $c $$, $x$ $d $x$ -- $e\n /* $f */ , $t"
    assert isinstance(value_of(lambda q: halo.sql(text, t=q)), Sql)


def test_rows_are_lists_of_dicts() -> None:
    op = value_of(lambda q: halo.sql("SELECT 1 AS one")[0]["one"])
    assert isinstance(op, Field) and op.key == "one"
    assert value_of(lambda q: halo.map(lambda row: row["a"], halo.sql("SELECT 1 AS a")))
    with pytest.raises(WorkflowError, match=r"halo\.map"):
        value_of(lambda q: [row for row in halo.sql("SELECT 1")])  # noqa: C416


def test_the_bound_of_rows() -> None:
    with pytest.raises(WorkflowError, match="max_rows"):
        value_of(lambda q: db.query("SELECT 1", max_rows=0))
