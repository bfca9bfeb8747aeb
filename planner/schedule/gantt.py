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
ROW_HEIGHT, LEVEL_HEIGHT, LABEL_WIDTH, CHART_WIDTH = 20, 7, 240, 960
FONT_SIZE, LETTER_WIDTH = 11, 6.7
FONT = f'font-family="ui-monospace, Menlo, Consolas, monospace" font-size="{FONT_SIZE}"'
"""The width that labels are given room for is that of this font."""

_STYLE = """
body { font: 14px/1.5 system-ui, sans-serif; margin: 1.5rem; color: #1b1f24; background: #fff; }
pre { font: 12px/1.45 ui-monospace, monospace; overflow-x: auto; }
svg { max-width: 100%; height: auto; }
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
        top = y
        for place, spans in places.items():
            share = max(20, budget * len(spans) // total)
            drawn = _side_by_side(_thinned(spans, share, end_s))
            most = max((of for _, _, of in drawn), default=1)
            height = max(ROW_HEIGHT, most * LEVEL_HEIGHT + 4)
            busy = _union_s(spans) / chart.end_s if chart.end_s else 0.0
            parts.append(
                f'<text x="4" y="{y + 13}">{escape(_short(place))}</text>'
                f'<text x="{LABEL_WIDTH - 6}" y="{y + 13}" text-anchor="end">{busy:.0%}</text>'
                f'<rect x="{LABEL_WIDTH}" y="{y}" width="{CHART_WIDTH}" height="{height - 3}" '
                'fill="#f3f6fa"/>'
            )
            boxes = [_box(span, level, of, y, height - 4, end_s) for span, level, of in drawn]
            parts.extend(map(_rectangle, boxes, (_fill(box.span, colors) for box in boxes)))
            parts.extend(_names(boxes))
            y += height
        # Lines over the rectangles, so that times can be read off long bars too.
        for i in range(1, 5):
            x = LABEL_WIDTH + CHART_WIDTH * i / 5
            parts.append(
                f'<path d="M{x:.0f} {top}V{y - 3}" stroke="#1b1f24" stroke-opacity=".18"/>'
            )
    y += 14
    for i in range(6):
        x = LABEL_WIDTH + CHART_WIDTH * i / 5
        anchor = "start" if i == 0 else "end" if i == 5 else "middle"
        parts.append(
            f'<text x="{x:.0f}" y="{y}" text-anchor="{anchor}">{end_s * i / 5:.2f} s</text>'
        )
    y += 10
    x = 4
    legend = dict(colors)
    if any(span.kind == "load" for chart in charts for span in chart.spans):
        legend = {"load of a model": "url(#load)", **legend}
    for label, color in legend.items():
        text = _short(label, 30)
        width = round(28 + LETTER_WIDTH * len(text))
        if x + width > LABEL_WIDTH + CHART_WIDTH:
            x, y = 4, y + 16
        parts.append(f'<rect x="{x}" y="{y}" width="10" height="10" fill="{color}"/>')
        parts.append(f'<text x="{x + 14}" y="{y + 9}">{escape(text)}</text>')
        x += width
    height = y + 20
    width = LABEL_WIDTH + CHART_WIDTH + 8
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" role="img" fill="#1b1f24" {FONT}>'
        '<defs><pattern id="load" width="6" height="6" patternUnits="userSpaceOnUse" '
        'patternTransform="rotate(45)"><rect width="6" height="6" fill="#e4e7eb"/>'
        '<rect width="2" height="6" fill="#b4becb"/></pattern></defs>'
        f'<rect width="{width}" height="{height}" fill="#fff"/>' + "".join(parts) + "</svg>"
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


def _side_by_side(spans: Sequence[Span]) -> list[tuple[Span, int, int]]:
    """(span, level, levels): spans that overlap, directly or through others, are on levels of their
    own, at most `MAX_LEVELS`, and share the height; a span alone has all of it."""
    placed: list[tuple[Span, int, int]] = []
    together: list[tuple[Span, int]] = []
    ends: list[float] = []

    def close() -> None:
        placed.extend((span, level, len(ends)) for span, level in together)
        together.clear()
        ends.clear()

    for span in spans:
        if ends and span.start_s >= max(ends) - 1e-9:
            close()
        level = next((i for i, end in enumerate(ends) if end <= span.start_s + 1e-9), None)
        if level is None:
            if len(ends) < MAX_LEVELS:
                ends.append(0.0)
                level = len(ends) - 1
            else:
                level = min(range(MAX_LEVELS), key=lambda i: ends[i])
        ends[level] = max(ends[level], span.end_s)
        together.append((span, level))
    close()
    return placed


@dataclass(frozen=True, slots=True)
class _Box:
    """Where a span is drawn."""

    span: Span
    left: float
    top: float
    right: float
    bottom: float


def _box(span: Span, level: int, levels: int, y: float, height: float, end_s: float) -> _Box:
    left = LABEL_WIDTH + CHART_WIDTH * span.start_s / end_s
    right = max(left + 0.6, LABEL_WIDTH + CHART_WIDTH * span.end_s / end_s)
    step = height / levels
    top = y + level * step
    return _Box(span, left, top, right, top + max(1.0, step - 1))


def _rectangle(box: _Box, fill: str) -> str:
    span = box.span
    words = [f"{span.kind if span.kind == 'load' else ''} {span.label}".strip()]
    if span.group >= 0:
        words.append(f"rows group {span.group}")
    if span.calls:
        words.append(f"{span.calls} calls")
    if span.prompt_tokens:
        words.append(f"{span.hit_tokens / span.prompt_tokens:.0%} of the prompt found")
    words.append(f"{span.start_s:.3f} to {span.end_s:.3f} s")
    return (
        f'<rect x="{box.left:.1f}" y="{box.top:.1f}" width="{box.right - box.left:.1f}" '
        f'height="{box.bottom - box.top:.1f}" fill="{fill}">'
        f"<title>{escape(', '.join(words))}</title></rect>"
    )


def _fill(span: Span, colors: dict[str, str]) -> str:
    return "url(#load)" if span.kind == "load" else colors[span.label]


def _names(boxes: Sequence[_Box]) -> list[str]:
    """The names of operations and loads on what is drawn, where there is room: where boxes of one
    name and no other make up a field that holds it."""
    fields: list[list[_Box]] = []
    last: dict[tuple[str, str], int] = {}
    for box in boxes:
        key = (box.span.kind, box.span.label)
        at = last.get(key)
        if at is not None and box.left <= max(b.right for b in fields[at][-MAX_LEVELS:]) + 1:
            fields[at].append(box)
        else:
            last[key] = len(fields)
            fields.append([box])
    texts: list[str] = []
    for field in fields:
        label = _short(field[0].span.label, 30)
        need = LETTER_WIDTH * len(label) + 6
        # The widest part that all levels of the field cover.
        levels: dict[float, tuple[float, float]] = {}
        for box in field:
            left, right = levels.get(box.top, (box.left, box.right))
            levels[box.top] = (min(left, box.left), max(right, box.right))
        left = max(left for left, _ in levels.values())
        right = min(right for _, right in levels.values())
        top, bottom = min(levels), max(box.bottom for box in field)
        if right - left < need or bottom - top < FONT_SIZE + 2:
            continue
        mine = {id(box) for box in field}
        if any(
            box.left < left + need and box.right > left and box.top < bottom and box.bottom > top
            for box in boxes
            if id(box) not in mine
        ):
            continue
        y = (top + bottom) / 2 + FONT_SIZE / 2 - 1.5
        # A light edge keeps the letters apart from the lines between boxes.
        texts.append(
            f'<text x="{left + 4:.1f}" y="{y:.1f}" stroke="#fff" stroke-opacity=".65" '
            f'stroke-width="2.5" paint-order="stroke">{escape(label)}</text>'
        )
    return texts


def _short(text: str, limit: int = 26) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
