"""The PTE section of a run's report: what its model calls cost, from the journal alone."""

from __future__ import annotations

import contextlib
import heapq
from collections.abc import Iterable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from costmodel.errors import ProfileError
from costmodel.pte import PteTotals, Turn, price
from costmodel.pte_exact import ExactTerms
from costmodel.pte_profiles import Pricing
from costmodel.tokens import tokens_of_bytes
from halo.trace_report.analyze import rates_document
from halo.trace_report.rates_book import RatesBook
from halo.trace_report.text import number, plain
from halo.traces.halo_run import operator_labels, ordered_calls, segment_of
from halo.traces.json_shapes import as_dict
from runtime.journal_reader import reading

_WORST = 5
_FIELDS = (
    "query, row_key, kind, name, op, path, turn, length(value), input_tokens, output_tokens, "
    "cached_tokens"
)


def pte_of_run(
    path: Path,
    manifest: Mapping[str, Any],
    *,
    model: str | None = None,
    hardware: str | None = None,
) -> dict[str, Any]:
    """PTE of the recorded model calls of a run, as a JSON-able object; `unavailable` says why there
    is none. `model` and `hardware` price it as others than the run's own and the default."""
    batch = mean_in_flight(path / "events.sqlite")
    if batch is None:
        return {"unavailable": "no model call is recorded"}
    book = RatesBook(Pricing("exact", hardware, terms=ExactTerms(batch=batch)), model)
    try:
        book.check()
    except ProfileError as error:
        return {"unavailable": str(error)}
    labels = operator_labels(path)
    totals = PteTotals()
    operators: dict[str, PteTotals] = {}
    models: set[str] = set()
    worst: list[tuple[float, str, int]] = []
    known = 0
    with contextlib.closing(ordered_calls(path / "events.sqlite", _FIELDS)) as rows:
        for (query, row_key), calls in groupby(rows, key=lambda row: (row[0], row[1])):
            ops, names, turns = _turns(calls)
            if not turns:
                continue
            models.update(names)
            costs = price(book.rates(names[0]), turns)
            for op, turn, cost in zip(ops, turns, costs, strict=True):
                totals.add(cost)
                operators.setdefault(labels.get(op) or op[:8], PteTotals()).add(cost)
                known += turn.cached_tokens is not None
            item = (sum(cost.value for cost in costs), f"{query} {row_key}", len(turns))
            (heapq.heappush if len(worst) < _WORST else heapq.heappushpop)(worst, item)
    config = as_dict(manifest.get("config"))
    return {
        "mode": "exact",
        "prices": [rates_document(book.rates(name)) for name in sorted(models)[:5]],
        "stand_ins": dict(book.stand_ins),
        "mean_calls_in_flight": batch,
        "simulated": config.get("engine") == "simulated",
        "calls": totals.turns,
        "calls_with_cached_count": known,
        "value": totals.value,
        "full": totals.full,
        "measured": totals.measured,
        "ideal": totals.ideal,
        "causes": {
            "prompt": totals.prompt,
            "tool_answers": totals.tool_answers,
            "re_prefill": totals.re_prefill,
            "reasoning": totals.reasoning,
            "context_reads": totals.context_reads,
        },
        "operators": [
            {"label": label, "calls": each.turns, "pte": each.value}
            for label, each in sorted(operators.items(), key=lambda item: -item[1].value)
        ],
        "worst_rows": [
            {"row": id, "pte": value, "calls": calls}
            for value, id, calls in sorted(worst, reverse=True)
        ],
    }


def _turns(calls: Iterable[tuple[Any, ...]]) -> tuple[list[str], list[str], list[Turn]]:
    """Operators, models and turns of one row's calls. Tool answers are estimated by their size."""
    ops: list[str] = []
    names: list[str] = []
    turns: list[Turn] = []
    segment = ""
    tool_tokens = pending = 0
    for _, _, kind, name, op, path, turn, size, prompt, completion, cached in calls:
        if kind != "model":
            pending += tokens_of_bytes(size)
            continue
        here = segment_of(op, path)
        fresh = bool(turns) and (here != segment or turn == 0)
        if fresh:
            tool_tokens = 0
        segment = here
        tool_tokens += pending
        ops.append(op)
        names.append(name)
        turns.append(
            Turn(
                prompt,
                completion,
                None if cached is None else min(cached, prompt),
                fresh,
                min(prompt, tool_tokens),
                min(prompt, pending),
            )
        )
        pending = 0
    return ops, names, turns


def mean_in_flight(journal: Path) -> float | None:
    """Model calls under way at once, on average while any process had one; None without calls."""
    with reading(journal) as connection:
        spans = connection.execute(
            "SELECT sum(end_s - start_s), max(end_s) - min(start_s) FROM calls "
            "WHERE kind = 'model' GROUP BY process"
        ).fetchall()
    if not spans:
        return None
    busy, wall = sum(each[0] for each in spans), sum(each[1] for each in spans)
    return max(1.0, busy / wall) if wall > 0 else 1.0


def render_pte(found: Mapping[str, Any]) -> str:
    """The section as text for a terminal."""
    if "unavailable" in found:
        return f"PTE\n  not priced: {plain(found['unavailable'], 300)}"
    label = ", of simulated token counts" if found["simulated"] else ""
    lines = [f"PTE, prefill token equivalents{label}"]
    for rates in found["prices"]:
        lines.append(
            f"  priced as {plain(rates['model'], 48)} on {plain(rates['hardware'], 32)}, "
            f"{found['mean_calls_in_flight']:.1f} calls in flight"
        )
    for name, instead in found["stand_ins"].items():
        lines.append(
            f"  {plain(name, 48)} has no profile: {instead} stands in; --model chooses another"
        )
    measured = "unknown" if found["measured"] is None else number(found["measured"])
    lines.append(
        f"  {number(found['value'])} for {found['calls']:,} recorded calls: full "
        f"{number(found['full'])}, measured {measured}, ideal {number(found['ideal'])}"
    )
    if found["calls_with_cached_count"] < found["calls"]:
        lines.append(
            f"  cached tokens are known for {found['calls_with_cached_count']:,} calls; the others "
            "are priced as if nothing was cached"
        )
    causes = ", ".join(
        f"{name.replace('_', ' ')} {number(value)}" for name, value in found["causes"].items()
    )
    lines.append(f"  of this {causes}")
    dear = ", ".join(
        f"{plain(each['label'], 32)} {number(each['pte'])}" for each in found["operators"][:4]
    )
    lines.append(f"  by operator: {dear}")
    lines.append("  rows turn by turn: halo trace report DIR --html FILE")
    return "\n".join(lines)
