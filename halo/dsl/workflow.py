"""`halo.workflow`: a Python function as a workflow."""

from __future__ import annotations

import functools
import inspect
import sys
import sysconfig
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, ParamSpec, TypeVar, cast, overload

from halo._siblings import SIBLINGS
from halo.dsl.eager import eager_run
from halo.dsl.lazy import Lazy, make
from halo.dsl.lift import lift
from halo.dsl.readable import readable
from halo.dsl.trace import LIFETIME, Tracer, current_scope, fault, tracing
from halo.dsl.value_types import type_hints
from halo.errors import HaloError, WorkflowError
from halo.flow import Traced
from planner.logical import Agent, Column, LogicalPlan, Result, Scan, Tool

P = ParamSpec("P")
R = TypeVar("R")


class Workflow(Generic[P, R]):
    """A workflow (see `halo.flow.Flow`): traced over rows, inlined into another workflow that is
    being traced, or run at once with plain values."""

    def __init__(self, function: Callable[P, R], name: str, local_names: Mapping[str, Any]) -> None:
        self.name = name
        self.function = function
        self._local_names = local_names
        self._parameters = inspect.signature(function).parameters
        functools.update_wrapper(self, function)
        self._check()

    def __repr__(self) -> str:
        return f"<workflow {self.name}>"

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        if current_scope() is not None:
            return self.function(*args, **kwargs)
        if any(isinstance(value, Lazy) for value in (*args, *kwargs.values())):
            raise fault(f"workflow {self.name!r} got a lazy value outside its trace", LIFETIME)
        with eager_run(self.name):
            run = cast("Callable[..., Any]", self.function)
            plain = [readable(value) for value in args]
            named = {name: readable(value) for name, value in kwargs.items()}
            return cast("R", readable(run(*plain, **named)))

    def trace(self, source: str, columns: Sequence[str]) -> Traced:
        """The plan over rows named `source` that have `columns`.

        Parameters take the column of their name, else their default. Raises `WorkflowError` for a
        parameter that has neither, and for code that cannot be traced.
        """
        tracer = Tracer(self.name)
        scan = Scan((), source, tuple(columns))
        hints = type_hints(self.function, self._local_names)
        with tracing(tracer) as scope:
            args: list[Any] = []
            kwargs: dict[str, Any] = {}
            for name, parameter in self._parameters.items():
                if name in columns:
                    value = make(Column((scan,), name, label=name), hints.get(name, Any))
                elif parameter.default is not parameter.empty:
                    value = parameter.default
                else:
                    have = ", ".join(columns) or "none"
                    raise WorkflowError(
                        f"workflow {self.name!r} needs the column {name!r}; the rows have: {have}. "
                        "Rename the column, or give the parameter a default."
                    )
                if parameter.kind is parameter.KEYWORD_ONLY:
                    kwargs[name] = value
                else:
                    args.append(value)
            returned = self._call(args, kwargs)
            tracer.place = self._place()
            op = scope.finish(lift(returned))
        plan = LogicalPlan(((self.name, Result((op, scan), label=self.name)),))
        used: set[str] = set()
        for each in plan.walk_all():
            if isinstance(each, Tool):
                used.add(each.tool.name)
            elif isinstance(each, Agent):
                used.update(tool.name for tool in each.tools)
        return Traced(plan, {name: tracer.tools[name] for name in sorted(used)})

    def _call(self, args: list[Any], kwargs: dict[str, Any]) -> object:
        try:
            return cast("Callable[..., object]", self.function)(*args, **kwargs)
        except HaloError:
            raise
        except (TypeError, ValueError) as error:
            # Python's and pydantic's own refusals of a lazy value, such as str.join's.
            if "Lazy" not in str(error):
                raise
            place = user_line(error) or self._place()
            raise WorkflowError(
                f"{place}: a lazy value was used where its value is needed while workflow "
                f"{self.name!r} is traced: {error}. Build texts with f-strings, and compute with "
                "values in a @halo.tool(pure=True) function."
            ) from error

    def _place(self) -> str:
        code = getattr(inspect.unwrap(self.function), "__code__", None)
        return f"{code.co_filename}:{code.co_firstlineno}" if code else self.name

    def _check(self) -> None:
        for parameter in self._parameters.values():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise fault(
                    f"workflow {self.name!r} has the parameter {parameter}",
                    "Name every parameter: each is a column of the rows or a setting",
                )
        if inspect.iscoroutinefunction(self.function) or inspect.isgeneratorfunction(self.function):
            raise fault(
                f"workflow {self.name!r} is an async or generator function",
                "Write a plain function: calls that do not depend on each other run concurrently",
            )


def user_line(error: BaseException) -> str:
    """`file:line` of the innermost code that is neither Halo's, nor a library's, nor Python's."""
    home = Path(__file__).resolve().parents[2]
    libraries = {sysconfig.get_path(key) for key in ("stdlib", "purelib", "platlib")}
    libraries.update(str(home / package) for package in ("halo", *SIBLINGS))
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not f.filename.startswith((*libraries, "<"))]
    return f"{own[-1].filename}:{own[-1].lineno}" if own else ""


@overload
def workflow(function: Callable[P, R], /, *, name: str | None = None) -> Workflow[P, R]: ...


@overload
def workflow(
    function: None = None, /, *, name: str | None = None
) -> Callable[[Callable[P, R]], Workflow[P, R]]: ...


def workflow(function: Callable[..., Any] | None = None, /, *, name: str | None = None) -> Any:
    """Make a function a workflow. `name` is its name in results and EXPLAIN, by default the
    function's."""
    local_names = sys._getframe(1).f_locals  # pyright: ignore[reportPrivateUsage]

    def decorate(decorated: Callable[..., Any]) -> Workflow[..., Any]:
        nested = "<locals>" in decorated.__qualname__
        return Workflow(decorated, name or decorated.__name__, local_names if nested else {})

    return decorate if function is None else decorate(function)
