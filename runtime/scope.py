"""Scopes, compiled once, and frames: one evaluation of a scope.

A scope is a graph of operators in topological order. Each has a position, and everything that is
needed to evaluate it is looked up by that number: a list of dependents, a count of dependencies,
and either a function (cheap operators) or a step (calls and operators with bodies). A frame has one
list of values and one of counts, so a row costs no object for each operator.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from asyncio import Future
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from planner.logical import (
    Effect,
    Json,
    Limit,
    ModelOp,
    Op,
    Recover,
    Relation,
    Subset,
    Tool,
    walk,
)
from runtime.inline import Compute
from runtime.records import CallRecord, CallSite, RowError
from runtime.write_order import Turn

if TYPE_CHECKING:
    from runtime.answers import MisfitError
    from runtime.streaming import OpenCall


@dataclass(frozen=True, slots=True)
class Row:
    """A row under way. `priority` is that of its calls, before the operator's own is added;
    `position` is its number in the order in which rows start."""

    index: int
    key: str
    priority: int
    position: int = 0


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


class CallStep(ABC):
    """An operator that is one model call, as a rule: no task is needed to wait for it."""

    @abstractmethod
    def begin(self, frame: Frame, query: str) -> Future[CallRecord]:
        """Begin the call."""

    @abstractmethod
    def value(self, record: CallRecord) -> Json:
        """The operator's value. Raises `MisfitError` when the call has to be made `again`."""

    @abstractmethod
    async def again(
        self, frame: Frame, query: str, record: CallRecord, misfit: MisfitError
    ) -> Json:
        """The operator's value, from another call: `record` does not fit, for the given reason."""


ASKED, ENDED = 1, 2
"""States of an operator in a frame where only what is asked for is evaluated."""

CompileOp = Callable[[Op, Sequence[int]], "Compute | Step | CallStep"]
"""Compiles an operator whose inputs are at the given positions."""


class Scope:
    """The operators that `roots` need, compiled.

    Attributes, by position where they are lists:
        ops: the operators, dependencies first.
        functions: of the cheap operators; None for calls and steps.
        calls: model calls.
        steps: of the others.
        dependents: positions of the operators that wait for this one, in order.
        waits_for: how many different operators this one waits for.
        queries: for the row scope, the query that a call of the operator is recorded under.
        ready: positions that wait for nothing, last first.
        in_turn: positions of steps that run for one row after the other: writes and limits.
        gates: by position of an operator over a subset of the rows, the position of the subset:
            whether the row is in it. Until it is, what else the operator waits for is not evaluated
            unless something else needs it.
        recovers: positions of operators that turn a failure into a value.
        results: positions of `roots`.
    """

    def __init__(
        self,
        roots: Sequence[Op],
        compile_op: CompileOp,
        queries: Mapping[Op, str] | None = None,
        base: Relation | None = None,
    ) -> None:
        """`base`: for a row scope, the relation whose rows are evaluated; what its rows are made of
        is outside."""
        self.ops = tuple(walk(tuple(roots), stop_at=base))
        position = self._position = {op: i for i, op in enumerate(self.ops)}
        n = len(self.ops)
        dependents: list[list[int]] = [[] for _ in range(n)]
        self.waits_for: list[int] = [0] * n
        self.functions: list[Compute | None] = [None] * n
        self.calls: dict[int, CallStep] = {}
        self.steps: dict[int, Step] = {}
        self._dependencies: list[tuple[int, ...]] = [()] * n
        for i, op in enumerate(self.ops):
            inputs: list[int] = []
            if op != base:
                inputs = [position[x] for x in op.inputs]
                before = dict.fromkeys(position[d] for d in op.dependencies)
                self._dependencies[i] = tuple(before)
                self.waits_for[i] = len(before)
                for j in before:
                    dependents[j].append(i)
            compiled = compile_op(op, inputs)
            if callable(compiled):
                self.functions[i] = compiled
            elif isinstance(compiled, CallStep):
                self.calls[i] = compiled
            else:
                self.steps[i] = compiled
        # A frame takes ready operators from the end of a list: reversed, the first comes first.
        self.dependents = [tuple(reversed(each)) for each in dependents]
        self.ready = [i for i in reversed(range(n)) if not self.waits_for[i]]
        self.queries = [queries[op] for op in self.ops] if queries is not None else None
        self.in_turn = tuple(
            i
            for i in self.steps
            if self.ops[i].effect is Effect.WRITE or isinstance(self.ops[i], Limit)
        )
        self.gates = {
            i: position[op.inputs[0]]
            for i, op in enumerate(self.ops)
            if op != base and op.inputs and isinstance(op.inputs[0], Subset)
        }
        self.recovers = frozenset(i for i, op in enumerate(self.ops) if isinstance(op, Recover))
        self.results = tuple(position[root] for root in roots)

    def dependencies(self, position: int) -> tuple[int, ...]:
        """Positions of what the operator at `position` waits for, each once."""
        return self._dependencies[position]

    def position_of(self, op: Op) -> int:
        return self._position[op]


class Frame:
    """One evaluation of a scope: for a row, or for one use of a body.

    Attributes:
        values: by position; None until it is known.
        waits_for: by position, dependencies that have not ended yet.
        open: operators that have not ended yet.
        environment: the row, or the arguments of the body.
        path: the place of the body, such as "map[3]/loop[1]"; empty for a row.
        failures: by position, for operators that have no value; None while there is none.
        turns: by position, the row's turns at operators that run in turn; empty for bodies.
        states: by position, `ASKED` and `ENDED`, where only what is asked for is evaluated; None
            where everything is.
        opened: gated operators whose row is in their subset.
        asked_again: whether a call was made again because its answer did not fit.
        early: by position of a model call, its prompt if that is open in an engine already.
    """

    __slots__ = (
        "asked_again",
        "early",
        "environment",
        "failures",
        "on_end",
        "open",
        "opened",
        "path",
        "query",
        "row",
        "scope",
        "states",
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
        self.failures: dict[int, Failure] | None = None
        self.turns: dict[int, Turn] = {}
        self.states: bytearray | None = bytearray(len(scope.ops)) if scope.gates else None
        self.opened: set[int] = set()
        self.asked_again = False
        self.early: dict[int, OpenCall] = {}
        self.open = 0 if scope.gates else len(scope.ops)

    def start(self) -> list[int]:
        """The positions to evaluate first, last one first."""
        if self.states is None:
            return self.scope.ready.copy()
        ready: list[int] = []
        self.ask(self.scope.results, ready)
        return ready

    def ask(self, positions: Iterable[int], ready: list[int]) -> None:
        """Evaluate `positions` and what they wait for; add what waits for nothing to `ready`. Of an
        operator over a subset, only whether the row is in the subset is asked for at first."""
        states, gates = self.states, self.scope.gates
        assert states is not None
        stack = [*positions]
        stack.reverse()
        while stack:
            position = stack.pop()
            if states[position]:
                continue
            states[position] = ASKED
            self.open += 1
            gate = gates.get(position)
            needs = self.scope.dependencies(position) if gate is None else (gate,)
            missing = [each for each in needs if states[each] != ENDED]
            self.waits_for[position] = len(missing)
            if missing:
                stack.extend(reversed(missing))
            else:
                ready.append(position)

    def open_gate(self, position: int, ready: list[int]) -> bool:
        """The row is in the subset of the operator at `position`: ask for what else it waits for.
        Whether there is nothing to wait for."""
        states = self.states
        assert states is not None
        self.opened.add(position)
        missing = [each for each in self.scope.dependencies(position) if states[each] != ENDED]
        self.waits_for[position] = len(missing)
        self.ask(missing, ready)
        return not missing

    def waits_for_one(self, position: int) -> bool:
        """Whether the operator at `position` will be evaluated, as far as can be told, and waits
        for one other."""
        if self.waits_for[position] != 1 or (self.failures and self.inherited(position)):
            return False
        if self.states is None:
            return True
        asked = self.states[position] == ASKED
        return asked and (position not in self.scope.gates or position in self.opened)

    def is_dropped(self, position: int) -> bool:
        """Whether the row is not in the subset that the ended operator at `position` is over."""
        if position not in self.scope.gates or position in self.opened:
            return False
        return self.failures is None or position not in self.failures

    def end(self, position: int, ready: list[int]) -> None:
        """The operator at `position` has ended, with or without a value: add what is ready now."""
        self.open -= 1
        waits_for, states = self.waits_for, self.states
        if states is None:
            for dependent in self.scope.dependents[position]:
                waits_for[dependent] -= 1
                if not waits_for[dependent]:
                    ready.append(dependent)
            return
        states[position] = ENDED
        gates = self.scope.gates
        for dependent in self.scope.dependents[position]:
            if states[dependent] != ASKED:
                continue
            gate = gates.get(dependent)
            if gate is not None and gate != position and dependent not in self.opened:
                continue
            waits_for[dependent] -= 1
            if not waits_for[dependent]:
                ready.append(dependent)

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
            isinstance(op, ModelOp | Tool) and op.fresh,
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
