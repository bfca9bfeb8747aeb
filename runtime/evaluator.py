"""Evaluation: operators run as soon as what they wait for has ended.

Cheap operators run at once, in a loop; a model call is a future, any other step gets a task, and
when it ends the loop goes on from there. Nothing recurses along a chain of operators, and there is
no barrier between operators or rows.

An operator without a value fails what depends on it and nothing else. The rest of its row goes on
even when the row's outcome is settled: which error a row reports, and which writes happen, must not
depend on what was faster.
"""

from __future__ import annotations

import asyncio
import logging
from asyncio import Future
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any

from costmodel.errors import HaloError
from planner.logical import Json, Op, Recover
from runtime.answers import MisfitError
from runtime.errors import DrainingError
from runtime.records import CallRecord, Recovered, RowError
from runtime.scope import CallStep, FailedBodyError, Failure, Frame, Scope
from runtime.write_order import WriteOrder

Work = Callable[[Frame, str], Coroutine[Any, Any, Json]]
"""What a task does for an operator of a frame, of which calls are recorded under the given query.
"""

_log = logging.getLogger("halo.executor")


class Evaluator:
    """Runs frames. It belongs to one run and one event loop.

    Attributes:
        stopping: no step starts any more; what needs one has no value and no error.
        crash: what ended the run: a defect, a store that cannot record, a cancelled call.
    """

    def __init__(
        self,
        *,
        on_draining: Callable[[], None],
        on_crash: Callable[[], None],
        on_recovered: Callable[[Recovered], None],
    ) -> None:
        """`on_draining` is called when a call was refused because the run is stopping, `on_crash`
        when `crash` is set, `on_recovered` for every failure that became a value."""
        self.stopping = False
        self.crash: BaseException | None = None
        self._orders: dict[str, WriteOrder] = {}
        self._calls: set[Future[CallRecord]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._on_draining = on_draining
        self._on_crash = on_crash
        self._on_recovered = on_recovered

    # --- frames ----------------------------------------------------------------------------------

    def start_row(self, frame: Frame) -> None:
        """Start a row: it takes its turns at the operators that run in turn now."""
        for position in frame.scope.in_turn:
            frame.turns[position] = self._order(frame.scope.ops[position]).take()
        self._drive(frame, frame.start())

    async def run_body(
        self, body: Scope, arguments: Sequence[Json], parent: Frame, query: str, part: str
    ) -> Json:
        """The value of one use of a body. Raises `FailedBodyError`."""
        return (await self.run_bodies(body, [(part, arguments)], parent, query))[0]

    async def run_bodies(
        self,
        body: Scope,
        uses: Sequence[tuple[str, Sequence[Json]]],
        parent: Frame,
        query: str,
    ) -> list[Json]:
        """The values of several uses of a body side by side, in order: (part of the path,
        arguments) each. Raises `FailedBodyError` when all have ended and one has no value."""
        left = len(uses)
        end: asyncio.Future[None] | None = None

        def ended(_: Frame) -> None:
            nonlocal left
            left -= 1
            if not left and end is not None and not end.done():
                end.set_result(None)

        frames = [self.start_body(body, a, parent, query, part, ended) for part, a in uses]
        if left:
            end = asyncio.get_running_loop().create_future()
            await end
        return body_values(frames)

    def start_body(
        self,
        body: Scope,
        arguments: Sequence[Json],
        parent: Frame,
        query: str,
        part: str,
        on_end: Callable[[Frame], None],
    ) -> Frame:
        """Start one use of a body. `on_end` may be called before this returns."""
        path = parent.place(part)
        frame = Frame(body, arguments, parent.row, on_end, query=query, path=path)
        self._drive(frame, frame.start())
        return frame

    def _drive(self, frame: Frame, ready: list[int]) -> None:
        """Evaluate the operators at `ready` and all that become ready by it."""
        functions, values, environment = frame.scope.functions, frame.values, frame.environment
        gates, recovers, calls = frame.scope.gates, frame.scope.recovers, frame.scope.calls
        while ready:
            position = ready.pop()
            if gates and position in gates and position not in frame.opened:
                gate = gates[position]
                if frame.failures is None or gate not in frame.failures:
                    if values[gate]:
                        if not frame.open_gate(position, ready):
                            continue
                    else:
                        values[position] = False
                        self._skip_turn(frame, position)
                        frame.end(position, ready)
                        continue
            failure = frame.inherited(position) if frame.failures is not None else None
            if failure is not None and position in recovers and failure.error is not None:
                values[position] = self._recovered(frame, position, failure.error)
            elif failure is not None:
                frame.fail(position, failure)
                self._skip_turn(frame, position)
            else:
                function = functions[position]
                if function is not None:
                    try:
                        values[position] = function(values, environment)
                    except Exception as error:
                        frame.fail(position, _failure(frame, position, error))
                elif position in calls:
                    if not self._call(frame, position, calls[position]):
                        continue
                else:
                    self._spawn(frame, position, frame.scope.steps[position].run)
                    continue
            frame.end(position, ready)
        if not frame.open:
            for turn_at in frame.turns if frame.states is not None else ():
                self._skip_turn(frame, turn_at)
            for call in frame.early.values():
                call.drop()
            frame.on_end(frame)

    def _recovered(self, frame: Frame, position: int, error: RowError) -> Json:
        op = frame.scope.ops[position]
        assert isinstance(op, Recover)
        row = frame.row
        query = frame.query_of(position)
        self._on_recovered(Recovered(op.fingerprint, query, row.index, row.key, error))
        return {"value": None, "error": error.message} if op.detail else None

    # --- calls -----------------------------------------------------------------------------------

    def _call(self, frame: Frame, position: int, step: CallStep) -> bool:
        """Begin a call. Whether it has ended already: its record was known, or it cannot begin."""
        if self.stopping:
            frame.fail(position, Failure(None, position))
            return True
        try:
            call = step.begin(frame, frame.query_of(position))
        except Exception as error:
            self._fail(frame, position, error)
            return True
        if call.done():
            return self._take(frame, position, step, call)
        self._calls.add(call)
        call.add_done_callback(partial(self._called, frame, position, step))
        return False

    def _called(
        self, frame: Frame, position: int, step: CallStep, call: Future[CallRecord]
    ) -> None:
        """A call has ended: go on with the operators after it."""
        self._calls.discard(call)
        try:
            if self._take(frame, position, step, call):
                ready: list[int] = []
                frame.end(position, ready)
                self._drive(frame, ready)
        except Exception as error:
            self.crashed(error)

    def _take(self, frame: Frame, position: int, step: CallStep, call: Future[CallRecord]) -> bool:
        """Take what a call has given. False when the operator goes on, or the run is over."""
        try:
            record = call.result()
            try:
                frame.values[position] = step.value(record)
            except MisfitError as misfit:
                frame.asked_again = True
                self._spawn(frame, position, partial(step.again, record=record, misfit=misfit))
                return False
        except asyncio.CancelledError as error:
            self.crashed(error)
            return False
        except Exception as error:
            self._fail(frame, position, error)
        return True

    # --- steps -----------------------------------------------------------------------------------

    def _spawn(self, frame: Frame, position: int, work: Work) -> None:
        self._tasks.add(asyncio.create_task(self._run(frame, position, work)))

    async def _run(self, frame: Frame, position: int, work: Work) -> None:
        """One step, from its turn to the operators after it."""
        try:
            try:
                if position in frame.turns:
                    await self._order(frame.scope.ops[position]).wait(frame.turns[position])
                if self.stopping:
                    frame.fail(position, Failure(None, position))
                else:
                    frame.values[position] = await work(frame, frame.query_of(position))
            except Exception as error:
                # Before the turn ends: no later row may write when this one has not.
                self._fail(frame, position, error)
            if position in frame.turns:
                self._end_turn(frame, position)
            ready: list[int] = []
            frame.end(position, ready)
            self._drive(frame, ready)
        except asyncio.CancelledError as error:
            self.crashed(error)
            raise
        except Exception as error:
            self.crashed(error)
        finally:
            task = asyncio.current_task()
            if task is not None:
                self._tasks.discard(task)

    def _fail(self, frame: Frame, position: int, error: Exception) -> None:
        """A call or step has no value."""
        if isinstance(error, FailedBodyError):
            frame.fail(position, Failure(error.failure.error, position))
        elif isinstance(error, DrainingError):
            self._on_draining()
            frame.fail(position, Failure(None, position))
        else:
            frame.fail(position, _failure(frame, position, error))

    def _end_turn(self, frame: Frame, position: int) -> None:
        self._order(frame.scope.ops[position]).end(frame.turns[position])

    def _skip_turn(self, frame: Frame, position: int) -> None:
        """End a turn, if there is one, that the row does not need or has not ended yet."""
        turn = frame.turns.get(position)
        if turn is not None and not turn.over:
            self._end_turn(frame, position)

    def _order(self, op: Op) -> WriteOrder:
        order = self._orders.get(op.fingerprint)
        if order is None:
            order = self._orders[op.fingerprint] = WriteOrder()
        return order

    def crashed(self, error: BaseException) -> None:
        """End the run by `error`."""
        if self.crash is None:
            self.crash = error
            self._on_crash()

    async def cancel(self) -> None:
        """Cancel the calls and steps under way and wait until they have ended."""
        under_way: tuple[Future[Any], ...] = (*self._calls, *self._tasks)
        for each in under_way:
            each.cancel()
        if under_way:
            await asyncio.wait(under_way)


def body_values(frames: Sequence[Frame]) -> list[Json]:
    """The results of ended uses of a body. Raises `FailedBodyError` for the first that has none,
    or for one that was stopped before it could have one."""
    first: Failure | None = None
    for frame in frames:
        failures: Mapping[int, Failure] = frame.failures or {}
        failure = failures.get(frame.scope.results[0])
        if failure is not None and (first is None or failure.error is None):
            first = failure
            if failure.error is None:
                break
    if first is not None:
        raise FailedBodyError(first)
    return [frame.values[frame.scope.results[0]] for frame in frames]


def _failure(frame: Frame, position: int, error: Exception) -> Failure:
    op = frame.scope.ops[position]
    if not isinstance(error, HaloError):
        _log.error("defect in %r of row %d", op, frame.row.index, exc_info=error)
    message = f"{error} (at {frame.path})" if frame.path else str(error)
    attempts = int(getattr(error, "attempts", 1))
    name = op.label or op.fingerprint
    return Failure(RowError(type(error).__name__, message, name, attempts), position)
