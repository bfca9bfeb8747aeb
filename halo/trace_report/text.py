"""The report as text for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from halo.trace_report.document import CAUSES


def render_text(report: Mapping[str, Any], *, top: int = 10) -> str:
    """The document of `build_report` as text. Whatever comes from a trace is shown without control
    characters, so that it cannot command a terminal."""
    sections = [
        _head(report),
        _totals(report),
        _distribution(report),
        _worst(report, top),
        _tools(report, top),
        _patterns(report),
        _what_if(report),
        _problems(report),
        "\n".join(["limits", *(f"  {plain(each, 400)}" for each in report["limits"])]),
    ]
    return "\n\n".join(section for section in sections if section)


def _head(report: Mapping[str, Any]) -> str:
    counts = report["counts"]
    formats = ", ".join(f"{number:,} {name}" for name, number in report["formats"].items())
    lines = [
        f"PTE report, {report['mode']} mode: {counts['traces']:,} traces ({plain(formats)}), "
        f"{counts['calls']:,} model calls, {counts['tool_calls']:,} tool calls"
    ]
    for price in report["prices"][:4]:
        extra = "" if price["batch"] is None else f", batch {price['batch']:g}"
        lines.append(
            f"  priced as {plain(price['model'], 60)} on {plain(price['hardware'], 40)}: "
            f"gamma {price['gamma']:.6f} ({plain(price['peak'], 60)}{extra})"
        )
    if counts["counted_with"]:
        lines.append(f"  missing token counts: {plain(counts['counted_with'])}")
    share = counts["calls_with_cached_count"] / counts["calls"] if counts["calls"] else 0
    lines.append(f"  cached tokens are known for {share:.0%} of the calls")
    return "\n".join(lines)


def _totals(report: Mapping[str, Any]) -> str:
    totals = report["totals"]
    rows = [["full (every pause evicts)", number(totals["full"]), ""]]
    if totals["measured"] is not None and report["mode"] == "exact":
        rows.append(["measured", number(totals["measured"]), ""])
    rows += [
        ["ideal (nothing evicted)", number(totals["ideal"]), ""],
        ["ideal, shared prefixes once", number(totals["ideal_shared_prefixes_once"]), ""],
    ]
    for name, value in totals["causes"].items():
        share = value / totals["pte"] if totals["pte"] else 0
        rows.append([f"  {CAUSES[name]}", number(value), f"{share:.0%}"])
    return "\n".join(["totals, PTE", *table(["", "PTE", "share"], rows, text_columns=1)])


def _distribution(report: Mapping[str, Any]) -> str:
    rows: list[list[str]] = []
    for name, spread in report["distribution"].items():
        if spread is None:
            continue
        interval = spread["median_95"]
        rows.append(
            [
                name,
                f"{spread['count']:,}",
                *(number(spread[key]) for key in ("p10", "p50", "p90", "p99", "max", "mean")),
                "-" if interval is None else f"{number(interval[0])} to {number(interval[1])}",
            ]
        )
    header = ["PTE a trace", "traces", "p10", "median", "p90", "p99", "max", "mean", "median 95 %"]
    return "\n".join(["distribution", *table(header, rows, text_columns=1)])


def _worst(report: Mapping[str, Any], top: int) -> str:
    rows = [
        [
            plain(each["id"], 36),
            number(each["pte"]),
            f"{each['turns']:,}",
            f"{each['tool_calls']:,}",
            number(each["peak_context_tokens"]),
            number(each["pte_re_prefill"]),
            {True: "passed", False: "failed", None: ""}[each["passed"]],
            ", ".join(each["patterns"]),
        ]
        for each in report["worst"][:top]
    ]
    header = ["trace", "PTE", "turns", "tools", "peak L", "re-prefill", "label", "patterns"]
    return "\n".join(["worst traces", *table(header, rows, text_columns=1, last_is_text=True)])


def _tools(report: Mapping[str, Any], top: int) -> str:
    if not report["tools"]:
        return ""
    rows = [
        [
            plain(each["name"], 36),
            f"{each['calls']:,}",
            f"{each['errors']:,}",
            number(each["answer_tokens"]),
            number(each["pte"]),
            number(each["pte_per_call"]),
            "-" if each["mean_s"] is None else f"{each['mean_s']:.2f}",
        ]
        for each in report["tools"][:top]
    ]
    header = ["tool", "calls", "errors", "answer tokens", "PTE", "a call", "mean_s"]
    lines = ["tools, by the PTE of their answers", *table(header, rows, text_columns=1)]
    if len(report["tools"]) > top:
        lines.append(f"  and {len(report['tools']) - top:,} more")
    return "\n".join(lines)


def _patterns(report: Mapping[str, Any]) -> str:
    rows = [
        [
            each["title"],
            f"{each['traces']:,}",
            f"{each['unknown']:,}",
            f"{each['findings']:,}",
            number(each["pte"]),
            f"{each['share']:.1%}",
            "-" if each["mean_confidence"] is None else f"{each['mean_confidence']:.2f}",
            "-" if each["paper_rule_traces"] is None else f"{each['paper_rule_traces']:,}",
        ]
        for each in report["patterns"]
    ]
    header = [
        "pattern",
        "traces",
        "unknown",
        "findings",
        "PTE",
        "share",
        "confidence",
        "paper's rule",
    ]
    return "\n".join(["patterns", *table(header, rows, text_columns=1)])


def _what_if(report: Mapping[str, Any]) -> str:
    rows = [
        [plain(each["scenario"], 60), number(each["pte"]), f"{each['change']:+.0%}"]
        for each in report["what_if"]
    ]
    return "\n".join(["what if", *table(["", "PTE", "change"], rows, text_columns=1)])


def _problems(report: Mapping[str, Any]) -> str:
    problems, notes = report["problems"], report["notes"]
    lines: list[str] = []
    if problems["count"]:
        lines.append(f"problems: {problems['count']:,}; the rest was reported")
        for each in problems["first"][:10]:
            lines.append(f"  {plain(each['place'])}: {plain(each['text'])}")
    if notes:
        lines.append("notes")
        ranked = sorted(notes.items(), key=lambda item: -item[1])[:10]
        lines += [f"  {count:,} x {plain(note)}" for note, count in ranked]
    return "\n".join(lines)


def number(value: float) -> str:
    """A number in at most six characters or so.

    Example:
        >>> number(987.6), number(123456.0), number(2.5e9)
        ('988', '123k', '2.50G')
    """
    for limit, divisor, unit in ((1e4, 1, ""), (1e6, 1e3, "k"), (1e9, 1e6, "M")):
        if abs(value) < limit:
            scaled = value / divisor
            return f"{scaled:.0f}{unit}" if unit != "M" or scaled >= 100 else f"{scaled:.3g}{unit}"
    return f"{value / 1e9:.2f}G"


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    text_columns: int,
    last_is_text: bool = False,
) -> list[str]:
    """Aligned lines; text to the left, numbers to the right."""
    widths = [max(len(line[i]) for line in [header, *rows]) for i in range(len(header))]
    last = len(header) - 1
    return [
        "  "
        + "  ".join(
            cell.ljust(width)
            if i < text_columns or (last_is_text and i == last)
            else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in [header, *rows]
    ]


def plain(text: str, limit: int = 160) -> str:
    """Text in one line without control characters."""
    shown = "".join(c if c.isprintable() else " " for c in text[: limit + 1])
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"
