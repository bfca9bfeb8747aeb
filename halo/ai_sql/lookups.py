"""How a call's arguments are harvested, and the look-up that takes its place afterwards."""

from __future__ import annotations

from typing import Any

from sqlglot import exp

from halo.ai_sql.calls import Call
from halo.ai_sql.frames import Frame
from halo.ai_sql.host import ERROR, KEY, NUMBER, VALUE
from halo.ai_sql.trees import as_text, table_of


def keys_of(call: Call) -> list[Any]:
    """The arguments as the harvest selects them and the look-up compares them."""
    if call.spec.is_aggregate:
        return [gathered_list(call)]
    if call.spec.function == "AI_RUN":
        return [
            as_text(exp.Anonymous(this="to_json", expressions=[each.copy()])) for each in call.args
        ]
    return [as_text(each) for each in call.args] or [exp.Literal.string("")]


def gathered_list(call: Call) -> Any:
    """`AI_AGG(x ORDER BY o) FILTER (WHERE f)` as the list that it is asked about. The order of
    the list is fixed, or the same group would be another question in another run."""
    text = as_text(call.args[0])
    order = call.order.expressions if call.order is not None else None
    ordered = [each.copy() for each in order or [exp.Ordered(this=text.copy())]]
    if order is not None:
        ordered.append(exp.Ordered(this=text.copy()))
    condition: Any = exp.Not(this=exp.Is(this=text.copy(), expression=exp.null()))
    if call.filter is not None:
        condition = exp.and_(exp.paren(call.filter.this.copy()), condition)
    gathered = exp.ArrayAgg(this=exp.Order(this=text, expressions=ordered))
    return exp.Filter(this=gathered, expression=exp.Where(this=condition))


def substitute(call: Call, keys: list[Any], tables: tuple[str, ...], frame: Frame) -> None:
    table = tables[-1]
    source: Any = table_of(table)
    if len(tables) > 1:
        table = "halo_a"
        parts = [exp.select("*").from_(table_of(each), copy=False) for each in tables]
        source = exp.Subquery(
            this=exp.union(*parts, distinct=False, copy=False), alias=exp.to_identifier(table)
        )
    where = [
        exp.EQ(this=exp.column(f"{KEY}{i}", table, quoted=False), expression=key.copy())
        for i, key in enumerate(keys)
    ]
    value: Any = exp.column(VALUE, table)
    if call.on_error == "detail":
        message = exp.column(ERROR, table)
        value = exp.Struct(
            expressions=[
                exp.PropertyEQ(this=exp.to_identifier("value"), expression=value),
                exp.PropertyEQ(this=exp.to_identifier("error"), expression=message),
            ]
        )
    if call.spec.per_row:
        value = exp.ArrayAgg(
            this=exp.Order(this=value, expressions=[exp.Ordered(this=exp.column(NUMBER, table))])
        )
    if frame.checked:
        value = exp.Struct(
            expressions=[exp.PropertyEQ(this=exp.to_identifier("v"), expression=value)]
        )
    lookup: Any = exp.Subquery(
        this=exp.select(value).from_(source, copy=False).where(*where, copy=False)
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
