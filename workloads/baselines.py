"""How people run such batches today, each as good as its users could make it.

All of them send the prompts that Halo sends, to the byte, with the same forced answer lengths, and
cache their tools' answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeAlias

from workloads.direct import DirectClient, run_row
from workloads.graph import Graph

Rows: TypeAlias = "Sequence[Mapping[str, str]]"
OnRow: TypeAlias = "Callable[[int], None]"
Baseline: TypeAlias = "Callable[[DirectClient, Graph, Rows, OnRow], Awaitable[list[str]]]"


async def all_rows_at_once(
    client: DirectClient, graph: Graph, rows: Rows, on_row: OnRow
) -> list[str]:
    """(a) and (d): a task for every row, every call as soon as its inputs are there, as many at
    once as there are. (d) is the same against a server that orders by longest cached prefix."""

    async def one(index: int, row: Mapping[str, str]) -> str:
        answer = await run_row(client, graph, row)
        on_row(index)
        return answer

    return list(await asyncio.gather(*(one(i, row) for i, row in enumerate(rows))))


async def langgraph_batch(
    client: DirectClient, graph: Graph, rows: Rows, on_row: OnRow
) -> list[str]:
    """(b): a compiled LangGraph and `abatch`, without a limit on concurrency."""
    from workloads.baseline_langgraph import compile_graph

    compiled: Any = compile_graph(client, graph, on_row)
    states = [
        {"row": i, **{f"v{k}": row[name] for k, name in enumerate(graph.columns)}}
        for i, row in enumerate(rows)
    ]
    ends: list[dict[str, Any]] = await compiled.abatch(states, {"recursion_limit": 1000})
    size = len(graph.columns) + len(graph.nodes)
    return [graph.answer([end.get(f"v{k}") for k in range(size)]) for end in ends]


async def operator_by_operator(
    client: DirectClient, graph: Graph, rows: Rows, on_row: OnRow
) -> list[str]:
    """(c): level by level over all rows; operators that do not depend on each other run
    together."""
    first = len(graph.columns)
    tables: list[list[Any]] = [
        [row[name] for name in graph.columns] + [None] * len(graph.nodes) for row in rows
    ]
    levels: dict[int, list[int]] = {}
    depth: list[int] = []
    for position, node in enumerate(graph.nodes):
        depth.append(1 + max((depth[i - first] for i in node.inputs if i >= first), default=0))
        levels.setdefault(depth[-1], []).append(position)

    async def call(values: list[Any], position: int) -> None:
        values[first + position] = await client.run(graph.nodes[position], graph, values)

    for _, positions in sorted(levels.items()):
        await asyncio.gather(*(call(values, p) for p in positions for values in tables))
    for index in range(len(rows)):
        on_row(index)
    return [graph.answer(values) for values in tables]


async def row_by_row(client: DirectClient, graph: Graph, rows: Rows, on_row: OnRow) -> list[str]:
    """(e): one row after the other; within a row, calls overlap as far as they can."""
    answers: list[str] = []
    for index, row in enumerate(rows):
        answers.append(await run_row(client, graph, row))
        on_row(index)
    return answers


BASELINES: dict[str, Baseline] = {
    "async": all_rows_at_once,
    "langgraph": langgraph_batch,
    "operators": operator_by_operator,
    "lpm": all_rows_at_once,
    "rows": row_by_row,
}
"""By the names used in results; the letters of the comparison are a, b, c, d, e in this order."""
