"""One function in front of all schedulers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from costmodel.simulator.assignment import Assignment
from planner.errors import PlanError
from planner.schedule.baselines import BASELINES
from planner.schedule.beam import beam_search
from planner.schedule.candidates import candidates
from planner.schedule.epoch_dp import epoch_dp
from planner.schedule.families import earliest_end
from planner.schedule.local_search import improve
from planner.schedule.orders import ORDERS
from planner.schedule.problem import Problem
from planner.schedule.published import published_dp
from planner.schedule.schedule import Now, Schedule, Search

SMALL_OPERATIONS = 10
"""Model operations up to which `auto` also runs the epoch DP and beam search."""

STARTS = 3
"""Best starting points that get a share of the local search."""


def schedule(
    problem: Problem,
    method: str = "auto",
    *,
    now: Now,
    budget_s: float | None = 1.0,
    seed: int = 0,
    max_steps: int | None = None,
) -> Schedule:
    """Schedule `problem`.

    Args:
        method: `auto`, or one of `METHODS`: a baseline, `list`, `beam`, `dp`, `published-dp`,
            `local-search` (from list scheduling).
        now: seconds on a monotonic clock, which the budget is measured by.
        budget_s: of planning; None for no limit (then `max_steps` or its default ends the search).
        max_steps: of local search; with `budget_s=None` equal arguments give equal schedules.

    At least one schedule is scored, however small the budget. Limits of the objective that cannot
    be kept are listed in `Schedule.given_up`.

    Raises `PlanError` for an unknown method, and when no placement can hold the models.
    """
    run = _RUNS.get(method)
    if run is None:
        raise PlanError(f"no scheduler {method!r}; the schedulers are: {', '.join(_RUNS)}")
    began = now()
    search = Search(problem, now, began + budget_s if budget_s is not None else float("inf"))
    run(search, seed, max_steps)
    found = search.schedule()
    return found if method == "auto" else replace(found, method=f"{method} ({found.method})"
                                                  if found.method != method else method)  # fmt: skip


def _auto(search: Search, seed: int, max_steps: int | None) -> None:
    problem = search.problem
    starts: list[tuple[float, str, int]] = []
    plans: list[Assignment] = []
    began = search.now()
    time_for_starts = search.until_s - (search.until_s - began) * 0.5
    for name, plan in candidates(problem):
        price = search.score(plan, name)
        starts.append((price, name, len(plans)))
        plans.append(plan)
        if search.now() >= time_for_starts:
            break
    if len(problem.model_ops) <= SMALL_OPERATIONS and not search.over:
        before = len(search.tried)
        beam_search(search, seed)
        epoch_dp(search, seed)
        for name, price in search.tried[before:]:
            starts.append((price, name, -1))
    picked = search.best_method
    best = search.best
    if best is None:
        return
    tried_starts = sorted(s for s in starts if s[2] >= 0 and s[0] < float("inf"))[:STARTS]
    steps = max_steps if max_steps is not None else (None if search.until_s < float("inf") else 600)
    total_until = search.until_s
    begin = search.now()
    queue = [(search.best_score, best)]
    for price, _, index in tried_starts:
        plan = plans[index]
        if plan is not best:
            queue.append((price, plan))
    for i, (price, plan) in enumerate(queue[:STARTS]):
        share = (total_until - begin) * (i + 1) / min(STARTS, len(queue))
        search.until_s = begin + share if total_until < float("inf") else total_until
        improve(search, plan, price, seed=seed + i, max_steps=steps)
    search.until_s = total_until
    if search.best_method == "local search":
        search.best_method = f"auto: local search from {picked}"
    else:
        search.best_method = f"auto: {search.best_method}"


def _baseline(name: str) -> Callable[[Search, int, int | None], None]:
    def run(search: Search, seed: int, max_steps: int | None) -> None:
        from planner.schedule.baselines import random

        problem = search.problem
        plan = random(problem, seed) if name == "random" else BASELINES[name](problem)
        search.score(plan, name)

    return run


def _list(search: Search, seed: int, max_steps: int | None) -> None:
    from planner.schedule.baselines import with_co_residency

    problem = search.problem
    for name in ("critical-path", "row-major"):
        priority = ORDERS[name](problem)
        plan = Assignment(earliest_end(problem, priority), priority)
        search.score(with_co_residency(problem, plan), f"list, {name}")
        if search.over:
            return


def _local(search: Search, seed: int, max_steps: int | None) -> None:
    _list(search, seed, max_steps)
    if search.best is not None:
        unlimited = search.until_s == float("inf")
        steps = max_steps if max_steps is not None else (600 if unlimited else None)
        improve(search, search.best, search.best_score, seed=seed, max_steps=steps)


def _beam(search: Search, seed: int, max_steps: int | None) -> None:
    beam_search(search, seed)


def _dp(search: Search, seed: int, max_steps: int | None) -> None:
    epoch_dp(search, seed)


def _published(search: Search, seed: int, max_steps: int | None) -> None:
    search.score(published_dp(search.problem), "published-dp")


_RUNS: dict[str, Callable[[Search, int, int | None], None]] = {
    "auto": _auto,
    "list": _list,
    "local-search": _local,
    "beam": _beam,
    "dp": _dp,
    "published-dp": _published,
    **{name: _baseline(name) for name in BASELINES},
}
METHODS = tuple(_RUNS)
