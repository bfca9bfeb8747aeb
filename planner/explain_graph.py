"""EXPLAIN as a graph: Mermaid and DOT text. Bodies are boxes inside the graph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from planner.describe import describe, effect_of, shown_name, title
from planner.explain_text import estimate_line
from planner.explain_view import View
from planner.listing import Node

LABEL_WIDTH = 60


def render_mermaid(view: View) -> str:
    """A Mermaid flowchart, inputs above their users."""
    lines = ["flowchart TD"]
    edges: list[str] = []
    groups = 0

    def scope(nodes: Sequence[Node], indent: str) -> Iterator[str]:
        nonlocal groups
        for node in nodes:
            label = "<br/>".join(_mermaid_text(line) for line in node_lines(view, node))
            yield f'{indent}n{node.number}["{label}"]'
            edges.extend(f"  {a} {'-.->' if soft else '-->'} {b}" for a, b, soft in _edges(node))
            for body in node.bodies:
                groups += 1
                name = f"{body.title} of {node.reference}"
                yield f'{indent}subgraph g{groups}["{_mermaid_text(name)}"]'
                yield from scope(body.nodes, indent + "  ")
                yield f"{indent}end"
                edges.append(f"  n{node.number} -.- g{groups}")

    lines += scope(view.listing.nodes, "  ")
    for i, output in enumerate(view.listing.outputs):
        lines.append(f'  o{i}(["{_mermaid_text(output.name)}"])')
        edges.append(f"  n{output.value[1:]} --> o{i}")
    return "\n".join([*lines, *edges])


def render_dot(view: View) -> str:
    """A Graphviz digraph, inputs above their users."""
    lines = ["digraph plan {", '  node [shape=box fontname="monospace" fontsize=10];']
    edges: list[str] = []
    groups = 0

    def scope(nodes: Sequence[Node], indent: str) -> Iterator[str]:
        nonlocal groups
        for node in nodes:
            label = "\\l".join(_dot_text(line) for line in node_lines(view, node)) + "\\l"
            yield f'{indent}n{node.number} [label="{label}"];'
            edges.extend(
                f"  {a} -> {b}{' [style=dashed]' if soft else ''};" for a, b, soft in _edges(node)
            )
            for body in node.bodies:
                groups += 1
                yield f"{indent}subgraph cluster_{groups} {{"
                name = f"{body.title} of {node.reference}"
                yield f'{indent}  label="{_dot_text(name)}";'
                yield from scope(body.nodes, indent + "  ")
                yield f"{indent}}}"
                edges.extend(
                    f"  n{inner.number} -> n{node.number} [style=dotted];"
                    for inner in body.nodes
                    if inner.reference == body.result
                )

    lines += scope(view.listing.nodes, "  ")
    for i, output in enumerate(view.listing.outputs):
        lines.append(f'  o{i} [shape=oval label="{_dot_text(output.name)}"];')
        edges.append(f"  n{output.value[1:]} -> o{i};")
    return "\n".join([*lines, *edges, "}"])


def node_lines(view: View, node: Node) -> list[str]:
    """What a box of a graph says: the title, the fields, who shares it, the estimate."""
    room = None if view.verbose else LABEL_WIDTH
    head = f"{node.reference} {title(node)}"
    described = describe(node, room)[len(title(node)) :]
    lines = [f"{head}  {effect_of(node)}".rstrip(), described]
    if len(node.queries) > 1 and not node.depth:
        names = ",".join(shown_name(query) for query in node.queries)
        shared = f"shared by {names}"
        lines.append(shared if view.verbose or len(shared) <= LABEL_WIDTH else shared[:59] + "…")
    estimate = estimate_line(view, node)
    return [*lines, estimate] if estimate else lines


def _edges(node: Node) -> list[tuple[str, str, bool]]:
    """Edges into a node; the order that `after` asks for is soft. Parameters have none."""
    ends = [(reference, False) for reference in dict.fromkeys(node.inputs)]
    ends += [(reference, True) for reference in node.after]
    return [
        (f"n{reference[1:]}", f"n{node.number}", soft)
        for reference, soft in ends
        if reference.startswith("#")
    ]


def _mermaid_text(text: str) -> str:
    """Text as text: Mermaid reads HTML and marks inside quotes, and `#NN;` as a character."""
    return "".join(c if c.isalnum() or c in _MERMAID_SAFE else f"#{ord(c)};" for c in text)


_MERMAID_SAFE = frozenset(" .,:=+-_/()'?!…~^%$@")


def _dot_text(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
