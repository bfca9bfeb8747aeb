"""EXPLAIN as one HTML page without scripts or anything to load: a drawn graph and the text.

The graph is layered by hand: an operator stands one layer below the lowest of its inputs. Plans of
more than a few hundred operators, which nobody can read as a drawing, get the text alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from planner.describe import describe, effect_of, title
from planner.explain_text import estimate_line, render_text
from planner.explain_view import View
from planner.listing import Node
from planner.logical import ModelOp

DRAWN_OPS = 300
BOX_WIDTH, BOX_HEIGHT = 250, 62
GAP_X, GAP_Y = 24, 44
BOX_CHARACTERS = 34

_STYLE = """
body { font: 14px/1.5 system-ui, sans-serif; margin: 1.5rem; color: #1b1f24; background: #fff; }
pre { font: 12px/1.45 ui-monospace, monospace; overflow-x: auto; }
svg { max-width: 100%; height: auto; }
svg text { font: 11px ui-monospace, monospace; fill: #1b1f24; }
svg rect { fill: #f3f6fa; stroke: #8a97a8; }
svg .model rect { fill: #e7f0ff; stroke: #2f6fd0; }
svg .SAMPLED rect { fill: #fff3dc; stroke: #b87a00; }
svg .WRITE rect { fill: #ffe4e1; stroke: #c0392b; }
svg .output rect { fill: #e6f6ea; stroke: #2d8a47; rx: 14px; }
svg path { fill: none; stroke: #8a97a8; }
svg path.order { stroke-dasharray: 4 3; }
"""


def render_html(view: View) -> str:
    """A page that needs no network and runs no script. All text is escaped."""
    names = ", ".join(name for name, _ in view.plan.outputs)
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f"<title>{escape(f'Plan of {names}')}</title>",
            f"<style>{_STYLE}</style></head><body>",
            _drawing(view),
            f"<pre>{escape(render_text(view))}</pre>",
            "</body></html>",
        ]
    )


def render_fragment(view: View) -> str:
    """The same for a page that is there already, such as a notebook."""
    return (
        f'<div class="halo-plan"><style>{_scoped(_STYLE)}</style>{_drawing(view)}'
        f"<pre>{escape(render_text(view))}</pre></div>"
    )


def _scoped(style: str) -> str:
    """The style for the parts of one `halo-plan` alone."""
    rules = [line for line in style.strip().splitlines() if not line.startswith("body")]
    return "\n".join(f".halo-plan {rule}" for rule in rules)


@dataclass(frozen=True, slots=True)
class _Box:
    x: int
    y: int
    css: str
    lines: Sequence[str]
    inputs: Sequence[tuple[str, str]]


def _drawing(view: View) -> str:
    nodes = view.listing.nodes
    if len(nodes) > DRAWN_OPS:
        return f"<p>{len(nodes)} operators: too many to draw.</p>"
    boxes = _place(view)
    width = max((box.x for box in boxes.values()), default=0) + BOX_WIDTH + GAP_X
    height = max((box.y for box in boxes.values()), default=0) + BOX_HEIGHT + GAP_Y
    edges = [
        _edge(boxes[reference], box, css)
        for box in boxes.values()
        for reference, css in box.inputs
        if reference in boxes
    ]
    drawn = [_box(box) for box in boxes.values()]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" role="img">' + "".join(edges + drawn) + "</svg>"
    )


def _place(view: View) -> dict[str, _Box]:
    """Boxes by reference. Layers grow downwards; a box stands near the middle of its inputs."""
    layer: dict[str, int] = {}
    rows: dict[int, list[tuple[str, str, Sequence[str], list[tuple[str, str]]]]] = {}
    for node in view.listing.nodes:
        inputs = [(reference, "") for reference in dict.fromkeys(node.inputs)]
        inputs += [(reference, "order") for reference in node.after]
        layer[node.reference] = 1 + max((layer[r] for r, _ in inputs), default=-1)
        rows.setdefault(layer[node.reference], []).append(
            (node.reference, _css(node), _lines(view, node), inputs)
        )
    last = 1 + max(layer.values(), default=-1)
    for i, output in enumerate(view.listing.outputs):
        entry = (f"o{i}", "output", [_short(output.name)], [(output.value, "")])
        rows.setdefault(last, []).append(entry)
    boxes: dict[str, _Box] = {}
    for depth in sorted(rows):
        free = GAP_X // 2
        for reference, css, lines, inputs in rows[depth]:
            above = [boxes[r].x for r, _ in inputs if r in boxes]
            x = max(free, sum(above) // len(above) if above else 0)
            boxes[reference] = _Box(
                x, GAP_Y // 2 + depth * (BOX_HEIGHT + GAP_Y), css, lines, inputs
            )
            free = x + BOX_WIDTH + GAP_X
    return boxes


def _css(node: Node) -> str:
    if effect_of(node):
        return effect_of(node)
    return "model" if isinstance(node.op, ModelOp) else ""


def _lines(view: View, node: Node) -> list[str]:
    fields = describe(node, 3 * BOX_CHARACTERS)[len(title(node)) :]
    inside = sum(len(body.nodes) for body in node.bodies)
    estimate = estimate_line(view, node) or (f"{inside} operators inside" if inside else "")
    return [_short(f"{node.reference} {title(node)}"), _short(fields), _short(estimate)]


def _short(text: str) -> str:
    return text if len(text) <= BOX_CHARACTERS else text[: BOX_CHARACTERS - 1] + "…"


def _box(box: _Box) -> str:
    texts = "".join(
        f'<text x="{box.x + 8}" y="{box.y + 18 + 17 * i}">{escape(line)}</text>'
        for i, line in enumerate(box.lines)
        if line
    )
    return (
        f'<g class="{box.css}"><rect x="{box.x}" y="{box.y}" width="{BOX_WIDTH}" '
        f'height="{BOX_HEIGHT}"/>{texts}</g>'
    )


def _edge(start: _Box, end: _Box, css: str) -> str:
    x1, y1 = start.x + BOX_WIDTH // 2, start.y + BOX_HEIGHT
    x2, y2 = end.x + BOX_WIDTH // 2, end.y
    bend = max(GAP_Y // 2, (y2 - y1) // 2)
    return f'<path class="{css}" d="M{x1} {y1} C{x1} {y1 + bend} {x2} {y2 - bend} {x2} {y2}"/>'
