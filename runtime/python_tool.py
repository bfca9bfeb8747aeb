"""Calling Python functions: ordinary ones in threads, asynchronous ones on the loop.

Every call has a daemon thread of its own (`runtime.threads`): a function that hangs cannot be
killed, so after its timeout its thread is abandoned, and must neither keep a pool's slot nor keep
the process from ending.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias, TypeVar

from planner.logical import Json
from runtime.clock import Clock
from runtime.errors import ToolError, ToolTimeoutError
from runtime.json_value import JsonRows, NotJson, to_json
from runtime.thread_lane import NoThreadError, ThreadLane
from runtime.threads import ThreadJob, start_in_thread
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
    job = ThreadJob(function)
    try:
        start_in_thread(job.run, name)
    except RuntimeError as refused:
        raise no_thread(name, refused) from refused
    return await job.outcome()


async def call_python(
    spec: ToolSpec,
    arguments: Mapping[str, Json],
    idempotency_key: str,
    clock: Clock,
    lane: ThreadLane,
    on_rows: OnRows | None = None,
    on_end: OnEnd | None = None,
) -> Json:
    """The JSON value of one call of a Python tool; of a generator, the list of what it yields, of
    which `on_rows` is told as it comes. A function that blocks runs in `lane`, where it may wait
    for a thread; `on_end` is told when it started and how long it ran (`ThreadLane.run`).

    The timeout of a function in a thread is real time; that of a coroutine function is the loop's
    time, which under virtual time takes none. Raises `ToolError`, retryable when the function
    raised, and `ToolTimeoutError`.
    """
    assert spec.function is not None
    keywords: dict[str, Any] = dict(arguments)
    if takes_idempotency_key(spec.function):
        keywords[IDEMPOTENCY_KEY] = idempotency_key
    bound = partial(spec.function, **keywords)
    if _runs_on_loop(spec.function):
        return await _on_loop(spec, bound, on_rows)
    try:
        with clock.outside():
            return await lane.run(
                partial(_in_this_thread, spec, bound, on_rows),
                spec.timeout_s,
                partial(timeout_error, spec.name, spec.timeout_s),
                on_end,
            )
    except NoThreadError as refused:
        raise no_thread(spec.name, refused) from refused


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


def no_thread(name: str, refused: RuntimeError) -> ToolError:
    """The error of a call for which there is no thread."""
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


def _runs_on_loop(function: Callable[..., Any]) -> bool:
    call: Any = getattr(type(function), "__call__", None)  # noqa: B004
    return any(
        inspect.iscoroutinefunction(each) or inspect.isasyncgenfunction(each)
        for each in (function, call)
    )
