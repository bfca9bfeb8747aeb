"""The flow of rows: which calls are ready, group by group, barriers included."""

from __future__ import annotations

from collections.abc import Callable

from costmodel.simulator.assignment import Assignment
from costmodel.simulator.compiled import CompiledWorkload


class Flow:
    """Counts calls that are ready, admitted and done, by item, and tells when more are ready.

    Attributes:
        ready, admitted, done: calls of each item, each counting from the group's first row.
        arrived: whether each group is there; set it, then call `admit_groups`.
        now_s: the run's time, which the loop sets.
        group_end_s: when each group had all its calls.
    """

    def __init__(
        self,
        compiled: CompiledWorkload,
        assignment: Assignment,
        on_ready: Callable[[int, int], None],
    ) -> None:
        """`on_ready(item, more)` is told that `more` further calls of `item` may start."""
        self.compiled = compiled
        self.workload = compiled.workload
        self.G = compiled.n_groups
        self._on_ready = on_ready
        self.now_s = 0.0
        n = compiled.n_items
        self.ready = [0] * n
        self.admitted = [0] * n
        self.done = [0] * n
        self.group_left = [len(self.workload.operations)] * self.G
        self.group_end_s = [0.0] * self.G
        self.arrived: list[bool] = [False] * self.G
        self.limit = assignment.groups_in_flight
        self.in_flight = 0
        self.next_group = 0
        self.group_order = list(assignment.group_order) or list(range(self.G))
        self.stage = assignment.stage
        self.current_stage = 0
        self.held: dict[int, list[int]] = {}
        self.stage_left: list[int] = []
        if self.stage is not None:
            self.stage_left = [0] * (max(self.stage, default=0) + 1)
            for s in self.stage:
                self.stage_left[s] += self.G
            self._skip_stages()

    def admit_groups(self) -> None:
        limit = self.limit
        order = self.group_order
        while self.next_group < self.G and (limit is None or self.in_flight < limit):
            g = order[self.next_group]
            if not self.arrived[g]:
                if self.workload.arrival_s is None or limit is not None:
                    return
                # Without a limit groups start as they arrive, whatever the order.
                for late in order[self.next_group :]:
                    if self.arrived[late] and self.group_left[late] == len(self.compiled.inputs):
                        self._start_group(late)
                return
            self.next_group += 1
            if self.group_left[g] == len(self.compiled.inputs):
                self._start_group(g)

    def _start_group(self, g: int) -> None:
        if self.group_left[g] < 0:
            return
        self.in_flight += 1
        G = self.G
        started = False
        for position, inputs in enumerate(self.compiled.inputs):
            if not inputs:
                item = position * G + g
                if self.ready[item] == 0 and self.admitted[item] == 0:
                    started = True
                    self._more_ready(item, self.compiled.calls[item])
        if not self.compiled.inputs or not started:
            self.in_flight -= 1

    def _more_ready(self, item: int, count: int) -> None:
        """`item` has `count` calls ready in all. Items without calls end at once."""
        if count == 0 and self.compiled.calls[item] == 0:
            if self.ready[item] == 0:
                self.ready[item] = -1
                self._item_done(item)
            return
        before = self.ready[item]
        if count <= before:
            return
        self.ready[item] = count
        position = item // self.G
        if self.stage is not None and self.stage[position] > self.current_stage:
            self.held.setdefault(self.stage[position], []).append(item)
            return
        self._on_ready(item, count - before)

    def advance(self, item: int, count: int) -> None:
        """`count` more calls of `item` have ended."""
        done = self.done[item] = self.done[item] + count
        calls = self.compiled.calls
        total = calls[item]
        position, g = divmod(item, self.G)
        G, compiled = self.G, self.compiled
        for user in compiled.users[position]:
            target = user * G + g
            wanted = calls[target]
            ready = wanted
            for i in compiled.inputs[user]:
                source = i * G + g
                n = calls[source]
                d = self.done[source]
                if d < n:
                    possible = d if n == wanted else d * wanted // n
                    if possible < ready:
                        ready = possible
                elif n == 0 and self.ready[source] != -1:
                    ready = 0
            if ready > self.ready[target]:
                self._more_ready(target, ready)
            elif wanted == 0 and done == total and self._inputs_done(user, g):
                self._more_ready(target, 0)
        if done == total:
            self._finish_item(item)

    def _inputs_done(self, position: int, g: int) -> bool:
        for i in self.compiled.inputs[position]:
            source = i * self.G + g
            n = self.compiled.calls[source]
            if self.done[source] < n or (n == 0 and self.ready[source] != -1):
                return False
        return True

    def _item_done(self, item: int) -> None:
        """An item without calls is over; what follows may be ready. Iterative along chains."""
        stack = [item]
        while stack:
            current = stack.pop()
            position, g = divmod(current, self.G)
            for user in self.compiled.users[position]:
                target = user * self.G + g
                if self._inputs_done(user, g):
                    if self.compiled.calls[target]:
                        self._more_ready(target, self.compiled.calls[target])
                    elif self.ready[target] == 0:
                        self.ready[target] = -1
                        stack.append(target)
            self._finish_item(current)

    def _finish_item(self, item: int) -> None:
        g = item % self.G
        self.group_left[g] -= 1
        if not self.group_left[g]:
            self.group_end_s[g] = self.now_s
            self.in_flight -= 1
            if self.limit is not None:
                self.admit_groups()
        if self.stage is not None:
            self.stage_left[self.stage[item // self.G]] -= 1
            self._skip_stages()

    def _skip_stages(self) -> None:
        left = self.stage_left
        while self.current_stage < len(left) - 1 and not left[self.current_stage]:
            self.current_stage += 1
            for held in self.held.pop(self.current_stage, ()):
                more = self.ready[held] - self.admitted[held]
                if more > 0:
                    self._on_ready(held, more)
