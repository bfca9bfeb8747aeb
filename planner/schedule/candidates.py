"""The starting points of a search, the most promising first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from costmodel.simulator.assignment import Assignment
from planner.schedule.baselines import BASELINES, co_resident
from planner.schedule.families import (
    earliest_end,
    model_pools,
    models_by_worker_sets,
    rows_everywhere,
)
from planner.schedule.orders import ORDERS
from planner.schedule.problem import Problem


def candidates(problem: Problem) -> Iterator[tuple[str, Assignment]]:
    """(name, assignment) pairs: families of placements in several orders, with models side by side
    where they fit and one at a time, then the baselines. Lazy: a search stops when its time is
    over."""
    orders = {name: order(problem) for name, order in ORDERS.items()}
    placements: list[tuple[str, list[int]]] = [("rows everywhere", rows_everywhere(problem))]
    pools = model_pools(problem)
    if pools is not None and pools != placements[0][1]:
        placements.append(("a pool a model", pools))
    seen: set[tuple[tuple[int, ...], bool]] = set()
    first_orders = ("critical-path", "row-major", "by-model")
    for order in first_orders:
        if order == first_orders[0]:
            # Pools that some models share are most often best, and baselines are known early, so
            # that a short search has seen them.
            if pools is not None:
                yield from _variants(
                    problem, f"a pool a model, {order}", pools, orders[order], seen
                )
            for name, placement in models_by_worker_sets(problem):
                yield from _variants(problem, name, placement, orders[order], seen)
            for name, baseline in BASELINES.items():
                yield name, baseline(problem)
            yield from _variants(
                problem, f"rows everywhere, {order}", placements[0][1], orders[order], seen
            )
        else:
            for name, placement in reversed(placements):
                yield from _variants(problem, f"{name}, {order}", placement, orders[order], seen)
        listed = earliest_end(problem, orders[order])
        yield from _variants(problem, f"list scheduling, {order}", listed, orders[order], seen)
    n = len(problem.machine.workers)
    if problem.objective.goal in ("money", "energy") or problem.objective.budget is not None:
        for name, few in _fewer_workers(problem):
            yield from _variants(problem, name, few, orders["by-model"], seen)
    for order in ORDERS:
        if order in first_orders:
            continue
        for name, placement in placements:
            yield from _variants(problem, f"{name}, {order}", placement, orders[order], seen)
        if n > 1:
            listed = earliest_end(problem, orders[order], stickiness=0.0)
            yield from _variants(problem, f"list scheduling, {order}", listed, orders[order], seen)


def _variants(
    problem: Problem,
    name: str,
    placement: list[int],
    priority: list[float],
    seen: set[tuple[tuple[int, ...], bool]],
) -> Iterator[tuple[str, Assignment]]:
    # KV cache moves where there is a link and the simulator finds it cheaper than computing.
    migrate = problem.machine.link is not None
    plan = Assignment(placement, priority, migrate=migrate)
    flags = co_resident(problem, plan)
    several = len(problem.models) > 1
    if any(flags):
        yield f"{name}, models side by side", replace(plan, co_resident=flags)
    if several or not any(flags):
        yield name, replace(plan, co_resident=[False] * len(flags))
        if several and (tuple(placement), False) not in seen:
            seen.add((tuple(placement), False))
            by_model = ORDERS["by-model"](problem)
            yield (
                f"{name}, switching by priority",
                replace(
                    plan,
                    priority=by_model,
                    switching="priority",
                    co_resident=[False] * len(flags),
                ),
            )


def _fewer_workers(problem: Problem) -> Iterator[tuple[str, list[int]]]:
    """Everything on the cheapest workers for the work: one, two, four and so on."""
    workers = problem.machine.workers
    money = problem.objective.goal != "energy"

    def price(w: int) -> float:
        spec = workers[w]
        rate = spec.price_per_h if money else spec.power_w
        work = sum(
            problem.call_s[op][w]
            for op in problem.model_ops
            if problem.call_s[op][w] != float("inf")
        )
        return rate * work

    ordered = sorted(range(len(workers)), key=price)
    n = 1
    while n <= len(workers):
        yield f"the {n} cheapest workers", rows_everywhere(problem, ordered[:n])
        n *= 2
