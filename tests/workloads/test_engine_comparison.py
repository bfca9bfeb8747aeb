"""The engine comparison: equal seeds give equal rows, and everybody sends the same prompts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from workloads.catalogue import WORKLOADS, named
from workloads.compare import ABLATIONS, Bench, run_merged, run_one, with_count
from workloads.gpu import floor
from workloads.gpu.evaluate import Records, ablation_rows, ratio_rows, table, unequal_answers
from workloads.gpu.floor import distinct_prefix_bytes, work_of
from workloads.gpu.models import write_model
from workloads.gpu.run_sglang import near_the_best
from workloads.gpu.server_log import ServerLogs
from workloads.mock_api import MockApi
from workloads.stub_server import StubServer

NAMES = [workload.name for workload in WORKLOADS]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Bench, list[StubServer]]]:
    folder = tmp_path_factory.mktemp("bench")
    tokenizer = str(write_model("tiny", folder))
    with (
        StubServer("8b", tokenizer) as big,
        StubServer("1b", tokenizer) as small,
        MockApi(mean_s=0.001) as api,
    ):
        servers = {"8b": big.url, "1b": small.url}
        yield Bench(servers, {"8b": "8b", "1b": "1b"}, api.url, folder), [big, small]


@pytest.mark.parametrize("name", NAMES)
def test_rows_depend_on_the_seed_alone(name: str) -> None:
    workload = named(name)[0]
    assert workload.rows(9, 1) == workload.rows(9, 1) != workload.rows(9, 2)
    assert all(set(row) == set(workload.columns) for row in workload.rows(9, 1))


@pytest.mark.parametrize(
    ("name", "calls"),
    [("w1", 8), ("w2", 10), ("w3", 9), ("w4", 9), ("w5", 7), ("w6", 9), ("mapred", 8),
     ("debate", 6), ("reflect", 4), ("iterative", 6), ("parallel", 50), ("trading", 88)],
)  # fmt: skip
def test_a_row_makes_as_many_calls_as_its_shape_has(name: str, calls: int) -> None:
    assert sum(node.kind == "llm" for node in named(name)[0].graph().nodes) == calls


def seen(stubs: list[StubServer]) -> set[tuple[str, int]]:
    prompts = {prompt for stub in stubs for prompt in stub.prompts}
    for stub in stubs:
        stub.prompts.clear()
    return prompts


@pytest.mark.parametrize("name", ["w1", "w4", "w6", "mapred", "reflect"])
def test_everybody_sends_the_same_prompts_and_gets_the_same_answers(
    bench: tuple[Bench, list[StubServer]], name: str
) -> None:
    here, stubs = bench
    workload = named(name)[0]
    rows = workload.rows(5, 3)
    results: dict[str, Any] = {}
    prompts: dict[str, Any] = {}
    for system in ("halo", "async", "operators", "rows", "halo-sharing", "halo-overlap"):
        results[system] = run_one(here, system, workload, rows, 3)
        prompts[system] = {p for p in seen(stubs) if p[1] > 0}  # warm-ups decode nothing
    assert {r["answers"] for r in results.values()} == {results["async"]["answers"]}
    assert all(p == prompts["async"] for p in prompts.values())
    assert not any(r["failed"] for r in results.values())
    assert results["halo"]["calls"] <= len(prompts["async"])
    assert results["halo-sharing"]["calls"] == results["async"]["calls"]


def test_langgraph_sends_them_too(bench: tuple[Bench, list[StubServer]]) -> None:
    pytest.importorskip("langgraph", reason="the extra `bench` is not installed")
    here, stubs = bench
    workload = named("w4")[0]
    rows = workload.rows(3, 1)
    ours = run_one(here, "async", workload, rows, 1)
    before = seen(stubs)
    theirs = run_one(here, "langgraph", workload, rows, 1)
    assert theirs["answers"] == ours["answers"] and seen(stubs) == before


def test_two_workloads_can_be_one_batch(bench: tuple[Bench, list[StubServer]]) -> None:
    here, _ = bench
    pair = [with_count(w, 0.05) for w in named("mapred,debate")]
    rows = [workload.rows(workload.count, 1) for workload in pair]
    merged = run_merged(here, pair, rows, 1, merge=True)
    apart = run_merged(here, pair, rows, 1, merge=False)
    assert not merged["failed"] and not apart["failed"]
    # The experts of the debate are three of the seven.
    assert merged["calls"] < apart["calls"]


def test_the_floor_counts_every_prefix_once() -> None:
    assert distinct_prefix_bytes(["aab", "aac", "aab", "b"]) == 5
    rows = named("mapred")[0].rows(3, 1)
    work = work_of(named("mapred")[0], rows)["8b"]
    assert work.decode_tokens == 3 * (7 * 32 + 48)
    # Three questions are about one context of 1,000 bytes. The experts share it, and the summaries,
    # whose instruction is another one, do so among themselves.
    assert 2 * 1000 < work.prefill_tokens < 2 * 1000 + 3 * 1000
    assert work.seconds({"prefill_tokens_per_s": 1e3, "decode_tokens_per_s": 1e3}) > 0


def test_the_floor_counts_a_control_token_once(monkeypatch: pytest.MonkeyPatch) -> None:
    workload = named("mapred")[0]
    rows = workload.rows(3, 1)
    tokens = work_of(workload, rows)["8b"].prefill_tokens
    monkeypatch.setattr(floor, "tokens_of", lambda prompt: prompt)
    letters = work_of(workload, rows)["8b"].prefill_tokens
    # Every one of the 24 prompts ends with an end and a start, of 10 and 12 letters.
    assert letters - tokens >= 24 * (10 + 12 - 2)


def test_records_become_tables_and_gaps_say_so(tmp_path: Path) -> None:
    def record(system: str, seconds: float, answers: str = "x") -> str:
        return json.dumps(
            {"system": system, "workload": "w1", "seed": 1, "rows": 4, "makespan_s": seconds,
             "answers": answers}
        )  # fmt: skip

    main, lpm = tmp_path / "main.jsonl", tmp_path / "lpm.jsonl"
    main.write_text("\n".join([record("halo", 2.0), record("async", 3.0), '{"note": "m"}']))
    lpm.write_text("\n".join([record("halo", 1.0), record("lpm", 4.0, "y")]))
    stages = Records(main), Records(lpm)
    rows = ratio_rows(*stages)
    assert rows[0][:7] == ["w1", "2.00", "1.50", "no record", "no record", "4.00", "no record"]
    assert rows[0][7] == rows[-1][7] == "**1.50**"
    assert rows[1][1] == "no record" and "w1" in unequal_answers(*stages)[0]
    assert table(["a"], [["b"]]) == "| a |\n| --- |\n| b |"
    assert ablation_rows(stages[0])[1] == ["w1", "1.50"] and "halo" in ABLATIONS


def test_baselines_far_from_the_best_are_left_out_where_that_is_known() -> None:
    workload = with_count(WORKLOADS[0], 4 / WORKLOADS[0].count)
    seconds = {"halo": 9.0, "async": 3.0, "operators": 3.2}
    records: list[dict[str, Any]] = [
        {"system": s, "workload": workload.name, "seed": 1, "rows": 4, "makespan_s": t}
        for s, t in seconds.items()
    ]

    def kept(within: float, seed: int = 1) -> list[str]:
        systems = ("halo", "async", "operators", "langgraph")
        return [s for s in systems if near_the_best(records, s, workload, seed, within)]

    assert kept(0.05) == ["halo", "async", "langgraph"]
    assert kept(0.1) == ["halo", "async", "operators", "langgraph"]
    assert kept(0.05, seed=2) == ["halo", "async", "operators", "langgraph"]


def test_prefill_steps_are_counted_from_a_moment_on(tmp_path: Path) -> None:
    def line(requests: int, new: int, cached: int) -> str:
        return (
            f"[2026-11-28 01:05:01] Prefill batch, #new-seq: {requests}, #new-token: {new}, "
            f"#cached-token: {cached}, token usage: 0.04, #running-req: 1, #queue-req: 0\n"
        )

    log = tmp_path / "server.log"
    log.write_text(line(1, 100, 0))
    logs = ServerLogs({"8b": log, "1b": tmp_path / "absent.log"})
    logs.mark()
    with log.open("a") as file:
        file.write(line(11, 263, 14264) + "Decode batch, #running-req: 617\n" + line(2, 7, 0))
    steps = {"steps": 2, "requests": 13, "new_tokens": 270, "cached_tokens": 14264}
    assert logs.prefill_steps() == {"8b": steps}
