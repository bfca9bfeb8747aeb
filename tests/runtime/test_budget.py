"""Budgets: what they read, when they stop a run, and how it goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

import halo
from costmodel.usage import Usage
from runtime.budget import Budget, BudgetMeter, Prices
from runtime.errors import BudgetError

lm = halo.Model()
ROWS = [{"question": f"Is option {i} good?"} for i in range(40)]


@halo.workflow
def ask(question: str) -> str:
    draft = lm.gen(f"Answer: {question}", max_tokens=16)
    return lm.gen(f"Shorten: {draft}", max_tokens=16)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("tokens", "tokens"),
        ("tokens=lots", "lots"),
        ("pages=4", "minutes"),
        ("calls=1,calls=2", "twice"),
        ("usd=5", "prices"),
    ],
)
def test_an_unreadable_budget_says_what_is_wrong(text: str, word: str) -> None:
    with pytest.raises(BudgetError, match=word):
        Budget.parse(text)


def test_money_needs_prices_and_is_counted_by_them() -> None:
    prices = Prices(usd_per_million_input=2.0, usd_per_million_output=10.0)
    meter = BudgetMeter(Budget.parse("usd=1", prices), 0.0)
    meter.end(Usage(input_tokens=100_000, output_tokens=70_000))
    assert meter.start(1.0) == ""
    meter.end(Usage(input_tokens=50_000))
    assert "1 of 1 usd" in meter.start(2.0)


@pytest.mark.parametrize(
    ("budget", "spent", "limit"),
    [("calls=30", "made", 30), ("tokens=1k", "tokens", 1_000)],
)
def test_a_run_stops_at_its_budget_and_resumes(
    budget: str, spent: str, limit: int, tmp_path: Path
) -> None:
    in_flight = 4
    with halo.Session(engine="simulated", max_in_flight=in_flight, budget=budget) as session:
        first = session.run(ask, ROWS, out=tmp_path / "run")
    assert first.budget_reached
    assert first.stopped.startswith("budget reached")
    made = sum(m.made for m in first.call_metrics.values())
    usage = [m.usage for m in first.call_metrics.values()]
    tokens = sum(u.input_tokens + u.output_tokens for u in usage)
    largest = 60  # tokens of one call of this workflow
    overshoot = {"made": made - limit, "tokens": tokens - limit}[spent]
    assert 0 <= overshoot <= {"made": 0, "tokens": in_flight * largest}[spent]
    assert not (tmp_path / "run" / "results.jsonl").exists(), "partial results are no results"

    with halo.Session(engine="simulated") as session:
        second = session.run(ask, ROWS, out=tmp_path / "run", resume=True)
        undisturbed = session.run(ask, ROWS)
    assert second.ok
    assert second.values() == undisturbed.values()
    made_again = sum(m.made for m in second.call_metrics.values())
    assert made + made_again == 2 * len(ROWS), "no call is paid twice"


def test_time_is_that_of_the_run_clock() -> None:
    with halo.Session(engine="simulated", max_in_flight=1, budget={"minutes": 0.05}) as session:
        result = session.run(ask, ROWS)
    assert result.budget_reached
    assert 3.0 <= result.run_clock_s < 6.0
