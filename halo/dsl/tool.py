"""`halo.tool`: a Python function, or an HTTP endpoint, as a node of a workflow."""

from __future__ import annotations

import asyncio
import functools
import inspect
import re
import secrets
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, Literal, ParamSpec, TypeVar, cast, overload

from halo.dsl.eager import in_eager_run, record
from halo.dsl.lazy import Lazy, make
from halo.dsl.lift import lift, scope_here
from halo.dsl.readable import readable
from halo.dsl.tool_signature import IDEMPOTENCY_KEY, ToolSignature
from halo.dsl.trace import LIFETIME, current_scope, fault, located
from halo.dsl.value_types import type_hints
from planner.logical import Effect, Tool
from runtime.tools import ToolSpec

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
EffectName = Literal["pure", "sampled", "write"]

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")


class ToolFunction(Generic[P, R]):
    """A tool. Called in a workflow that is traced, it becomes a node; otherwise it runs at once.

    Attributes:
        name: unique in a batch.
        spec: what the runtime calls.
        function: the function itself; None for an HTTP tool.
    """

    def __init__(
        self, spec: ToolSpec, signature: ToolSignature, function: Callable[P, R] | None
    ) -> None:
        self.spec = spec
        self.name = spec.name
        self.function = function
        self._signature = signature
        if function is not None:
            functools.update_wrapper(self, function)

    def __repr__(self) -> str:
        return f"<tool {self.name}, {self.spec.effect.value}>"

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        if current_scope() is None and self.function is not None:
            return self._run(*args, **kwargs)
        return cast("R", record(lambda: self._trace(args, kwargs), self._signature.returns))

    def _trace(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        scope = scope_here()
        arguments = self._signature.bind(self.name, args, kwargs)
        scope.tracer.add_tool(self.spec)
        with located():
            op = Tool(
                tuple(lift(value) for value in arguments.values()),
                tool=self.spec.ref,
                params=tuple(arguments),
                call_id="" if self.spec.effect is Effect.PURE else scope.tracer.next_call_id(),
                label=self.name,
            )
        return make(op, self._signature.returns)

    def _run(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function itself. In an eager workflow, the result formats as in a batch."""
        assert self.function is not None
        if any(isinstance(value, Lazy) for value in (*args, *kwargs.values())):
            raise fault(f"tool {self.name!r} got a lazy value outside its trace", LIFETIME)
        if self._signature.takes_idempotency_key and IDEMPOTENCY_KEY not in kwargs:
            kwargs[IDEMPOTENCY_KEY] = secrets.token_hex(16)
        result: Any = self.function(*args, **kwargs)
        if not in_eager_run():
            return cast("R", result)
        if inspect.isgenerator(result):
            result = list(result)
        elif inspect.isasyncgen(result):
            result = _all_of(result)
        if inspect.iscoroutine(result):
            # A thread of its own, because a notebook's thread has a loop running already.
            with ThreadPoolExecutor(1) as pool:
                result = pool.submit(asyncio.run, result).result()
        return cast("R", readable(result))


class ToolDecorator:
    """`@halo.tool` and `halo.tool.http`."""

    @overload
    def __call__(self, function: Callable[P, R], /) -> ToolFunction[P, R]: ...

    @overload
    def __call__(
        self,
        function: None = None,
        /,
        *,
        timeout: float = 60,
        pure: bool = False,
        effect: Effect | EffectName | None = None,
        retries: int = 1,
        max_concurrency: int = 8,
        version: str = "",
        name: str | None = None,
    ) -> Callable[[Callable[P, R]], ToolFunction[P, R]]: ...

    def __call__(
        self,
        function: Callable[..., Any] | None = None,
        /,
        *,
        timeout: float = 60,
        pure: bool = False,
        effect: Effect | EffectName | None = None,
        retries: int = 1,
        max_concurrency: int = 8,
        version: str = "",
        name: str | None = None,
    ) -> Any:
        """Make a function a tool. Its parameters' JSON Schema comes from the type hints, its
        description from the docstring.

        Without a declaration a tool is a WRITE: it runs once for each row, in order, and is never
        merged or retried. `pure=True` says that equal arguments give equal results: such calls are
        made once. `timeout` is in seconds; `version` tells equal-looking versions of a tool apart.
        A parameter `idempotency_key` is filled in by the runtime, the same for a repeated call.
        The value of a generator function is the list of what it yields; an engine that takes open
        prompts reads the first rows while the last ones still come.
        """
        declared = _effect(pure, effect)
        local_names = sys._getframe(1).f_locals  # pyright: ignore[reportPrivateUsage]

        def decorate(decorated: Callable[..., Any]) -> ToolFunction[..., Any]:
            called = _checked_name(name or decorated.__name__)
            nested = "<locals>" in decorated.__qualname__
            hints = type_hints(decorated, local_names if nested else {})
            signature = ToolSignature.of_function(called, decorated, hints)
            spec = ToolSpec(
                called,
                signature.adapt(called, decorated),
                inspect.getdoc(decorated) or "",
                signature.parameters,
                declared,
                **_limits(called, timeout, retries, max_concurrency),
                version=version,
            )
            return ToolFunction(spec, signature, decorated)

        return decorate if function is None else decorate(function)

    def http(
        self,
        name: str,
        *,
        url: str,
        method: str = "GET",
        params: Mapping[str, Any] | None = None,
        returns: Any = Any,
        description: str = "",
        timeout: float = 60,
        pure: bool = False,
        effect: Effect | EffectName | None = None,
        retries: int = 1,
        max_concurrency: int = 8,
        version: str = "",
    ) -> ToolFunction[..., Any]:
        """An HTTP endpoint as a tool. `params` gives a type for each argument; arguments travel
        as query of a GET and as JSON body otherwise. The answer is JSON of the type `returns`."""
        called = _checked_name(name)
        signature = ToolSignature.of_types(called, params or {}, returns)
        spec = ToolSpec(
            called,
            None,
            description,
            signature.parameters,
            _effect(pure, effect),
            **_limits(called, timeout, retries, max_concurrency),
            url=url,
            method=method.upper(),
            version=version,
        )
        return ToolFunction(spec, signature, None)


tool = ToolDecorator()


async def _all_of(rows: AsyncIterator[T]) -> list[T]:
    return [row async for row in rows]


def _effect(pure: bool, effect: Effect | EffectName | None) -> Effect:
    if effect is None:
        return Effect.PURE if pure else Effect.WRITE
    try:
        declared = Effect(effect)
    except ValueError:
        raise fault(
            f"effect={effect!r} is no effect", "The effects are: pure, sampled, write"
        ) from None
    if pure and declared is not Effect.PURE:
        raise fault(f"pure=True contradicts effect={declared.value!r}", "Give one of them")
    return declared


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise fault(
            f"{name!r} cannot name a tool",
            "A name is a letter or _, then at most 63 letters, digits, _ or - (name=...)",
        )
    return name


def _limits(name: str, timeout: float, retries: int, max_concurrency: int) -> dict[str, Any]:
    if timeout <= 0 or retries < 0 or max_concurrency < 1:
        raise fault(
            f"tool {name!r} has impossible limits",
            "timeout is more than 0 seconds, retries at least 0, max_concurrency at least 1",
        )
    return {
        "timeout_s": float(timeout),
        "retries": retries,
        "max_concurrency": max_concurrency,
    }
