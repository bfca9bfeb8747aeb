"""One definition of a workload for everybody: as a Halo workflow, and as the graph of calls that
the baselines run. Both render the same prompts, because both come from the same function.

A workload's function takes `Ops` and one value for each column, and calls `ops.llm`, `ops.sql`,
`ops.http` and `ops.function`. With `HaloOps` the values are Halo's lazy values; with `Recorder`
they are references of the graph.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import halo
from halo.dsl.sql import sql

_MARK = re.compile("\ue0f5([0-9]+)\ue0f6")


class Ops(ABC):
    """What a workload may do."""

    @abstractmethod
    def llm(
        self, model: str, prompt: str, *, system: str = "", max_tokens: int = 32, name: str = ""
    ) -> Any:
        """A model's answer to an f-string over values."""

    @abstractmethod
    def sql(self, text: str, **params: Any) -> Any:
        """The rows of a query on the workload's database."""

    @abstractmethod
    def http(self, route: str, query: Any) -> Any:
        """The answer of the workload's HTTP service."""

    @abstractmethod
    def function(self, function: Callable[[str], Any], value: Any) -> Any:
        """A local rule, a pure function of one text."""

    def join(self, values: Sequence[Any]) -> Any:
        """One text of several, a line each: what a workflow without a last call returns."""
        return "\n".join(f"{value}" for value in values)


@dataclass(frozen=True, slots=True)
class Ref:
    """A value of the graph: a node's result, or a column of the row."""

    index: int
    is_column: bool = False

    def __format__(self, spec: str) -> str:
        return f"\ue0f5{self.index}\ue0f6"


@dataclass(frozen=True, slots=True)
class Node:
    """One call. `parts` of a model call are literal texts and references by turns."""

    kind: str
    name: str
    inputs: tuple[int, ...]
    model: str = ""
    system: str = ""
    parts: tuple[str | int, ...] = ()
    max_tokens: int = 0
    text: str = ""
    params: tuple[tuple[str, int], ...] = ()
    function: Callable[[str], Any] | None = None


@dataclass(frozen=True, slots=True)
class Graph:
    """The calls of one row in an order in which inputs come first. Values 0 to n - 1 are the
    columns, then one for each node."""

    columns: tuple[str, ...]
    nodes: tuple[Node, ...]
    result: tuple[str | int, ...]

    def answer(self, values: Sequence[Any]) -> str:
        """The row's result."""
        return _rendered(self.result, values)

    def prompt(self, node: Node, values: Sequence[Any]) -> str:
        """The user message of a model call, exactly as Halo renders it."""
        return _rendered(node.parts, values)


def _rendered(parts: Sequence[str | int], values: Sequence[Any]) -> str:
    return "".join(p if isinstance(p, str) else shown(values[p]) for p in parts)


def _split(text: str) -> tuple[str | int, ...]:
    pieces = _MARK.split(text)
    return tuple(int(p) if i % 2 else p for i, p in enumerate(pieces) if i % 2 or p)


def shown(value: Any) -> str:
    """A value inside a prompt: text as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


@dataclass
class Recorder(Ops):
    """Records a workload's function as a `Graph`."""

    columns: tuple[str, ...]
    nodes: list[Node] = field(default_factory=list[Node])

    def llm(
        self, model: str, prompt: str, *, system: str = "", max_tokens: int = 32, name: str = ""
    ) -> Any:
        parts = _split(prompt)
        inputs = tuple(p for p in parts if isinstance(p, int))
        return self._add(Node("llm", name, inputs, model, system, parts, max_tokens))

    def sql(self, text: str, **params: Any) -> Any:
        # Halo sorts parameters; the order makes no difference to the query.
        named = tuple((name, ref.index) for name, ref in sorted(params.items()))
        return self._add(Node("sql", "sql", tuple(i for _, i in named), text=text, params=named))

    def http(self, route: str, query: Any) -> Any:
        return self._add(Node("http", route, (query.index,), text=route))

    def function(self, function: Callable[[str], Any], value: Any) -> Any:
        return self._add(Node("function", function.__name__, (value.index,), function=function))

    def _add(self, node: Node) -> Ref:
        self.nodes.append(node)
        return Ref(len(self.columns) + len(self.nodes) - 1)


class HaloOps(Ops):
    """The same through Halo's DSL."""

    def __init__(self, api_url: str, models: Mapping[str, str], max_tools: int) -> None:
        self._api_url = api_url
        self._models = models
        self._max_tools = max_tools

    def llm(
        self, model: str, prompt: str, *, system: str = "", max_tokens: int = 32, name: str = ""
    ) -> Any:
        lm = halo.Model(self._models.get(model, model))
        return lm.gen(prompt, system=system or None, max_tokens=max_tokens, name=name or "gen")

    def sql(self, text: str, **params: Any) -> Any:
        return sql(text, **params)

    def http(self, route: str, query: Any) -> Any:
        return _http_tool(route, self._api_url, self._max_tools)(q=query)

    def function(self, function: Callable[[str], Any], value: Any) -> Any:
        return _function_tool(function)(value)


@cache
def _http_tool(route: str, api_url: str, max_tools: int) -> Any:
    return halo.tool.http(
        route.replace("/", "_"),
        url=f"{api_url}/{route}",
        params={"q": str},
        returns=str,
        pure=True,
        max_concurrency=max_tools,
    )


@cache
def _function_tool(function: Callable[[str], Any]) -> Any:
    return halo.tool(pure=True, name=function.__name__)(function)


@dataclass(frozen=True)
class Workload:
    """A workload.

    Attributes:
        build: the definition, from `Ops` and the columns to the result.
        rows: `count` rows from a seed.
        count: rows at scale 1: those of the published runs.
        database: tables it queries, a name of `workloads.tables`; empty for none.
        models: short names of models that it uses.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    build: Callable[..., Any]
    rows: Callable[[int, int], list[dict[str, str]]]
    count: int
    database: str = ""
    models: tuple[str, ...] = ("8b",)

    def graph(self) -> Graph:
        """The calls of one row."""
        recorder = Recorder(self.columns)
        columns = [Ref(i, is_column=True) for i in range(len(self.columns))]
        result = self.build(recorder, *columns)
        return Graph(self.columns, tuple(recorder.nodes), _split(f"{result}"))

    def flow(
        self, api_url: str = "", models: Mapping[str, str] | None = None, max_tools: int = 1024
    ) -> Any:
        """The workload as a Halo workflow."""
        ops = HaloOps(api_url, models or {}, max_tools)
        # Halo reads a workflow's columns from its signature.
        arguments = ", ".join(f"{name}: str" for name in self.columns)
        names = ", ".join(self.columns)
        scope: dict[str, Any] = {"ops": ops, "build": self.build}
        source = f"def flow({arguments}) -> str:\n    return build(ops, {names})\n"
        exec(compile(source, f"<{self.name}>", "exec"), scope)
        return halo.workflow(scope["flow"], name=self.name)
