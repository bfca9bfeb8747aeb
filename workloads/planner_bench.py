"""`halo-bench planner`: what planning costs, by rows, by workflows and by operators.

Planning is merging, rules, statistics and the order of the rows; tracing the workflows is measured
apart. Each case runs in a process of its own, so that its memory is its own.
"""

from __future__ import annotations

import json
import math
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import halo

lm = halo.Model()

ROWS = 50_000
WORKFLOWS = 1_000
CHAIN = 5_000
SIZES = (10, 30, 100, 300, 1_000, 3_000, 10_000)


@halo.workflow
def ten_operators(title: str, body: str, author: str) -> str:
    """Ten operators a row: three columns, six calls, one text."""
    facts = lm.gen(f"List the facts.\n\nAuthor: {author}\nTitle: {title}", max_tokens=40)
    tone = lm.choose(f"Author: {author}\nWhat is the tone of: {body}", ["calm", "angry", "glad"])
    risk = lm.gen(f"Title: {title}\nFacts: {facts}\nName the main risk.", max_tokens=30)
    reply = lm.gen(f"Tone: {tone}\nFacts: {facts}\nDraft a reply.", max_tokens=60)
    check = lm.choose(f"Reply: {reply}\nRisk: {risk}\nIs the reply safe?", ["yes", "no"])
    final = lm.gen(f"Reply: {reply}\nSafe: {check}\nPolish it.", max_tokens=60)
    return f"{tone}: {final}"


def reviews(count: int) -> list[dict[str, Any]]:
    """Rows with few authors, more titles, and bodies that all differ."""
    return [
        {
            "title": f"Report {i * 7919 % (count // 5 or 1)} on the state of the harbour",
            "body": f"Paragraph {i} tells how the quay was repaired in year {i % 97}.",
            "author": f"Author number {i * 31 % 200}",
        }
        for i in range(count)
    ]


def overlapping(number: int) -> Any:
    """A workflow of ten operators, of which it shares five with every other one."""

    def flow(question: str) -> str:
        facts = lm.gen(f"List two facts.\nQuestion: {question}", max_tokens=20)
        angle = lm.gen(f"Facts: {facts}\nName the best angle.", max_tokens=20)
        counter = lm.gen(f"Facts: {facts}\nName what speaks against it.", max_tokens=20)
        shared = lm.gen(f"Angle: {angle}\nAgainst: {counter}\nWeigh them.", max_tokens=20)
        own = lm.gen(f"{shared}\nReader {number} wants: a headline.", max_tokens=20)
        more = lm.gen(f"{own}\nReader {number} wants: a teaser.", max_tokens=20)
        good = lm.choose(f"{more}\nWould reader {number} click?", ["yes", "no"])
        better = lm.gen(f"{more}\nClick: {good}\nImprove it for {number}.", max_tokens=20)
        return f"{better} ({number})"

    flow.__name__ = f"flow_{number}"
    return halo.workflow(flow)


@halo.workflow
def trading_desk(stock: str) -> str:
    """88 calls a stock, in the shape of Helium's Trading workload (arXiv 2603.16104, section 6):
    18 calls of analysts, a debate of 5, eight traders of 8 calls, one fund manager."""
    summaries: list[str] = []
    for analyst, documents in (("fundamentals", 4), ("market", 2), ("news", 5), ("social", 3)):
        read = [
            lm.gen(f"You read {analyst}.\nStock: {stock}\nDocument {i}: extract.", max_tokens=60)
            for i in range(documents)
        ]
        notes = _lines(read)
        summaries.append(lm.gen(f"You sum up {analyst}.\nNotes:\n{notes}", max_tokens=80))
    report = _lines(summaries)
    debate = ""
    for side in ("bull", "bear", "bull", "bear"):
        debate = lm.gen(f"Reports:\n{report}\nSo far: {debate}\nYou are the {side}.", max_tokens=60)
    verdict = lm.gen(f"Reports:\n{report}\nDebate: {debate}\nDecide.", max_tokens=60)
    plans: list[str] = []
    for trader in range(8):
        plan = lm.gen(f"Verdict: {verdict}\nTrader {trader}: make a plan.", max_tokens=60)
        talk = ""
        for risk in ("risky", "safe", "neutral", "risky", "safe", "neutral"):
            talk = lm.gen(f"Plan: {plan}\nTalk: {talk}\nYou are {risk}.", max_tokens=40)
        plans.append(lm.gen(f"Plan: {plan}\nTalk: {talk}\nJudge it.", max_tokens=40))
    offers = _lines(plans)
    return lm.gen(f"Offers:\n{offers}\nYou manage the fund. Choose.", max_tokens=40)


def chain(length: int) -> Any:
    """`length` calls, each of which reads the one before."""

    def steps(question: str) -> str:
        text = question
        for number in range(length):
            text = lm.gen(f"Step {number}: {text}", max_tokens=8)
        return text

    return halo.workflow(steps)


def layers(operators: int) -> Any:
    """About `operators` calls in layers of ten, each of which reads one of the layer before."""

    def network(question: str) -> str:
        before = [question] * 10
        for layer in range(max(1, operators // 10)):
            before = [
                lm.gen(f"Layer {layer}, place {i}.\nInput: {text}", max_tokens=8)
                for i, text in enumerate(before)
            ]
        return _lines(before)

    return halo.workflow(network)


def _lines(texts: Sequence[str]) -> str:
    """Texts on lines of their own: values of a trace can be formatted, not joined."""
    joined = texts[0]
    for text in texts[1:]:
        joined = f"{joined}\n{text}"
    return joined


def _questions(count: int) -> list[dict[str, Any]]:
    return [{"question": f"Is option {i} good?"} for i in range(count)]


def _many_rows() -> list[tuple[Any, Any]]:
    return [(ten_operators, reviews(ROWS))]


def _many_workflows() -> list[tuple[Any, Any]]:
    rows = _questions(20)
    return [(overlapping(number), rows) for number in range(WORKFLOWS)]


def _trading() -> list[tuple[Any, Any]]:
    return [(trading_desk, [{"stock": f"STOCK{i}"} for i in range(100)])]


def _layers(n: int) -> list[tuple[Any, Any]]:
    return [(layers(n), _questions(10))]


CASES: dict[str, Callable[[], list[tuple[Any, Any]]]] = {
    "rows": _many_rows,
    "workflows": _many_workflows,
    "trading": _trading,
    "chain": lambda: [(chain(CHAIN), _questions(10))],
    **{f"operators {n}": partial(_layers, n) for n in SIZES},
}
LIMITS = {"rows": (3.0, 600e6), "workflows": (5.0, math.inf), "trading": (0.3, math.inf)}
"""Seconds and bytes that planning may take, on two cores."""


def measure(case: str) -> dict[str, Any]:
    """Plan one case in this process, which has planned something small before: what a first plan
    imports is not what a plan costs."""
    with halo.Session(engine="simulated") as session:
        session.prepare([(layers(10), _questions(1))])
    batch = CASES[case]()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    with halo.Session(engine="simulated") as session:
        prepared = session.prepare(batch)
    operators = sum(1 for _ in prepared.plan.logical.walk_all())
    return {
        "operators": operators,
        "queries": len(batch),
        "rows": sum(prepared.stats.rows.values()),
        "planning_s": round(prepared.planning_s, 4),
        "us_per_operator": round(1e6 * prepared.planning_s / operators, 1),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "rss_before_planning_bytes": before,
    }


def planner(names: Sequence[str] = tuple(CASES)) -> dict[str, Any]:
    """All cases, each in a process of its own, and which of the targets they meet."""
    found: dict[str, Any] = {}
    for name in names:
        command = [sys.executable, "-P", "-m", "workloads.planner_bench", name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[name] = json.loads(done.stdout)
        if name in LIMITS:
            seconds, limit_bytes = LIMITS[name]
            used = found[name]
            within = used["planning_s"] <= seconds and used["peak_rss_bytes"] <= limit_bytes
            found[name]["target_s"] = seconds
            found[name]["met"] = within
    return found


def plot(found: dict[str, Any], path: Path) -> None:
    """Cost per operator against operators, as SVG with logarithmic axes."""
    points = [
        (found[name]["operators"], found[name]["us_per_operator"])
        for name in found
        if name.startswith("operators ")
    ]
    width, height, left, bottom = 640, 360, 70, 50
    most_y = 10 ** math.ceil(math.log10(max(y for _, y in points)))
    least_y = 10 ** math.floor(math.log10(min(y for _, y in points)))

    def at(x: float, y: float) -> tuple[float, float]:
        share_x = math.log10(x / 10) / math.log10(20_000 / 10)
        share_y = math.log10(y / least_y) / math.log10(most_y / least_y)
        return left + share_x * (width - left - 20), height - bottom - share_y * (height - 90)

    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in points))
    texts = [
        f'<text x="{at(x, y)[0]:.1f}" y="{at(x, y)[1] - 10:.1f}" text-anchor="middle">{y:g}</text>'
        f'<text x="{at(x, y)[0]:.1f}" y="{height - 28}" text-anchor="middle">{x:,}</text>'
        for x, y in points
    ]
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12">'
        f'<text x="{left}" y="20">Planning: microseconds an operator</text>'
        f'<polyline fill="none" stroke="#2f6fd0" stroke-width="2" points="{line}"/>'
        f'{"".join(texts)}<text x="{width - 20}" y="{height - 8}" text-anchor="end">operators '
        "of the plan</text></svg>\n",
        "utf-8",
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["plot"]:
        plot(json.loads(Path(sys.argv[2]).read_text("utf-8")), Path(sys.argv[3]))
    else:
        print(json.dumps(measure(" ".join(sys.argv[1:]))))
