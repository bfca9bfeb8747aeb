"""`halo.mcp`: the tools of an MCP server as tools of workflows and agents.

A server is connected when it is named, because tracing needs its tools' schemas, and stays so in a
thread of its own until it is closed or the interpreter ends. What a server says of its tools'
effects is a stranger's hint: each is a write until the workflow's author says otherwise.
"""

from __future__ import annotations

import asyncio
import atexit
import inspect
import shlex
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

from pydantic import TypeAdapter

from halo.dsl.tool import ToolFunction
from halo.dsl.tool_signature import ToolSignature
from halo.dsl.trace import fault
from halo.errors import ToolError, WorkflowError
from planner.logical import Effect, Json
from runtime.tools import ToolSpec

if TYPE_CHECKING:
    from mcp import Client
    from mcp.types import CallToolResult, Tool

CONNECT_S = 30.0
"""How long a server may take to start and to list its tools."""


class McpServer:
    """A connected server. Its tools are attributes: `server.search(query=...)`. A context manager.

    Attributes:
        name: as the server calls itself.
        tools: by name; hand `server.tools.values()` to `halo.agent`.
    """

    def __init__(
        self, connection: _Connection, tools: Mapping[str, ToolFunction[..., Any]]
    ) -> None:
        self._connection = connection
        self.name = connection.name
        self.tools = dict(tools)

    def __getattr__(self, name: str) -> ToolFunction[..., Any]:
        try:
            return self.__dict__["tools"][name]  # type: ignore[no-any-return]
        except KeyError:
            have = ", ".join(self.__dict__.get("tools", ())) or "none"
            raise AttributeError(f"the MCP server has no tool {name!r}; it has: {have}") from None

    def __enter__(self) -> McpServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect, and end a server that was started. Safe to call twice."""
        self._connection.close()


def mcp(
    server: str | Sequence[str] | object,
    /,
    *,
    pure: bool | Iterable[str] = (),
    timeout: float = 60,
    max_concurrency: int = 8,
    retries: int = 1,
) -> McpServer:
    """Connect to an MCP server and return its tools.

    `server` is a URL (streamable HTTP), a command to start (a list, or one text as a shell would
    split it; no shell is used), or a server object of this process. `pure` names the tools whose
    equal calls have equal results (`True`: all of them); the others are writes. `timeout` is in
    seconds for each call.

    Raises `WorkflowError` when the package `mcp` is missing, the server cannot be reached, or
    `pure` names a tool that it does not have.
    """
    connection = _Connection(_target(server), timeout)
    offered = connection.connect()
    known = {tool.name for tool in offered}
    declared = known if pure is True else set(pure or ())
    if unknown := sorted(declared - known):
        connection.close()
        raise fault(
            f"the MCP server has no tool {unknown[0]!r}, which pure= names",
            f"Its tools are: {', '.join(sorted(known)) or 'none'}",
        )
    limits = {"timeout_s": timeout, "max_concurrency": max_concurrency, "retries": retries}
    tools = {tool.name: _tool(connection, tool, tool.name in declared, limits) for tool in offered}
    return McpServer(connection, tools)


def _target(server: object) -> object:
    try:
        from mcp import StdioServerParameters
    except ImportError:
        raise WorkflowError(
            "halo.mcp needs the package mcp: pip install 'halo-flow[mcp]'"
        ) from None
    if isinstance(server, str) and server.startswith(("http://", "https://")):
        return server
    if isinstance(server, str | Sequence):
        words = (
            shlex.split(server)
            if isinstance(server, str)
            else [str(word) for word in cast("Sequence[object]", server)]
        )
        if not words:
            raise fault("the command of an MCP server is empty", "Give the program and its words")
        return StdioServerParameters(command=words[0], args=words[1:])
    return server


def _tool(
    connection: _Connection, tool: Tool, pure: bool, limits: Mapping[str, Any]
) -> ToolFunction[..., Any]:
    schema = dict(tool.input_schema)
    properties = cast("Mapping[str, Any]", schema.get("properties") or {})
    required = set(cast("Sequence[str]", schema.get("required") or ()))
    # Optional ones have no default here: what is left out is not sent.
    shape = inspect.Signature(
        [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if name in required else None,
            )
            for name in properties
            if name.isidentifier()
        ]
    )
    signature = ToolSignature(
        shape, {name: TypeAdapter(Any) for name in shape.parameters}, schema, Any
    )
    name = tool.name

    def call(**arguments: Any) -> Json:
        return connection.call(name, arguments)

    call.__name__ = name
    spec = ToolSpec(
        name,
        call,
        tool.description or "",
        schema,
        Effect.PURE if pure else Effect.WRITE,
        **limits,
    )
    return ToolFunction(spec, signature, call)


class _Connection:
    """One client in a loop and a thread of its own: calls come from whatever thread runs them."""

    def __init__(self, target: object, timeout_s: float) -> None:
        self.name = ""
        self._target = target
        self._timeout_s = timeout_s
        self._loop = asyncio.new_event_loop()
        self._ready: Future[list[Tool]] = Future()
        self._client: Client | None = None
        self._end: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._run, name="halo-mcp", daemon=True)

    def connect(self) -> list[Tool]:
        """Start, and return what the server offers."""
        self._thread.start()
        try:
            tools = self._ready.result(CONNECT_S)
        except Exception as error:
            self.close()
            reason = f"no answer in {CONNECT_S:.0f} s" if isinstance(error, TimeoutError) else error
            raise WorkflowError(
                f"cannot use the MCP server {self._described()}: {_first_cause(reason)}"
            ) from error
        atexit.register(self.close)
        return tools

    def call(self, tool: str, arguments: Mapping[str, Any]) -> Json:
        """The JSON value of one call. Raises `ToolError`."""
        client = self._client
        if client is None:
            raise ToolError(f"{tool}: the MCP server is disconnected", tool=tool)
        asked = asyncio.run_coroutine_threadsafe(
            client.call_tool(tool, dict(arguments)), self._loop
        )
        try:
            answer = asked.result(self._timeout_s)
        except TimeoutError:
            asked.cancel()
            raise ToolError(
                f"{tool}: the MCP server gave no answer in {self._timeout_s:g} s", tool=tool
            ) from None
        except Exception as error:
            raise ToolError(f"{tool}: {_first_cause(error)}", tool=tool) from error
        return _value(tool, answer)

    def close(self) -> None:
        """End the client and the thread."""
        atexit.unregister(self.close)
        if self._end is not None and self._thread.is_alive():
            with suppress(RuntimeError):  # it ended in between
                self._loop.call_soon_threadsafe(self._end.set)
            self._thread.join(5.0)

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        except BaseException as error:
            if not self._ready.done():
                self._ready.set_exception(error)
        finally:
            self._client = None
            self._loop.close()

    async def _serve(self) -> None:
        from mcp import Client

        self._end = asyncio.Event()
        async with Client(cast("Any", self._target)) as client:
            self.name = client.server_info.name if client.server_info else ""
            tools: list[Tool] = []
            cursor: str | None = None
            while True:
                page = await client.list_tools(cursor=cursor)
                tools.extend(page.tools)
                cursor = page.next_cursor
                if not cursor:
                    break
            self._client = client
            self._ready.set_result(tools)
            await self._end.wait()

    def _described(self) -> str:
        command = getattr(self._target, "command", None)
        if command is None:
            return self._target if isinstance(self._target, str) else repr(self._target)
        return shlex.join([command, *cast("Any", self._target).args])


def _value(tool: str, answer: CallToolResult) -> Json:
    texts: list[str] = []
    for block in answer.content:
        if block.type != "text":
            raise ToolError(
                f"{tool}: the MCP server answered with {block.type}, which is no JSON value",
                tool=tool,
            )
        texts.append(block.text)
    if answer.is_error:
        raise ToolError(f"{tool}: {' '.join(texts) or 'the MCP server said no more'}", tool=tool)
    structured = cast("Json", answer.structured_content)
    if structured is None:
        return texts[0] if len(texts) == 1 else cast("Json", texts)
    # The protocol wraps a result that is no object.
    if isinstance(structured, dict) and structured.keys() == {"result"}:
        return structured["result"]
    return structured


def _first_cause(error: object) -> str:
    """The text of the first error inside groups of errors."""
    while isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", error)
        error = group.exceptions[0]
    return f"{type(error).__name__}: {error}" if isinstance(error, BaseException) else str(error)
