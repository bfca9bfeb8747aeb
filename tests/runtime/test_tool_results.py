"""Arguments and results of tools: what a tool is given, and which values it may return."""

from __future__ import annotations

import dataclasses
import datetime
import enum
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tool_desk import Desk, once, pure, run, site, write

from planner.logical import Json, render_value
from runtime.errors import ToolError


def json_values() -> st.SearchStrategy[Json]:
    leaves = (
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    )
    return st.recursive(
        leaves | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=5,
    )


def test_the_idempotency_key_is_equal_for_a_repeated_call_and_differs_by_row() -> None:
    schema = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
    spec = write(lambda x, idempotency_key: idempotency_key, parameters=schema)

    async def main() -> list[Json]:
        rows = (0, 1, 0)  # the last one is another process, which repeats row 0
        return [(await Desk(spec).call("f", row, x=1)).value for row in rows]

    first, second, repeated = run(main)
    assert first == repeated != second
    assert isinstance(first, str)
    assert len(first) == 32


class Color(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Point:
    x: int
    when: datetime.date


class Model(pydantic.BaseModel):
    at: datetime.datetime


def itself() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


def repeated() -> list[Any]:
    """A small value in memory, which is 10**12 texts as JSON."""
    value: list[Any] = ["x" * 1000]
    for _ in range(12):
        value = [value] * 10
    return value


@pytest.mark.parametrize(
    ("result", "value"),
    [
        (Point(1, datetime.date(2024, 1, 2)), {"x": 1, "when": "2024-01-02"}),
        (Model(at=datetime.datetime(2024, 1, 2)), {"at": "2024-01-02T00:00:00"}),  # noqa: DTZ001
        ((1, [Color.RED]), [1, ["red"]]),
        ({"a": None, "b": True}, {"a": None, "b": True}),
    ],
)
def test_results_become_json(result: Any, value: Json) -> None:
    assert once(pure(lambda: result)) == value


@pytest.mark.parametrize("runs", ["in a thread", "on the loop"])
def test_the_value_of_a_generator_is_what_it_yields(runs: str) -> None:
    def rows(n: int) -> Iterator[Any]:
        yield from ({"day": datetime.date(2026, 1, day + 1)} for day in range(n))

    async def rows_async(n: int) -> AsyncIterator[Any]:
        for row in rows(n):
            yield row

    function = rows if runs == "in a thread" else rows_async
    assert once(pure(function), n=2) == [{"day": "2026-01-01"}, {"day": "2026-01-02"}]
    assert once(pure(function), n=0) == []


def test_an_endless_generator_ends_at_the_size_of_a_result() -> None:
    closed: list[bool] = []

    def endless() -> Iterator[str]:
        try:
            while True:
                yield "x" * 1_000_000
        finally:
            closed.append(True)

    with pytest.raises(ToolError, match="at most 10,000,000"):
        once(pure(endless, retries=0))
    assert closed


def test_a_listener_hears_the_rows_of_every_attempt_and_of_no_abandoned_one() -> None:
    attempts: list[int] = []

    def flaky(q: str) -> Iterator[str]:
        attempts.append(1)
        yield q
        if len(attempts) == 1:
            raise OSError("once")
        yield "é"

    async def main() -> None:
        desk, heard = Desk(pure(flaky)), list[str]()
        record = await desk.runner.call("f", {"q": "a"}, site(), lambda s: heard.append(s.text))
        assert heard == ['["a"', '["a"', '["a", "é"']
        assert render_value(record.value).startswith(heard[-1])
        # A replayed or shared value has no rows to come.
        await desk.runner.call("f", {"q": "a"}, site(1), lambda s: heard.append(s.text))
        assert len(heard) == 3

    run(main)


@given(st.lists(json_values(), max_size=4))
def test_rows_read_as_the_beginning_of_their_value(values: list[Json]) -> None:
    async def main() -> None:
        desk, heard = Desk(pure(lambda: (v for v in values))), list[str]()
        record = await desk.runner.call("f", {}, site(), lambda s: heard.append(s.text))
        assert len(heard) == len(values)
        assert all(render_value(record.value).startswith(text) for text in heard)

    run(main)


@pytest.mark.parametrize(
    ("result", "says"),
    [
        (Path("a"), "Path, which is no JSON value"),
        ({"a": [1.0, float("nan")]}, r"nan at a\[1\]"),
        (float("inf"), "inf"),
        ({1: "a"}, "int key 1"),
        (object(), "a object"),
        ({1, 2}, "a set"),
        (b"x", "a bytes"),
        ("x" * 10_000_001, "at most 10,000,000"),
        (["é" * 4_000_000, "é" * 4_000_000], "16,000,0.. bytes of JSON; at most 10,000,000"),
        (itself(), "nested too deeply"),
        (repeated(), "more than 10,000,000 bytes"),
        ([1 << 20_000], r"a number of 20,001 bits at \[0\]"),
    ],
)
def test_what_is_no_json_is_refused_with_its_type(result: Any, says: str) -> None:
    calls: list[int] = []

    def tool() -> Any:
        calls.append(1)
        return result

    with pytest.raises(ToolError, match=f"tool 'f' returned .*{says}"):
        once(pure(tool, retries=3))
    assert calls == [1]  # another try cannot help
