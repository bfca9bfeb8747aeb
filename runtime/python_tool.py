"""Calling Python functions: ordinary ones in threads, asynchronous ones on the loop.

Every call has a daemon thread of its own (`runtime.threads`): a function that hangs cannot be
killed, so after its timeout its thread is abandoned, and must neither keep a pool's slot nor keep
the process from ending.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias, TypeVar

from planner.logical import Json
from runtime.clock import Clock
from runtime.deadline import finish_within
from runtime.errors import ToolError, ToolTimeoutError
from runtime.json_value import JsonRows, NotJson, to_json
from runtime.thread_lane import NoThreadError, ThreadLane
from runtime.threads import start_in_thread
from runtime.tools import OnRows, ToolSpec

T = TypeVar("T")
OnEnd: TypeAlias = "Callable[[float, float], None]"

IDEMPOTENCY_KEY = "idempotency_key"
_MAX_MESSAGE_CHARS = 2000


async def in_thread(function: Callable[[], T], name: str) -> T:
    """The result of `function()` in a daemon thread named `name`.

    Cancelling the wait abandons the thread: it runs on, and its result is dropped. Hold
    `clock.outside()` around this.
    """
    loop = asyncio.get_running_loop()
    # The outcome travels as a value: a future refuses StopIteration as an exception.
    future: asyncio.Future[tuple[T | None, BaseException | None]] = loop.create_future()
    context = contextvars.copy_context()

    def deliver(result: T | None, error: BaseException | None) -> None:
        if not future.done():
            future.set_result((result, error))

    def work() -> None:
        result: T | None = None
        error: BaseException | None = None
        try:
            result = context.run(function)
        except BaseException as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(deliver, result, error)

    try:
        start_in_thread(work, name)
    except RuntimeError as refused:
        raise _no_thread(name, refused) from refused
    result, error = await future
    if error is not None:
        raise error
    return result  # type: ignore[return-value]


async def call_python(
    spec: ToolSpec,
    arguments: Mapping[str, Json],
    idempotency_key: str,
    clock: Clock,
    on_rows: OnRows | None = None,
    *,
    lane: ThreadLane | None = None,
    on_end: OnEnd | None = None,
) -> Json:
    """The JSON value of one call of a Python tool; of a generator, the list of what it yields, of
    which `on_rows` is told as it comes. With a `lane`, the call may wait there for a thread;
    `on_end` is then told when it started and how long it ran (`ThreadLane.run`).

    The timeout of a function in a thread is real time; that of a coroutine function is the loop's
    time, which under virtual time takes none. Raises `ToolError`, retryable when the function
    raised, and `ToolTimeoutError`.
    """
    assert spec.function is not None
    keywords: dict[str, Any] = dict(arguments)
    if takes_idempotency_key(spec.function):
        keywords[IDEMPOTENCY_KEY] = idempotency_key
    bound = partial(spec.function, **keywords)
    if runs_on_loop(spec.function):
        return await _on_loop(spec, bound, on_rows)
    late = partial(timeout_error, spec.name, spec.timeout_s)
    if lane is not None:
        in_this_thread = partial(_in_this_thread, spec, bound, on_rows)
        try:
            with clock.outside():
                return await lane.run(in_this_thread, spec.timeout_s, late, on_end)
        except NoThreadError as refused:
            raise _no_thread(spec.name, refused) from refused
    return await finish_within(
        in_thread(partial(_in_this_thread, spec, bound, on_rows), f"halo-tool-{spec.name}"),
        spec.timeout_s,
        clock,
        late,
    )


def takes_idempotency_key(function: Callable[..., Any]) -> bool:
    """Whether the function declares the parameter that the runtime fills with the call's key."""
    try:
        return IDEMPOTENCY_KEY in inspect.signature(function).parameters
    except (TypeError, ValueError):  # some built-in functions have no signature
        return False


def timeout_error(name: str, timeout_s: float) -> ToolTimeoutError:
    return ToolTimeoutError(
        f"tool {name!r} did not answer within {timeout_s:g} s; raise its timeout, or make "
        "it faster",
        tool=name,
        retryable=True,
    )


def _no_thread(name: str, refused: RuntimeError) -> ToolError:
    return ToolError(
        f"no thread could be started for {name} ({refused}); calls that never end keep theirs",
        tool=name,
        retryable=True,
    )


def _in_this_thread(spec: ToolSpec, bound: Callable[[], Any], on_rows: OnRows | None) -> Json:
    try:
        result = bound()
        if not inspect.isgenerator(result):
            return to_json(result)
        rows = JsonRows()
        with contextlib.closing(result):
            for value in result:
                row = rows.add(value)
                if on_rows is not None:
                    on_rows((row,))
        return rows.rows
    except BaseException as error:
        # All of them: `sys.exit()` in a tool must end neither the loop nor, silently, the thread.
        raise _tool_error(spec.name, error) from error


async def _on_loop(spec: ToolSpec, bound: Callable[[], Any], on_rows: OnRows | None) -> Json:
    limit = asyncio.timeout(spec.timeout_s)
    try:
        async with limit:
            result = bound()
            if not inspect.isasyncgen(result):
                return to_json(await result)
            rows = JsonRows()
            async with contextlib.aclosing(result):
                async for value in result:
                    row = rows.add(value)
                    if on_rows is not None:
                        on_rows((row,))
            return rows.rows
    except TimeoutError as error:
        if limit.expired():
            raise timeout_error(spec.name, spec.timeout_s) from None
        raise _tool_error(spec.name, error) from error
    except (Exception, SystemExit) as error:
        raise _tool_error(spec.name, error) from error


def _tool_error(name: str, error: BaseException) -> ToolError:
    if isinstance(error, NotJson):
        return ToolError(f"tool {name!r} returned {error}", tool=name)
    try:
        text = str(error)
    except Exception:  # `__str__` is the author's code as well
        text = "(an error without a readable message)"
    if len(text) > _MAX_MESSAGE_CHARS:
        text = f"{text[:_MAX_MESSAGE_CHARS]} ..."
    return ToolError(
        f"tool {name!r} raised {type(error).__name__}: {text}",
        tool=name,
        retryable=isinstance(error, Exception),
    )


def runs_on_loop(function: Callable[..., Any]) -> bool:
    """Whether a tool's function is asynchronous."""
    call: Any = getattr(type(function), "__call__", None)  # noqa: B004
    return any(
        inspect.iscoroutinefunction(each) or inspect.isasyncgenfunction(each)
        for each in (function, call)
    )
