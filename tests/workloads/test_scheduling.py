"""The scheduler's workloads, and what is measured against its simulator."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from halo.scheduling import (
    AffineTimer,
    Assignment,
    Machine,
    ModelWork,
    Operation,
    Problem,
    PromptPart,
    ToolLaneSpec,
    ToolWork,
    Workload,
    simulate,
)
from workloads.gpu.schedule_client import AssignmentRun, Client, Measured, Prompts, Server
from workloads.gpu.schedule_reality import (
    Pair,
    fit,
    interleaved,
    machine_of,
    measure,
    parse_server,
    plans_of,
    workload_of,
)
from workloads.gpu.schedule_records import RawFile, evaluate, read_raw, spearman
from workloads.schedule_bench import gap
from workloads.schedule_instances import small_instance
from workloads.schedule_report import page
from workloads.shapes import SHAPES, trading


@pytest.mark.parametrize(
    ("name", "calls", "tools", "depth"),
    # W6's second stage issues five queries again, which merging has made one each.
    [("W1", 8, 9, 6), ("W2", 10, 3, 5), ("W3", 9, 6, 4), ("W4", 9, 3, 6), ("W5", 7, 10, 5),
     ("W6", 9, 8, 3)],
)  # fmt: skip
def test_shapes_have_the_published_sizes(name: str, calls: int, tools: int, depth: int) -> None:
    operations = SHAPES[name]().operations
    assert sum(isinstance(op.work, ModelWork) for op in operations) == calls
    assert sum(isinstance(op.work, ToolWork) for op in operations) == tools
    levels: list[int] = []
    for op in operations:
        before = max((levels[i] for i in op.inputs), default=0)
        levels.append(before + isinstance(op.work, ModelWork))
    assert max(levels) == depth


def test_trading_has_88_calls() -> None:
    assert len(trading().operations) == 88


def test_instances_are_what_their_seed_says() -> None:
    for seed in range(20):
        problem, again = small_instance(seed), small_instance(seed)
        assert problem.workload == again.workload
        assert len(problem.workload.operations) <= 10
        assert problem.n_groups <= 4 and len(problem.machine.workers) <= 3


def test_the_fit_recovers_an_affine_engine() -> None:
    timer = AffineTimer(2e-5, 5e-3, 3e-5, prefill_s=4e-3, per_context_token_s=1e-8)
    prefill = [[n, 1, timer.step_s(n, 0, 0, 0)] for n in (256, 1024, 4096)]
    prefill.append([16384, 2, 2 * timer.step_s(8192, 0, 0, 0)])
    decode = [[b, b * c, timer.step_s(0, 0, b, b * c)] for b in (1, 8, 64) for c in (64, 1200)]
    found = fit({"prefill": prefill, "decode": decode})
    for name in ("per_prefill_token_s", "prefill_s", "decode_s", "per_request_s",
                 "per_context_token_s"):  # fmt: skip
        assert getattr(found, name) == pytest.approx(getattr(timer, name), rel=1e-6)


def run_record(
    workload: str, scheduler: str, predicted_s: float, measured_s: float
) -> dict[str, Any]:
    return {
        "kind": "run",
        "workload": workload,
        "scheduler": scheduler,
        "predicted_s": predicted_s,
        "measured_s": measured_s,
    }


def test_the_evaluation_counts_ranks_and_ratios() -> None:
    runs = [
        run_record("W1", "auto", 1.0, 1.0),
        run_record("W1", "greedy", 2.0, 1.0),
        run_record("W2", "auto", 3.0, 3.0),
        run_record("W2", "greedy", 4.0, 5.0),
        run_record("W1", "auto", 1.0, 1.2),
    ]
    found = evaluate(runs)
    assert (found["pairs"], found["runs"]) == (4, 5)
    assert found["median_spread_of_repeats"] == pytest.approx(0.2)
    assert found["rank_correlation"] == pytest.approx(0.8)
    assert found["workloads"]["W1"]["chosen_over_best"] == pytest.approx(1.1)
    assert found["workloads"]["W2"]["best"] == "auto"
    assert found["chosen_over_best_worst"] == pytest.approx(1.1)


def test_rank_correlation_with_ties() -> None:
    assert spearman([1, 1, 2], [1, 1, 2]) == pytest.approx(1.0)
    assert spearman([1, 2], [5, 5]) is None
    assert spearman([], []) is None


def test_servers_are_named_worker_and_model() -> None:
    assert parse_server("gpu0/small=http://h:1/") == Server("gpu0", "small", "http://h:1")
    for wrong in ("small=http://h:1", "gpu0/small", "gpu0/=http://h:1", "gpu0/small=h:1"):
        with pytest.raises(SystemExit):
            parse_server(wrong)


CALIBRATION = {
    "timers": {
        "gpu0/small": {"per_prefill_token_s": 8e-6, "decode_s": 2e-3, "per_request_s": 7e-6},
        "gpu0/large": {"per_prefill_token_s": 25e-6, "decode_s": 5e-3, "per_request_s": 2e-5},
    },
    "together": {"gpu0": 1.2},
    "switch_s": 0.003,
}
SERVERS = [Server("gpu0", "small", "s"), Server("gpu0", "large", "l")]


def test_plans_differ_and_there_are_enough() -> None:
    machine = machine_of(CALIBRATION, SERVERS)
    total = 0
    for name in ("W3", "shared"):
        problem = Problem(workload_of(name, ["small", "large"], 8, 4), machine)
        plans = plans_of(problem, ("auto", "operator-wise", "min-switch", "round-robin"))
        keys = {str(replace(plan, co_resident=[any(plan.co_resident)])) for _, plan in plans}
        assert len(keys) == len(plans)
        total += len(plans)
    assert total >= 6


class RecordingClient(Client):
    """Answers at once and remembers what was asked of whom."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[str, tuple[int, ...]]] = []
        self.flushed: list[str] = []
        self.most: dict[str, int] = {}
        self._open: dict[str, int] = {}

    async def generate(self, url: str, tokens: Sequence[int], max_new_tokens: int) -> Any:
        self._open[url] = self._open.get(url, 0) + 1
        self.most[url] = max(self.most.get(url, 0), self._open[url])
        self.asked.append((url, tuple(tokens)))
        await asyncio.sleep(0)
        self._open[url] -= 1
        return {"cached_tokens": 3, "completion_tokens": max_new_tokens}

    async def flush(self, url: str) -> None:
        self.flushed.append(url)


def measured(workload: Workload, plan: Assignment) -> tuple[Measured, RecordingClient]:
    machine = machine_of(CALIBRATION, SERVERS)

    async def main() -> tuple[Measured, RecordingClient]:
        client = RecordingClient()
        prompts = Prompts(workload, "salt")
        run = AssignmentRun(workload, machine, plan, SERVERS, client, prompts)
        return await run.run(), client

    return asyncio.run(main())


def two_models() -> Workload:
    def work(model: str, i: int) -> ModelWork:
        parts = (PromptPart("system", 5), PromptPart("row", 4, True), PromptPart(f"o{i}", 2, True))
        return ModelWork(model, parts, 7)

    operations = (
        Operation("a", work("small", 0)),
        Operation("t", ToolWork("sql", 0.0), (0,)),
        Operation("b", work("large", 1), (1,)),
        Operation("c", work("small", 2), (0, 2)),
    )
    return Workload(operations, (3, 3))


def base_plan(**options: Any) -> Assignment:
    worker = [0, 0, -1, -1, 0, 0, 0, 0]
    return replace(Assignment(worker, [float(i) for i in range(8)]), **options)


@pytest.mark.parametrize(
    "plan",
    [
        base_plan(),
        base_plan(co_resident=[True]),
        base_plan(switching="priority"),
        base_plan(order="longest_prefix"),
        base_plan(stage=[0, 0, 1, 2]),
        base_plan(groups_in_flight=1),
    ],
)
def test_the_client_makes_every_call_once_and_keeps_the_policies(plan: Assignment) -> None:
    workload = two_models()
    found, client = measured(workload, plan)
    assert found.calls == len(client.asked) == 18
    assert found.prompt_tokens == 18 * 11 and found.output_tokens == 18 * 7
    assert found.cached_tokens == 18 * 3
    assert len(set(client.asked)) == 18
    # Prompts share what the workload says: five tokens of all, nine of one row and model.
    small = [tokens for url, tokens in client.asked if url == "s"]
    assert len({tokens[:5] for tokens in small}) == 1
    assert len({tokens[:9] for tokens in small}) == 6
    if plan.co_resident:
        assert client.flushed == []
    else:
        # One model at a time: the cache of the one that leaves is lost.
        urls = [url for url, _ in client.asked]
        changes = sum(a != b for a, b in pairwise(urls))
        assert len(client.flushed) == changes
    assert simulate(workload, machine_of(CALIBRATION, SERVERS), plan).calls == 6 * 4


def test_a_failing_call_ends_the_measurement() -> None:
    class Failing(RecordingClient):
        async def generate(self, url: str, tokens: Sequence[int], max_new_tokens: int) -> Any:
            raise ConnectionError("gone")

    async def main() -> None:
        workload = two_models()
        machine = Machine(machine_of(CALIBRATION, SERVERS).workers, (ToolLaneSpec("sql"),))
        run = AssignmentRun(
            workload, machine, base_plan(), SERVERS, Failing(), Prompts(workload, "x")
        )
        await run.run()

    with pytest.raises(ConnectionError, match="gone"):
        asyncio.run(main())


def reality_arguments(out: Path, **options: Any) -> argparse.Namespace:
    servers = ["gpu0/small=http://small", "gpu0/large=http://large"]
    given: dict[str, Any] = {
        "server": servers, "out": out, "rows": 4, "groups": 2, "repeat": 2, "limit_s": 60.0,
        "workload": ["W3", "shared"], "scheduler": ["operator-wise", "min-switch"],
        "note": "a test", "calls": False, **options,
    }  # fmt: skip
    return argparse.Namespace(**given)


def measure_with(
    client: type[Client], arguments: argparse.Namespace, monkeypatch: pytest.MonkeyPatch
) -> list[dict[str, Any]]:
    """Measure with another client; the lines that are on disk afterwards."""
    monkeypatch.setattr("workloads.gpu.schedule_reality.Client", client)
    raw = RawFile(arguments.out)
    try:
        asyncio.run(measure(arguments, raw))
    finally:
        raw.close()
    return read_raw([arguments.out])


def test_a_measurement_keeps_what_it_measured_when_it_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(RecordingClient):
        """Ends the program in the middle of the third run, as a time limit would."""

        async def flush(self, url: str) -> None:
            await super().flush(url)
            lines = read_raw([arguments.out])
            if sum(line["kind"] == "run" for line in lines) == 2:
                raise KeyboardInterrupt

    arguments = reality_arguments(tmp_path / "raw.jsonl")
    with pytest.raises(KeyboardInterrupt):
        measure_with(Killed, arguments, monkeypatch)
    with arguments.out.open("a") as file:
        file.write('{"kind": "run", "work')
    lines = read_raw([arguments.out])
    assert [line["kind"] for line in lines] == ["setup", "calibration", "run", "run"]
    found = evaluate(lines)
    assert found["pairs"] == 2 and not found["ended"]
    assert set(found["workloads"]) == {"W3", "shared"}


def test_a_pair_that_fails_is_recorded_and_the_others_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FailsOnce(RecordingClient):
        armed = failed = False

        async def flush(self, url: str) -> None:
            await super().flush(url)
            self.armed = read_raw([arguments.out])[-1]["kind"] == "run"

        async def generate(self, url: str, tokens: Sequence[int], max_new_tokens: int) -> Any:
            if self.armed and not self.failed:
                self.failed = True
                raise ConnectionError("gone")
            return await super().generate(url, tokens, max_new_tokens)

    arguments = reality_arguments(tmp_path / "raw.jsonl")
    lines = measure_with(FailsOnce, arguments, monkeypatch)
    kinds = [line["kind"] for line in lines]
    assert kinds == ["setup", "calibration", "run", "failed", *["run"] * 6, "end"]
    found = evaluate(lines)
    assert (found["pairs"], found["runs"], found["failed"], found["ended"]) == (4, 7, 1, True)


def test_no_run_starts_that_would_end_after_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = reality_arguments(tmp_path / "raw.jsonl", limit_s=0.0)
    lines = measure_with(RecordingClient, arguments, monkeypatch)
    assert [line["kind"] for line in lines] == ["setup", "calibration", "end"]
    assert evaluate(lines)["pairs"] == 0


def test_a_broken_line_in_the_middle_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "raw.jsonl"
    path.write_text('{"kind": "setup"}\n{"kind"\n{"kind": "end", "seconds": 1}\n')
    with pytest.raises(ValueError, match=r"raw\.jsonl:2 is not JSON"):
        read_raw([path])


def test_runs_take_workloads_in_turn_and_the_chosen_schedule_early() -> None:
    workload, plan = two_models(), base_plan()
    schedulers = ["greedy", "random", "round-robin", "query-wise", "auto"]
    pairs = [
        [Pair(name, scheduler, workload, plan, 1.0) for scheduler in schedulers]
        for name in ("W1", "W2", "W3")
    ]
    order = interleaved(pairs, 2)
    assert len(order) == 30
    for turn in range(10):
        assert [p.workload_name for p in order[3 * turn : 3 * turn + 3]] == ["W1", "W2", "W3"]
    for begin in (0, 15):
        first_half = order[begin : begin + 9]
        assert sum(p.scheduler == "auto" for p in first_half) == 3
        seen = {(p.workload_name, p.scheduler) for p in order[begin : begin + 15]}
        assert len(seen) == 15


def test_what_is_proven_once_is_not_solved_again(monkeypatch: pytest.MonkeyPatch) -> None:
    first = gap(1, limit_s=60.0, steps=3, threads=1)
    assert first["proven"] == 1 and first["mean_gap"] >= 0

    def solve_exactly(*_: Any, **__: Any) -> Any:
        raise AssertionError("solved again")

    monkeypatch.setattr("workloads.schedule_bench.solve_exactly", solve_exactly)
    again = gap(1, steps=3, known=first["rows"])
    assert again["rows"][0]["optimum_s"] == first["rows"][0]["optimum_s"]
    assert again["mean_gap"] == first["mean_gap"]
    with pytest.raises(AssertionError, match="solved again"):
        gap(1, steps=3, known=[{**first["rows"][0], "proven": False}])


def test_results_become_a_page_with_a_picture(tmp_path: Path) -> None:
    curve = [
        {"budget_s": 0.1, "planning_s": 0.1, "makespan_s": 12.0, "over_best": 1.2},
        {"budget_s": 1.0, "planning_s": 1.0, "makespan_s": 10.0, "over_best": 1.0},
    ]
    (tmp_path / "a.json").write_text(
        json.dumps({"workload": "schedule-anytime", "curves": {"W1 <1>": curve}})
    )
    runs = [run_record("W1", "auto", 1.0, 1.1), run_record("W1", "greedy", 2.0, 2.0)]
    (tmp_path / "b.json").write_text(json.dumps(evaluate(runs)))
    measured_here = {
        "workload": "schedule-cpu", "engine": "torch", "model": "m", "rows": 8,
        "seconds": {"auto": [2.0], "alone": [3.0]}, "median_s": {"auto": 2.0, "alone": 3.0},
        "over_auto": {"auto": 1.0, "alone": 1.5}, "requests": {"auto": [20, 20], "alone": [40]},
    }  # fmt: skip
    (tmp_path / "d.json").write_text(json.dumps(measured_here))
    output = tmp_path / "page.md"
    text = page([tmp_path / f"{name}.json" for name in "abd"], output)
    assert "| W1 <1> | 1 | 1.0 | 10.0 | 1.000 |" in text
    assert "| alone | 3.0 | 1.5 | 40 | 3.0 |" in text
    assert "Rank correlation" in text and "| W1 | auto | 1.0 | 1.1 |" in text
    svg = (tmp_path / "page-anytime.svg").read_text()
    assert svg.startswith("<svg") and "W1 &lt;1&gt;" in svg
    (tmp_path / "c.json").write_text("{}")
    with pytest.raises(SystemExit, match="no result of the scheduler"):
        page([tmp_path / "c.json"], output)
