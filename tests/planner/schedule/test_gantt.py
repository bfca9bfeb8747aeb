"""Charts of schedules: text, SVG and HTML, of estimates and runs."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable

import pytest
from small_problems import diamond

from costmodel.simulator import Span
from planner.schedule.baselines import BASELINES
from planner.schedule.gantt import (
    LABEL_WIDTH,
    LETTER_WIDTH,
    MAX_RECTANGLES,
    Chart,
    gantt_html,
    gantt_svg,
    gantt_text,
)

SVG = "{http://www.w3.org/2000/svg}"


def chart() -> Chart:
    problem = diamond(n_workers=2, memory=12e9)
    run = problem.simulate(BASELINES["greedy"](problem), timeline=True)
    return Chart("estimate", run.timeline, ("w0", "w1"))


def test_the_text_shows_workers_lanes_loads_and_gaps(golden: Callable[[str, str], None]) -> None:
    golden("explain/gantt.txt", gantt_text([chart()]))


def test_the_svg_is_well_formed_and_safe() -> None:
    spans = [
        Span('w<0> & "co"', "calls", "<script>alert(1)</script>", 0, 0.0, 1.0, 4, 10.0, 40.0),
        Span('w<0> & "co"', "calls", "b", 1, 0.5, 2.0, 4),
        Span('w<0> & "co"', "load", "model", -1, 2.0, 3.0),
        Span("sql", "tool", "q", 0, 1.0, 1.5, 2),
    ]
    text = gantt_svg([Chart("a & b", spans), Chart("actual", spans[:1])])
    root = ElementTree.fromstring(text)
    titles = [t.text or "" for t in root.iter(f"{SVG}title")]
    assert any("25% of the prompt found" in t for t in titles)
    assert any(t.startswith("load model") for t in titles)
    assert not list(root.iter(f"{SVG}script"))
    assert "<script>" not in text and "http://" not in text.replace(
        "http://www.w3.org/2000/svg", ""
    )
    page = gantt_html([Chart("a & b", spans)], "x < y")
    assert "<script" not in page and "x &lt; y" in page


def test_overlapping_calls_are_drawn_apart() -> None:
    spans = [Span("w", "calls", "a", g, 0.1 * g, 1 + 0.1 * g, 1) for g in range(4)]
    root = ElementTree.fromstring(gantt_svg([Chart("x", spans)]))
    drawn = [r for r in root.iter(f"{SVG}rect") if r.find(f"{SVG}title") is not None]
    assert len({r.get("y") for r in drawn}) == 4


def test_calls_share_the_height_and_idle_time_is_empty() -> None:
    spans = [
        Span("w", "calls", "a", 0, 0.0, 1.0, 1),
        Span("w", "calls", "a", 1, 0.0, 1.0, 1),
        Span("w", "calls", "b", 0, 1.0, 2.0, 1),
        Span("w", "calls", "b", 1, 3.0, 4.0, 1),
    ]
    svg = gantt_svg([Chart("x", spans)])
    drawn = drawn_boxes(svg)
    assert len({box[1] for box in drawn[:2]}) == 2
    both = sum(box[3] for box in drawn[:2])
    assert all(box[3] == pytest.approx(both, abs=2) for box in drawn[2:])
    # What was idle from 2 to 3 s has nothing on it, and the share of busy time says so.
    left, right = drawn[2][0] + drawn[2][2], drawn[3][0]
    assert right - left == pytest.approx(drawn[2][2], abs=1)
    assert ">75%<" in svg


def test_names_are_drawn_where_they_have_room() -> None:
    spans = [
        Span("w", "load", "model", -1, 0.0, 4.0),
        Span("w", "calls", "summarise", 0, 4.0, 9.8, 1),
        Span("w", "calls", "summarise", 1, 4.1, 9.9, 1),
        Span("w", "calls", "short", 0, 9.9, 10.0, 1),
        Span("v" * 100, "calls", "mixed", 0, 0.0, 10.0, 1),
        Span("v" * 100, "calls", "others", 0, 0.1, 10.0, 1),
    ]
    svg = gantt_svg([Chart("x", spans)])
    root = ElementTree.fromstring(svg)
    named = [t for t in root.iter(f"{SVG}text") if t.get("stroke")]
    # A call that is too narrow has none, and calls that are too flat have none.
    assert [t.text for t in named] == ["model", "summarise"]
    boxes = {box[4]: box for box in drawn_boxes(svg)}
    for text in named:
        assert text.text is not None
        box = next(b for name, b in boxes.items() if text.text in name)
        end = float(text.get("x", "")) + LETTER_WIDTH * len(text.text)
        assert box[0] < float(text.get("x", "")) and end < box[0] + box[2]
    # Places are cut to the room beside their share of busy time.
    place = next(t for t in root.iter(f"{SVG}text") if (t.text or "").startswith("vvv"))
    assert 4 + LETTER_WIDTH * len(place.text or "") < LABEL_WIDTH - 6 - LETTER_WIDTH * len("100%")
    # The font is the picture's own: alone in a file, nothing else gives it one.
    assert "monospace" in (root.get("font-family") or "")


def drawn_boxes(svg: str) -> list[tuple[float, float, float, float, str]]:
    """(x, y, width, height, title) of every span, in the order drawn."""
    boxes: list[tuple[float, float, float, float, str]] = []
    for rect in ElementTree.fromstring(svg).iter(f"{SVG}rect"):
        title = rect.find(f"{SVG}title")
        if title is not None:
            x, y, width, height = (float(rect.get(k, "")) for k in ("x", "y", "width", "height"))
            boxes.append((x, y, width, height, title.text or ""))
    return boxes


def test_long_runs_are_thinned() -> None:
    spans = [
        Span(f"w{i % 3}", "calls", f"op{i % 7}", i, i * 0.01, i * 0.01 + 0.05, 1)
        for i in range(20_000)
    ]
    text = gantt_svg([Chart("many", spans)])
    assert text.count("<rect") < 2 * MAX_RECTANGLES
    assert len(text) < 3_000_000
    assert len(gantt_text([Chart("many", spans)]).splitlines()) < 20


def test_an_empty_chart() -> None:
    empty = Chart("nothing", (), ("w0",))
    assert "w0" in gantt_text([empty])
    ElementTree.fromstring(gantt_svg([empty]))
