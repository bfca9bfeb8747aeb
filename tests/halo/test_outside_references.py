"""No front end follows a schema's reference to a file or an address: each refuses it in words, and
no model has been asked by then."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Annotated, Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from mcp.server import MCPServer
from pydantic import WithJsonSchema

import halo
from halo.errors import WorkflowError
from halo.openai_front import openai_app
from halo.spec import load_spec_text
from runtime.backends.simulated import SimulatedBackend
from runtime.clock import LoopClock

lm = halo.Model()
ROWS = [{"q": "a"}, {"q": "b"}]


def test_yaml_refuses_it(outside_reference: str) -> None:
    text = f"""
    steps:
      a: {{prompt: x, out: {{type: array, items: {{$ref: "{outside_reference}"}}}}}}
    """
    with pytest.raises(WorkflowError, match=r"steps\.a\.out: .* is outside the schema"):
        load_spec_text(text)


def test_an_answer_type_and_a_tool_of_python_refuse_it(outside_reference: str) -> None:
    foreign = Annotated[int, WithJsonSchema({"$ref": outside_reference})]

    @halo.workflow
    def flow(q: str) -> Any:
        return lm.gen(f"{q}?", out=foreign)

    with pytest.raises(WorkflowError, match="is outside the type's JSON Schema"):
        halo.explain(flow, ROWS, engine="simulated")

    def look(at: Any) -> str:
        return "x"

    look.__annotations__["at"] = foreign
    with pytest.raises(WorkflowError, match="is outside the type's JSON Schema"):
        halo.tool(look)


def test_tools_of_a_server_are_refused_when_used(outside_reference: str) -> None:
    archive = MCPServer("archive")

    @archive.tool()
    def look(at: int) -> str:
        raise AssertionError("the tool must not be called")

    (offered,) = archive._tool_manager.list_tools()
    offered.parameters["properties"]["at"] = {"$ref": outside_reference}

    with halo.mcp(archive, pure=True) as server:

        @halo.workflow
        def direct(q: str) -> object:
            return server.look(at=1)

        @halo.workflow
        def agent(q: str) -> str:
            return halo.agent(lm, f"{q}?", tools=[server.look])

        for flow, kind in ((direct, "ToolError"), (agent, "PlanError")):
            result = halo.run(flow, ROWS, engine="simulated")
            errors = [row.error for row in result.errors if row.error is not None]
            assert [error.type for error in errors] == [kind, kind]
            assert all("is outside the schema" in error.message for error in errors)
            assert sum(result.engine_requests.values()) == 0


@pytest.mark.parametrize("place", ["answer", "tool"])
def test_the_openai_front_refuses_it(outside_reference: str, place: str) -> None:
    schema = {"type": "object", "properties": {"a": {"$ref": outside_reference}}}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    tool = {"type": "function", "function": {"name": "look", "parameters": schema}}
    asked = {"response_format": form} if place == "answer" else {"tools": [tool]}
    body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], **asked}

    async def main() -> None:
        backend = SimulatedBackend("simulated", LoopClock())
        server = TestServer(openai_app(backend, "tiny", random.Random(3)))
        async with (
            TestClient(server) as client,
            client.post("/v1/chat/completions", json=body) as response,
        ):
            assert response.status == 400
            assert "is outside the schema" in json.dumps(await response.json())
        assert backend.requests_seen == 0

    asyncio.run(main())
