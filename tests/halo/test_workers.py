"""Several engines for one batch: rows are split, answers stay, a lost engine is replaced."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import halo
from halo.errors import BackendError, PlanError
from planner.physical import PhysicalPlan
from planner.schedule.auto import METHODS
from planner.schedule.to_plan import without_worker
from runtime.backends import create
from runtime.backends.base import Capabilities

lm = halo.Model()
ROWS = [{"question": f"Is option {i} better than option {i + 1}?"} for i in range(60)]


@halo.workflow
def debate(question: str) -> str:
    facts = lm.gen(f"List two facts.\nQuestion: {question}", max_tokens=32, name="facts")
    pro = lm.gen(f"Facts: {facts}\nArgue for: {question}", max_tokens=32, name="pro")
    con = lm.gen(f"Facts: {facts}\nArgue against: {question}", max_tokens=32, name="con")
    return lm.gen(f"FOR {pro} AGAINST {con}: who won?", max_tokens=32, name="judge")


def run(workers: Any = (), **settings: Any) -> halo.RunResult:
    with halo.Session(engine="simulated", workers=workers, **settings) as session:
        return session.run(debate, ROWS)


def values(result: halo.RunResult) -> list[Any]:
    return [outcome.value for outcome in result]


def test_rows_are_split_and_answers_do_not_change() -> None:
    one, two = run(), run(("simulated", "simulated"))
    assert values(one) == values(two)
    requests = two.engine_requests
    assert set(requests) == {"simulated:simulated", "simulated:simulated#2"}
    assert sum(requests.values()) == sum(one.engine_requests.values()) == 4 * 60
    assert min(requests.values()) > 0.3 * 4 * 60
    assert two.run_clock_s < 0.75 * one.run_clock_s


@pytest.mark.parametrize("method", [m for m in METHODS if m != "auto"])
def test_every_scheduler_can_be_asked_for(method: str) -> None:
    assert values(run(("simulated",) * 2, scheduler=method, planning_s=0.1)) == values(run())


def test_workers_may_be_one_text() -> None:
    assert len(run("simulated, simulated,simulated").engine_requests) == 3


def test_a_worker_that_does_not_start_is_given_up_in_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[str] = []
    real = create.create_backend

    async def create_backend(engine: str, model: str, *rest: Any) -> Any:
        made.append(engine)
        if len(made) == 2:
            raise BackendError("connection refused", backend=engine)
        return await real(engine, model, *rest)

    monkeypatch.setattr("halo.engines.create_backend", create_backend)
    said: list[str] = []
    with halo.Session(engine="simulated", workers=("simulated",) * 3) as session:
        result = session.run(debate, ROWS, announce=said.append)
    assert len(result.engine_requests) == 2
    assert values(result) == values(run())
    assert any("is lost (connection refused)" in text for text in said)


def test_when_no_worker_starts_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async def create_backend(engine: str, *rest: Any) -> Any:
        raise BackendError("connection refused", backend=engine)

    monkeypatch.setattr("halo.engines.create_backend", create_backend)
    with (
        halo.Session(engine="simulated", workers=("simulated",) * 2) as session,
        pytest.raises((PlanError, BackendError), match="connection refused"),
    ):
        session.run(debate, ROWS)


def test_an_unknown_scheduler_is_refused_before_anything_runs() -> None:
    with (
        halo.Session(engine="simulated", workers=("simulated",) * 2, scheduler="magic") as session,
        pytest.raises(PlanError, match="no scheduler 'magic'"),
    ):
        session.prepare(debate, ROWS)


def test_a_run_with_workers_can_be_resumed(tmp_path: Path) -> None:
    with halo.Session(engine="simulated", workers=("simulated",) * 2) as session:
        first = session.run(debate, ROWS, out=tmp_path / "run")
        again = session.run(debate, ROWS, out=tmp_path / "run", resume=True)
    assert values(first) == values(again)
    assert sum(again.engine_requests.values()) == 0


def test_the_schedule_is_explained_as_a_chart(tmp_path: Path) -> None:
    with halo.Session(engine="simulated", workers=("simulated",) * 2) as session:
        prepared = session.prepare(debate, ROWS)
        text = session.explain_prepared(prepared, format="gantt")
        page = session.explain_prepared(prepared, format="gantt-html")
        session.run_prepared(prepared, out=tmp_path / "run")
        plan_text = session.explain_prepared(prepared)
        as_json = json.loads(session.explain_prepared(prepared, format="json"))
    assert "on simulated:simulated " in plan_text and " rows, simulated:simulated#2 " in plan_text
    assert "rows_by_worker" in json.dumps(as_json)
    assert text.startswith("estimate (simulated): ")
    assert "simulated:simulated#2 |" in text and "a facts" in text
    assert page.startswith("<!doctype html>") and "<svg" in page
    from halo.analyze import explain_analyze

    both = explain_analyze(tmp_path / "run", format="gantt")
    assert "estimate (simulated): " in both and "actual (recorded): " in both
    svg = explain_analyze(tmp_path / "run", format="gantt-svg")
    assert svg.startswith("<svg")


def test_the_plan_of_a_run_with_workers_is_kept(tmp_path: Path) -> None:
    with halo.Session(engine="simulated", workers=("simulated",) * 2) as session:
        session.run(debate, ROWS, out=tmp_path / "run")
    kept = json.loads((tmp_path / "run" / "plan.json").read_text())
    plan = kept.get("plan", kept)
    assert "shares" in json.dumps(plan)


def test_objectives_are_known_names() -> None:
    assert values(run(("simulated",) * 2, objective="mean_latency")) == values(run())
    with (
        halo.Session(engine="simulated", workers=("simulated",) * 2, objective="luck") as session,
        pytest.raises(PlanError, match="no objective 'luck'"),
    ):
        session.prepare(debate, ROWS)


def test_a_run_whose_answers_are_not_as_long_as_expected_says_so() -> None:
    """Half of `max_tokens` is expected; the simulated engine answers in a tenth."""

    @halo.workflow
    def long(question: str) -> str:
        first = lm.gen(f"Write at length about: {question}", max_tokens=480, name="essay")
        return lm.gen(f"Shorten: {first}", max_tokens=32, name="short")

    said: list[str] = []
    many = [{"question": f"What of {i}?"} for i in range(700)]
    with halo.Session(engine="simulated", workers=("simulated",) * 2, max_in_flight=8) as session:
        result = session.run(long, many, announce=said.append)
    assert len(list(result)) == 700
    assert any("essay: answer tokens 240 expected" in text for text in said)


def offering(monkeypatch: pytest.MonkeyPatch, cache_tokens: int, **offered: Any) -> None:
    """Engines with a cache of a known size, so long as none is open."""
    capabilities = Capabilities(64, prefix_cache=True, cache_tokens=cache_tokens, **offered)
    monkeypatch.setattr("halo.engines.describe_backend", lambda *_: capabilities)


def test_plans_count_a_cache_in_the_tokens_that_they_estimate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    offering(monkeypatch, 1_000, bytes_per_token=2.0)
    with halo.Session(engine="simulated") as session:
        (worker,) = session.prepare(debate, ROWS).plan.workers
    assert worker.cache_tokens == 500


@halo.workflow
def reflect(case: str) -> str:
    first = lm.gen(f"{case} Answer.", max_tokens=32)
    critique = lm.gen(f"Criticise {first}, the answer to {case}", max_tokens=32)
    return lm.gen(f"{case} Answer. {first} {critique} Again.", max_tokens=32)


def reflecting(*workers: str) -> PhysicalPlan:
    rows = [{"case": f"Case {i}. " + f"Fact {i} of it. " * 60} for i in range(200)]
    with halo.Session(engine="simulated", workers=workers) as session:
        return session.prepare(reflect, rows).plan


def test_two_caches_hold_more_rows_than_one(monkeypatch: pytest.MonkeyPatch) -> None:
    offering(monkeypatch, 40_000)
    one = reflecting("simulated").rows_in_flight
    assert one < 4 * 64, "the cache is no bound"
    assert reflecting("simulated", "simulated").rows_in_flight > 1.5 * one


def test_without_a_worker_rows_fit_the_caches_that_are_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    offering(monkeypatch, 40_000)
    one, two = reflecting("simulated"), reflecting("simulated", "simulated")
    left, _ = without_worker(two, two.workers[1].name, "it did not start")
    assert left.rows_in_flight <= one.rows_in_flight
