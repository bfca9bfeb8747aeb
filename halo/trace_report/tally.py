"""Sums over many traces, small whatever their number: totals, values for quantiles, the worst
traces. A tally is plain values, so that processes exchange it as JSON."""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from halo.trace_report.analyze import Analysis, prefix_chain

_SUMS = (
    "turns",
    "tool_calls",
    "prompt_tokens",
    "completion_tokens",
    "pte",
    "pte_full",
    "pte_ideal",
    "pte_prompt",
    "pte_tool_answers",
    "pte_re_prefill",
    "pte_reasoning",
    "pte_context_reads",
    "wasted_pte",
)
_MOST_POINTS = 4000


@dataclass
class Tally:
    """Sums over traces.

    Attributes:
        keep: how many of the worst traces are kept with all their turns.
        floor: PTE below which a trace is not among the worst, as other tallies have enough above.
        with_rows: whether lines of traces are kept.
        values, passed_values, failed_values: PTE of each trace; of those with a label.
        worst: (pte, order, details) of the worst traces, dearest first.
        rows: a line of each trace, until the caller takes them.
        prefixes: (tokens, traces) of leading parts of prompts, by name.
        points: (turns, pte, label) of some traces, for a plot.
    """

    keep: int = 20
    with_texts: bool = True
    with_rows: bool = True
    floor: float = 0.0
    traces: int = 0
    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_SUMS, 0.0))
    measured_traces: int = 0
    measured_pte: float = 0.0
    cached_known_calls: int = 0
    cached_tokens: float = 0.0
    cached_known_prompt_tokens: float = 0.0
    origins: dict[str, int] = field(default_factory=dict[str, int])
    models: dict[str, int] = field(default_factory=dict[str, int])
    formats: dict[str, int] = field(default_factory=dict[str, int])
    values: array[float] = field(default_factory=lambda: array("d"))
    passed_values: array[float] = field(default_factory=lambda: array("d"))
    failed_values: array[float] = field(default_factory=lambda: array("d"))
    points: list[tuple[int, float, str]] = field(default_factory=list[tuple[int, float, str]])
    tools: dict[str, dict[str, float]] = field(default_factory=dict[str, dict[str, float]])
    patterns: dict[str, dict[str, float]] = field(default_factory=dict[str, dict[str, float]])
    what_if: dict[str, float] = field(default_factory=dict[str, float])
    notes: dict[str, int] = field(default_factory=dict[str, int])
    worst: list[tuple[float, str, dict[str, Any]]] = field(
        default_factory=list[tuple[float, str, dict[str, Any]]]
    )
    _candidates: list[tuple[float, str, Analysis]] = field(
        default_factory=list[tuple[float, str, Analysis]]
    )
    rows: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    prefixes: dict[str, list[float]] = field(default_factory=dict[str, list[float]])

    def add(self, analysis: Analysis) -> None:
        """Count a trace."""
        view, trace = analysis.view, analysis.view.trace
        row = analysis.row()
        self.traces += 1
        for name in _SUMS:
            self.sums[name] += row[name]
        totals = view.totals
        if totals.measured is not None:
            self.measured_traces += 1
            self.measured_pte += totals.measured
        for turn, priced in zip(trace.turns, view.turns, strict=True):
            if priced.cached_tokens is not None:
                self.cached_known_calls += 1
                self.cached_tokens += priced.cached_tokens
                self.cached_known_prompt_tokens += priced.context_tokens
            _count(self.origins, f"prompt {turn.prompt_origin}")
            _count(self.origins, f"completion {turn.completion_origin}")
        _count(self.models, trace.model or "(no model named)")
        _count(self.formats, trace.format)
        for note in trace.notes:
            _count(self.notes, note)
        value = totals.value
        self.values.append(value)
        label = ""
        if trace.passed is not None:
            label = "passed" if trace.passed else "failed"
            (self.passed_values if trace.passed else self.failed_values).append(value)
        if len(self.points) < _MOST_POINTS:
            self.points.append((len(view.turns), value, label))
        for name, use in analysis.tools.items():
            known = self.tools.setdefault(
                name[:200],
                {"calls": 0, "errors": 0, "answer_tokens": 0, "pte": 0, "seconds": 0, "timed": 0},
            )
            known["calls"] += use.calls
            known["errors"] += use.errors
            known["answer_tokens"] += use.answer_tokens
            known["pte"] += use.pte
            known["seconds"] += use.seconds
            known["timed"] += use.timed
        for name, verdict in analysis.verdicts.items():
            sums = self.patterns.setdefault(
                name,
                {"fired": 0, "clear": 0, "unknown": 0, "findings": 0, "pte": 0, "confidence": 0,
                 "paper": 0, "paper_known": 0},
            )  # fmt: skip
            sums[verdict.status] += 1
            if verdict.status == "fired":
                sums["findings"] += len(verdict.findings)
                sums["pte"] += min(value, verdict.pte)
                sums["confidence"] += sum(f.confidence for f in verdict.findings)
            if verdict.paper is not None:
                sums["paper_known"] += 1
                sums["paper"] += verdict.paper
        for name, pte in analysis.what_if.items():
            self.what_if[name] = self.what_if.get(name, 0.0) + pte
        for name, tokens in prefix_chain(view):
            known_prefix = self.prefixes.setdefault(name, [tokens, 0.0])
            known_prefix[1] += 1
        if self.with_rows:
            self.rows.append(row)
        if value < self.floor:
            return
        item = (value, f"{trace.place} {self.traces:09}", analysis)
        if len(self._candidates) < self.keep:
            heapq.heappush(self._candidates, item)
        elif self.keep and value > self._candidates[0][0]:
            heapq.heapreplace(self._candidates, item)

    def settle(self) -> None:
        """Put the worst of the traces added so far into `worst`, with their turns."""
        for value, order, analysis in self._candidates:
            details = analysis.details() if self.with_texts else analysis.row()
            self._push((value, order, details))
        self._candidates = []

    def _push(self, item: tuple[float, str, dict[str, Any]]) -> None:
        self.worst.append(item)
        # Equal costs keep the order of files and lines, however the work was cut.
        self.worst.sort(key=lambda each: (-each[0], each[1]))
        del self.worst[self.keep :]

    @property
    def least_of_worst(self) -> float:
        """What a trace must cost at least to be among the worst; 0 while there is room."""
        return self.worst[-1][0] if self.keep and len(self.worst) == self.keep else 0.0

    def merge(self, other: Tally) -> None:
        """Count the traces of another tally, and take its rows."""
        self.traces += other.traces
        _add(self.sums, other.sums)
        self.measured_traces += other.measured_traces
        self.measured_pte += other.measured_pte
        self.cached_known_calls += other.cached_known_calls
        self.cached_tokens += other.cached_tokens
        self.cached_known_prompt_tokens += other.cached_known_prompt_tokens
        for mine, theirs in (
            (self.origins, other.origins),
            (self.models, other.models),
            (self.formats, other.formats),
            (self.notes, other.notes),
        ):
            for name, number in theirs.items():
                mine[name] = mine.get(name, 0) + number
        self.values.extend(other.values)
        self.passed_values.extend(other.passed_values)
        self.failed_values.extend(other.failed_values)
        self.points += other.points[: max(0, _MOST_POINTS - len(self.points))]
        for name, sums in other.tools.items():
            _add(self.tools.setdefault(name, {}), sums)
        for name, sums in other.patterns.items():
            _add(self.patterns.setdefault(name, {}), sums)
        _add(self.what_if, other.what_if)
        for name, (tokens, traces) in other.prefixes.items():
            known = self.prefixes.setdefault(name, [tokens, 0.0])
            known[1] += traces
        for item in other.worst:
            self._push(item)
        self.rows += other.rows

    def take_rows(self) -> list[dict[str, Any]]:
        """The rows since the last time; they are forgotten here."""
        rows, self.rows = self.rows, []
        return rows

    @property
    def shared_prefix_tokens(self) -> float:
        """Tokens of leading prompt parts that another trace of the batch had before."""
        return sum(tokens * (traces - 1) for tokens, traces in self.prefixes.values())

    def to_json(self) -> dict[str, Any]:
        """Plain values; `settle` comes first."""
        self.settle()
        found = dict(vars(self))
        del found["_candidates"]
        for name in ("values", "passed_values", "failed_values"):
            found[name] = list(found[name])
        return found

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Tally:
        """The tally of `to_json`."""
        for name in ("values", "passed_values", "failed_values"):
            fields[name] = array("d", fields[name])
        for name in ("worst", "points"):
            fields[name] = [tuple(each) for each in fields[name]]
        return cls(**fields)


def _count(counts: dict[str, int], name: str) -> None:
    counts[name] = counts.get(name, 0) + 1


def _add(mine: dict[str, float], theirs: dict[str, float]) -> None:
    for name, number in theirs.items():
        mine[name] = mine.get(name, 0) + number


def quantile(ordered: array[float] | list[float], share: float) -> float:
    """The value below which `share` of the ordered values lie, interpolated."""
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def median_interval(ordered: array[float] | list[float]) -> tuple[float, float] | None:
    """A 95 % interval of the median that assumes nothing about the distribution: the order
    statistics n/2 -+ 1.96 * sqrt(n)/2. None for fewer than six values."""
    count = len(ordered)
    if count < 6:
        return None
    spread = 1.96 * count**0.5 / 2
    low = max(0, int(count / 2 - spread))
    high = min(count - 1, int(count / 2 + spread + 1))
    return ordered[low], ordered[high]


def spread_of(values: Iterable[float]) -> dict[str, Any] | None:
    """Count, mean, quantiles and the median's interval; None without values."""
    ordered = array("d", sorted(values))
    if not ordered:
        return None
    interval = median_interval(ordered)
    return {
        "count": len(ordered),
        "mean": sum(ordered) / len(ordered),
        "p10": quantile(ordered, 0.10),
        "p50": quantile(ordered, 0.50),
        "p90": quantile(ordered, 0.90),
        "p99": quantile(ordered, 0.99),
        "max": ordered[-1],
        "median_95": list(interval) if interval else None,
    }
