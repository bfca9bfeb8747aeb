"""Random plans of every operator, bodies included, for property tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st

from planner.logical import (
    Agent,
    Body,
    Choose,
    Collect,
    Column,
    Compare,
    Const,
    Effect,
    Field,
    Filter,
    Flatten,
    Format,
    Generate,
    Group,
    Limit,
    LogicalPlan,
    Loop,
    Map,
    Op,
    Ordered,
    Pairs,
    Param,
    Project,
    Prompt,
    Recover,
    Reduce,
    Ref,
    Relation,
    Result,
    Scan,
    Sort,
    Sql,
    SqlRows,
    Tool,
    ToolRef,
    When,
)

TEXTS = st.text(max_size=12)
NAMES = st.sampled_from(["a", "b", "long name", "ü", "{{x}}"])
LABELS = st.sampled_from(["", "pro", "judge", "step 1"])
JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
SCHEMAS = st.sampled_from([None, '{"type":"integer"}', '{"enum":["x","y"],"type":"string"}'])
Draw = Callable[[st.SearchStrategy[Any]], Any]


class _Ids:
    """Call ids, each once in a plan."""

    def __init__(self) -> None:
        self.count = 0

    def next(self) -> str:
        self.count += 1
        return f"plan/{self.count}"


@st.composite
def plans(draw: Draw) -> LogicalPlan:
    """A legal plan of one to three queries, over a scan and the relations made from it."""
    ids = _Ids()
    columns = tuple(draw(st.lists(NAMES, min_size=1, max_size=3, unique=True)))
    base: Relation = Scan((), "rows:0", columns)
    rows: list[tuple[Relation, list[Op]]] = []
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        available: list[Op] = [
            Column((base,), name, label=draw(LABELS)) for name in base.column_names
        ]
        available.append(Const.of(draw(JSON_VALUES)))
        _grow(draw, available, ids, depth=2, steps=draw(st.integers(1, 8)))
        subset = _subset(draw, base, available)
        rows.append((subset, available))
        base = _derived(draw, subset, available, ids)
    names = draw(st.lists(NAMES, min_size=1, max_size=3, unique=True))
    outputs: list[tuple[str, Result]] = []
    for name in names:
        relation, available = draw(st.sampled_from(rows))
        outputs.append((name, Result((draw(st.sampled_from(available)), relation))))
    return LogicalPlan(tuple(outputs))


def _subset(draw: Draw, base: Relation, available: Sequence[Op]) -> Relation:
    rows = base
    for _ in range(draw(st.integers(0, 2))):
        if draw(st.booleans()):
            rows = Filter((rows, draw(st.sampled_from(available))), label=draw(LABELS))
        else:
            rows = Limit((rows,), draw(st.integers(0, 5)), draw(st.integers(0, 2)))
    return rows


def _derived(draw: Draw, rows: Relation, available: Sequence[Op], ids: _Ids) -> Relation:
    """A relation made of `rows` and some of their values."""
    values = _some(draw, available, 1)
    columns = tuple(f"c{i}" for i in range(len(values)))
    match draw(st.integers(0, 5)):
        case 0:
            return Collect(
                (rows, *values), columns, draw(st.just(()) | st.just(("",) * len(values)))
            )
        case 1:
            position = draw(st.sampled_from(["", "at"]))
            named = (*columns, position) if position else columns
            return Flatten((rows, *values), named, position)
        case 2:
            others = tuple(f"d{i}" for i in range(len(values)))
            on = draw(st.sampled_from([(), (("c0", "d0"),)]))
            return Pairs((rows, rows, *values, *values), (*columns, *others), len(values), on)
        case 3:
            return Group((rows, *values), columns, draw(st.integers(0, len(values))))
        case 4:
            return Sort((rows, *values), columns, (draw(st.sampled_from(["", "-"])) + "c0",))
        case _:
            kind = draw(st.sampled_from(["pure", "volatile", "write"]))
            return SqlRows(
                (rows, Const.of(1)),
                text="SELECT a, b FROM t WHERE a > $least",
                columns=("a", "b"),
                tables=("t",),
                params=("least",),
                read_only=kind != "write",
                volatile=kind == "volatile",
                call_id="" if kind == "pure" else ids.next(),
            )


def _grow(draw: Draw, available: list[Op], ids: _Ids, depth: int, steps: int) -> None:
    makers = _MAKERS if depth else _MAKERS[:-1]
    for _ in range(steps):
        maker = draw(st.sampled_from(makers))
        available.append(maker(draw, available, ids, depth))


def _some(draw: Draw, available: Sequence[Op], least: int = 0) -> tuple[Op, ...]:
    return tuple(draw(st.lists(st.sampled_from(available), min_size=least, max_size=3)))


def _prompt(draw: Draw, inputs: Sequence[Op]) -> Prompt:
    piece: st.SearchStrategy[Any] = TEXTS
    if inputs:
        piece = TEXTS | st.builds(Ref, st.integers(0, len(inputs) - 1))
    return Prompt(tuple(draw(st.lists(piece, max_size=4))))


def _tool_ref(draw: Draw) -> ToolRef:
    effect = draw(st.sampled_from(list(Effect)))
    return ToolRef(f"tool_{effect.value}", "digest", effect)


def _cheap(draw: Draw, available: Sequence[Op], ids: _Ids, depth: int) -> Op:
    label = draw(LABELS)
    one = (draw(st.sampled_from(available)),)
    match draw(st.integers(0, 7)):
        case 0:
            return Const.of(draw(JSON_VALUES), label)
        case 1:
            return Field(one, draw(NAMES | st.integers(-3, 3)), label=label)
        case 2:
            inputs = _some(draw, available)
            return Format(inputs, _prompt(draw, inputs), label=label)
        case 3:
            inputs = _some(draw, available)
            names = tuple(f"n{i}" for i in range(len(inputs)))
            return Project(inputs, names, label=label)
        case 4:
            operator = draw(st.sampled_from(["==", "!=", "<", "<=", ">", ">=", "in", "and", "or"]))
            nulls = draw(st.booleans())
            return Compare((*one, draw(st.sampled_from(available))), operator, nulls, label=label)
        case 5:
            return Compare(one, draw(st.sampled_from(["not", "truthy", "is_null"])), label=label)
        case 6:
            return Recover(one, draw(st.booleans()), label=label)
        case _:
            return Ordered(one, after=_some(draw, available, 1), label=label)


def _model_call(draw: Draw, available: Sequence[Op], ids: _Ids, depth: int) -> Op:
    inputs = _some(draw, available)
    temperature = draw(st.sampled_from([0.0, 0, 0.7]))
    shared: dict[str, Any] = {
        "inputs": inputs,
        "model": draw(st.sampled_from(["", "small"])),
        "prompt": _prompt(draw, inputs),
        "system": draw(st.none() | st.just(Prompt(("Be brief.",)))),
        "max_tokens": draw(st.integers(1, 500)),
        "temperature": temperature,
        "top_p": draw(st.sampled_from([1.0, 0.9])),
        "label": draw(LABELS),
    }
    kind = draw(st.integers(0, 2))
    if kind == 2:
        agent_tools = tuple(dict.fromkeys(_tool_ref(draw) for _ in range(draw(st.integers(0, 2)))))
        quiet = not temperature and all(t.effect is Effect.PURE for t in agent_tools)
        return Agent(
            **shared,
            call_id="" if quiet else ids.next(),
            tools=agent_tools,
            max_turns=draw(st.integers(1, 9)),
            schema_json=draw(SCHEMAS),
        )
    call_id = ids.next() if temperature else ""
    if kind == 1:
        options = draw(st.lists(TEXTS, min_size=2, max_size=4, unique=True))
        return Choose(**shared, call_id=call_id, options=tuple(options))
    stop = tuple(draw(st.lists(TEXTS, max_size=2)))
    return Generate(**shared, call_id=call_id, schema_json=draw(SCHEMAS), stop=stop)


def _outside_call(draw: Draw, available: Sequence[Op], ids: _Ids, depth: int) -> Op:
    inputs = _some(draw, available)
    after = _some(draw, available)
    params = tuple(f"p{i}" for i in range(len(inputs)))
    if draw(st.booleans()):
        tool = _tool_ref(draw)
        call_id = "" if tool.effect is Effect.PURE else ids.next()
        return Tool(inputs, tool, params, call_id, after=after, label=draw(LABELS))
    read_only = draw(st.booleans())
    written_by_model = read_only and bool(inputs) and draw(st.booleans())
    return Sql(
        inputs,
        database=draw(st.sampled_from(["", "shop.duckdb"])),
        text=None if written_by_model else "SELECT 1",
        params=params[1:] if written_by_model else params,
        max_rows=draw(st.integers(1, 50)),
        read_only=read_only,
        call_id="" if read_only else ids.next(),
        after=after,
    )


def _with_body(draw: Draw, available: Sequence[Op], ids: _Ids, depth: int) -> Op:
    inputs = _some(draw, available, 1)
    label = draw(LABELS)
    n = len(inputs)
    match draw(st.integers(0, 3)):
        case 0:
            return Map(inputs, _body(draw, n, ids, depth), label=label)
        case 1:
            body = _body(draw, n, ids, depth)
            return Reduce(inputs, body, draw(st.integers(2, 20)), label=label)
        case 2:
            then, otherwise = _body(draw, n - 1, ids, depth), _body(draw, n - 1, ids, depth)
            return When(inputs, then, otherwise, label=label)
        case _:
            condition, step = _body(draw, n, ids, depth), _body(draw, n, ids, depth)
            return Loop(inputs, condition, step, draw(st.integers(1, 9)), label=label)


def _body(draw: Draw, n_params: int, ids: _Ids, depth: int) -> Body:
    inside: list[Op] = [Param((), i) for i in range(n_params)] or [Const.of(draw(JSON_VALUES))]
    _grow(draw, inside, ids, depth - 1, draw(st.integers(0, 3)))
    return Body(n_params, draw(st.sampled_from(inside)))


_MAKERS = (_cheap, _model_call, _outside_call, _with_body)
