"""Run directories as traces, and the PTE section of a run's report."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from costmodel.usage import Usage
from halo.report import report
from halo.report_text import render_text
from halo.trace_report.build import ReportOptions, build_report
from halo.traces.counting import fill_tokens, priced_turns
from halo.traces.read import read_traces, recognise
from runtime.journal import Journal
from runtime.records import CallRecord
from runtime.run_directory import RunDirectory

MODEL = "llama-3.1-8b"


def model_call(
    row: str, turn: int, start_s: float, usage: Usage, *, op: str = "op1", text: str = "",
    calls: list[dict[str, str]] | None = None, path: str = "",
) -> CallRecord:  # fmt: skip
    value = {"text": text, "tool_calls": calls or []}
    return CallRecord(
        f"{op}{row}{path}{turn}", "model", MODEL, op, "q", row, value, path=path, turn=turn,
        usage=usage, start_s=start_s, end_s=start_s + 1.0,
    )  # fmt: skip


def tool_call(row: str, turn: int, start_s: float, answer: str) -> CallRecord:
    return CallRecord(
        f"t{row}{turn}", "tool", "lookup", "op1", "q", row, answer, "write",
        f"agent[{turn}]/tool[0]", turn, start_s=start_s, end_s=start_s + 0.5,
    )  # fmt: skip


def agent_run(folder: Path) -> Path:
    """A run whose journal has an agent of two turns and another operator for two rows."""
    asked = [{"id": "c1", "name": "lookup", "arguments_json": '{"city": "Ghent"}'}]

    async def write() -> None:
        directory = RunDirectory.create(
            folder,
            {
                "rows": {"q": 2},
                "operators": {
                    "op1": {"label": "agent", "kind": "agent", "model": MODEL},
                    "op2": {"label": "check", "kind": "gen", "model": MODEL},
                },
                "config": {"engine": "local"},
            },
        )
        journal = Journal(directory.journal)
        for row in ("r1", "r2"):
            journal.record_call(model_call(row, 0, 0.0, Usage(2000, 40, 0), calls=asked))
            journal.record_call(tool_call(row, 0, 1.0, "265,000"))
            cached = 2000 if row == "r1" else 0
            journal.record_call(model_call(row, 1, 2.0, Usage(2100, 20, cached), text="Big."))
            journal.record_call(model_call(row, 0, 3.0, Usage(300, 5, None), op="op2", text="ok"))
        await journal.durable()
        journal.close("finished")

    asyncio.run(write())
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return agent_run(tmp_path / "run")


def test_rows_are_traces_and_operators_segments(run: Path) -> None:
    assert recognise(run).name == "halo-run"
    first, second = read_traces(run)
    assert (first.id, second.id) == ("q r1", "q r2")
    assert [turn.thread for turn in first.turns] == ["agent", "agent", "check"]
    assert [turn.new_segment for turn in first.turns] == [False, False, True]
    assert first.turns[0].output.calls[0].arguments == {"city": "Ghent"}
    answer = first.turns[1].inputs[0]
    assert (answer.role, answer.tool_name, answer.text, answer.seconds) == (
        "tool", "lookup", "265,000", 0.5,
    )  # fmt: skip
    fill_tokens(first)
    assert [turn.cached_tokens for turn in priced_turns(first)] == [0, 2000, None]


def test_a_trace_report_of_a_run(run: Path) -> None:
    found = build_report([run], ReportOptions(with_texts=True))
    assert found["counts"]["traces"] == 2
    assert [tool["name"] for tool in found["tools"]] == ["lookup"]
    losses = next(each for each in found["patterns"] if each["pattern"] == "cache_loss")
    assert losses["traces"] == 1  # row r2 lost what row r1 found


def test_the_report_of_a_run_has_a_pte_section(run: Path) -> None:
    found = report(run)
    pte = found["pte"]
    assert pte["calls"] == 6 and pte["mode"] == "exact" and not pte["simulated"]
    assert sum(pte["causes"].values()) == pytest.approx(pte["value"])
    assert [each["label"] for each in pte["operators"]] == ["agent", "check"]
    assert pte["worst_rows"][0]["row"] == "q r2"
    text = render_text(found)
    assert "PTE, prefill token equivalents\n" in text
    assert "priced as llama-3.1-8b on h100-sxm" in text
    assert json.loads(json.dumps(found))["pte"]["calls"] == 6


def test_another_model_and_device_can_price_it(run: Path) -> None:
    other = report(run, model="llama-3.1-70b", hardware="h200")["pte"]
    assert (other["prices"][0]["model"], other["prices"][0]["hardware"]) == (
        "llama-3.1-70b", "h200",
    )  # fmt: skip
    wrong = report(run, hardware="h2000")
    assert "h200" in wrong["pte"]["unavailable"]
    assert "not priced" in render_text(wrong)
