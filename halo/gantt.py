"""EXPLAIN of a physical plan as a Gantt chart: the estimate, and beside it what a run recorded."""

from __future__ import annotations

from pathlib import Path

from planner.errors import PlanError
from planner.physical import PhysicalPlan
from planner.stats import PlanStats

FORMATS = ("gantt", "gantt-svg", "gantt-html")


def is_gantt(format: str) -> bool:
    """Whether an EXPLAIN format is one of the charts."""
    return format in FORMATS


def explain_schedule(
    plan: PhysicalPlan, stats: PlanStats, format: str, *, journal: Path | None = None
) -> str:
    """The chart of `plan` in a format of `FORMATS`; with a journal, the recorded calls below."""
    from costmodel.tokens import estimate_tokens
    from planner.schedule.chart import plan_chart, run_chart
    from planner.schedule.gantt import gantt_html, gantt_svg, gantt_text

    charts = [plan_chart(plan, stats, estimate_tokens)]
    if journal is not None and journal.exists():
        from runtime.journal_reader import read_calls

        calls: list[tuple[str, str, float, float, int, int]] = []
        shift_s = ended_s = 0.0
        process = 0
        for number, call in read_calls(journal):
            if number != process:
                # Each process counts from its own start: they are drawn one after the other.
                shift_s, process = ended_s, number
            usage = call.usage
            end_s = call.end_s + shift_s
            cached = usage.cached_tokens or 0
            start_s = call.start_s + shift_s
            calls.append((call.op, call.kind, start_s, end_s, usage.input_tokens, cached))
            ended_s = max(ended_s, end_s)
        charts.append(run_chart(plan, calls))
    match format:
        case "gantt":
            return gantt_text(charts)
        case "gantt-svg":
            return gantt_svg(charts)
        case "gantt-html":
            return gantt_html(charts)
        case _:
            raise PlanError(f"no chart format {format!r}; there are: {', '.join(FORMATS)}")
