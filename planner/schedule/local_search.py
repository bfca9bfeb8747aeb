"""Local search: moves, swaps and splits of a schedule, scored by the simulator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Protocol

from costmodel.simulator.assignment import Assignment
from planner.schedule.baselines import co_resident
from planner.schedule.problem import Problem
from planner.schedule.schedule import Search

START_TEMPERATURE = 0.02
"""Of the score: at first a schedule that is this much worse is taken once in e times."""


SEQUENCED_ITEMS = 200
"""Items up to which single items are moved in the sequences; beyond, groups and operations are."""


class Move(Protocol):
    """A change of a schedule; None when it would change nothing."""

    def __call__(
        self, problem: Problem, plan: Assignment, draw: Random, /
    ) -> Assignment | None: ...


def improve(
    search: Search,
    start: Assignment,
    start_score: float,
    *,
    seed: int = 0,
    max_steps: int | None = None,
    patience: int | None = None,
    fixed_steps: int | None = None,
) -> None:
    """Improve `start` until the search's time is over, `max_steps` were made, or `patience` steps
    in a row found nothing better. What is found is in `search`."""
    problem = search.problem
    if not problem.model_ops or not problem.n_groups:
        return
    draw = Random(seed)
    moves = _moves(problem)
    current, score = start, start_score
    best_here = score
    idle = 0
    step = 0
    horizon = fixed_steps or max_steps or 2000
    while not search.over:
        if max_steps is not None and step >= max_steps:
            break
        if patience is not None and idle >= patience:
            break
        step += 1
        candidate = draw.choice(moves)(problem, current, draw)
        if candidate is None:
            idle += 1
            continue
        price = search.score(candidate, "local search", note=False)
        cooling = max(0.0, 1 - step / horizon)
        temperature = START_TEMPERATURE * cooling * best_here
        accept = price <= score or (
            temperature > 0
            and math.isfinite(price)
            and draw.random() < math.exp(-(price - score) / temperature)
        )
        if price < best_here - 1e-12:
            best_here = price
            idle = 0
        else:
            idle += 1
        if accept:
            current, score = candidate, price


def _moves(problem: Problem) -> Sequence[Move]:
    many_workers = len(problem.machine.workers) > 1
    moves: list[Move] = [swap_priorities, advance_operation, change_policy, advance_group]
    if problem.n_items <= SEQUENCED_ITEMS:
        moves += [insert_item, insert_item, insert_item, move_priority]
    elif problem.n_groups > 1:
        moves.append(move_priority)
    if many_workers:
        moves += [move_item, move_item, move_group, split_operation, swap_workers, balance]
        if problem.n_groups > 1:
            moves += [move_item]
    return moves


def in_sequence(problem: Problem, plan: Assignment) -> Assignment:
    """The same schedule as a strict order: each worker's items as they began."""
    run = problem.simulate(plan, timeline=True)
    names = {op.name: i for i, op in enumerate(problem.workload.operations)}
    began = [float("inf")] * problem.n_items
    for span in run.timeline:
        if span.kind in ("calls", "tool"):
            item = names[span.label] * problem.n_groups + span.group
            began[item] = min(began[item], span.start_s)
    order = sorted(range(problem.n_items), key=lambda item: (began[item], plan.priority[item]))
    priority = [0.0] * problem.n_items
    for rank, item in enumerate(order):
        priority[item] = float(rank)
    return replace(plan, priority=priority, order="strict", stage=None, groups_in_flight=None)


def shaken(problem: Problem, plan: Assignment, seed: int) -> Assignment:
    """`plan` after a number of random insertions, which may make it worse; a soft order, which any
    priorities are good for."""
    draw = Random(seed)
    for _ in range(max(3, problem.n_items // 2)):
        plan = insert_item(problem, plan, draw) or plan
    return replace(plan, order="soft")


def move_item(problem: Problem, plan: Assignment, draw: Random) -> Assignment | None:
    """One group of one operation to another worker."""
    op = draw.choice(problem.model_ops)
    item = op * problem.n_groups + draw.randrange(problem.n_groups)
    return _moved(problem, plan, [item], draw)


def move_group(problem: Problem, plan: Assignment, draw: Random) -> Assignment | None:
    """One group of all operations of a model, or of those behind a point, to another worker."""
    g = draw.randrange(problem.n_groups)
    op = draw.choice(problem.model_ops)
    model = problem.model_of(op)
    items = [
        i * problem.n_groups + g
        for i in problem.model_ops
        if problem.model_of(i) == model and (i >= op or draw.random() < 0.5)
    ]
    return _moved(problem, plan, items, draw)


def split_operation(problem: Problem, plan: Assignment, draw: Random) -> Assignment | None:
    """The groups of one operation over another number of workers."""
    op = draw.choice(problem.model_ops)
    possible = problem.workers_for[problem.model_of(op)]
    n = draw.randint(1, len(possible))
    chosen = sorted(draw.sample(possible, n))
    groups = problem.n_groups
    worker = list(plan.worker)
    for g in range(groups):
        worker[op * groups + g] = chosen[g * n // groups]
    return _with(problem, plan, worker=worker)


def swap_workers(problem: Problem, plan: Assignment, draw: Random) -> Assignment | None:
    """Two items change places."""
    groups = problem.n_groups
    a = draw.choice(problem.model_ops) * groups + draw.randrange(groups)
    b = draw.choice(problem.model_ops) * groups + draw.randrange(groups)
    wa, wb = plan.worker[a], plan.worker[b]
    if wa == wb:
        return None
    if wb not in problem.workers_for[problem.model_of(a // groups)]:
        return None
    if wa not in problem.workers_for[problem.model_of(b // groups)]:
        return None
    worker = list(plan.worker)
    worker[a], worker[b] = wb, wa
    return _with(problem, plan, worker=worker)


def balance(problem: Problem, plan: Assignment, draw: Random) -> Assignment | None:
    """An item of the worker with the most estimated work to the one with the least."""
    groups = problem.n_groups
    calls = problem.simulator.compiled.calls
    load = [0.0] * len(problem.machine.workers)
    for op in problem.model_ops:
        for g in range(groups):
            w = plan.worker[op * groups + g]
            load[w] += problem.call_s[op][w] * calls[op * groups + g]
    most = max(range(len(load)), key=lambda w: load[w])
    least = min(range(len(load)), key=lambda w: load[w])
    items = [
        op * groups + g
        for op in problem.model_ops
        if least in problem.workers_for[problem.model_of(op)]
        for g in range(groups)
        if plan.worker[op * groups + g] == most
    ]
    if most == least or not items:
        return None
    worker = list(plan.worker)
    worker[draw.choice(items)] = least
    return _with(problem, plan, worker=worker)


def swap_priorities(problem: Problem, plan: Assignment, draw: Random) -> Assignment | None:
    """Two operations, or two items, change their ranks."""
    groups = problem.n_groups
    n_ops = len(problem.workload.operations)
    priority = list(plan.priority)
    if draw.random() < 0.5:
        a, b = draw.randrange(n_ops), draw.randrange(n_ops)
        for g in range(groups):
            i, j = a * groups + g, b * groups + g
            priority[i], priority[j] = priority[j], priority[i]
    else:
        i, j = draw.randrange(n_ops * groups), draw.randrange(n_ops * groups)
        priority[i], priority[j] = priority[j], priority[i]
    return replace(plan, priority=priority)


def move_priority(problem: Problem, plan: Assignment, draw: Random) -> Assignment | None:
    """One item goes right before or behind another one."""
    n = problem.n_items
    i, j = draw.randrange(n), draw.randrange(n)
    if i == j:
        return None
    priority = _inserted(plan.priority, i, j, draw.randrange(2))
    return replace(plan, priority=priority)


def insert_item(problem: Problem, plan: Assignment, draw: Random) -> Assignment | None:
    """One item goes to the worker of another one, right before or behind it."""
    groups = problem.n_groups
    i = draw.choice(problem.model_ops) * groups + draw.randrange(groups)
    j = draw.choice(problem.model_ops) * groups + draw.randrange(groups)
    target = plan.worker[j]
    if i == j or target not in problem.workers_for[problem.model_of(i // groups)]:
        return None
    moved = replace(plan, priority=_inserted(plan.priority, i, j, draw.randrange(2)))
    if target == plan.worker[i]:
        return moved
    worker = list(plan.worker)
    worker[i] = target
    return _with(problem, moved, worker=worker)


def _inserted(priority: Sequence[float], item: int, at: int, behind: int) -> list[float]:
    """Ranks with `item` right before or behind `at`."""
    order = sorted(range(len(priority)), key=lambda i: (priority[i], i))
    order.remove(item)
    order.insert(order.index(at) + behind, item)
    ranks = [0.0] * len(order)
    for rank, i in enumerate(order):
        ranks[i] = float(rank)
    return ranks


def advance_operation(problem: Problem, plan: Assignment, draw: Random) -> Assignment | None:
    """All groups of one operation earlier or later."""
    groups = problem.n_groups
    op = draw.randrange(len(problem.workload.operations))
    shift = draw.choice((-1, 1)) * draw.random() * groups * 3
    priority = list(plan.priority)
    for g in range(groups):
        priority[op * groups + g] += shift
    return replace(plan, priority=priority)


def advance_group(problem: Problem, plan: Assignment, draw: Random) -> Assignment | None:
    """All operations of one group earlier or later."""
    groups = problem.n_groups
    n_ops = len(problem.workload.operations)
    g = draw.randrange(groups)
    shift = draw.choice((-1, 1)) * draw.random() * n_ops * groups
    priority = list(plan.priority)
    for op in range(n_ops):
        priority[op * groups + g] += shift
    return replace(plan, priority=priority)


def change_policy(problem: Problem, plan: Assignment, draw: Random) -> Assignment | None:
    """Another way to switch models, or residency of one worker."""
    if draw.random() < 0.5 or not plan.co_resident:
        if plan.switching == "drain":
            return replace(plan, switching="priority")
        return replace(plan, switching="drain")
    possible = co_resident(problem, plan)
    w = draw.randrange(len(possible))
    flags = [flag and fits for flag, fits in zip(plan.co_resident, possible, strict=True)]
    flags[w] = possible[w] and not plan.co_resident[w]
    return None if flags == list(plan.co_resident) else replace(plan, co_resident=flags)


def _moved(problem: Problem, plan: Assignment, items: list[int], draw: Random) -> Assignment | None:
    groups = problem.n_groups
    possible = set(problem.workers_for[problem.model_of(items[0] // groups)])
    for item in items[1:]:
        possible &= set(problem.workers_for[problem.model_of(item // groups)])
    others = sorted(possible - {plan.worker[items[0]]})
    if not others:
        return None
    target = draw.choice(others)
    worker = list(plan.worker)
    for item in items:
        worker[item] = target
    return _with(problem, plan, worker=worker)


def _with(problem: Problem, plan: Assignment, *, worker: list[int]) -> Assignment:
    """Another placement; residency that no longer fits is dropped."""
    changed = replace(plan, worker=worker)
    if any(plan.co_resident):
        fits = co_resident(problem, changed)
        flags = [a and b for a, b in zip(plan.co_resident, fits, strict=True)]
        # A worker that has just become home to several models keeps them when they fit.
        before = co_resident(problem, plan)
        flags = [flag or (now and not was) for flag, now, was in zip(flags, fits, before,
                                                                     strict=True)]  # fmt: skip
        changed = replace(changed, co_resident=flags)
    return changed
