"""Status and report of a run directory: the numbers of the journal, and where they come from."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from costmodel.usage import OpMetrics, Usage
from halo.errors import RunDirectoryError
from halo.report import render_text, report
from halo.status import RunStatus, render_status, status
from runtime.journal import Journal
from runtime.records import CallRecord, Outcome, RowError
from runtime.run_directory import RunDirectory

MANIFEST = {
    "rows": {"cards": 4, "panel": 4},
    "operators": {
        "f1": {"label": "judge", "kind": "Generate", "model": "small"},
        "f2": {"label": "", "kind": "Tool", "model": ""},
        "f3": {"label": "each", "kind": "Map", "model": ""},
    },
}
METRICS = {
    "f2": OpMetrics(requested=4, made=3, shared=1, retries=2, errors=1, busy_s=6.0),
    "f1": OpMetrics(requested=10, made=4, shared=6, busy_s=2.0, usage=Usage(1000, 80, 250, 400)),
    "f3": OpMetrics(requested=99),
}


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "run", MANIFEST)


def work(
    directory: RunDirectory,
    outcomes: Sequence[Outcome] = (),
    calls: Sequence[CallRecord] = (),
    metrics: Mapping[str, OpMetrics] | None = None,
    *,
    reason: str = "finished",
    cpu_s: float | None = 0.5,
) -> None:
    async def main() -> None:
        journal = Journal(directory.journal, started_at="2026-01-01T00:00:00+00:00")
        journal.record_metrics(metrics or {})
        for outcome in outcomes:
            journal.record_outcome(outcome)
        for call in calls:
            journal.record_call(call)
        await journal.durable()
        journal.close(reason, ended_at="2026-01-01T00:01:30+00:00", cpu_s=cpu_s)

    asyncio.run(main())


def done(query: str, rows: range) -> list[Outcome]:
    return [Outcome(query, i, f"row{i}", i) for i in rows]


def rows_of(found: RunStatus) -> list[tuple[str, int | None, int, int]]:
    return [(q.query, q.total, q.done, q.failed) for q in found.queries]


def test_the_state_follows_a_run_through_its_life(directory: RunDirectory) -> None:
    assert status(directory.path).state == "interrupted"
    with directory.lock("halo run"):
        found = status(directory.path)
        assert found.state == "running"
        assert "held by process" in render_status(found)
        work(directory, done("cards", range(2)), reason="interrupted")
        assert status(directory.path).state == "running"
    found = status(directory.path)
    assert found.state == "interrupted"
    assert f"halo resume {directory.path}" in render_status(found)
    assert rows_of(found) == [("cards", 4, 2, 0), ("panel", 4, 0, 0)]
    work(directory, [*done("cards", range(4)), *done("panel", range(3))])
    assert status(directory.path).state == "finished"
    work(directory, [Outcome("panel", 3, "row3", None, RowError("E", "m"))])
    found = status(directory.path)
    assert found.state == "finished_with_errors"
    assert (found.rows_total, found.rows_done, found.rows_failed) == (8, 8, 1)
    assert found.processes == 3


def test_a_killed_process_leaves_an_interrupted_run(directory: RunDirectory) -> None:
    work(directory, done("cards", range(4)))
    journal = Journal(directory.journal)
    assert status(directory.path).state == "interrupted"
    journal.close("finished")


def test_status_counts_calls_of_calling_operators_over_all_processes(
    directory: RunDirectory,
) -> None:
    work(directory, metrics=METRICS, reason="interrupted")
    work(directory, metrics={"f1": OpMetrics(requested=5, replayed=5)})
    found = status(directory.path)
    document = json.loads(render_status(found, json_out=True))
    assert document["calls"] == {
        "requested": 19, "made": 7, "shared": 7, "replayed": 5, "retries": 2, "errors": 1
    }  # fmt: skip
    assert document["tokens"]["input_tokens"] == 1000
    assert document["rows"]["total"] == 8
    assert document["owner"] is None
    assert "19 requested, 7 made, 7 shared, 5 replayed" in render_status(found)


def test_a_run_that_did_not_say_its_rows_has_no_total(tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path / "run", {})
    work(directory, done("q", range(3)), metrics=METRICS)
    found = status(directory.path)
    assert rows_of(found) == [("q", None, 3, 0)]
    assert found.rows_total is None
    assert report(directory.path)["operators"][0]["label"] == "f1"


def test_what_is_no_run_directory_is_refused(tmp_path: Path) -> None:
    for read in (status, report):
        with pytest.raises(RunDirectoryError, match="not a run directory"):
            read(tmp_path)


def full_report(directory: RunDirectory) -> dict[str, Any]:
    work(
        directory,
        [
            *done("cards", range(4)),
            Outcome("panel", 0, "row0", None, RowError("ToolError", "no such page", "f2")),
            Outcome("panel", 1, "row1", None, RowError("ToolError", "no such page", "f2")),
            Outcome("panel", 2, "row2", None, RowError("OutputTypeError", "not JSON", "judge")),
            Outcome("panel", 3, "row3", 1),
        ],
        [
            CallRecord("a", "model", "small", "f1", "cards", "row0", "x", start_s=1.0, end_s=9.0),
            CallRecord("b", "tool", "fetch", "f2", "panel", "row0", "x", start_s=1.0, end_s=2.0),
            CallRecord("c", "tool", "fetch", "f2", "panel", "row1", None, error="e", end_s=3.0),
        ],
        METRICS,
    )
    return report(directory.path)


def test_the_report_has_rows_failures_operators_and_savings(directory: RunDirectory) -> None:
    found = full_report(directory)
    json.dumps(found)
    assert found["state"] == "finished_with_errors"
    assert (found["rows"]["total"], found["rows"]["done"], found["rows"]["failed"]) == (8, 8, 3)
    assert found["failures"] == [
        {
            "type": "ToolError",
            "operator": "Tool f2",
            "rows": 2,
            "example": {"query": "panel", "row": 0, "message": "no such page"},
        },
        {
            "type": "OutputTypeError",
            "operator": "judge",
            "rows": 1,
            "example": {"query": "panel", "row": 2, "message": "not JSON"},
        },
    ]
    assert [op["label"] for op in found["operators"]] == ["judge", "Tool f2"]
    judge, fetch = found["operators"]
    assert (judge["model"], judge["requested"], judge["made"]) == ("small", 10, 4)
    assert judge["mean_latency_s"] == 0.5
    assert (fetch["cached_tokens"], fetch["mean_latency_s"]) == (None, 2.0)
    assert found["calls"]["saved"] == 7
    assert found["time"]["wall_s"] == 90.0
    assert found["time"]["run_clock_s"] == 9.0
    assert found["time"]["cpu_us_per_call"] == pytest.approx(0.5e6 / 14)
    assert [(t["name"], t["calls"], t["failed"]) for t in found["tools"]] == [("fetch", 2, 1)]
    assert [m["name"] for m in found["models"]] == ["small"]
    assert [(c["operator"], c["seconds"]) for c in found["slowest_calls"]] == [
        ("judge", 8.0),
        ("Tool f2", 3.0),
        ("Tool f2", 1.0),
    ]


def test_the_text_says_what_is_measured_and_what_is_predicted(directory: RunDirectory) -> None:
    text = render_text(full_report(directory))
    assert "250 prompt tokens by prefix reuse (25% of the input), measured" in text
    assert "7 of 14 calls: 7 equal to another of the batch, 0 recorded before" in text
    assert "2 x ToolError at Tool f2" in text
    assert "row 0 of panel: no such page" in text
    table = text[text.index("\noperators\n") :].splitlines()
    assert table[3].split() == [
        "judge", "Generate", "small", "10", "4", "6", "0", "0", "0", "1,000", "250", "400", "80",
        "2.00", "0.500",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("usage", "source", "words"),
    [
        (Usage(100, 9, None, 40), "predicted", "40 prompt tokens by prefix reuse (40% of"),
        (Usage(100, 9, 0, 40), "measured", "0 prompt tokens by prefix reuse (0% of"),
        (Usage(100, 9), None, "not measured by the engine, and not predicted"),
    ],
)
def test_prefix_reuse_is_never_called_measured_when_it_is_not(
    directory: RunDirectory, usage: Usage, source: str | None, words: str
) -> None:
    work(directory, metrics={"f1": OpMetrics(requested=1, made=1, usage=usage)})
    found = report(directory.path)
    assert found["tokens"]["prefix_reuse"]["source"] == source
    assert words in render_text(found)
    if source == "predicted":
        assert "(predicted)" in render_status(status(directory.path))


def test_processor_time_a_call_is_unknown_when_a_process_was_killed(
    directory: RunDirectory,
) -> None:
    work(directory, metrics=METRICS, cpu_s=None)
    work(directory, metrics=METRICS, cpu_s=2.0)
    time = report(directory.path)["time"]
    assert (time["cpu_s"], time["cpu_us_per_call"]) == (2.0, None)


def test_texts_of_rows_cannot_command_the_terminal(directory: RunDirectory) -> None:
    message = "\x1b]0;owned\x07 line\nbreak " + "long " * 200
    work(directory, [Outcome("cards", 0, "row0", None, RowError("E\x1b[2J", message, "op\x9b"))])
    text = render_text(report(directory.path))
    assert all(character.isprintable() or character == "\n" for character in text)
    assert "owned" in text
    assert max(map(len, text.splitlines())) < 250
