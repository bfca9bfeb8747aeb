"""The epoch dynamic program, for any cost model of epochs.

An epoch gives each worker at most one operation. The program walks down-sets of the graph: a state
is what has been done and what each worker had last; a transition is a dependency-closed set of
operations with a worker each. Equal workers are interchangeable, so states and assignments are kept
once for each multiset. States are memoised and cut off by a lower bound on what remains, which is
admissible when the cost model's `bound` is.

The walk is a best-first search (A*) over states, so nothing recurses; the first end state taken
from the queue is optimal if no limit was reached.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Protocol, TypeAlias

WorkerState: TypeAlias = "tuple[str, int]"
"""The model that a worker had last and the operation that ran there last (-1: none)."""


class EpochCosts(Protocol):
    """Prices of one epoch."""

    @property
    def remembers_operation(self) -> bool:
        """Whether the last operation of a worker matters, besides its model."""
        ...

    def model(self, op: int) -> str: ...

    def operation_s(self, op: int, worker: WorkerState) -> float:
        """Seconds of `op` on a worker in this state, switch included."""
        ...

    def epoch_s(self, ops: Sequence[int], seconds: Sequence[float], epoch: int) -> float:
        """The price of an epoch with `ops` that take `seconds` each, on a worker each."""
        ...

    def bound_s(self, left: Sequence[int], epoch: int) -> float:
        """A lower bound of what the operations `left` will cost."""
        ...


@dataclass(frozen=True, slots=True)
class EpochPlan:
    """The program's answer.

    Attributes:
        epochs: for each epoch, (operation, worker) pairs.
        states: that were expanded. complete: whether the search ended by itself, so that the plan
            is optimal for its cost model.
    """

    epochs: tuple[tuple[tuple[int, int], ...], ...]
    cost: float
    states: int
    complete: bool


@dataclass(slots=True, eq=False)
class _Node:
    parent: _Node | None
    chosen: tuple[tuple[int, int], ...]
    workers: tuple[WorkerState, ...]


def solve(
    ops: Sequence[int],
    before: Callable[[int], set[int]],
    able: Callable[[int], Sequence[int]],
    start: Sequence[WorkerState],
    costs: EpochCosts,
    *,
    slack: int = 1,
    max_states: int = 20_000,
    max_assignments: int = 200,
    over: Callable[[], bool] = lambda: False,
) -> EpochPlan:
    """Plan `ops` in epochs over the workers whose states are `start`.

    Args:
        before: operations of `ops` that must be in the same or an earlier epoch.
        able: workers that can run an operation.
        slack: an epoch uses at least min(workers, pending) - slack operations; fewer where no such
            set can be placed.
        max_states, max_assignments: limits; when one is reached, the rest is planned greedily from
            the most promising state and `complete` is false.
        over: asked between states, for a time limit.
    """
    search = _Search(ops, before, able, costs, len(start), max_assignments, over)
    return search.run(tuple(start), slack, max_states)


class _Search:
    """The search over states. Operations are bits of a mask: those that have been done."""

    def __init__(
        self,
        ops: Sequence[int],
        before: Callable[[int], set[int]],
        able: Callable[[int], Sequence[int]],
        costs: EpochCosts,
        n_workers: int,
        max_assignments: int,
        over: Callable[[], bool],
    ) -> None:
        self._ops = ops
        self._able = able
        self._costs = costs
        self._max_assignments = max_assignments
        self._over = over
        self._complete = True
        position = {op: i for i, op in enumerate(ops)}
        self._needs = [sum(1 << position[other] for other in before(op)) for op in ops]
        # Workers that can run the same operations are interchangeable.
        self._able_class = [
            sum(1 << i for i, op in enumerate(ops) if w in set(able(op))) for w in range(n_workers)
        ]
        self._left: dict[int, list[int]] = {}

    def run(self, start: tuple[WorkerState, ...], slack: int, max_states: int) -> EpochPlan:
        costs = self._costs
        full = (1 << len(self._ops)) - 1
        root = _Node(None, (), start)
        queue: list[tuple[float, int, int, float, int, _Node]] = []
        heapq.heappush(queue, (costs.bound_s(self._pending(0), 0), 0, 0, 0.0, 0, root))
        best: dict[object, float] = {}
        ticket = 0
        states = 0
        while queue:
            _, _, epoch, cost, mask, node = heapq.heappop(queue)
            if mask == full:
                return EpochPlan(_trace(node), cost, states, self._complete)
            if best.get(self._key(mask, node.workers), float("inf")) < cost - 1e-12:
                continue
            states += 1
            if self._complete and (states >= max_states or self._over()):
                self._complete = False
            if not self._complete:
                # Greedy from here on: the state with the most done, then the cheapest.
                queue.clear()
                best.clear()
            for seconds, done, after in self._epochs(mask, node, slack):
                members = [op for op, _ in after.chosen]
                total = cost + costs.epoch_s(members, seconds, epoch)
                name = self._key(done, after.workers)
                if total >= best.get(name, float("inf")) - 1e-12:
                    continue
                best[name] = total
                ticket += 1
                bound = total + costs.bound_s(self._pending(done), epoch + 1)
                heapq.heappush(queue, (bound, ticket, epoch + 1, total, done, after))
        return EpochPlan((), 0.0 if not self._ops else float("inf"), states, self._complete)

    def _epochs(
        self, mask: int, node: _Node, slack: int
    ) -> Iterator[tuple[list[float], int, _Node]]:
        """What may be the next epoch: the seconds of its operations, what is done behind it, and
        the state. A limit on the way makes the search incomplete."""
        costs = self._costs
        most = min(len(node.workers), len(self._pending(mask)))
        assignable = False
        for size in range(most, 0, -1):
            if size < most - slack and assignable:
                break
            for group in _closed_sets(mask, self._needs, size):
                members = [self._ops[i] for i in group]
                done = mask
                for i in group:
                    done |= 1 << i
                ways = _assignments(members, node.workers, self._able, costs)
                for count, workers in enumerate(ways):
                    assignable = True
                    if count >= self._max_assignments or (count % 32 == 31 and self._over()):
                        self._complete = False
                        break
                    chosen = tuple(zip(members, workers, strict=True))
                    after = list(node.workers)
                    for op, w in chosen:
                        after[w] = (costs.model(op), op)
                    seconds = [costs.operation_s(op, node.workers[w]) for op, w in chosen]
                    yield seconds, done, _Node(node, chosen, tuple(after))

    def _pending(self, mask: int) -> list[int]:
        found = self._left.get(mask)
        if found is None:
            found = [op for i, op in enumerate(self._ops) if not mask >> i & 1]
            self._left[mask] = found
        return found

    def _key(self, mask: int, workers: tuple[WorkerState, ...]) -> tuple[int, tuple[object, ...]]:
        classes = [
            (self._able_class[w], *_seen(self._costs, state)) for w, state in enumerate(workers)
        ]
        return mask, tuple(sorted(classes))


def _seen(costs: EpochCosts, state: WorkerState) -> tuple[object, ...]:
    return state if costs.remembers_operation else state[:1]


def _closed_sets(mask: int, needs: Sequence[int], size: int) -> Iterator[tuple[int, ...]]:
    """Dependency-closed sets of `size` pending operations."""
    pending = [i for i in range(len(needs)) if not mask >> i & 1]
    for group in combinations(pending, size):
        inside = mask
        for i in group:
            inside |= 1 << i
        if all(needs[i] & ~inside == 0 for i in group):
            yield group


def _assignments(
    members: Sequence[int],
    workers: Sequence[WorkerState],
    able: Callable[[int], Sequence[int]],
    costs: EpochCosts,
) -> Iterator[tuple[int, ...]]:
    """Injective maps of operations to workers, equal workers once; cheap choices first."""
    possible = [
        sorted(able(op), key=lambda w, op=op: costs.operation_s(op, workers[w]))  # type: ignore[misc]
        for op in members
    ]
    stack: list[tuple[int, ...]] = [()]
    while stack:
        partial = stack.pop()
        if len(partial) == len(members):
            yield partial
            continue
        tried: set[tuple[object, ...]] = set()
        options: list[tuple[int, ...]] = []
        for w in possible[len(partial)]:
            if w in partial:
                continue
            state = (
                *_seen(costs, workers[w]),
                costs.operation_s(members[len(partial)], workers[w]),
            )
            if state in tried:
                continue
            tried.add(state)
            options.append((*partial, w))
        stack.extend(reversed(options))


def _trace(node: _Node) -> tuple[tuple[tuple[int, int], ...], ...]:
    epochs: list[tuple[tuple[int, int], ...]] = []
    at = node
    while at.parent is not None:
        epochs.append(at.chosen)
        at = at.parent
    return tuple(reversed(epochs))
