"""Scopes, compiled once, and frames: one evaluation of a scope.

A scope is a graph of operators in topological order. Each has a position, and everything that is
needed to evaluate it is looked up by that number: a list of dependents, a count of dependencies,
and either a function (cheap operators) or a step (calls and operators with bodies). A frame has one
list of values and one of counts, so a row costs no object for each operator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from planner.logical import Effect, Json, Op, walk
from runtime.inline import Compute
from runtime.records import CallSite, RowError
from runtime.write_order import Turn


@dataclass(frozen=True, slots=True)
class Row:
    """A row under way. `priority` is that of its calls, before the operator's own is added."""

    index: int
    key: str
    priority: int


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an operator has no value. `error` is None when the run was stopped before it could run:
    such a row has no outcome and is run again by `resume`. `position` is that of the operator that
    failed first in its scope, so that the reported error does not depend on timing."""

    error: RowError | None
    position: int


class FailedBodyError(Exception):
    """A body has no value: carries its failure to the operator that the body belongs to."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.error.message if failure.error else "the run is stopping")
        self.failure = failure


class Step(Protocol):
    """An operator that takes time, compiled for one scope."""

    @property
    def op(self) -> Op: ...

    async def run(self, frame: Frame, query: str) -> Json:
        """The operator's value. Raises `HaloError` for an error of the row, `FailedBodyError` for
        one inside a body."""
        ...


CompileOp = Callable[[Op, Sequence[int]], "Compute | Step"]
"""Compiles an operator whose inputs are at the given positions."""


class Scope:
    """The operators that `roots` need, compiled.

    Attributes, by position where they are lists:
        ops: the operators, dependencies first.
        functions: of the cheap operators; None for steps.
        steps: of the others.
        dependents: positions of the operators that wait for this one, in order.
        waits_for: how many different operators this one waits for.
        queries: for the row scope, the query that a call of the operator is recorded under.
        ready: positions that wait for nothing, last first.
        writes: positions of steps that write.
        results: positions of `roots`.
    """

    def __init__(
        self, roots: Sequence[Op], compile_op: CompileOp, queries: Mapping[Op, str] | None = None
    ) -> None:
        self.ops = tuple(walk(tuple(roots)))
        position = self._position = {op: i for i, op in enumerate(self.ops)}
        n = len(self.ops)
        dependents: list[list[int]] = [[] for _ in range(n)]
        self.waits_for: list[int] = [0] * n
        self.functions: list[Compute | None] = [None] * n
        self.steps: dict[int, Step] = {}
        for i, op in enumerate(self.ops):
            before = {position[d] for d in op.dependencies}
            self.waits_for[i] = len(before)
            for j in before:
                dependents[j].append(i)
            compiled = compile_op(op, [position[x] for x in op.inputs])
            if callable(compiled):
                self.functions[i] = compiled
            else:
                self.steps[i] = compiled
        # A frame takes ready operators from the end of a list: reversed, the first comes first.
        self.dependents = [tuple(reversed(each)) for each in dependents]
        self.ready = [i for i in reversed(range(n)) if not self.waits_for[i]]
        self.queries = [queries[op] for op in self.ops] if queries is not None else None
        self.writes = tuple(i for i in self.steps if self.ops[i].effect is Effect.WRITE)
        self.results = tuple(position[root] for root in roots)

    def dependencies(self, position: int) -> list[int]:
        """Positions of what the operator at `position` waits for."""
        return [self._position[op] for op in self.ops[position].dependencies]


class Frame:
    """One evaluation of a scope: for a row, or for one use of a body.

    Attributes:
        values: by position; None until it is known.
        waits_for: by position, dependencies that have not ended yet.
        open: operators that have not ended yet.
        environment: the row, or the arguments of the body.
        path: the place of the body, such as "map[3]/loop[1]"; empty for a row.
        failures: by position, for operators that have no value; None while there is none.
        turns: by position, the row's turns at writing operators; empty for bodies.
    """

    __slots__ = (
        "environment",
        "failures",
        "on_end",
        "open",
        "path",
        "query",
        "row",
        "scope",
        "turns",
        "values",
        "waits_for",
    )

    def __init__(
        self,
        scope: Scope,
        environment: Any,
        row: Row,
        on_end: Callable[[Frame], None],
        *,
        query: str = "",
        path: str = "",
    ) -> None:
        self.scope = scope
        self.environment = environment
        self.row = row
        self.on_end = on_end
        self.query = query
        self.path = path
        self.values: list[Json] = [None] * len(scope.ops)
        self.waits_for = scope.waits_for.copy()
        self.open = len(scope.ops)
        self.failures: dict[int, Failure] | None = None
        self.turns: dict[int, Turn] = {}

    def query_of(self, position: int) -> str:
        """The query that a call at `position` is recorded under."""
        queries = self.scope.queries
        return self.query if queries is None else queries[position]

    def place(self, part: str) -> str:
        """The path of a body at `part` of this frame."""
        return f"{self.path}/{part}" if self.path else part

    def take(self, positions: Iterable[int]) -> list[Json]:
        """The values at `positions`."""
        values = self.values
        return [values[i] for i in positions]

    def site(
        self,
        op: Op,
        query: str,
        *,
        effect: Effect,
        call_id: str = "",
        path: str | None = None,
        turn: int = 0,
    ) -> CallSite:
        """Who asks when `op` of this frame makes a call."""
        row = self.row
        return CallSite(
            op.fingerprint,
            query,
            row.index,
            row.key,
            self.path if path is None else path,
            op.label,
            effect,
            call_id,
            turn,
        )

    def fail(self, position: int, failure: Failure) -> None:
        if self.failures is None:
            self.failures = {}
        self.failures[position] = failure

    def inherited(self, position: int) -> Failure | None:
        """The failure that an operator has from its dependencies: being stopped before any error,
        then the error of the first position."""
        if self.failures is None:
            return None
        worst: Failure | None = None
        failures = self.failures
        for dependency in self.scope.dependencies(position):
            failure = failures.get(dependency)
            if failure is None:
                continue
            if failure.error is None:
                return failure
            if worst is None or failure.position < worst.position:
                worst = failure
        return worst
