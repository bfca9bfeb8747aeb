"""`halo.workflow`: a Python function as a workflow."""

from __future__ import annotations

import functools
import inspect
import sys
import sysconfig
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, ParamSpec, TypeAlias, TypeVar, cast, overload

from halo._siblings import SIBLINGS
from halo.dsl.eager import eager_run
from halo.dsl.lazy import Lazy, make
from halo.dsl.lift import lift
from halo.dsl.readable import readable
from halo.dsl.trace import LIFETIME, Tracer, current_scope, fault, tracing
from halo.dsl.value_types import type_hints
from halo.errors import HaloError, WorkflowError
from halo.flow import Traced, kept_rows
from planner.logical import Agent, Column, Effect, LogicalPlan, Op, Result, Scan, Tool
from planner.surgery import row_cone

P = ParamSpec("P")
R = TypeVar("R")
Predicate: TypeAlias = "Callable[..., object]"
"""A condition on a row: a function of columns that gives a lazy or plain truth."""


@dataclass(frozen=True, slots=True)
class Kept:
    """Which rows of its input a workflow is for: those for which all of `where` hold, and of those
    `limit` at most, behind the first `offset`."""

    where: tuple[Predicate, ...] = ()
    limit: int | None = None
    offset: int = 0

    @property
    def is_all(self) -> bool:
        return self == Kept()


EVERY_ROW = Kept()


class Workflow(Generic[P, R]):
    """A workflow (see `halo.flow.Flow`): traced over rows, inlined into another workflow that is
    being traced, or run at once with plain values."""

    def __init__(
        self,
        function: Callable[P, R],
        name: str,
        local_names: Mapping[str, Any],
        kept: Kept = EVERY_ROW,
    ) -> None:
        self.name = name
        self.function = function
        self.kept = kept
        self._local_names = local_names
        self._parameters = inspect.signature(function).parameters
        functools.update_wrapper(self, function)
        self._check()

    def __repr__(self) -> str:
        return f"<workflow {self.name}>"

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        if current_scope() is not None:
            if not self.kept.is_all:
                raise fault(
                    f"workflow {self.name!r}, which has where or a limit, is called inside another",
                    "They choose rows of a batch: give them to the workflow that is run",
                )
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
            args, kwargs = _bound(self._parameters, scan, hints, f"workflow {self.name!r}")
            returned = self._call(self.function, args, kwargs)
            tracer.place = self._place()
            op = scope.finish(lift(returned))
            tracer.place = ""
            predicates = [self._predicate(each, scan, hints) for each in self.kept.where]
        rows = kept_rows(scan, predicates, self.kept.limit, self.kept.offset)
        plan = LogicalPlan(((self.name, Result((op, rows), label=self.name)),))
        used: set[str] = set()
        for each in plan.walk_all():
            if isinstance(each, Tool):
                used.add(each.tool.name)
            elif isinstance(each, Agent):
                used.update(tool.name for tool in each.tools)
        return Traced(plan, {name: tracer.tools[name] for name in sorted(used)})

    def _predicate(self, given: Predicate, scan: Scan, hints: Mapping[str, Any]) -> Op:
        """A condition over the rows, traced after the workflow: its calls are numbered last."""
        parameters = inspect.signature(given).parameters
        own = {**hints, **type_hints(given, self._local_names)}
        args, kwargs = _bound(parameters, scan, own, f"where of workflow {self.name!r}")
        op = lift(self._call(given, args, kwargs))
        if any(each.effect is Effect.WRITE for each in row_cone([op])):
            raise fault(
                f"where of workflow {self.name!r} writes",
                "A condition is asked for rows that are dropped too, and in any order: write in "
                "the workflow",
            )
        return op

    def _call(
        self, function: Callable[..., Any], args: list[Any], kwargs: dict[str, Any]
    ) -> object:
        try:
            return cast("Callable[..., object]", function)(*args, **kwargs)
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


def _bound(
    parameters: Mapping[str, inspect.Parameter], scan: Scan, hints: Mapping[str, Any], whose: str
) -> tuple[list[Any], dict[str, Any]]:
    """Columns and defaults for the parameters of a function."""
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for name, parameter in parameters.items():
        if name in scan.columns:
            value = make(Column((scan,), name, label=name), hints.get(name, Any))
        elif parameter.default is not parameter.empty:
            value = parameter.default
        else:
            have = ", ".join(scan.columns) or "none"
            raise WorkflowError(
                f"{whose} needs the column {name!r}; the rows have: {have}. Rename the column, or "
                "give the parameter a default."
            )
        if parameter.kind is parameter.KEYWORD_ONLY:
            kwargs[name] = value
        else:
            args.append(value)
    return args, kwargs


def user_line(error: BaseException) -> str:
    """`file:line` of the innermost code that is neither Halo's, nor a library's, nor Python's."""
    home = Path(__file__).resolve().parents[2]
    libraries = {sysconfig.get_path(key) for key in ("stdlib", "purelib", "platlib")}
    libraries.update(str(home / package) for package in ("halo", *SIBLINGS))
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not f.filename.startswith((*libraries, "<"))]
    return f"{own[-1].filename}:{own[-1].lineno}" if own else ""


@overload
def workflow(
    function: Callable[P, R],
    /,
    *,
    name: str | None = None,
    where: Predicate | Sequence[Predicate] = (),
    limit: int | None = None,
    offset: int = 0,
) -> Workflow[P, R]: ...


@overload
def workflow(
    function: None = None,
    /,
    *,
    name: str | None = None,
    where: Predicate | Sequence[Predicate] = (),
    limit: int | None = None,
    offset: int = 0,
) -> Callable[[Callable[P, R]], Workflow[P, R]]: ...


def workflow(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    where: Predicate | Sequence[Predicate] = (),
    limit: int | None = None,
    offset: int = 0,
) -> Any:
    """Make a function a workflow. `name` is its name in results and EXPLAIN, by default the
    function's.

    `where` keeps the rows for which a function of columns holds, or all of several functions do;
    it may ask models and pure tools. `limit` keeps that many of those rows at most, behind the
    first `offset`. Nothing is computed for other rows beyond what drops them.
    """
    local_names = sys._getframe(1).f_locals  # pyright: ignore[reportPrivateUsage]
    predicates = (where,) if callable(where) else tuple(where)
    if not all(map(callable, predicates)):
        raise fault(
            f"where of a workflow is {where!r}",
            "It must be a function of columns, or a list of them",
        )
    numbers: dict[str, Any] = {"limit": 0 if limit is None else limit, "offset": offset}
    for what, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            raise fault(
                f"{what} of a workflow is {number!r}",
                "It must be a whole number, and must not be negative",
            )

    def decorate(decorated: Callable[..., Any]) -> Workflow[..., Any]:
        nested = "<locals>" in decorated.__qualname__
        kept = Kept(predicates, limit, offset)
        names = local_names if nested else {}
        return Workflow(decorated, name or decorated.__name__, names, kept)

    return decorate if function is None else decorate(function)
