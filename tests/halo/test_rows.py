"""Reading rows: every format, and every way in which a file can be wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from halo.errors import InputError
from halo.rows import RowSet, read_rows, rows_from
from planner.logical import Const, LogicalPlan, Result, Scan

ROWS = [{"question": "Tea?", "k": 1}, {"question": "Zürich?\n\u2028", "k": 2}]


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def write_parquet(path: str, query: str, *params: str) -> None:
    relation = duckdb.sql(query, params=list(params))
    assert relation is not None
    relation.write_parquet(path)


def test_formats_of_the_same_rows_are_the_same_source(tmp_path: Path) -> None:
    lines = write(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS))
    array = write(tmp_path / "a.json", json.dumps(ROWS, indent=2))
    parquet = str(tmp_path / "a.parquet")
    write_parquet(parquet, "SELECT * FROM read_json(?)", lines)
    sets = [read_rows(lines), read_rows(array), read_rows(parquet), rows_from(ROWS)]
    for each in sets:
        assert (each.columns, each.rows) == (("question", "k"), ROWS)
        assert each.source == sets[0].source
    assert sets[0].source.startswith("rows:")
    assert sets[0].description == lines
    other = rows_from([*ROWS, ROWS[0]])
    assert other.source != sets[0].source


def test_byte_order_mark_crlf_and_blank_lines_are_tolerated(tmp_path: Path) -> None:
    content = b'\xef\xbb\xbf{"question": "a"}\r\n\r\n  \n{"question": "b"}'
    found = read_rows(write(tmp_path / "a.jsonl", content))
    assert found.rows == [{"question": "a"}, {"question": "b"}]
    table = read_rows(write(tmp_path / "a.csv", b'\xef\xbb\xbfa,b\r\n1,"x\r\ny"\r\n\r\n2,\r\n'))
    assert table.rows == [{"a": "1", "b": "x\r\ny"}, {"a": "2", "b": ""}]


def test_columns_are_the_union_and_missing_values_are_null(tmp_path: Path) -> None:
    found = read_rows(write(tmp_path / "a.jsonl", '{"a": 1}\n{"b": 2, "a": null}\n{}\n'))
    assert found.columns == ("a", "b")
    assert found.rows == [{"a": 1, "b": None}, {"a": None, "b": 2}, {"a": None, "b": None}]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", '{"a": 1}\n\n[1]\n', ["a.jsonl:3", "JSON object", "a list"]),
        ("a.jsonl", '{"a": 1}\n{"a": \n', ["a.jsonl:2", "not JSON"]),
        ("a.jsonl", '{"a": NaN}\n', ["a.jsonl:1", "NaN", "null"]),
        ("a.jsonl", '{"a": 1e999}\n', ["a.jsonl:1", "too large"]),
        ("a.jsonl", '{"a": 1, "b": {"c": 1, "c": 2}}\n', ["a.jsonl:1", "'c'", "twice"]),
        ("a.jsonl", '{"a": "\\ud800"}\n', ["a.jsonl:1", "half a character"]),
        ("a.jsonl", "[" * 200_000, ["a.jsonl:1", "nested too deeply"]),
        ("a.jsonl", "\n \n", ["a.jsonl", "no rows"]),
        ("a.jsonl", b'{"a": "\xff"}\n', ["a.jsonl:1", "byte 7", "0xff", "UTF-8"]),
        ("a.json", '{"a": 1}', ["a.json:1", "array", ".jsonl"]),
        ("a.json", '[{"a": 1},\n 5]', ["a.json:2", "a number"]),
        ("a.json", '[{"a": 1},\n {"a" 2}]', ["a.json:2", "not JSON"]),
        ("a.json", '[{"a": 1}\n {"a": 2}]', ["a.json:2", "expected , or ]"]),
        ("a.json", '[{"a": 1}]\n\n x', ["a.json:3", "after the end"]),
        ("a.json", "[]", ["a.json", "no rows"]),
        ("a.csv", "a,b\n1,2\n1,2,3\n", ["a.csv:3", "3 values", "2 columns"]),
        ("a.csv", 'a,b\n1,"x\n\ny"\n1\n', ["a.csv:5", "1 values", "2 columns"]),
        ("a.csv", "a,a\n1,2\n", ["a.csv:1", "'a'", "twice"]),
        ("a.csv", "a,\n1,2\n", ["a.csv:1", "column 2", "no name"]),
        ("a.csv", 'a\n"x', ["a.csv:2", "not CSV"]),
        ("a.csv", "a,b\n", ["a.csv", "no rows"]),
        ("a.csv", "", ["a.csv", "no rows"]),
        ("a.parquet", "nonsense", ["a.parquet", "Parquet"]),
    ],
)
def test_what_cannot_be_read_is_named(
    tmp_path: Path, name: str, content: str | bytes, words: list[str]
) -> None:
    with pytest.raises(InputError) as caught:
        read_rows(write(tmp_path / name, content))
    for word in words:
        assert word in str(caught.value)


def test_csv_values_may_be_longer_than_the_standard_limit(tmp_path: Path) -> None:
    text = "word " * 60_000
    assert read_rows(write(tmp_path / "a.csv", f'text\n"{text}"\n')).rows == [{"text": text}]


def test_parquet_values_become_json(tmp_path: Path) -> None:
    path = str(tmp_path / "a.parquet")
    write_parquet(
        path,
        "SELECT DATE '2026-01-02' AS day, 1.50::DECIMAL(4,2) AS price, [1, 2] AS xs, "
        "{'k': 'v'} AS s, NULL AS nothing, TIMESTAMPTZ '2026-01-02 03:04:05+00' AS at",
    )
    [row] = read_rows(path).rows
    assert row["at"] is not None
    assert {k: v for k, v in row.items() if k != "at"} == {
        "day": "2026-01-02", "price": 1.5, "xs": [1, 2], "s": {"k": "v"}, "nothing": None,
    }  # fmt: skip


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    (tmp_path / "docs/part").mkdir(parents=True)
    for name in ("b.md", "a.txt", "part/c.md", ".hidden", "part/.git"):
        write(tmp_path / "docs" / name, f"text of {name}")
    return tmp_path / "docs"


def test_a_directory_of_documents(documents: Path) -> None:
    found = read_rows(str(documents))
    assert found.columns == ("path", "name", "text")
    assert [row["path"] for row in found.rows] == ["a.txt", "b.md", "part/c.md"]
    assert found.rows[2] == {"path": "part/c.md", "name": "c.md", "text": "text of part/c.md"}


def test_a_glob_names_documents_the_same_from_any_directory(
    documents: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absolute = read_rows(f"{documents}/**/*.md")
    monkeypatch.chdir(documents.parent)
    relative = read_rows("docs/**/*.md")
    assert [row["path"] for row in relative.rows] == ["b.md", "part/c.md"]
    assert relative.source == absolute.source


def test_one_document_and_a_glob_of_row_files(documents: Path) -> None:
    assert read_rows(str(documents / "a.txt")).rows == [
        {"path": "a.txt", "name": "a.txt", "text": "text of a.txt"}
    ]
    for number in (2, 1):
        write(documents / f"{number}.jsonl", json.dumps({"n": number}))
    assert read_rows(f"{documents}/*.jsonl").rows == [{"n": 1}, {"n": 2}]


def test_a_document_that_is_no_text_is_named_with_the_byte(documents: Path) -> None:
    write(documents / "image.png", b"\x89PNG")
    with pytest.raises(InputError, match=r"image\.png:1: byte 0 \(0x89\)"):
        read_rows(str(documents))


def test_missing_input_names_near_matches(tmp_path: Path) -> None:
    write(tmp_path / "questions.jsonl", "{}")
    with pytest.raises(InputError, match=r"question\.jsonl.*did you mean.*questions\.jsonl"):
        read_rows(str(tmp_path / "question.jsonl"))
    with pytest.raises(InputError, match="there is no directory"):
        read_rows(str(tmp_path / "nowhere" / "a.jsonl"))
    with pytest.raises(InputError, match="matches no file"):
        read_rows(str(tmp_path / "*.csv"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no rows"):
        read_rows(str(tmp_path / "empty"))


class Question(BaseModel):
    text: str
    day: date


@dataclass
class Point:
    x: int


def test_python_objects(tmp_path: Path) -> None:
    assert rows_from(iter([Question(text="a", day=date(2026, 1, 2))])).rows == [
        {"text": "a", "day": "2026-01-02"}
    ]
    assert rows_from((Point(1), {"x": 2})).rows == [{"x": 1}, {"x": 2}]


class NaTType:
    """Stands for pandas' "not a time"."""


class Number:
    """Stands for a number of an array library."""

    def tolist(self) -> int:
        return 7


class PandasLike:
    columns = ("a", "b")

    def to_dict(self, orient: str) -> list[dict[str, Any]]:
        assert orient == "records"
        return [{"a": float("nan"), "b": Number()}, {"a": 1.5, "b": NaTType()}]


class PolarsLike:
    def to_dicts(self) -> list[dict[str, Any]]:
        return [{"a": 1}]


class ArrowLike:
    def to_pylist(self) -> list[dict[str, Any]]:
        return [{"a": 1}]


def test_data_frames() -> None:
    assert rows_from(PandasLike()).rows == [{"a": None, "b": 7}, {"a": 1.5, "b": None}]
    assert rows_from(PolarsLike()).source == rows_from(ArrowLike()).source


@pytest.mark.parametrize(
    ("obj", "words"),
    [
        (lambda: {"question": "a"}, ["dict", "list of rows"]),
        (lambda: 7, ["int", "list of rows"]),
        (lambda: [{"a": 1}, "text"], ["row 1", "str", "mapping"]),
        (lambda: [{"a": 1}, {"a": float("nan")}], ["row 1", "nan", "null"]),
        (lambda: [{"a": object()}], ["row 0", "object"]),
        (lambda: [{"a": "\ud800"}], ["row 0"]),
        (list, ["no rows"]),
    ],
)
def test_objects_that_are_no_rows(obj: Callable[[], Any], words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        rows_from(obj())
    for word in words:
        assert word in str(caught.value)


def test_the_single_row_of_a_plan_without_columns() -> None:
    scan = Scan((), "some rows", ())
    single = RowSet.single(LogicalPlan((("q", Result((Const.of(1), scan))),)))
    assert (single.source, single.columns, single.rows) == ("some rows", (), [{}])


@given(
    st.lists(
        st.dictionaries(
            st.text(st.characters(exclude_categories=["Cs"])),
            st.none() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])),
            max_size=3,
        ),
        min_size=1,
        max_size=4,
    )
)
def test_whatever_json_writes_is_read_back(rows: list[dict[str, Any]]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.jsonl"
        path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), "utf-8")
        assert read_rows(str(path)).rows == rows_from(rows).rows
