"""The operators with bodies, as steps: Map, Reduce, When, Loop.

Uses of a body run side by side, as far as the dispatcher lets their calls; a body that writes runs
one use after the other, in order, and stops at the first that fails.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Generic, TypeVar

from costmodel.errors import HaloError
from costmodel.tokens import estimate_tokens
from costmodel.usage import OpMetrics
from planner.logical import Effect, Json, Loop, Map, Op, Reduce, When, render_value
from runtime.errors import DrainingError, ValueTypeError
from runtime.evaluator import Evaluator, body_values
from runtime.scope import FailedBodyError, Frame, Scope
from runtime.values import kind_of, same_json

OpT = TypeVar("OpT", bound=Op)


class NestedStep(ABC, Generic[OpT]):
    """What steps with bodies have: `inputs` are positions, `bodies` in the operator's order."""

    def __init__(
        self,
        op: OpT,
        inputs: Sequence[int],
        bodies: Sequence[Scope],
        evaluator: Evaluator,
        metrics: dict[str, OpMetrics],
    ) -> None:
        self.op = op
        self._inputs = tuple(inputs)
        self._bodies = tuple(bodies)
        self._evaluator = evaluator
        self._metrics = metrics
        self._writes = op.effect is Effect.WRITE

    async def run(self, frame: Frame, query: str) -> Json:
        """The value; counts one use, unless the run is stopped before it ends."""
        first, *captures = frame.take(self._inputs)
        try:
            value = await self._evaluate(first, captures, frame, query)
        except DrainingError:
            raise
        except FailedBodyError as error:
            if error.failure.error is not None:
                self._count(errors=1)
            raise
        except HaloError:
            self._count(errors=1)
            raise
        self._count()
        return value

    @abstractmethod
    async def _evaluate(
        self, first: Json, captures: list[Json], frame: Frame, query: str
    ) -> Json: ...

    def _count(self, errors: int = 0) -> None:
        metrics = self._metrics.setdefault(self.op.fingerprint, OpMetrics())
        metrics.requested += 1
        metrics.errors += errors

    def _list(self, value: Json) -> list[Json]:
        if not isinstance(value, list):
            raise ValueTypeError(
                f"{self.op!r} needs a list, got {kind_of(value)}; declare a list as the output "
                "type of what makes the value"
            )
        return value


class MapStep(NestedStep[Map]):
    """`body` for each element."""

    async def _evaluate(self, first: Json, captures: list[Json], frame: Frame, query: str) -> Json:
        (body,) = self._bodies
        uses = [(f"map[{i}]", [item, *captures]) for i, item in enumerate(self._list(first))]
        run = self._evaluator
        if self._writes:
            return [await run.run_body(body, args, frame, query, part) for part, args in uses]
        return await run.run_bodies(body, uses, frame, query)


class ReduceStep(NestedStep[Reduce]):
    """A tree of groups. A list of one element goes through the body once, so that the result has
    the body's type; above the first level a group of one is passed on as it is. A group starts
    when its own members are there, whatever the rest of its level does."""

    async def _evaluate(self, first: Json, captures: list[Json], frame: Frame, query: str) -> Json:
        items = self._list(first)
        if not items:
            raise ValueTypeError(
                f"{self.op!r} got an empty list, and there is nothing to reduce; make sure that "
                "there is at least one element, or branch on the list before"
            )
        if self.op.group_tokens:
            return await self._packed(items, captures, frame, query)
        if self._writes:
            return await self._in_order(items, captures, frame, query)
        return await _Tree(self, items, captures, frame, query).run()

    async def _packed(
        self, items: list[Json], captures: list[Json], frame: Frame, query: str
    ) -> Json:
        """Level by level: which elements form a group depends on how long they are."""
        (body,), op = self._bodies, self.op
        level = 0
        while level == 0 or len(items) > 1:
            # Above the first level a group has two members at least, so every level gets smaller.
            least = 1 if level == 0 else 2
            groups = pack(items, op.fan_in, op.group_tokens, least)
            merged = [g for g in groups if level == 0 or len(g) > 1]
            uses: list[tuple[str, Sequence[Json]]] = [
                (_group(level, number), [group, *captures]) for number, group in enumerate(merged)
            ]
            run = self._evaluator
            if self._writes:
                values = [await run.run_body(body, a, frame, query, part) for part, a in uses]
            else:
                values = await run.run_bodies(body, uses, frame, query)
            left = iter(values)
            items = [next(left) if level == 0 or len(g) > 1 else g[0] for g in groups]
            level += 1
        return items[0]

    async def _in_order(
        self, items: list[Json], captures: list[Json], frame: Frame, query: str
    ) -> Json:
        (body,), fan_in = self._bodies, self.op.fan_in
        level = 0
        while level == 0 or len(items) > 1:
            merged: list[Json] = []
            for number, start in enumerate(range(0, len(items), fan_in)):
                group = items[start : start + fan_in]
                if level and len(group) == 1:
                    merged.append(group[0])
                    continue
                arguments: list[Json] = [group, *captures]
                part = _group(level, number)
                run = self._evaluator.run_body
                merged.append(await run(body, arguments, frame, query, part))
            items = merged
            level += 1
        return items[0]

    def start(self, level: int, number: int, group: list[Json], tree: _Tree) -> None:
        """Merge one group of `tree`."""
        arguments: list[Json] = [group, *tree.captures]

        def ended(frame: Frame) -> None:
            tree.ended(level, number, frame)

        self._evaluator.start_body(
            self._bodies[0], arguments, tree.frame, tree.query, _group(level, number), ended
        )


class _Tree:
    """One tree reduction under way. `levels[l][i]` is member i of level l, None before it ends."""

    def __init__(
        self, step: ReduceStep, items: list[Json], captures: list[Json], frame: Frame, query: str
    ) -> None:
        self.captures = captures
        self.frame = frame
        self.query = query
        self._step = step
        self._fan_in = step.op.fan_in
        self._items = items
        self._sizes = [len(items)]
        while len(self._sizes) == 1 or self._sizes[-1] > 1:
            self._sizes.append(-(-self._sizes[-1] // self._fan_in))
        self._members: list[list[Json]] = [[None] * size for size in self._sizes[1:]]
        self._missing = [
            [len(range(s, min(s + self._fan_in, size))) for s in range(0, size, self._fan_in)]
            for size in self._sizes[1:]
        ]
        self._failed: list[tuple[int, int, Frame]] = []
        self._open = 0
        self._end: asyncio.Future[None] | None = None

    async def run(self) -> Json:
        self._open = 1  # keeps the tree open while its leaves start
        for number, start in enumerate(range(0, self._sizes[0], self._fan_in)):
            self._start(0, number, self._items[start : start + self._fan_in])
        self._open -= 1
        if self._open:
            self._end = asyncio.get_running_loop().create_future()
            await self._end
        if self._failed:
            # In tree order, whatever failed first.
            body_values([frame for _, _, frame in sorted(self._failed, key=lambda f: f[:2])])
        return self._members[-1][0]

    def ended(self, level: int, number: int, frame: Frame) -> None:
        """A group has a value or a failure."""
        position = frame.scope.results[0]
        if frame.failures is not None and position in frame.failures:
            self._failed.append((level, number, frame))
        else:
            self._arrived(level, number, frame.values[position])
        self._open -= 1
        if not self._open and self._end is not None and not self._end.done():
            self._end.set_result(None)

    def _start(self, level: int, number: int, group: list[Json]) -> None:
        self._open += 1
        self._step.start(level, number, group, self)

    def _arrived(self, level: int, number: int, value: Json) -> None:
        """Put a value in its place, and go up while that completes a group. Iterative: a group of
        one is passed on, level after level."""
        while True:
            members = self._members[level]
            members[number] = value
            if len(members) == 1:
                return
            parent = number // self._fan_in
            self._missing[level][parent] -= 1
            if self._missing[level][parent]:
                return
            start = parent * self._fan_in
            group = members[start : start + self._fan_in]
            level, number = level + 1, parent
            if len(group) > 1:
                self._start(level, number, group)
                return
            value = group[0]


class WhenStep(NestedStep[When]):
    """One of two bodies, by Python's truth of a JSON value: null, false, 0, "", [] and {} are
    false, and every other text, "false" too, is true."""

    async def _evaluate(self, first: Json, captures: list[Json], frame: Frame, query: str) -> Json:
        then, otherwise = self._bodies
        body, part = (then, "then") if first else (otherwise, "otherwise")
        return await self._evaluator.run_body(body, captures, frame, query, part)


class LoopStep(NestedStep[Loop]):
    """`step` while `condition` holds, at most `max_rounds` times."""

    async def _evaluate(self, first: Json, captures: list[Json], frame: Frame, query: str) -> Json:
        condition, step = self._bodies
        run = self._evaluator.run_body
        state = first
        for number in range(self.op.max_rounds):
            part, arguments = f"loop[{number}]", [state, *captures]
            if not await run(condition, arguments, frame, query, f"{part}/condition"):
                break
            before, state = state, await run(step, arguments, frame, query, part)
            if self.op.stop_when_stable and same_json(before, state):
                break
        return state


def _group(level: int, number: int) -> str:
    return f"reduce[{level}.{number}]"


def pack(items: Sequence[Json], fan_in: int, tokens: int, least: int = 1) -> list[list[Json]]:
    """Groups of items in order: at most `fan_in` each, and at most so many estimated tokens unless
    a group would have fewer than `least` items.

    Example:
        >>> groups = pack(["a" * 40, "b" * 40, "c" * 40], fan_in=16, tokens=24)
        >>> [len(group) for group in groups]
        [2, 1]
    """
    groups: list[list[Json]] = []
    used = 0
    for item in items:
        size = estimate_tokens(render_value(item)) + 2
        full = bool(groups) and (
            len(groups[-1]) >= fan_in or (used + size > tokens and len(groups[-1]) >= least)
        )
        if not groups or full:
            groups.append([])
            used = 0
        groups[-1].append(item)
        used += size
    return groups
