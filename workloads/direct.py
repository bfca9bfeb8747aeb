"""What a careful user would write without Halo: a client of the server, tools with a cache, and one
row's calls as asynchronous code. The baselines build on it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import aiohttp

from workloads.graph import Graph, Node

SQL_THREADS = 8
ATTEMPTS = 5


@dataclass
class Counters:
    """What a run has asked for. Times are seconds since its start."""

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    tool_calls: int = 0


@dataclass(frozen=True)
class Endpoints:
    """Where models and tools are.

    Attributes:
        servers: address of each model.
        names: what each model's server calls it.
    """

    servers: Mapping[str, str]
    names: Mapping[str, str]
    api_url: str = ""
    database: Path | None = None


class DirectClient:
    """Calls models and tools. Equal tool calls are made once, as a user's cache would.

    `share_tools` switches the cache off; `full_length` decodes `max_tokens` tokens of every answer,
    whatever the model says.
    """

    def __init__(
        self, endpoints: Endpoints, *, share_tools: bool = True, full_length: bool = True
    ) -> None:
        self.counters = Counters()
        self._endpoints = endpoints
        self._share_tools = share_tools
        self._full_length = full_length
        self._session: aiohttp.ClientSession | None = None
        self._threads = ThreadPoolExecutor(SQL_THREADS)
        self._database: Any = None
        self._tools: dict[Any, asyncio.Task[Any]] = {}

    async def __aenter__(self) -> DirectClient:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=1800)
        )
        if self._endpoints.database is not None:
            import duckdb

            self._database = duckdb.connect(str(self._endpoints.database), read_only=True)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()
        self._threads.shutdown(wait=False)
        if self._database is not None:
            self._database.close()

    async def run(self, node: Node, graph: Graph, values: Sequence[Any]) -> Any:
        """The value of a node from those before it."""
        if node.kind == "llm":
            return await self.answer(node, graph.prompt(node, values))
        if node.kind == "function":
            assert node.function is not None
            return node.function(values[node.inputs[0]])
        arguments = tuple(values[i] for i in node.inputs)
        return await self._tool(
            (node.kind, node.text, arguments), lambda: self._call_tool(node, values)
        )

    async def answer(self, node: Node, prompt: str) -> str:
        """The model's answer to one prompt."""
        assert self._session is not None
        body = {
            "text": chat_text(node.system, prompt),
            "sampling_params": {
                "max_new_tokens": node.max_tokens,
                "temperature": 0.0,
                "ignore_eos": self._full_length,
            },
        }
        url = f"{self._endpoints.servers[node.model]}/generate"
        answer = await self._post(url, body)
        if "meta_info" not in answer:
            raise RuntimeError(f"{url}: {answer}")
        meta = cast("dict[str, Any]", answer["meta_info"])
        counters = self.counters
        counters.calls += 1
        counters.input_tokens += int(meta["prompt_tokens"])
        counters.output_tokens += int(meta["completion_tokens"])
        counters.cached_tokens += int(meta["cached_tokens"])
        return str(answer["text"])

    async def _post(self, url: str, body: dict[str, Any]) -> Any:
        """A flooded server resets connections; a careful client asks again."""
        assert self._session is not None
        for attempt in range(ATTEMPTS):
            try:
                async with self._session.post(url, json=body) as response:
                    return await response.json(content_type=None)
            except aiohttp.ClientConnectionError:
                if attempt == ATTEMPTS - 1:
                    raise
                await asyncio.sleep(0.05 * 2**attempt)
        raise AssertionError

    async def _tool(self, key: Any, call: Callable[[], Awaitable[Any]]) -> Any:
        if not self._share_tools:
            return await call()
        task = self._tools.get(key)
        if task is None:
            task = self._tools[key] = asyncio.ensure_future(call())
        return await task

    async def _call_tool(self, node: Node, values: Sequence[Any]) -> Any:
        self.counters.tool_calls += 1
        if node.kind == "sql":
            params = {name: values[i] for name, i in node.params}
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._threads, self._query, node.text, params)
        assert self._session is not None
        url = f"{self._endpoints.api_url}/{node.text}"
        async with self._session.get(url, params={"q": values[node.inputs[0]]}) as response:
            return await response.json()

    def _query(self, text: str, params: dict[str, Any]) -> list[dict[str, Any]]:
        cursor = self._database.cursor()
        cursor.execute(text, params or None)
        names = [column[0] for column in cursor.description]
        return [
            {name: _plain(value) for name, value in zip(names, row, strict=True)}
            for row in cursor.fetchall()
        ]


def chat_text(system: str, user: str) -> str:
    """A conversation of one turn in the format of the models of `workloads.gpu.models`."""
    head = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
    return f"{head}<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"


async def run_row(client: DirectClient, graph: Graph, row: Mapping[str, str]) -> str:
    """One row: every call starts when its inputs are there."""
    first = len(graph.columns)
    values: list[Any] = [row[name] for name in graph.columns] + [None] * len(graph.nodes)
    tasks: list[asyncio.Task[None]] = []

    async def step(position: int, node: Node) -> None:
        waits = {i for i in node.inputs if i >= first}
        for i in waits:
            await tasks[i - first]
        values[first + position] = await client.run(node, graph, values)

    for position, node in enumerate(graph.nodes):
        tasks.append(asyncio.ensure_future(step(position, node)))
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
    return graph.answer(values)


def _plain(value: Any) -> Any:
    """A value of a query as JSON has it: decimals as numbers, dates as text."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    try:
        return json.loads(str(value))
    except ValueError:
        return str(value)
