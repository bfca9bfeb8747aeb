"""Stages: the rows of one relation each, from where they are made to the sinks that read them."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from planner.logical import (
    Column,
    Effect,
    Group,
    Json,
    Limit,
    LogicalPlan,
    Op,
    Pairs,
    Relation,
    Scan,
    Sort,
    SqlRows,
    walk,
)
from planner.row_profile import Path
from runtime.derive import FailedMember, Given, Made, TableReader, derivation
from runtime.records import RowError, RowKeys
from runtime.row_queue import GroupedRows
from runtime.scope import Frame
from runtime.sinks import LimitState, Sink


@dataclass(frozen=True, slots=True)
class StageRow:
    """A row to run: its number in the relation, its key, and its columns or why it has none."""

    index: int
    key: str
    row: Made


class Target:
    """What a sink is read for: a query (`query` is its name), or input `number` of a stage.

    Attributes:
        sink: the root of the scope.
        source: the stage whose rows it reads.
        limits: what its rows must pass.
        closed: whether it needs no further row.
    """

    def __init__(
        self, sink: Sink, source: Stage, query: str, stage: Stage | None, number: int
    ) -> None:
        self.sink = sink
        self.source = source
        self.query = query
        self.stage = stage
        self.number = number
        self.limits: tuple[LimitState, ...] = ()
        self.closed = False
        self._waiting: dict[int, Given | None] = {}
        self._next = 0

    @property
    def full(self) -> bool:
        """Whether no row that starts now can reach it."""
        return self.closed or any(limit.full for limit in self.limits)

    def put(self, index: int, given: Given | None) -> None:
        """Row number `index` has ended: with values, an error, or dropped (None). Passed on to the
        stage in the order of the rows."""
        self._waiting[index] = given
        while self._next in self._waiting:
            self._pass_on(self._waiting.pop(self._next))
            self._next += 1

    def finish(self) -> None:
        """No row is to come. Those after a gap, which a limit or a stop has left, are passed on."""
        for index in sorted(self._waiting):
            self._pass_on(self._waiting[index])
        self._waiting.clear()
        if self.stage is not None:
            self.stage.input_ended(self.number)

    def _pass_on(self, given: Given | None) -> None:
        if given is not None and self.stage is not None:
            self.stage.accept(self.number, given)


class Stage:
    """The rows of one base relation.

    Attributes:
        targets: who reads its rows.
        pending: rows that have not started.
        active: rows under way.
        ended: whether no row is to come beyond the pending ones.
        total: rows so far.
        skipped: rows that were not started because nobody needs them.
        limited: whether all that read its rows are limited, so that it may be cut short.
        on_rows: told whenever rows have come that have to start.
    """

    def __init__(self, relation: Relation) -> None:
        self.relation = relation
        self.targets: list[Target] = []
        self.inputs: list[Target] = []
        self.pending: deque[StageRow] | GroupedRows[StageRow] = deque()
        self.active = 0
        self.ended = False
        self.finished = False
        self.total = 0
        self.skipped = 0
        self.limited = False
        self.on_rows: Callable[[Stage], None] = _nobody
        self.tables = TableReader(relation) if isinstance(relation, SqlRows) else None
        self._made = None if isinstance(relation, Scan | SqlRows) else derivation(relation)
        self._keys = RowKeys()
        self._open_inputs = 0
        self._closed = False

    # --- rows in ---------------------------------------------------------------------------------

    def fill(self, rows: Iterable[StageRow]) -> None:
        """All rows of a scan, in the order in which they start."""
        self.pending.extend(rows)
        self.total = len(self.pending)
        self.ended = True
        self.on_rows(self)

    def accept(self, number: int, given: Given) -> None:
        """The next row of input `number`; ignored when nobody needs it any more."""
        if self._closed:
            return
        if self.tables is not None:
            self.tables.accept(number, given)
        elif self._made is not None:
            self.add(self._made.accept(number, given))

    def input_ended(self, number: int) -> None:
        """Input `number` has no more rows."""
        self._open_inputs -= 1
        if self._made is not None and not self._closed:
            self.add(self._made.finish(number))
            self.ended = not self._open_inputs

    def link(self, target: Target) -> None:
        """`target`, of another stage, is an input of this one."""
        self.inputs.append(target)
        self._open_inputs += 1

    @property
    def is_query_ready(self) -> bool:
        """Whether this is a query whose tables are whole."""
        return self.tables is not None and not self._open_inputs

    def add(self, made: Iterable[Made]) -> None:
        """Rows of the relation, in order."""
        for row in made:
            columns: Mapping[str, Json] = (
                {"error": row.message} if isinstance(row, RowError) else row
            )
            self.pending.append(StageRow(self.total, self._keys.next(columns), row))
            self.total += 1
        if self.pending:
            self.on_rows(self)

    # --- rows out --------------------------------------------------------------------------------

    def start_in_groups(self, paths: Sequence[Path]) -> None:
        """Start rows that are equal at `paths` together, unless they must start in their order."""
        if not self.limited and not needs_row_order(self.targets):
            waiting: GroupedRows[StageRow] = GroupedRows(paths)
            while self.pending:
                waiting.append(self.pending.popleft())
            self.pending = waiting

    @property
    def allowance(self) -> float:
        """How many rows are worth having under way: infinite, unless all that read them are
        limited."""
        most = 0.0
        for target in self.targets:
            if target.full:
                continue
            wanted = math.inf
            if target.stage is not None:
                wanted = target.stage.demand(target.number)
            for limit in target.limits:
                wanted = min(wanted, limit.slice)
            most = max(most, wanted)
        return most

    def needs_all(self, number: int) -> bool:
        """Whether it has no row, or not all of them for one of another input, before the last row
        of input `number`."""
        if isinstance(self.relation, Group | Sort | SqlRows):
            return True
        return isinstance(self.relation, Pairs) and number == 1

    def demand(self, number: int) -> float:
        """How many rows of input `number` are worth having under way."""
        if self.needs_all(number) or not self.limited:
            return math.inf
        allowance = self.allowance
        # Rows that are here come first.
        return 0.0 if self.pending or self.active else max(1.0, allowance)

    def close_if_full(self) -> bool:
        """Leave the pending rows when nobody needs them, and tell the inputs. Whether it did."""
        if self.finished or not all(target.full for target in self.targets):
            return False
        changed = bool(self.pending) or not self.ended
        self.skipped += len(self.pending)
        self.pending.clear()
        self.ended = self._closed = True
        for target in self.inputs:
            changed = changed or not target.closed
            target.closed = True
        return changed

    def finish_if_done(self) -> bool:
        """Tell the targets when all rows have ended. Whether it did."""
        if self.finished or not self.ended or self.pending or self.active:
            return False
        self.finished = True
        for target in self.targets:
            target.finish()
        return True


def _nobody(stage: Stage) -> None:
    """Nobody has to be told."""


def stages_of(plan: LogicalPlan) -> dict[Relation, Stage]:
    """The stages of a plan by relation, each after those that it is made of, with their targets."""
    relations = [op for op in plan.walk() if isinstance(op, Relation) and op.base is op]
    stages = {relation: Stage(relation) for relation in relations}
    for name, result in plan.outputs:
        _attach(stages, (result.rows, result.value), name, None, 0)
    for relation, stage in stages.items():
        for number, inputs in enumerate(_inputs(relation)):
            stage.link(_attach(stages, inputs, "", stage, number))
    return stages


def set_limits(stages: Iterable[Stage], state_of: Callable[[Limit], LimitState]) -> None:
    """Give the targets of `stages` their limits, and tell the stages that these may cut short.
    `stages` in the order of `stages_of`."""
    for stage in reversed(list(stages)):
        for target in stage.targets:
            target.limits = tuple(state_of(op) for op in target.sink.limits)
        stage.limited = all(_is_limited(target) for target in stage.targets)


def _is_limited(target: Target) -> bool:
    if target.limits:
        return True
    stage = target.stage
    return stage is not None and stage.limited and not stage.needs_all(target.number)


def _attach(
    stages: Mapping[Relation, Stage],
    inputs: tuple[Op, ...],
    query: str,
    stage: Stage | None,
    number: int,
) -> Target:
    """Another target, which reads `inputs`, of the stage that makes their rows."""
    n_targets = sum(len(each.targets) for each in stages.values())
    sink = Sink(inputs, number=n_targets, single=stage is None)
    source = stages[sink.rows.base]
    target = Target(sink, source, query, stage, number)
    source.targets.append(target)
    return target


def _inputs(relation: Relation) -> Iterator[tuple[Op, ...]]:
    """What the rows of a relation are made of: rows and the values read of them, by input."""
    match relation:
        case Scan():
            return
        case Pairs():
            left, right = relation.inputs[:2]
            yield (left, *relation.left_values)
            yield (right, *relation.right_values)
        case SqlRows():
            for table in relation.table_inputs:
                base = table.base
                yield (table, *(Column((base,), name) for name in base.column_names))
        case _:
            yield relation.inputs


def given_to(target: Target, frame: Frame, position: int, error: RowError) -> Given:
    """What a failed row gives to a stage: of a group, the keys if they are known."""
    relation = target.stage.relation if target.stage is not None else None
    if isinstance(relation, Group):
        at = [frame.scope.position_of(key) for key in relation.keys]
        failures = frame.failures or {}
        if not any(i in failures for i in at):
            return FailedMember(frame.take(at), error)
    return error


def needs_row_order(targets: Sequence[Target]) -> bool:
    """Whether rows must start in their order: writes keep it, and limits count in it."""
    if any(target.sink.limits for target in targets):
        return True
    roots = tuple(target.sink for target in targets)
    base = targets[0].sink.rows.base if targets else None
    return any(op.effect is Effect.WRITE for op in walk(roots, stop_at=base))
