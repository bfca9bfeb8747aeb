"""Statistics of a plan after some of its rows have run: what was seen replaces assumptions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from costmodel.feedback import LengthBelief, ShareBelief
from costmodel.usage import OpMetrics
from planner.stats import OpStats, PlanStats, Provenance, RelationStats


def refined(
    stats: PlanStats,
    metrics: Mapping[str, OpMetrics],
    share_done: float,
    share_started: float | None = None,
) -> PlanStats:
    """`stats` updated by what operators did in the rows that ended, `share_done` of all, and in
    those that have started and not ended; `share_started` counts both (None: none is under way).

    Answer lengths, prompt lengths, numbers of calls and pass rates of filters that were not exact
    move towards what was seen: an assumption counts as four calls or rows (`costmodel.feedback`).
    What is exact stays. Rows under way may have made all of an operator's calls or none: of the
    numbers of calls that this allows, the one nearest to the assumption is what was seen.
    """
    if not 0 < share_done <= 1:
        return stats
    share_started = min(1.0, max(share_done, share_started or 0.0))
    ops = {
        fingerprint: _refined(known, metrics.get(fingerprint), share_done, share_started)
        for fingerprint, known in stats.ops.items()
    }
    relations = {
        fingerprint: _passing(known, metrics.get(fingerprint))
        for fingerprint, known in stats.relations.items()
    }
    return replace(stats, ops=ops, relations=relations)


def _passing(known: RelationStats, seen: OpMetrics | None) -> RelationStats:
    """A filter's pass rate moved towards what it has let through, and its rows with it."""
    if known.pass_rate is None or seen is None or not seen.requested:
        return known
    belief = ShareBelief(known.pass_rate)
    belief.observe_counts(min(seen.kept, seen.requested), seen.requested)
    interval = belief.interval()
    scale = interval.mid / known.pass_rate if known.pass_rate else 1.0
    return replace(
        known,
        rows=known.rows * scale,
        rows_from="sampled",
        pass_rate=interval.mid,
        pass_low=interval.low,
        pass_high=interval.high,
        pass_from="sampled",
    )


def _refined(
    known: OpStats, seen: OpMetrics | None, share_done: float, share_started: float
) -> OpStats:
    if not known.calls or seen is None:
        return known
    answered = seen.made + seen.replayed
    if not answered:
        return known
    calls, calls_from = known.calls, known.calls_from
    if calls_from != "exact":
        expected = LengthBelief(known.calls)
        in_all = min(max(known.calls, answered / share_started), answered / share_done)
        expected.observe_sum(answered, answered * in_all)
        calls, calls_from = max(float(answered), expected.expected), "sampled"
    input_tokens, input_from = _per_call(
        known.input_tokens / known.calls, known.input_from, seen.usage.input_tokens, seen.made
    )
    output_tokens, output_from = _per_call(
        known.output_tokens / known.calls, known.output_from, seen.usage.output_tokens, seen.made
    )
    scale = calls / known.calls
    return replace(
        known,
        calls=calls,
        uses=known.uses if known.calls_from == "exact" else known.uses * scale,
        distinct=known.distinct if known.calls_from == "exact" else known.distinct * scale,
        input_tokens=calls * input_tokens,
        output_tokens=calls * output_tokens,
        prefixes=tuple((tokens, reuses * scale) for tokens, reuses in known.prefixes),
        calls_from=calls_from,
        input_from=input_from,
        output_from=output_from,
    )


def _per_call(
    expected: float, source: Provenance, total: int, calls: int
) -> tuple[float, Provenance]:
    """Tokens of a call: the estimate moved towards what was seen, unless it is exact."""
    if source == "exact" or not calls or not total:
        return expected, source
    belief = LengthBelief(expected)
    belief.observe_sum(calls, total)
    return belief.expected, "sampled"
