"""What tells the calls of a query apart: the values of expressions over its parameters, where the
query knows no more of them (`planner.sql_parameters`).

DuckDB computes the values, for each distinct tuple of parameters once, on the query's own
connection. While an evaluation is under way, further tuples gather; the next takes all of them.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from planner.logical import Json, Sql, canonical_json
from planner.sql_parameters import (
    NUMBER,
    TYPE,
    VALUE,
    ParameterExpressions,
    parameter_expressions,
)
from runtime.errors import ToolError
from runtime.sql_batches import Ask

MAX_TUPLES = 64
"""Tuples of one evaluation, which has a SELECT for each."""

EXACT_TYPES = re.compile(
    r"VARCHAR|BOOLEAN|U?(TINYINT|SMALLINT|INTEGER|BIGINT|HUGEINT)|DECIMAL\(\d+,\d+\)"
    r"|FLOAT|DOUBLE|DATE|TIME|TIMESTAMP|INTERVAL"
)
"""Types, as DuckDB names them, of which different values are printed differently."""


@dataclass(slots=True)
class _Shape:
    """The same expressions over the same parameters, in whichever texts: what is known of tuples of
    parameters, by their JSON, and who waits for it."""

    use: ParameterExpressions
    known: dict[str, Json] = field(default_factory=dict[str, Json])
    waiting: dict[str, list[asyncio.Future[Json]]] = field(
        default_factory=dict[str, list[asyncio.Future[Json]]]
    )
    params: dict[str, Mapping[str, Json]] = field(default_factory=dict[str, Mapping[str, Json]])
    task: asyncio.Task[None] | None = None


class QueryKeys:
    """The keys of the queries of a run. Use it in one event loop."""

    def __init__(self) -> None:
        self._shapes: dict[tuple[str, tuple[str, ...], tuple[str, ...]], _Shape] = {}

    async def asked(self, op: Sql, params: Mapping[str, Json], ask: Ask) -> Json:
        """What a call of `op` with `params` asks: equal for calls that have equal answers. None
        when the parameters alone tell, because the text uses them as they are, or because an
        expression fails, is null or has a type that does not print exactly. `ask` runs a query on
        the operator's database."""
        use = parameter_expressions(op.text or "")
        if use is None or use.params != tuple(sorted(params)) or _has_nested(params):
            return None
        loop = asyncio.get_running_loop()
        place = (op.database, use.params, use.expressions)
        shape = self._shapes.setdefault(place, _Shape(use))
        name = canonical_json(dict(params))
        if name not in shape.known:
            told: asyncio.Future[Json] = loop.create_future()
            shape.waiting.setdefault(name, []).append(told)
            shape.params[name] = params
            if shape.task is None:
                shape.task = loop.create_task(self._serve(shape, ask))
            await told
        values = shape.known[name]
        if values is None:
            return None
        return {
            "text": op.text,
            "params": {kept: params[kept] for kept in use.kept},
            "expressions": values,
            "max_rows": op.max_rows,
        }

    async def close(self) -> None:
        """End evaluations that nobody waits for any more."""
        tasks = [shape.task for shape in self._shapes.values() if shape.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, shape: _Shape, ask: Ask) -> None:
        """Evaluate until nobody waits."""
        try:
            while shape.waiting:
                names = list(islice(shape.waiting, MAX_TUPLES))
                tuples = [shape.params[name] for name in names]
                failure: Exception | None = None
                try:
                    values = await _evaluate(shape.use, tuples, ask)
                    shape.known.update(zip(names, values, strict=True))
                except Exception as error:
                    failure = error
                for name in names:
                    del shape.params[name]
                    for told in shape.waiting.pop(name):
                        if told.done():
                            continue
                        if failure is None:
                            told.set_result(None)
                        else:
                            told.set_exception(failure)
        finally:
            shape.task = None
            for told in (each for waiting in shape.waiting.values() for each in waiting):
                told.cancel()
            shape.waiting.clear()


async def _evaluate(
    use: ParameterExpressions, tuples: Sequence[Mapping[str, Json]], ask: Ask
) -> list[Json]:
    """The values of the expressions for each tuple, as `{expression: [type, value]}`; None for a
    tuple whose parameters must tell."""
    text, params = use.evaluation(tuples)
    try:
        rows = await ask(text, params, len(tuples))
    except ToolError:
        if len(tuples) == 1:
            return [None]
        # One of them may be at fault, or all together be too large.
        return [(await _evaluate(use, [each], ask))[0] for each in tuples]
    found: list[Json] = [None] * len(tuples)
    for row in rows:
        assert isinstance(row, dict)
        number = row[NUMBER]
        assert isinstance(number, int)
        values: dict[str, Json] = {}
        for place, expression in enumerate(use.expressions):
            type_, value = row[f"{TYPE}{place}"], row[f"{VALUE}{place}"]
            if isinstance(type_, str) and EXACT_TYPES.fullmatch(type_) and value is not None:
                values[expression] = [type_, value]
        if len(values) == len(use.expressions):
            found[number] = values
    return found


def _has_nested(params: Mapping[str, Json]) -> bool:
    """Whether a parameter is one that no query takes."""
    return any(
        isinstance(value, dict)
        or (isinstance(value, list) and any(isinstance(item, dict | list) for item in value))
        for value in params.values()
    )
