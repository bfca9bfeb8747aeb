"""The report of a run as text for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from halo.pte_of_run import render_pte

_MESSAGE_CHARACTERS = 160


def render_text(report: Mapping[str, Any]) -> str:
    """The document of `halo.report.report` as text. Text from rows, models and tools is shown
    without control characters, so that it cannot command a terminal."""
    sections = [
        _head(report),
        _failures(report["failures"]),
        _operators(report["operators"]),
        _savings(report),
        _names("models", report["models"]),
        _names("tools", report["tools"]),
        _slowest(report["slowest_calls"]),
        render_pte(report["pte"]),
    ]
    return "\n\n".join(section for section in sections if section)


def _head(report: Mapping[str, Any]) -> str:
    rows, calls, time = report["rows"], report["calls"], report["time"]
    lines = [f"{report['path']}: {report['state'].replace('_', ' ')}"]
    for query in rows["queries"]:
        of = "" if query["total"] is None else f" of {query['total']:,}"
        lines.append(
            f"rows    {query['done']:,}{of} done, {query['failed']:,} failed  "
            f"[{_plain(query['query'])}]"
        )
    lines.append(
        f"calls   {calls['requested']:,} requested, {calls['made']:,} made, {calls['shared']:,} "
        f"shared, {calls['replayed']:,} replayed, {calls['retries']:,} retries, "
        f"{calls['errors']:,} failed"
    )
    parts = [f"{time['run_clock_s']:.1f} s on the run's clock"]
    if time["wall_s"] is not None:
        parts.insert(0, f"{time['wall_s']:.1f} s wall")
    if time["cpu_s"] is not None:
        parts.append(f"{time['cpu_s']:.1f} s processor")
    if time["cpu_us_per_call"] is not None:
        parts.append(f"{time['cpu_us_per_call']:,.0f} us processor a call")
    lines.append(f"time    {', '.join(parts)}")
    if len(time["processes"]) > 1:
        ends = ", ".join(p["exit_reason"] or "running or killed" for p in time["processes"])
        lines.append(f"        {len(time['processes'])} processes: {_plain(ends)}")
    return "\n".join(lines)


def _failures(failures: Sequence[Mapping[str, Any]]) -> str:
    lines: list[str] = []
    for group in failures:
        example = group["example"]
        lines.append(
            f"  {group['rows']:,} x {_plain(group['type'])}"
            + (f" at {_plain(group['operator'])}" if group["operator"] else "")
        )
        lines.append(
            f"      e.g. row {example['row']} of {_plain(example['query'])}: "
            f"{_plain(example['message'])}"
        )
    return "\n".join(["failed rows", *lines]) if lines else ""


def _operators(operators: Sequence[Mapping[str, Any]]) -> str:
    if not operators:
        return ""
    header = ["operator", "kind", "model", "requested", "made", "shared", "replayed", "retries"]
    header += ["errors", "in", "cached", "predicted", "out", "busy_s", "mean_s"]
    rows = [
        [
            _plain(op["label"], 32),
            op["kind"],
            _plain(op["model"], 32),
            *(
                _count(op[name])
                for name in ("requested", "made", "shared", "replayed", "retries", "errors")
            ),
            _count(op["input_tokens"]),
            _count(op["cached_tokens"]),
            _count(op["predicted_cached_tokens"]),
            _count(op["output_tokens"]),
            f"{op['busy_s']:.2f}",
            "-" if op["mean_latency_s"] is None else f"{op['mean_latency_s']:.3f}",
        ]
        for op in operators
    ]
    note = "in, cached (by the engine), predicted (to be cached) and out are tokens of calls made"
    return "\n".join(["operators", *_table(header, rows, text_columns=3), f"  {note}"])


def _savings(report: Mapping[str, Any]) -> str:
    calls, reuse = report["calls"], report["tokens"]["prefix_reuse"]
    lines = [
        f"  {calls['saved']:,} of {calls['requested']:,} calls: {calls['shared']:,} equal to "
        f"another of the batch, {calls['replayed']:,} recorded before"
    ]
    if reuse["tokens"] is not None:
        share = reuse["share_of_input"]
        part = "" if share is None else f" ({share:.0%} of the input)"
        lines.append(
            f"  {reuse['tokens']:,} prompt tokens by prefix reuse{part}, {reuse['source']}"
        )
    else:
        lines.append("  prefix reuse: not measured by the engine, and not predicted")
    return "\n".join(["saved", *lines])


def _names(title: str, groups: Sequence[Mapping[str, Any]]) -> str:
    if not groups:
        return ""
    rows = [
        [
            _plain(group["name"], 48),
            group["kind"],
            _count(group["calls"]),
            _count(group["failed"]),
            f"{group['mean_s']:.3f}",
            f"{group['max_s']:.3f}",
        ]
        for group in groups
    ]
    header = ["name", "kind", "recorded", "failed", "mean_s", "max_s"]
    return "\n".join([title, *_table(header, rows, text_columns=2)])


def _slowest(calls: Sequence[Mapping[str, Any]]) -> str:
    if not calls:
        return ""
    rows = [
        [
            _plain(call["operator"], 32),
            _plain(call["name"], 32),
            _plain(call["query"], 32),
            call["row_key"],
            _plain(call["path"], 32),
            f"{call['seconds']:.3f}",
        ]
        for call in calls
    ]
    header = ["operator", "name", "query", "row_key", "path", "seconds"]
    return "\n".join(["slowest calls", *_table(header, rows, text_columns=5)])


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], *, text_columns: int) -> list[str]:
    widths = [max(len(line[i]) for line in [header, *rows]) for i in range(len(header))]
    return [
        "  "
        + "  ".join(
            cell.ljust(width) if i < text_columns else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in [header, *rows]
    ]


def _count(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"


def _plain(text: str, limit: int = _MESSAGE_CHARACTERS) -> str:
    shown = "".join(c if c.isprintable() else " " for c in text[: limit + 1])
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"
