"""A workload as a LangGraph: one node a call, edges as the data flows."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypedDict

from workloads.direct import DirectClient
from workloads.graph import Graph, Node


def compile_graph(client: DirectClient, graph: Graph, on_row: Callable[[int], None]) -> Any:
    """The compiled graph. Its state holds the row's index and every value as `v0`, `v1`, ..."""
    import importlib

    langgraph: Any = importlib.import_module("langgraph.graph")
    first = len(graph.columns)
    size = first + len(graph.nodes)
    fields: dict[str, Any] = {"row": int, **{f"v{k}": Any for k in range(size)}}
    state = TypedDict("State", fields, total=False)  # type: ignore[misc]  # pyright: ignore
    builder: Any = langgraph.StateGraph(state)

    def node_of(position: int, node: Node) -> Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]:
        key = f"v{first + position}"

        async def call(values: dict[str, Any]) -> dict[str, Any]:
            row = [values.get(f"v{k}") for k in range(size)]
            return {key: await client.run(node, graph, row)}

        return call

    used: set[int] = set()
    for position, node in enumerate(graph.nodes):
        name = f"n{position}"
        builder.add_node(name, node_of(position, node))
        before = sorted({i for i in node.inputs if i >= first})
        used.update(before)
        if not before:
            builder.add_edge(langgraph.START, name)
        elif len(before) == 1:
            builder.add_edge(f"n{before[0] - first}", name)
        else:
            builder.add_edge([f"n{i - first}" for i in before], name)
    ends = [f"n{p}" for p in range(len(graph.nodes)) if first + p not in used]

    async def end(values: dict[str, Any]) -> dict[str, Any]:
        on_row(int(values["row"]))
        return {}

    builder.add_node("end", end)
    builder.add_edge(ends if len(ends) > 1 else ends[0], "end")
    builder.add_edge("end", langgraph.END)
    return builder.compile()
