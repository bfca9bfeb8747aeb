"""Schedules as Gantt charts: workers and tool lanes against time, as text, SVG or one HTML page.

The same spans are drawn for an estimate (a simulation's timeline) and for a run (its recorded
calls). In text, a column shows the operation that took most of it; in SVG, calls that overlap on a
worker are drawn one above the other, loads are hatched, gaps are idle time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from costmodel.simulator.result import Span

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKMNOPQRSTUVWXYZ0123456789"
"""Operations in order of first appearance; L is a load."""

TEXT_COLUMNS = 72
MAX_RECTANGLES = 4000
MAX_LEVELS = 12
ROW_HEIGHT, LEVEL_HEIGHT, LABEL_WIDTH, CHART_WIDTH = 18, 7, 190, 960

_STYLE = """
body { font: 14px/1.5 system-ui, sans-serif; margin: 1.5rem; color: #1b1f24; background: #fff; }
pre { font: 12px/1.45 ui-monospace, monospace; overflow-x: auto; }
svg { max-width: 100%; height: auto; }
svg text { font: 11px ui-monospace, monospace; fill: #1b1f24; }
"""


@dataclass(frozen=True)
class Chart:
    """One chart: a title and what happened when. `places` fixes their order; others follow."""

    title: str
    spans: Sequence[Span]
    places: tuple[str, ...] = ()

    @property
    def end_s(self) -> float:
        return max((span.end_s for span in self.spans), default=0.0)

    def by_place(self) -> dict[str, list[Span]]:
        """The spans of each place, by start."""
        found: dict[str, list[Span]] = {place: [] for place in self.places}
        for span in sorted(self.spans, key=lambda s: (s.start_s, s.end_s, s.label, s.group)):
            found.setdefault(span.place, []).append(span)
        return found


def gantt_text(charts: Sequence[Chart], columns: int = TEXT_COLUMNS) -> str:
    """Charts below each other, on one time scale, with a legend."""
    end_s = max((chart.end_s for chart in charts), default=0.0)
    letters = _letters(charts)
    width = max((len(p) for c in charts for p in c.by_place()), default=0)
    lines: list[str] = []
    for chart in charts:
        lines.append(f"{chart.title}: {chart.end_s:.2f} s")
        for place, spans in chart.by_place().items():
            busy = _union_s(spans) / chart.end_s if chart.end_s else 0.0
            bar = _bar(spans, end_s, columns, letters)
            lines.append(f"  {place.ljust(width)} |{bar}| busy {busy:4.0%}{_hits(spans)}")
        lines.append("")
    scale = f"0{f'{end_s:.2f} s'.rjust(columns - 1)}"
    lines.append(f"  {' ' * width}  {scale}")
    legend = [f"{letter} {label}" for label, letter in letters.items()]
    if any(span.kind == "load" for chart in charts for span in chart.spans):
        legend.insert(0, "L load of a model")
    lines += _wrapped(legend, columns + width)
    return "\n".join(lines)


def gantt_svg(charts: Sequence[Chart]) -> str:
    """The charts as one SVG that needs nothing else. Texts are escaped."""
    end_s = max((chart.end_s for chart in charts), default=0.0) or 1.0
    colors = _colors(charts)
    parts: list[str] = []
    y = 8
    budget = MAX_RECTANGLES // max(1, len(charts))
    for chart in charts:
        y += 14
        title = escape(f"{chart.title}: {chart.end_s:.2f} s")
        parts.append(f'<text x="4" y="{y}" font-weight="bold">{title}</text>')
        y += 8
        places = chart.by_place()
        total = sum(len(spans) for spans in places.values()) or 1
        for place, spans in places.items():
            share = max(20, budget * len(spans) // total)
            drawn = _levels(_thinned(spans, share, end_s))
            levels = max((level for _, level in drawn), default=0) + 1
            height = max(ROW_HEIGHT, levels * LEVEL_HEIGHT + 4)
            parts.append(f'<text x="4" y="{y + 13}">{escape(_short(place))}</text>')
            parts.append(
                f'<rect x="{LABEL_WIDTH}" y="{y}" width="{CHART_WIDTH}" height="{height - 3}" '
                'fill="#f3f6fa"/>'
            )
            step = (height - 4) / levels
            parts.extend(
                _rectangle(span, y + level * step, step, end_s, colors) for span, level in drawn
            )
            y += height
    y += 14
    for i in range(6):
        x = LABEL_WIDTH + CHART_WIDTH * i / 5
        anchor = "start" if i == 0 else "end" if i == 5 else "middle"
        parts.append(
            f'<text x="{x:.0f}" y="{y}" text-anchor="{anchor}">{end_s * i / 5:.2f} s</text>'
        )
    y += 10
    x = 4
    for label, color in colors.items():
        width = 24 + 7 * min(30, len(label))
        if x + width > LABEL_WIDTH + CHART_WIDTH:
            x, y = 4, y + 16
        parts.append(f'<rect x="{x}" y="{y}" width="10" height="10" fill="{color}"/>')
        parts.append(f'<text x="{x + 14}" y="{y + 9}">{escape(_short(label, 30))}</text>')
        x += width
    height = y + 20
    width = LABEL_WIDTH + CHART_WIDTH + 8
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" role="img">'
        '<defs><pattern id="load" width="6" height="6" patternUnits="userSpaceOnUse" '
        'patternTransform="rotate(45)"><rect width="6" height="6" fill="#d5d9df"/>'
        '<rect width="3" height="6" fill="#8a97a8"/></pattern></defs>' + "".join(parts) + "</svg>"
    )


def gantt_html(charts: Sequence[Chart], title: str = "Schedule") -> str:
    """A page with the SVG and the text; it loads nothing and runs no script."""
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f"<title>{escape(title)}</title>",
            f"<style>{_STYLE}</style></head><body>",
            gantt_svg(charts),
            f"<pre>{escape(gantt_text(charts))}</pre>",
            "</body></html>",
        ]
    )


# --- text ----------------------------------------------------------------------------------------


def _letters(charts: Sequence[Chart]) -> dict[str, str]:
    labels = dict.fromkeys(
        span.label
        for chart in charts
        for span in sorted(chart.spans, key=lambda s: s.start_s)
        if span.kind != "load"
    )
    # With more operations than letters, the last letter stands for the rest.
    return {label: LETTERS[min(i, len(LETTERS) - 1)] for i, label in enumerate(labels)}


def _bar(spans: Sequence[Span], end_s: float, columns: int, letters: dict[str, str]) -> str:
    weight: list[dict[str, float]] = [{} for _ in range(columns)]
    if not end_s:
        return "." * columns
    column_s = end_s / columns
    for span in spans:
        letter = "L" if span.kind == "load" else letters[span.label]
        first = min(columns - 1, int(span.start_s / column_s))
        last = min(columns - 1, int(span.end_s / column_s))
        for i in range(first, last + 1):
            overlap = min(span.end_s, (i + 1) * column_s) - max(span.start_s, i * column_s)
            if overlap > 0:
                calls = max(1, span.calls)
                weight[i][letter] = weight[i].get(letter, 0.0) + overlap * calls
    bar: list[str] = []
    for i, column in enumerate(weight):
        covered = _covered(spans, i * column_s, (i + 1) * column_s) if column else 0.0
        if covered < column_s * 0.5:
            bar.append(".")
        else:
            bar.append(max(sorted(column), key=lambda letter: column[letter]))
    return "".join(bar)


def _covered(spans: Iterable[Span], low: float, high: float) -> float:
    """Seconds of [low, high) in which something ran. Spans are by start."""
    reached = low
    covered = 0.0
    for span in spans:
        if span.start_s >= high:
            break
        start, end = max(span.start_s, reached), min(span.end_s, high)
        if end > start:
            covered += end - start
            reached = end
    return covered


def _union_s(spans: Sequence[Span]) -> float:
    return _covered(spans, 0.0, float("inf"))


def _hits(spans: Sequence[Span]) -> str:
    prompt = sum(span.prompt_tokens for span in spans)
    hit = sum(span.hit_tokens for span in spans)
    return f", hits {hit / prompt:4.0%}" if prompt else ""


def _wrapped(items: Sequence[str], columns: int) -> list[str]:
    lines: list[str] = []
    line = ""
    for item in items:
        if line and len(line) + len(item) + 2 > columns:
            lines.append(f"  {line}")
            line = ""
        line += f"{'  ' if line else ''}{item}"
    return [*lines, f"  {line}"] if line else lines


# --- SVG -----------------------------------------------------------------------------------------


def _colors(charts: Sequence[Chart]) -> dict[str, str]:
    labels = list(_letters(charts))
    n = max(1, len(labels))
    return {label: f"hsl({(i * 360 / n):.0f} 55% 60%)" for i, label in enumerate(labels)}


def _thinned(spans: Sequence[Span], limit: int, end_s: float) -> list[Span]:
    """At most about `limit` spans: calls of one operation that touch or nearly touch become one."""
    gap = 0.0
    found = list(spans)
    while True:
        merged: list[Span] = []
        last: dict[tuple[str, str], int] = {}
        for span in found:
            key = (span.kind, span.label)
            at = last.get(key)
            if at is not None and span.start_s <= merged[at].end_s + gap and len(spans) > limit:
                before = merged[at]
                merged[at] = Span(
                    span.place, span.kind, span.label, -1, before.start_s,
                    max(before.end_s, span.end_s), before.calls + span.calls,
                    before.hit_tokens + span.hit_tokens,
                    before.prompt_tokens + span.prompt_tokens,
                )  # fmt: skip
            else:
                last[key] = len(merged)
                merged.append(span)
        if len(merged) <= limit or gap > end_s:
            return merged
        gap = 2 * gap if gap else end_s / 2000
        found = sorted(merged, key=lambda s: s.start_s)


def _levels(spans: Sequence[Span]) -> list[tuple[Span, int]]:
    """Overlapping spans on levels of their own, at most `MAX_LEVELS`."""
    ends: list[float] = []
    placed: list[tuple[Span, int]] = []
    for span in spans:
        level = next((i for i, end in enumerate(ends) if end <= span.start_s + 1e-9), None)
        if level is None:
            if len(ends) < MAX_LEVELS:
                ends.append(0.0)
                level = len(ends) - 1
            else:
                level = min(range(MAX_LEVELS), key=lambda i: ends[i])
        ends[level] = max(ends[level], span.end_s)
        placed.append((span, level))
    return placed


def _rectangle(span: Span, y: float, height: float, end_s: float, colors: dict[str, str]) -> str:
    x = LABEL_WIDTH + CHART_WIDTH * span.start_s / end_s
    width = max(0.6, CHART_WIDTH * (span.end_s - span.start_s) / end_s)
    fill = "url(#load)" if span.kind == "load" else colors[span.label]
    words = [f"{span.kind if span.kind == 'load' else ''} {span.label}".strip()]
    if span.group >= 0:
        words.append(f"rows group {span.group}")
    if span.calls:
        words.append(f"{span.calls} calls")
    if span.prompt_tokens:
        words.append(f"{span.hit_tokens / span.prompt_tokens:.0%} of the prompt found")
    words.append(f"{span.start_s:.3f} to {span.end_s:.3f} s")
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{max(1.0, height - 1):.1f}" '
        f'fill="{fill}"><title>{escape(", ".join(words))}</title></rect>'
    )


def _short(text: str, limit: int = 26) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
