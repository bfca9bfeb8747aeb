"""One function in front of all schedulers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from costmodel.simulator.assignment import Assignment
from planner.errors import PlanError
from planner.schedule.baselines import BASELINES
from planner.schedule.beam import beam_search
from planner.schedule.candidates import candidates
from planner.schedule.epoch_dp import MAX_OPERATIONS, epoch_dp
from planner.schedule.families import earliest_end
from planner.schedule.local_search import improve, in_sequence, shaken
from planner.schedule.orders import ORDERS, operator_major
from planner.schedule.problem import Problem
from planner.schedule.published import published_dp
from planner.schedule.schedule import Now, Schedule, Search

SMALL_OPERATIONS = 10
"""Model operations up to which `auto` also runs the epoch DP and beam search."""

STARTS = 3
"""Best starting points that get a share of the local search."""

SEQUENCE_ITEMS = 64
"""Items up to which the search also looks at strict sequences, in which a worker may wait."""

RESTARTS = 4

SCREEN_CALLS = 6_000
"""Calls up to which candidates are compared on the problem itself; beyond, on a smaller one."""

SCREEN_SHARE = 8
"""The smaller problem has at least one call in this many: it is not too unlike the whole one."""

SURE = 2
"""Schedules of the smaller problem that are simulated on the whole one even when time is over."""

CONFIRMED = 12
"""Schedules of the smaller problem that are simulated on the whole one, as time allows."""


def schedule(
    problem: Problem,
    method: str = "auto",
    *,
    now: Now,
    budget_s: float | None = 1.0,
    seed: int = 0,
    max_steps: int | None = None,
    allow_waiting: bool = True,
) -> Schedule:
    """Schedule `problem`.

    Args:
        method: `auto`, or one of `METHODS`: a baseline, `list`, `beam`, `dp`, `published-dp`,
            `local-search` (from list scheduling).
        now: seconds on a monotonic clock, which the budget is measured by.
        budget_s: of planning; None for no limit (then `max_steps` or its default ends the search).
        allow_waiting: whether `auto` may answer with a strict order, in which a worker sometimes
            waits for an item though others are ready. The runtime does not wait; its plans are
            made without.
        max_steps: of local search; with `budget_s=None` equal arguments give equal schedules.

    At least one schedule is scored, however small the budget. Limits of the objective that cannot
    be kept are listed in `Schedule.given_up`.

    Raises `PlanError` for an unknown method, and when no placement can hold the models.
    """
    run = _RUNS.get(method)
    if run is None:
        raise PlanError(f"no scheduler {method!r}; the schedulers are: {', '.join(_RUNS)}")
    began = now()
    until_s = began + budget_s if budget_s is not None else float("inf")
    search = Search(problem, now, until_s, allow_waiting=allow_waiting)
    if problem.model_ops:
        run(search, seed, max_steps)
    else:
        # Tools alone: their lanes take them as they come.
        search.score(Assignment([-1] * problem.n_items, operator_major(problem)), method)
    found = search.schedule()
    if method == "auto" or found.method == method:
        return found
    return replace(found, method=f"{method} ({found.method})")


def _auto(search: Search, seed: int, max_steps: int | None) -> None:
    """Score candidates for half of the time and improve the best ones for the rest, on a smaller
    problem when this one is large; then confirm the best on the whole problem."""
    problem = search.problem
    total = sum(problem.simulator.compiled.calls)
    proxy = problem.reduced(max(SCREEN_CALLS, total // SCREEN_SHARE))
    if proxy is problem:
        _explore(search, search.until_s, seed, max_steps)
        search.best_method = f"auto: {search.best_method}"
        return
    # One baseline on the whole problem: a first answer, and how long a simulation takes.
    began = search.now()
    first = "longest-prefix-first"
    search.score(BASELINES[first](problem), first)
    one_s = search.now() - began
    screen = Search(proxy, search.now, allow_waiting=search.allow_waiting)
    left_s = search.until_s - search.now()
    explore_s = (
        max(left_s - CONFIRMED / 2 * one_s, left_s * 0.4) if left_s < float("inf") else left_s
    )
    _explore(screen, search.now() + explore_s, seed, max_steps)
    ranked = sorted(screen.pool, key=lambda entry: entry[0])
    if screen.best is not None:
        ranked.insert(0, (screen.best_score, screen.best_method, screen.best))
    # The screen may be wrong by a little: the best, the best baseline and the best with one model
    # at a time are confirmed whatever it takes, then the next of each.
    kinds = (
        ranked,
        [entry for entry in ranked if entry[1] in BASELINES],
        [entry for entry in ranked if "side by side" not in entry[1]],
    )
    longest = max(map(len, kinds))
    chosen = [kind[i] for i in range(longest) for kind in kinds if i < len(kind)]
    seen: set[int] = set()
    for _, name, plan in chosen:
        if id(plan) in seen or name == first:
            continue
        seen.add(id(plan))
        search.score(plan, name)
        if len(seen) >= CONFIRMED or (search.over and len(seen) >= SURE):
            break
    search.tried[:0] = [(f"{name} (screened)", price) for name, price in screen.tried]
    search.best_method = f"auto: {search.best_method}"


def _explore(search: Search, until_s: float, seed: int, max_steps: int | None) -> None:
    problem = search.problem
    began = search.now()
    search.until_s = until_s
    small = len(problem.model_ops) <= SMALL_OPERATIONS
    search.until_s = began + (until_s - began) * 0.5
    for name, plan in candidates(problem):
        search.score(plan, name)
        if search.over:
            break
    if small:
        search.until_s = began + (until_s - began) * 0.65
        beam_search(search, seed)
        epoch_dp(search, seed)
    search.until_s = until_s
    best, picked = search.best, search.best_method
    if best is None:
        return
    starts = [(search.best_score, best)]
    for price, _, plan in sorted(search.pool, key=lambda entry: entry[0]):
        if plan is not best and price < float("inf") and len(starts) < STARTS:
            starts.append((price, plan))
    unlimited = until_s == float("inf")
    steps = max_steps if max_steps is not None else (600 if unlimited else None)
    begin = search.now()
    sequences = search.allow_waiting and problem.n_items <= SEQUENCE_ITEMS
    if sequences and not unlimited:
        until_s = begin + (until_s - begin) / 2
    for i, (price, plan) in enumerate(starts):
        if not unlimited:
            search.until_s = begin + (until_s - begin) * (i + 1) / len(starts)
        improve(search, plan, price, seed=seed + i, max_steps=steps)
    if sequences:
        end_s = begin + 2 * (until_s - begin) if not unlimited else until_s
        for i in range(RESTARTS):
            at = search.now()
            search.until_s = at + (end_s - at) / (RESTARTS - i) if not unlimited else end_s
            if search.best is None:
                break
            start = in_sequence(problem, search.best)
            if i:
                # A good schedule may be a dead end: begin some way off it.
                start = shaken(problem, start, seed + i)
            price = search.score(start, "local search", note=False)
            improve(search, start, price, seed=seed + STARTS + i, max_steps=steps)
        until_s = end_s
    search.until_s = until_s
    if search.best_method == "local search":
        search.best_method = f"local search from {picked}"


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
    if epoch_dp(search, seed) is None:
        raise PlanError(
            f"the epoch DP plans 1 to {MAX_OPERATIONS} model operations, this plan has "
            f"{len(search.problem.model_ops)}; use auto"
        )


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
