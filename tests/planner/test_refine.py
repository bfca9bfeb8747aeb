"""Statistics refined by a run's first rows: what was exact stays, what was assumed moves."""

from __future__ import annotations

import pytest

from costmodel.usage import OpMetrics, Usage
from planner.refine import refined
from planner.stats import OpStats, PlanStats, RelationStats

ASSUMED = OpStats(
    uses=100, distinct=100, calls=100, calls_alone=100, input_tokens=10_000, output_tokens=12_800,
    prefixes=((50.0, 99.0),), calls_from="assumed", input_from="assumed", output_from="assumed",
)  # fmt: skip
EXACT = OpStats(
    uses=100, distinct=40, calls=40, calls_alone=100, input_tokens=4000, output_tokens=5120,
    output_from="assumed",
)  # fmt: skip


def stats(**ops: OpStats) -> PlanStats:
    return PlanStats(ops=ops, rows={"rows": 100})


def seen(made: int, input_tokens: int, output_tokens: int, replayed: int = 0) -> OpMetrics:
    return OpMetrics(made=made, replayed=replayed, usage=Usage(input_tokens, output_tokens))


def test_assumptions_move_towards_what_was_seen() -> None:
    metrics = {"a": seen(made=36, input_tokens=36 * 200, output_tokens=36 * 28)}
    after = refined(stats(a=ASSUMED), metrics, share_done=0.5).ops["a"]
    # 36 calls and an assumption that counts as four: nine tenths of the way.
    assert after.calls == pytest.approx(0.9 * 72 + 0.1 * 100)
    assert after.input_tokens / after.calls == pytest.approx(0.9 * 200 + 0.1 * 100)
    assert after.output_tokens / after.calls == pytest.approx(0.9 * 28 + 0.1 * 128)
    assert {after.calls_from, after.input_from, after.output_from} == {"sampled"}
    assert after.prefixes == ((50.0, pytest.approx(99 * after.calls / 100)),)


def test_what_is_exact_stays() -> None:
    metrics = {"a": seen(made=4, input_tokens=4000, output_tokens=40)}
    after = refined(stats(a=EXACT), metrics, share_done=0.1).ops["a"]
    assert (after.calls, after.uses, after.distinct) == (40, 100, 40)
    assert after.input_tokens == 4000
    assert (after.calls_from, after.input_from, after.output_from) == ("exact", "exact", "sampled")


def test_more_calls_than_expected_are_believed() -> None:
    metrics = {"a": seen(made=500, input_tokens=1, output_tokens=1)}
    assert refined(stats(a=ASSUMED), metrics, share_done=1.0).ops["a"].calls >= 500


@pytest.mark.parametrize(("made", "calls"), [(100, 100), (30, 100), (160, 160)])
def test_calls_of_rows_under_way_contradict_an_assumption_only_where_they_must(
    made: int, calls: int
) -> None:
    # Two rows of a hundred have ended, all have started: 100 calls may be all there are.
    metrics = {"a": seen(made=made, input_tokens=made, output_tokens=made)}
    after = refined(stats(a=ASSUMED), metrics, share_done=0.02, share_started=1.0).ops["a"]
    assert after.calls == pytest.approx(calls, rel=0.02)


@pytest.mark.parametrize("share", [0.0, -1.0, 1.5])
def test_no_rows_teach_nothing(share: float) -> None:
    before = stats(a=ASSUMED)
    assert refined(before, {"a": seen(1, 1, 1)}, share) is before


def test_operators_without_calls_or_news_stay() -> None:
    before = stats(a=ASSUMED, b=OpStats(uses=100), c=ASSUMED)
    after = refined(before, {"b": OpMetrics(requested=3), "c": OpMetrics()}, 0.5)
    assert after.ops == before.ops


def test_replayed_calls_count_and_have_no_lengths() -> None:
    metrics = {"a": seen(made=0, input_tokens=0, output_tokens=0, replayed=50)}
    after = refined(stats(a=ASSUMED), metrics, share_done=0.5).ops["a"]
    assert after.calls == pytest.approx(100)
    assert (after.calls_from, after.output_from) == ("sampled", "assumed")


def test_pass_rates_of_filters_move_with_their_intervals() -> None:
    guess = RelationStats(rows=50, rows_from="assumed", pass_rate=0.5)
    before = PlanStats(
        rows={"rows": 100}, relations={"f": guess, "g": guess, "scan": RelationStats(9)}
    )
    after = refined(before, {"f": OpMetrics(requested=36, kept=4)}, share_done=0.4).relations
    # 4 of 36, and an assumption that counts as two of four.
    assert after["f"].pass_rate == pytest.approx(6 / 40)
    assert after["f"].rows == pytest.approx(50 * 6 / 40 / 0.5)
    assert after["f"].pass_low < 4 / 36 < after["f"].pass_high < 0.5
    assert (after["f"].pass_from, after["f"].rows_from) == ("sampled", "sampled")
    assert after["g"] == guess
    assert after["scan"] == RelationStats(9)
