"""The agent: a bounded loop of model turns and tool calls, one operator of the plan.

What goes wrong with a tool is told to the model, which can mend it; only what the model cannot mend
(an engine that fails, an answer of the wrong type) fails the row. Agents end by an answer without
tool calls, or, after `max_turns` turns, by one more turn that offers no tools.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

from costmodel.errors import HaloError
from planner.errors import InvariantError
from planner.logical import Agent, Effect, Json, Sql, render_value
from runtime.answers import Asker, JsonType, MisfitError, answer_text
from runtime.backends.base import Message, Request, ToolCall, ToolSchema
from runtime.errors import DrainingError
from runtime.inline import compile_prompt
from runtime.placement import Placement
from runtime.records import CallRecord, CallSite
from runtime.scope import Frame
from runtime.streaming import Listener
from runtime.values import parse_json

FINAL_TURN = "No more tools can be called. Give the final answer now, from what is known."


class ToolCaller(Protocol):
    """Calls tools and databases: `runtime.tool_runner.ToolRunner`."""

    async def call(
        self,
        name: str,
        arguments: Mapping[str, Json],
        site: CallSite,
        listener: Listener | None = None,
    ) -> CallRecord: ...

    async def query(
        self,
        op: Sql,
        text: str,
        params: Mapping[str, Json],
        site: CallSite,
        listener: Listener | None = None,
    ) -> CallRecord: ...

    def stop(self) -> None: ...


@dataclass(frozen=True, slots=True)
class _AgentTool:
    schema: ToolSchema
    effect: Effect
    arguments: JsonType


class AgentStep:
    """An `Agent`, compiled."""

    def __init__(
        self,
        op: Agent,
        inputs: Sequence[int],
        placement: Placement,
        asker: Asker,
        tools: ToolCaller,
        tool_schemas: Mapping[str, ToolSchema],
        is_stopping: Callable[[], bool],
    ) -> None:
        self.op = op
        self._prompt = compile_prompt(op.prompt, inputs)
        self._system = compile_prompt(op.system, inputs) if op.system is not None else None
        self._model = placement.worker_of(op).model
        self._placement = placement
        self._asker = asker
        self._caller = tools
        self._is_stopping = is_stopping
        self._answer_type = JsonType(op.schema_json) if op.schema_json is not None else None
        self._tools: dict[str, _AgentTool] = {}
        for ref in op.tools:
            schema = tool_schemas.get(ref.name)
            if schema is None:
                have = ", ".join(tool_schemas) or "none"
                raise InvariantError(f"{op!r} uses tool {ref.name!r}; the run has: {have}")
            self._tools[ref.name] = _AgentTool(schema, ref.effect, JsonType(schema.parameters_json))
        self._offered = tuple(tool.schema for tool in self._tools.values())

    async def run(self, frame: Frame, query: str) -> Json:
        for tool in self._tools.values():
            tool.arguments.ensure_sound()
        messages: list[Message] = []
        if self._system is not None:
            messages.append(Message("system", self._system(frame.values)))
        messages.append(Message("user", self._prompt(frame.values)))
        turn = 0
        while self._offered and turn < self.op.max_turns:
            request = self._request(messages, tools=self._offered)
            record = await self._complete(request, frame, query, turn)
            text, calls = answer_text(record), _tool_calls(record)
            if not calls:
                return await self._final(messages, text, frame, query, turn)
            messages.append(Message("assistant", text, calls))
            results = await self._call_all(calls, frame, query, turn)
            for call, result in zip(calls, results, strict=True):
                messages.append(Message("tool", result, (), call.id, call.name))
            turn += 1
        if turn:
            messages.append(Message("user", FINAL_TURN))
        return await self._last_turn(messages, frame, query, turn)

    # --- model turns -----------------------------------------------------------------------------

    async def _final(
        self, messages: list[Message], text: str, frame: Frame, query: str, turn: int
    ) -> Json:
        """The value of an answer without tool calls: asked for again, constrained, when it is not
        of the declared type."""
        if self._answer_type is None:
            return text
        try:
            return self._answer_type.parse(text)
        except MisfitError:
            messages.append(Message("assistant", text))
            wish = f"Give the final answer as {self._answer_type.wish}"
            messages.append(Message("user", wish))
            return await self._last_turn(messages, frame, query, turn + 1)

    async def _last_turn(
        self, messages: list[Message], frame: Frame, query: str, turn: int
    ) -> Json:
        """An answer without tools, of the declared type."""
        if self._answer_type is None:
            record = await self._complete(self._request(messages), frame, query, turn)
            return answer_text(record)
        request = self._request(messages, schema_json=self._answer_type.schema_json)
        site = self._model_site(frame, query, turn)
        worker, priority = self._place(frame)
        return await self._asker.ask(worker, request, site, priority, self._answer_type)

    async def _complete(self, request: Request, frame: Frame, query: str, turn: int) -> CallRecord:
        worker, priority = self._place(frame)
        return await self._asker.models.complete(
            worker, request, self._model_site(frame, query, turn), priority=priority
        )

    def _place(self, frame: Frame) -> tuple[str, int]:
        """The worker and the priority of a turn."""
        op, placement = self.op.fingerprint, self._placement
        priority = frame.row.priority + placement.priority(op)
        return placement.worker(op, frame.row.position), priority

    def _request(
        self,
        messages: Sequence[Message],
        *,
        tools: tuple[ToolSchema, ...] = (),
        schema_json: str | None = None,
    ) -> Request:
        op = self.op
        return Request(
            "",
            self._model,
            tuple(messages),
            max_tokens=op.max_tokens,
            temperature=op.temperature,
            top_p=op.top_p,
            schema_json=schema_json,
            tools=tools,
        )

    def _model_site(self, frame: Frame, query: str, turn: int) -> CallSite:
        # A greedy turn is pure whatever the tools do: its key has all of the conversation.
        effect = Effect.SAMPLED if self.op.temperature > 0 else Effect.PURE
        return frame.site(self.op, query, effect=effect, call_id=self.op.call_id, turn=turn)

    # --- tools -----------------------------------------------------------------------------------

    async def _call_all(
        self, calls: Sequence[ToolCall], frame: Frame, query: str, turn: int
    ) -> list[str]:
        """What each tool call gives, as text for the model. Side by side if all are pure."""
        known = [self._tools[call.name] for call in calls if call.name in self._tools]
        if any(tool.effect is not Effect.PURE for tool in known):
            return [await self._call(c, frame, query, turn, i) for i, c in enumerate(calls)]
        work = [self._call(c, frame, query, turn, i) for i, c in enumerate(calls)]
        results = await asyncio.gather(*work, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return cast("list[str]", results)

    async def _call(self, call: ToolCall, frame: Frame, query: str, turn: int, number: int) -> str:
        tool = self._tools.get(call.name)
        if tool is None:
            have = ", ".join(self._tools)
            return f"Error: there is no tool {call.name!r}; the tools are: {have}"
        try:
            arguments = _arguments(call.arguments_json, tool.arguments)
        except MisfitError as error:
            return f"Error: the arguments of {call.name} cannot be used: {error}"
        if self._is_stopping():
            raise DrainingError(f"the run is stopping; tool {call.name!r} was not called")
        site = frame.site(
            self.op,
            query,
            effect=tool.effect,
            call_id=self.op.call_id,
            path=frame.place(f"agent[{turn}]/tool[{number}]"),
            turn=turn,
        )
        try:
            record = await self._caller.call(call.name, arguments, site)
        except DrainingError:
            raise
        except HaloError as error:
            return f"Error: {error}"
        return render_value(record.value)


def _tool_calls(record: CallRecord) -> tuple[ToolCall, ...]:
    value = cast("Mapping[str, Json]", record.value)
    calls = cast("Sequence[Mapping[str, str]]", value.get("tool_calls") or ())
    return tuple(ToolCall(c["id"], c["name"], c["arguments_json"]) for c in calls)


def _arguments(text: str, declared: JsonType) -> dict[str, Json]:
    """The arguments that a model wrote. Raises `MisfitError`."""
    try:
        value = parse_json(text) if text.strip() else {}
    except ValueError as error:
        raise MisfitError(f"they are not JSON: {error}") from None
    declared.check(value)
    if not isinstance(value, dict):
        raise MisfitError("they are not a JSON object")
    return value
