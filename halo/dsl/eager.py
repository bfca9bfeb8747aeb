"""Eager mode: calls outside a trace run at once, through the default session.

Inside an eager call of a workflow, calls are numbered as in its trace, so that a sampled call has
the same identity in both.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from halo.dsl.lift import lift
from halo.dsl.readable import readable
from halo.dsl.schema import parse
from halo.dsl.trace import Tracer, current_scope, outside_traces, tracing
from halo.dsl.value_types import is_unknown, type_name
from halo.errors import OutputTypeError
from planner.logical import Json, LogicalPlan, Result, Scan
from runtime.tools import ToolSpec


@dataclass
class EagerRun:
    """One eager call of a workflow: its name, and how many calls have been numbered."""

    name: str
    calls: int = 0


_run: ContextVar[EagerRun | None] = ContextVar("halo_eager_run", default=None)


@contextmanager
def eager_run(name: str) -> Generator[None, None, None]:
    """Run a workflow's function at once. A workflow called inside it belongs to the same run."""
    token = _run.set(_run.get() or EagerRun(name))
    try:
        yield
    finally:
        _run.reset(token)


def in_eager_run() -> bool:
    """Whether a workflow is being run at once."""
    return _run.get() is not None


def run_plan(plan: LogicalPlan, tools: Mapping[str, ToolSpec]) -> Json:
    """The value of a plan over one row without columns, on the default session."""
    from halo.session import default_session

    return default_session().evaluate(plan, tools)


def record(build: Callable[[], Any], type_: Any) -> Any:
    """What `build` makes: a lazy value in a trace, its value (of `type_`) outside one."""
    if current_scope() is not None:
        return build()
    run = _run.get()
    # A sampled call that belongs to no workflow is a call of its own, each time.
    name = run.name if run else f"eager-{secrets.token_hex(4)}"
    tracer = Tracer(name, eager=True, calls=run.calls if run else 0)
    with tracing(tracer) as scope:
        op = scope.finish(lift(build()))
    if run is not None:
        run.calls = tracer.calls
    plan = LogicalPlan(((name, Result((op, Scan((), "rows", ())))),))
    with outside_traces():
        value = run_plan(plan, tracer.tools)
    return readable(_typed(value, type_))


def _typed(value: Json, type_: Any) -> Any:
    if is_unknown(type_):
        return value
    try:
        return parse(type_, value)
    except ValidationError as error:
        raise OutputTypeError(f"the answer is no {type_name(type_)}: {error}") from error
