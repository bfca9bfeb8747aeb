"""EXPLAIN and EXPLAIN ANALYZE: a plan at any stage, in any format."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from costmodel.usage import OpMetrics
from planner.errors import PlanError
from planner.explain_view import View
from planner.logical import LogicalPlan
from planner.physical import PhysicalPlan
from planner.rewrite import Rewritten
from planner.stats import PlanStats

FORMATS = ("text", "json", "mermaid", "dot", "html")


def explain(
    plan: LogicalPlan,
    *,
    stats: PlanStats | None = None,
    metrics: Mapping[str, OpMetrics] | None = None,
    format: str = "text",
    verbose: bool = False,
    volatile: bool = True,
    rewritten: Rewritten | None = None,
) -> str:
    """A logical plan: bound, merged or optimized.

    `stats` adds estimates; `metrics`, by operator fingerprint, puts beside them what happened
    (EXPLAIN ANALYZE). `format` is text, json, mermaid, dot or html. Long texts are shortened to
    lines of 120 characters unless `verbose`. Without `volatile`, times and measured token counts
    print as `<time>` and `<tokens>` in text and html, so that runs compare equal. `rewritten` adds
    which rules made the plan and what each saves; with `verbose`, text shows the plan after each.

    Raises `PlanError` for an unknown format.
    """
    view = View(plan, stats, metrics, None, verbose, volatile, rewritten)
    return _render(view, format)


def explain_physical(
    physical: PhysicalPlan,
    stats: PlanStats | None = None,
    metrics: Mapping[str, OpMetrics] | None = None,
    *,
    format: str = "text",
    verbose: bool = False,
    volatile: bool = True,
    rewritten: Rewritten | None = None,
) -> str:
    """A placed plan: as `explain`, with workers, placement, priorities and row order; cached tokens
    are predicted for the workers as they are."""
    view = View(physical.logical, stats, metrics, physical, verbose, volatile, rewritten)
    return _render(view, format)


def _render(view: View, format: str) -> str:
    renderers: dict[str, Callable[[View], str]] = {
        "text": _text,
        "json": _json,
        "mermaid": _mermaid,
        "dot": _dot,
        "html": _html,
    }
    renderer = renderers.get(format)
    if renderer is None:
        raise PlanError(f"no EXPLAIN format {format!r}; the formats are: {', '.join(FORMATS)}")
    return renderer(view)


def _text(view: View) -> str:
    from planner.explain_text import render_text

    return render_text(view)


def _json(view: View) -> str:
    from planner.explain_json import document

    return json.dumps(document(view), ensure_ascii=False, indent=2)


def _mermaid(view: View) -> str:
    from planner.explain_graph import render_mermaid

    return render_mermaid(view)


def _dot(view: View) -> str:
    from planner.explain_graph import render_dot

    return render_dot(view)


def _html(view: View) -> str:
    from planner.explain_html import render_html

    return render_html(view)
