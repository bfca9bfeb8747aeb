"""A run directory: who may use it, and results that are whole, ordered and equal byte for byte."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import random
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import pytest

from planner.logical import Generate, Json, LogicalPlan, Prompt, Result, Scan
from runtime.atomic_file import replaced_path, replaced_text
from runtime.errors import RunDirectoryError, RunLockedError
from runtime.journal import Journal
from runtime.records import CallRecord, Outcome, RowError
from runtime.results import write_results
from runtime.run_directory import FORMAT_VERSION, RunDirectory, describe_operators
from runtime.run_lock import lock_owner

HOLDER = """
import sys
from pathlib import Path
from runtime.run_directory import RunDirectory
with RunDirectory.open(Path(sys.argv[1])).lock("halo run", started_at="2026-01-01T00:00:00Z"):
    print("held", flush=True)
    sys.stdin.readline()
print("released", flush=True)
"""


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "run", {"flows": ["a.py:f"], "rows": {"q": 3}})


def record(
    directory: RunDirectory, outcomes: Sequence[Outcome], calls: Sequence[CallRecord] = ()
) -> None:
    async def main() -> None:
        journal = Journal(directory.journal)
        for outcome in outcomes:
            journal.record_outcome(outcome)
        for call in calls:
            journal.record_call(call)
        await journal.durable()
        journal.close("finished")

    asyncio.run(main())


def values(query: str, found: Sequence[Json]) -> list[Outcome]:
    return [Outcome(query, i, f"key{i}", value) for i, value in enumerate(found)]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def table(path: Path) -> tuple[list[str], list[tuple[Any, ...]]]:
    with duckdb.connect() as connection:
        found = connection.execute("SELECT * FROM read_parquet([$path])", {"path": str(path)})
        return [f"{c[0]} {c[1]}" for c in found.description or []], found.fetchall()


# --- making and finding --------------------------------------------------------------------------


def test_what_was_asked_is_read_back(directory: RunDirectory) -> None:
    found = RunDirectory.open(directory.path)
    assert found.manifest == {"flows": ["a.py:f"], "rows": {"q": 3}}
    found.write_plan({"operators": ["ä", "\ud83d"]})
    assert RunDirectory.open(directory.path).read_plan() == {"operators": ["ä", "\ud83d"]}


def test_a_directory_with_a_run_is_refused_with_the_way_out(directory: RunDirectory) -> None:
    with pytest.raises(RunDirectoryError, match=f"halo resume {directory.path}.*another --out"):
        RunDirectory.create(directory.path, {})
    assert RunDirectory.open(directory.path).manifest["flows"] == ["a.py:f"]


def test_a_directory_with_other_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.doc").write_text("years of work")
    with pytest.raises(RunDirectoryError, match=r"not a run directory.*thesis\.doc"):
        RunDirectory.create(tmp_path, {})
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.doc"]


def test_a_file_in_the_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(RunDirectoryError, match="cannot create"):
        RunDirectory.create(tmp_path / "out", {})
    with pytest.raises(RunDirectoryError, match="no run directory"):
        RunDirectory.open(tmp_path / "out")


def test_an_empty_directory_and_one_whose_run_never_began_are_taken(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text('{"pid": 1}')
    (tmp_path / "manifest.json.tmp").write_text('{"halo_')
    RunDirectory.create(tmp_path, {"n": 1})
    assert RunDirectory.open(tmp_path).manifest == {"n": 1}


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        (None, "not a run directory"),
        ("{", "cannot read"),
        ("[]", "not Halo's"),
        ('{"name": "an extension of a browser"}', "not Halo's"),
        (json.dumps({"halo_run_directory": FORMAT_VERSION + 1}), "newer Halo.*upgrade"),
    ],
)
def test_what_is_not_a_run_directory_is_not_opened(
    tmp_path: Path, manifest: str | None, words: str
) -> None:
    if manifest is not None:
        (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(RunDirectoryError, match=words):
        RunDirectory.open(tmp_path)
    with pytest.raises(RunDirectoryError, match="no run directory at"):
        RunDirectory.open(tmp_path / "missing")


def test_operators_are_described_by_fingerprint() -> None:
    scan = Scan((), "rows", ("q",))
    generate = Generate((scan,), "m", Prompt(("Hi",)), label="greet")
    plan = LogicalPlan((("q", Result((generate, scan))),))
    described = describe_operators(plan)
    assert described[generate.fingerprint] == {"label": "greet", "kind": "Generate", "model": "m"}
    assert described[scan.fingerprint] == {"label": "", "kind": "Scan", "model": ""}


# --- the lock ------------------------------------------------------------------------------------


def hold(directory: RunDirectory) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(directory.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    return child


def test_a_second_process_is_refused_and_told_who_runs(directory: RunDirectory) -> None:
    with hold(directory) as child:
        with pytest.raises(RunLockedError) as caught, directory.lock("halo resume"):
            pass
        for word in (str(directory.path), f"process {child.pid} on {platform.node()}", "halo run"):
            assert word in str(caught.value)
        owner = directory.locked_by()
        assert owner is not None
        assert (owner.pid, owner.started) == (child.pid, "2026-01-01T00:00:00Z")
        output, _ = child.communicate("\n")
    assert output == "released\n"
    assert directory.locked_by() is None
    with directory.lock("halo resume"):
        pass


def test_the_lock_of_a_killed_process_is_taken_over(directory: RunDirectory) -> None:
    for _ in range(5):
        with hold(directory) as child:
            child.kill()
        assert directory.locked_by() is None
        with directory.lock("halo resume"):
            owner = directory.locked_by()
            assert owner is not None
            assert (owner.pid, owner.owner) == (os.getpid(), "halo resume")


def test_one_process_cannot_hold_a_directory_twice(directory: RunDirectory) -> None:
    with directory.lock("first"):
        with pytest.raises(RunLockedError, match="first"), directory.lock("second"):
            pass
        assert directory.locked_by() is not None


def test_the_lock_is_given_back_when_the_run_fails(directory: RunDirectory) -> None:
    with pytest.raises(ZeroDivisionError), directory.lock("halo run"):
        raise ZeroDivisionError
    assert directory.locked_by() is None


def test_looking_at_the_lock_keeps_nobody_out(directory: RunDirectory) -> None:
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            lock_owner(directory.path / "lock")

    lookers = [threading.Thread(target=look) for _ in range(3)]
    for thread in lookers:
        thread.start()
    try:
        for _ in range(300):
            with directory.lock("halo run"):
                pass
    finally:
        stop.set()
        for thread in lookers:
            thread.join()


# --- files ---------------------------------------------------------------------------------------


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    with replaced_text(path) as file:
        file.write("first\n")
    with pytest.raises(ZeroDivisionError), replaced_text(path) as file:
        file.write("half of the sec")
        raise ZeroDivisionError
    assert path.read_text() == "first\n"
    full = pytest.raises(RunDirectoryError, match=r"cannot write .*file\.txt: No space.*resume")
    with full, replaced_path(path):
        raise OSError(28, "No space left on device")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.txt"]


def test_rows_end_in_results_or_errors_in_the_order_of_queries_and_rows(
    directory: RunDirectory,
) -> None:
    failed = Outcome("b", 2, "key2", None, RowError("ToolError", "no page", "fetch"))
    outcomes = [*values("b", [1, 2]), failed, *values("a", ["ä", None])]
    random.Random(7).shuffle(outcomes)
    record(directory, outcomes)
    write_results(directory, ["b", "a"])
    assert directory.results.read_text("utf-8") == (
        '{"query": "b", "row": 0, "key": "key0", "value": 1}\n'
        '{"query": "b", "row": 1, "key": "key1", "value": 2}\n'
        '{"query": "a", "row": 0, "key": "key0", "value": "ä"}\n'
        '{"query": "a", "row": 1, "key": "key1", "value": null}\n'
    )
    assert lines(directory.errors) == [
        {
            "query": "b",
            "row": 2,
            "key": "key2",
            "type": "ToolError",
            "message": "no page",
            "op": "fetch",
        }
    ]
    columns, rows = table(directory.results_parquet)
    assert columns == ["query VARCHAR", "row BIGINT", "row_key VARCHAR", "value VARCHAR"]
    assert rows == [
        ("b", 0, "key0", "1"),
        ("b", 1, "key1", "2"),
        ("a", 0, "key0", '"ä"'),
        ("a", 1, "key1", "null"),
    ]


def test_equal_outcomes_give_equal_bytes_in_whatever_order_they_came(tmp_path: Path) -> None:
    outcomes = values("q", [{"name": f"n{i}", "score": i / 7, "n": i} for i in range(3_000)])
    outcomes += [Outcome("r", i, f"key{i}", None, RowError("E", f"{i}")) for i in range(50)]
    contents: list[list[bytes]] = []
    for seed in range(3):
        directory = RunDirectory.create(tmp_path / f"run{seed}", {})
        shuffled = list(outcomes)
        random.Random(seed).shuffle(shuffled)
        record(directory, shuffled[:1_000])
        record(directory, shuffled)
        write_results(directory, ["q", "r"])
        write_results(directory, ["q", "r"])
        files = (directory.results, directory.results_parquet, directory.errors)
        contents.append([file.read_bytes() for file in files])
    assert contents[0] == contents[1] == contents[2]
    assert all(contents[0])


def test_fields_of_one_scalar_type_become_columns(directory: RunDirectory) -> None:
    rows: list[Json] = [
        {"b": True, "i": 1, "f": 1, "s": "x", "none": None, "mixed": 1, "list": [1], "big": 2**70},
        {"b": None, "i": -(2**63), "f": 0.1, "s": "", "none": None, "mixed": "1", "list": [],
         "big": 1},
    ]  # fmt: skip
    record(directory, values("q", rows))
    write_results(directory, ["q"])
    columns, found = table(directory.results_parquet)
    assert columns[4:] == ["b BOOLEAN", "f DOUBLE", "i BIGINT", "s VARCHAR"]
    assert [row[4:] for row in found] == [(True, 1.0, 1, "x"), (None, 0.1, -(2**63), "")]
    assert [json.loads(row[3]) for row in found] == rows


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [{"a": 1}, {"a": 1, "b": 2}],
        [{"a": 1}, {"b": 1}],
        [{"a": 1}, [1]],
        [{"a": 1}, None],
        [{}, {}],
        ["text", 3],
    ],
)
def test_values_of_different_shapes_stay_json(directory: RunDirectory, rows: list[Json]) -> None:
    record(directory, values("q", rows))
    write_results(directory, ["q"])
    columns, found = table(directory.results_parquet)
    assert len(columns) == 4
    assert [json.loads(row[3]) for row in found] == rows


def test_hostile_names_and_texts_are_data(tmp_path: Path) -> None:
    """Field names, texts and paths with what SQL, JSON pointers, globs and terminals would read."""
    row: dict[str, Json] = {
        "'; DROP TABLE x; --": "it's",
        'dou"ble': '"',
        "a/b~c": "pointer",
        "$.x[0]": "path",
        "Query": "name of a column",
        "VALUE": "another",
        "": "no name",
        "x": "1",
        "X": "2",
        "new\nline": "line\r\nbreak \x00 \x1b[31m",
        "nul": "a\x00b",
        "pair": "half \ud83d pair",
    }
    directory = RunDirectory.create(tmp_path / "a [1] * it's ? {x}", {})
    record(directory, values("q'\"", [row, row]))
    write_results(directory, ["q'\""])
    columns, found = table_of(directory.results_parquet)
    assert [column.rsplit(" ", 1)[0] for column in columns[4:]] == [
        "$.x[0]",
        "'; DROP TABLE x; --",
        "X",
        "a/b~c",
        'dou"ble',
        "nul",
        "pair",
    ]
    assert found[1][4:] == ("path", "it's", "2", "pointer", '"', "a\x00b", "half \ufffd pair")
    expected = {**row, "pair": "half \ufffd pair"}
    assert json.loads(found[0][3]) == expected
    assert [line["value"] for line in lines(directory.results)] == [expected, expected]


def table_of(path: Path) -> tuple[list[str], list[tuple[Any, ...]]]:
    plain = path.parent.parent / "copy.parquet"
    plain.write_bytes(path.read_bytes())
    return table(plain)


def test_a_very_long_value_is_written(directory: RunDirectory) -> None:
    text = "ä" * 10_000_000
    record(directory, values("q", [text, {"deep": [[[[1]]]]}]))
    write_results(directory, ["q"])
    _, found = table(directory.results_parquet)
    assert json.loads(found[0][3]) == text
    assert lines(directory.results)[0]["value"] == text


def test_the_trace_has_every_call_by_start(directory: RunDirectory) -> None:
    calls = [
        CallRecord("k2", "tool", "t", "op", "q", "r", None, start_s=2.0, error="broke"),
        CallRecord("k3", "model", "m", "op", "q", "r", {"text": "half \ud83d"}, start_s=3.0),
        CallRecord("k1", "model", "m", "op", "q", "r", {"text": "ä"}, start_s=1.0),
    ]
    record(directory, [], calls)
    write_results(directory, ["q"])
    found = lines(directory.trace)
    assert [line["key"] for line in found] == ["k1", "k2", "k3"]
    assert [line["error"] for line in found] == [None, "broke", None]
    assert found[2]["value"] == {"text": "half \ud83d"}
    assert found[0]["cached_tokens"] is None
    assert found[0]["process"] == 1
