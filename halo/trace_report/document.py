"""The report as one JSON-able object."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from costmodel.pte import PteRates
from halo.trace_report.analyze import rates_document
from halo.trace_report.patterns.all_rules import TITLES
from halo.trace_report.tally import Tally, spread_of
from halo.traces.record import Problems

if TYPE_CHECKING:
    from halo.trace_report.build import ReportOptions

SCHEMA = "halo-pte-report-1"
CAUSES = {
    "prompt": "first prefill of prompts and earlier answers",
    "tool_answers": "tool answers, prefilled and carried",
    "re_prefill": "prefilled again after a cache loss",
    "reasoning": "the model's own tokens",
    "context_reads": "decode surcharge of the rest of the context",
}


def document(
    tally: Tally,
    problems: Problems,
    options: ReportOptions,
    prices: Sequence[PteRates],
    stand_ins: dict[str, str],
    files: int,
    counter: str,
) -> dict[str, Any]:
    """The report of a tally; docs/pte.md lists its entries."""
    return {
        "schema": SCHEMA,
        "mode": options.mode,
        "files": files,
        "formats": tally.formats,
        "models": tally.models,
        "prices": [rates_document(rates) for rates in prices],
        "stand_ins": stand_ins,
        "counts": _counts(tally, counter),
        "totals": _totals(tally, options),
        "tokens": _tokens(tally),
        "distribution": {
            "all": spread_of(tally.values),
            "passed": spread_of(tally.passed_values),
            "failed": spread_of(tally.failed_values),
        },
        "points": [list(point) for point in tally.points],
        "histogram": histogram(tally.values.tolist()),
        "tools": _tools(tally),
        "patterns": _patterns(tally),
        "what_if": [
            {
                "scenario": name,
                "pte": pte,
                "change": pte / tally.sums["pte"] - 1 if tally.sums["pte"] else 0.0,
            }
            for name, pte in tally.what_if.items()
        ],
        "worst": [details for _, _, details in tally.worst],
        "notes": tally.notes,
        "problems": {
            "count": problems.count,
            "first": [{"place": each.place, "text": each.text} for each in problems.kept],
        },
        "limits": limits(tally, options, prices, stand_ins),
    }


def _counts(tally: Tally, counter: str) -> dict[str, Any]:
    estimated = sum(
        number
        for origin, number in tally.origins.items()
        if origin in ("prompt estimated", "prompt tokenized", "completion estimated")
    )
    return {
        "traces": tally.traces,
        "calls": int(tally.sums["turns"]),
        "tool_calls": int(tally.sums["tool_calls"]),
        "passed": len(tally.passed_values),
        "failed": len(tally.failed_values),
        "calls_with_cached_count": tally.cached_known_calls,
        "origins": tally.origins,
        "counted_with": counter if estimated else None,
    }


def _totals(tally: Tally, options: ReportOptions) -> dict[str, Any]:
    sums, shared = tally.sums, tally.shared_prefix_tokens
    all_known = tally.cached_known_calls == int(sums["turns"])
    return {
        "pte": sums["pte"],
        "full": sums["pte_full"],
        "measured": sums["pte"] if all_known or options.mode == "paper" else None,
        "ideal": sums["pte_ideal"],
        "ideal_shared_prefixes_once": sums["pte_ideal"] - shared,
        "shared_prefix_tokens": shared,
        "saved_by_cache": sums["pte_full"] - sums["pte"] if all_known else None,
        "lost_by_cache": sums["pte_re_prefill"] if all_known else None,
        "causes": {name: sums[f"pte_{name}"] for name in CAUSES},
        "wasted_pte_at_most": sums["wasted_pte"],
    }


def _tokens(tally: Tally) -> dict[str, Any]:
    prompt, completion = tally.sums["prompt_tokens"], tally.sums["completion_tokens"]
    return {
        "prompt": prompt,
        "completion": completion,
        "cached_where_known": tally.cached_tokens,
        "prompt_where_cached_known": tally.cached_known_prompt_tokens,
        "weighted_1_to_1": prompt + completion,
        "weighted_1_to_4": prompt + 4 * completion,
    }


def _tools(tally: Tally) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "calls": int(use["calls"]),
            "errors": int(use["errors"]),
            "answer_tokens": use["answer_tokens"],
            "pte": use["pte"],
            "pte_per_call": use["pte"] / use["calls"] if use["calls"] else 0.0,
            "mean_s": use["seconds"] / use["timed"] if use["timed"] else None,
        }
        for name, use in sorted(tally.tools.items(), key=lambda item: -item[1]["pte"])
    ]


def _patterns(tally: Tally) -> list[dict[str, Any]]:
    whole = tally.sums["pte"]
    return [
        {
            "pattern": name,
            "title": TITLES[name],
            "traces": int(found["fired"]),
            "clear": int(found["clear"]),
            "unknown": int(found["unknown"]),
            "findings": int(found["findings"]),
            "pte": found["pte"],
            "share": found["pte"] / whole if whole else 0.0,
            "mean_confidence": found["confidence"] / found["findings"]
            if found["findings"]
            else None,
            "paper_rule_traces": int(found["paper"]) if found["paper_known"] else None,
        }
        for name, found in tally.patterns.items()
    ]


def limits(
    tally: Tally, options: ReportOptions, prices: Sequence[PteRates], stand_ins: dict[str, str]
) -> list[str]:
    """What the numbers do not say, in plain words."""
    found: list[str] = []
    calls = int(tally.sums["turns"])
    if options.mode == "paper":
        found.append(
            "Paper mode: every tool pause counts as a full eviction, whatever was cached; weight "
            "reads and prefill attention cost nothing."
        )
    else:
        unknown = calls - tally.cached_known_calls
        if unknown:
            found.append(
                f"{unknown:,} of {calls:,} calls do not say how many tokens were cached. They are "
                "priced as if none were: the truth lies between ideal and full."
            )
        if options.terms.batch is None:
            found.append("Weight reads are left out, so decoded tokens look cheap.")
        else:
            found.append(
                f"Weight reads are shared by {options.terms.batch:g} sequences, an assumption; "
                "--batch changes it."
            )
    estimated = sum(
        number for origin, number in tally.origins.items() if origin.startswith("prompt est")
    )
    if estimated:
        found.append(
            f"Prompts of {estimated:,} calls are estimated from bytes: expect errors of a quarter."
        )
    for model, instead in list(stand_ins.items())[:5]:
        found.append(
            f"{model[:80]} is priced as {instead}: its own geometry is not known. --model NAME "
            "chooses another."
        )
    if prices and options.peak == "sparse":
        found.append("The sparse peak doubles every gamma against dense arithmetic.")
    found.append("Tool time, queues and retries are outside PTE. Findings may overlap.")
    return found


def histogram(values: list[float], bins: int = 24) -> dict[str, Any]:
    """Counts of values in bins of equal ratio."""
    positive = [value for value in values if value > 0]
    if not positive:
        return {"edges": [], "counts": []}
    low, high = min(positive), max(positive)
    if high <= low * 1.001:
        return {"edges": [low, high], "counts": [len(positive)]}
    ratio = (high / low) ** (1 / bins)
    edges = [low * ratio**place for place in range(bins + 1)]
    counts = [0] * bins

    for value in positive:
        counts[min(bins - 1, int(math.log(value / low) / math.log(ratio)))] += 1
    return {"edges": edges, "counts": counts}
