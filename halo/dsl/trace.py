"""The tracer: which trace and scope the running code is in, and the rules that scopes keep.

The current scope travels in a context variable, so that threads trace independently.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from halo.dsl import markers
from halo.errors import PlanError, WorkflowError
from planner.logical import Effect, Op, Ordered, walk
from runtime.tools import ToolSpec

if TYPE_CHECKING:
    from halo.dsl.lazy import Lazy

_HOME = Path(__file__).resolve().parents[2]
_NOT_THE_USERS = (str(_HOME / "halo"), str(_HOME / "planner"), contextlib.__file__)
_scope: ContextVar[Scope | None] = ContextVar("halo_scope", default=None)


class Tracer:
    """One trace: its nonce, its markers, the tools it names, its numbered calls.

    `eager` marks the trace of a single call outside any workflow: its texts are data already, so
    they are not searched for markers beyond refusing those of real traces.
    `place` is where errors are while no code of the user runs: in what a function returned.
    """

    def __init__(self, name: str, *, eager: bool = False, calls: int = 0) -> None:
        self.name = name
        self.eager = eager
        self.open = True
        self.place = ""
        self.calls = calls
        self.tools: dict[str, ToolSpec] = {}
        self.nonce = markers.new_nonce()
        self._references: dict[str, Lazy] = {}
        self._tags: dict[tuple[Op, Scope], str] = {}
        self._scopes = 0

    def next_call_id(self) -> str:
        """The identity of the next written call that must stay apart from equal ones."""
        self.calls += 1
        return f"{self.name}/{self.calls}"

    def next_scope_id(self) -> str:
        self._scopes += 1
        return f"s{self._scopes}"

    def marker(self, lazy: Lazy, op: Op, scope: Scope) -> str:
        """The text that stands for `lazy`, whose operator `op` was made in `scope`, in strings of
        this trace."""
        tag = self._tags.get((op, scope))
        if tag is None:
            tag = self._tags[op, scope] = markers.new_tag()
            self._references[tag] = lazy
        return markers.marker(self.nonce, tag)

    def split(self, text: str) -> list[str | Lazy]:
        """`text` as literals and lazy values."""
        if self.eager:
            if markers.holds_marker(text):
                raise fault("the text holds a lazy value of a trace that has ended", LIFETIME)
            return [text] if text else []
        try:
            parts = markers.split(text, self.nonce)
            return [p if isinstance(p, str) else self._references[p.text] for p in parts]
        except markers.MarkerError as error:
            raise fault(str(error), TEXT_REMEDY) from None
        except KeyError:
            raise fault("the text holds a damaged lazy value", TEXT_REMEDY) from None

    def add_tool(self, spec: ToolSpec) -> None:
        """Register a tool under its name. Raises when another tool has it."""
        known = self.tools.setdefault(spec.name, spec)
        if known is not spec and (
            known.digest != spec.digest or known.function is not spec.function
        ):
            raise fault(
                f"two different tools are named {spec.name!r}",
                "Give one of them a name of its own: @halo.tool(name=...)",
            )


TEXT_REMEDY = (
    "Put lazy values into texts with f-strings and pass the text on unchanged; to change the text "
    "of a value, do it in a @halo.tool(pure=True) function"
)
LIFETIME = (
    "Lazy values stand for a row's values while one workflow is traced: use them inside the "
    "workflow function and return what you need"
)


class Scope:
    """The row scope of a trace, or the body of a map, reduce, branch or loop inside it."""

    def __init__(self, tracer: Tracer, parent: Scope | None = None) -> None:
        self.tracer = tracer
        self.id = tracer.next_scope_id()
        self.lineage: tuple[Scope, ...] = (*(parent.lineage if parent else ()), self)
        self._made: set[Op] = set()
        self._last_write: Op | None = None

    def add(self, op: Op) -> Op:
        """Record an operator made here. Writes are chained, in the order in which they are
        written down."""
        if op.effect is Effect.WRITE:
            if self._last_write is not None and self._last_write not in op.inputs:
                op = replace(op, after=(*op.after, self._last_write))
            self._last_write = op
        # An equal operator of an enclosing scope is computed there: the body captures it.
        if not any(op in outer._made for outer in self.lineage[:-1]):
            self._made.add(op)
        return op

    def is_local(self, op: Op) -> bool:
        return op in self._made

    def finish(self, result: Op) -> Op:
        """`result`, kept behind the last write when nothing in it reads that write."""
        last = self._last_write
        if last is None or any(op == last for op in walk((result,))):
            return result
        return self.add(Ordered((result,), after=(last,)))

    @contextmanager
    def entered(self) -> Generator[Scope, None, None]:
        """Make this the current scope."""
        token = _scope.set(self)
        try:
            yield self
        finally:
            _scope.reset(token)


def current_scope() -> Scope | None:
    """The scope that the running code is traced into; None outside a trace."""
    return _scope.get()


@contextmanager
def tracing(tracer: Tracer) -> Generator[Scope, None, None]:
    """Run code in the row scope of a new trace; its lazy values end with it."""
    with Scope(tracer).entered() as scope:
        try:
            yield scope
        finally:
            tracer.open = False


@contextmanager
def outside_traces() -> Generator[None, None, None]:
    """Run code in no trace (a tool that is called at once)."""
    token = _scope.set(None)
    try:
        yield
    finally:
        _scope.reset(token)


def where() -> str:
    """`file:line` of the innermost caller outside Halo."""
    scope = _scope.get()
    if scope is not None and scope.tracer.place:
        return scope.tracer.place
    frame = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_NOT_THE_USERS):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def fault(what: str, remedy: str) -> WorkflowError:
    """The error for code that cannot be traced: where, what was attempted, what does it."""
    return WorkflowError(f"{where()}: {what}. {remedy}.")


@contextmanager
def located() -> Generator[None, None, None]:
    """Give errors of the plan's own checks the place in the user's code."""
    try:
        yield
    except PlanError as error:
        raise PlanError(f"{where()}: {error}") from None
