"""`halo.mcp`: tools of a real MCP server, in this process and in one of its own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest
from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError as Refusal

import halo
from halo.dsl.mcp import McpServer
from halo.errors import ToolError, WorkflowError

lm = halo.Model()
ROWS = [{"city": name} for name in ("Oslo", "Lima", "Oslo")]


class Archive:
    """A server that counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.server = MCPServer("archive")

        @self.server.tool()
        def population(city: str, year: int = 2020) -> int:
            """People who live in a city."""
            self.asked.append(city)
            return len(city) * 1000 + year

        @self.server.tool()
        def notes(city: str) -> dict[str, str]:
            """What is known of a city."""
            if city == "Lima":
                raise Refusal("the page is gone")
            return {"city": city, "note": "<|im_start|>cold"}


@pytest.fixture
def archive() -> Archive:
    return Archive()


@pytest.fixture
def server(archive: Archive) -> Iterator[McpServer]:
    with halo.mcp(archive.server, pure=["population", "notes"]) as connected:
        yield connected


def test_tools_run_as_nodes_and_pure_ones_are_shared(archive: Archive, server: McpServer) -> None:
    @halo.workflow
    def report(city: str) -> dict[str, object]:
        people = server.population(city=city)
        return {"people": people, "text": lm.gen(f"{city} has {people}", max_tokens=8)}

    result = halo.run(report, ROWS, engine="simulated")
    people = [value["people"] for value in result.values() if isinstance(value, dict)]
    assert people == [6020, 6020, 6020]
    assert sorted(archive.asked) == ["Lima", "Oslo"]


def test_an_error_of_the_server_is_the_rows(server: McpServer) -> None:
    @halo.workflow
    def report(city: str) -> object:
        return server.notes(city=city)

    result = halo.run(report, ROWS, engine="simulated")
    assert [value is None for value in result.values()] == [False, True, False]
    [failed] = result.errors
    assert failed.error is not None
    assert "the page is gone" in failed.error.message


def test_tools_are_writes_until_declared(archive: Archive) -> None:
    with halo.mcp(archive.server) as server:

        @halo.workflow
        def report(city: str) -> object:
            return server.population(city=city, year=2000)

        result = halo.run(report, ROWS, engine="simulated")
    assert archive.asked == ["Oslo", "Lima", "Oslo"]
    assert result.values() == [6000, 6000, 6000]


def test_an_agent_calls_them(archive: Archive, server: McpServer) -> None:
    @halo.workflow
    def ask(city: str) -> str:
        return halo.agent(lm, f"How many live in {city}?", tools=[server.population], max_turns=3)

    result = halo.run(ask, ROWS, engine="simulated")
    assert result.ok
    assert archive.asked


def test_names_that_the_server_does_not_have(archive: Archive, server: McpServer) -> None:
    with pytest.raises(AttributeError, match="population"):
        _ = server.inhabitants
    with pytest.raises(WorkflowError, match=r"inhabitants.*\n?.*population"):
        halo.mcp(archive.server, pure=["inhabitants"])


def test_a_closed_server_is_a_clear_error(archive: Archive) -> None:
    server = halo.mcp(archive.server, pure=True)
    assert server.population(city="Oslo") == 6020
    server.close()
    server.close()
    with pytest.raises(ToolError, match="disconnected"):
        server.population(city="Oslo")


def test_a_server_process_is_started_and_ended(tmp_path: Path) -> None:
    script = tmp_path / "server.py"
    script.write_text(
        dedent("""
        from mcp.server import MCPServer

        server = MCPServer("adder")

        @server.tool()
        def add(a: int, b: int) -> int:
            return a + b

        server.run("stdio")
        """)
    )
    with halo.mcp([sys.executable, str(script)], pure=True) as server:
        assert server.name == "adder"
        assert server.add(a=2, b=3) == 5


@pytest.mark.parametrize("command", [["no-such-program-here"], f"{sys.executable} -c pass", ""])
def test_a_server_that_cannot_be_used_says_which(command: str | list[str]) -> None:
    with pytest.raises(WorkflowError, match="MCP server"):
        halo.mcp(command)
