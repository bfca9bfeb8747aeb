"""`halo.agent`: a tool-calling loop as one node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar, cast, overload

from halo.dsl.eager import record
from halo.dsl.lazy import make
from halo.dsl.lift import scope_here
from halo.dsl.model import Model, answer_schema, call_prompts
from halo.dsl.tool import ToolFunction
from halo.dsl.trace import fault, located
from planner.logical import Agent, Effect, Op

T = TypeVar("T")


@overload
def agent(
    model: Model,
    prompt: str,
    /,
    *,
    tools: Sequence[ToolFunction[..., Any]],
    max_turns: int = ...,
    out: None = None,
    system: str | None = ...,
    max_tokens: int = ...,
    temperature: float = ...,
    name: str | None = ...,
) -> str: ...


@overload
def agent(
    model: Model,
    prompt: str,
    /,
    *,
    tools: Sequence[ToolFunction[..., Any]],
    out: type[T],
    max_turns: int = ...,
    system: str | None = ...,
    max_tokens: int = ...,
    temperature: float = ...,
    name: str | None = ...,
) -> T: ...


@overload
def agent(
    model: Model,
    prompt: str,
    /,
    *,
    tools: Sequence[ToolFunction[..., Any]],
    out: object,
    max_turns: int = ...,
    system: str | None = ...,
    max_tokens: int = ...,
    temperature: float = ...,
    name: str | None = ...,
) -> Any: ...


def agent(
    model: Model,
    prompt: str,
    /,
    *,
    tools: Sequence[ToolFunction[..., Any]],
    max_turns: int = 8,
    out: object = None,
    system: str | None = None,
    max_tokens: int = 512,
    temperature: float = 0.0,
    name: str | None = None,
) -> Any:
    """A model that calls `tools` until it answers, at most `max_turns` turns: one node of the plan
    with a dynamic inside. The answer is text, or a value of the type `out`.

    An agent is as strong as its tools: with a tool that writes, it is a write.
    """
    schema = answer_schema(out)
    for each in tools:
        if not isinstance(cast("object", each), ToolFunction):
            raise fault(f"{each!r} is no tool of an agent", "Decorate the function with @halo.tool")

    def build() -> Any:
        tracer = scope_here().tracer
        inputs: dict[Op, int] = {}
        texts = call_prompts(prompt, system, inputs)
        for each in tools:
            tracer.add_tool(each.spec)
        pure = temperature <= 0 and all(t.spec.effect is Effect.PURE for t in tools)
        with located():
            op = Agent(
                tuple(inputs),
                label=name or "agent",
                prompt=texts[0],
                system=texts[1],
                tools=tuple(each.spec.ref for each in tools),
                max_turns=max_turns,
                schema_json=schema,
                **model.options(max_tokens, temperature, None),
                call_id="" if pure else tracer.next_call_id(),
            )
        return make(op, str if out is None else out)

    return record(build, str if out is None else out)
