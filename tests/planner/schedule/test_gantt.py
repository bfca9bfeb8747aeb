"""Charts of schedules: text, SVG and HTML, of estimates and runs."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable

from small_problems import diamond

from costmodel.simulator import Span
from planner.schedule.baselines import BASELINES
from planner.schedule.gantt import MAX_RECTANGLES, Chart, gantt_html, gantt_svg, gantt_text

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
