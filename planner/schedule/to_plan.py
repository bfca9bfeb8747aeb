"""From a schedule to what the executor runs: shares of rows, priorities, nesting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby

from planner.errors import PlanError
from planner.physical import PhysicalPlan, Worker
from planner.schedule.problem import Problem
from planner.schedule.schedule import Schedule


def with_schedule(
    physical: PhysicalPlan,
    problem: Problem,
    schedule: Schedule,
    fingerprints: Sequence[str],
    workers: Mapping[str, Worker],
    *,
    first_row: int = 0,
) -> PhysicalPlan:
    """`physical` with the decisions of `schedule`.

    Args:
        fingerprints: of the operator behind each operation of the problem.
        workers: by name, every worker of the machine.
        first_row: rows before this one (in start order) keep the shares they have: they have
            started; the problem is about those behind.
    """
    groups = problem.n_groups
    machine = problem.machine.workers
    shares: dict[str, tuple[tuple[str, int], ...]] = {}
    placements = dict(physical.placements)
    used: dict[str, Worker] = {}
    for position, fingerprint in enumerate(fingerprints):
        if position not in problem.calls_models:
            continue
        runs: list[tuple[str, int]] = list(_until(physical, fingerprint, first_row))
        of_groups = [
            (machine[schedule.assignment.worker[position * groups + g]].name, rows)
            for g, rows in enumerate(problem.workload.group_rows)
        ]
        runs += of_groups
        merged = tuple(
            (name, sum(rows for _, rows in part))
            for name, part in groupby(runs, key=lambda run: run[0])
        )
        merged = tuple(run for run in merged if run[1]) or ((of_groups[0][0], 0),)
        placements[fingerprint] = merged[-1][0]
        if len(merged) > 1:
            shares[fingerprint] = merged
        for name, _ in merged:
            used[name] = workers[name]
    for name in placements.values():
        used.setdefault(name, workers[name])
    return replace(
        physical,
        placements=placements,
        shares=shares,
        workers=tuple(used.values()),
        priority=_priorities(physical, problem, schedule, fingerprints),
        row_block=_row_block(problem, schedule),
    )


def without_worker(physical: PhysicalPlan, lost: str, reason: str) -> tuple[PhysicalPlan, str]:
    """The plan without a worker that is not there: its rows go to the other workers of the same
    model, in turn. Returns the plan and what was given up, in words.

    Raises `PlanError` when a model has no other worker.
    """
    gone = next((w for w in physical.workers if w.name == lost), None)
    if gone is None:
        return physical, f"worker {lost!r} is not in the plan"
    left = tuple(w for w in physical.workers if w.name != lost)
    others = [w.name for w in left if w.model == gone.model]
    needed = [op for op, name in physical.placements.items() if name == lost]
    needed += [op for op, runs in physical.shares.items() if any(n == lost for n, _ in runs)]
    if needed and not others:
        raise PlanError(
            f"worker {lost!r} is lost ({reason}) and no other worker has model {gone.model!r}, "
            f"which {len(set(needed))} operators need; start one or name another engine"
        )
    turn = 0

    def instead() -> str:
        nonlocal turn
        turn += 1
        return others[turn % len(others)]

    shares: dict[str, tuple[tuple[str, int], ...]] = {}
    for op, runs in physical.shares.items():
        renamed = [(instead() if name == lost else name, rows) for name, rows in runs]
        merged = tuple(
            (name, sum(rows for _, rows in part))
            for name, part in groupby(renamed, key=lambda run: run[0])
        )
        if len(merged) > 1:
            shares[op] = merged
    placements = {
        op: (shares[op][-1][0] if op in shares else instead()) if name == lost else name
        for op, name in physical.placements.items()
    }
    for op, runs in physical.shares.items():
        if op not in shares:
            placements[op] = next(
                (name for name, _ in runs if name != lost), placements.get(op, others[0])
            )
    note = (
        f"worker {lost!r} is lost ({reason}); its rows go to "
        f"{', '.join(map(repr, others)) or 'nobody, it had none'}"
    )
    rows = physical.rows_in_flight
    if others:
        # Its cache and its slots are gone too.
        rows = max(1, rows * len(others) // (len(others) + 1))
    return (
        replace(physical, workers=left, placements=placements, shares=shares, rows_in_flight=rows),
        note,
    )


def _until(physical: PhysicalPlan, fingerprint: str, rows: int) -> Sequence[tuple[str, int]]:
    """The first `rows` rows of an operator's shares."""
    if not rows:
        return ()
    runs = physical.shares.get(fingerprint)
    if runs is None:
        return ((physical.placements[fingerprint], rows),)
    kept: list[tuple[str, int]] = []
    left = rows
    for name, n in runs:
        if left <= 0:
            break
        kept.append((name, min(n, left)))
        left -= n
    if left > 0:
        kept.append((runs[-1][0], left))
    return kept


def _priorities(
    physical: PhysicalPlan, problem: Problem, schedule: Schedule, fingerprints: Sequence[str]
) -> dict[str, int]:
    """Ranks of the scheduled operators by their earliest item; others keep their own rank among
    them. The numbers stay within those of the plan before, so a running executor can take them."""
    groups = problem.n_groups
    first = {
        fingerprint: min(schedule.assignment.priority[position * groups + g] for g in range(groups))
        for position, fingerprint in enumerate(fingerprints)
        if groups
    }
    ordered = sorted(first, key=lambda op: (first[op], fingerprints.index(op)))
    highest = max(physical.priority.values(), default=0)
    if len(ordered) - 1 > highest:
        # Fewer levels than operators: neighbours share one.
        rank = {op: i * (highest + 1) // len(ordered) for i, op in enumerate(ordered)}
    else:
        rank = {op: i for i, op in enumerate(ordered)}
    return {**physical.priority, **rank}


def _row_block(problem: Problem, schedule: Schedule) -> int:
    """How many rows are taken operator by operator before the next ones: all of them when the
    schedule's priorities go by operator, one when they go by row."""
    groups = problem.n_groups
    ops = problem.model_ops
    if groups < 2 or len(ops) < 2:
        return 1
    priority = schedule.assignment.priority
    by_operator = by_row = 0
    for a in ops:
        for b in ops:
            if a < b:
                first, second = sorted((a, b), key=lambda op: priority[op * groups])
                # Does the earlier operation's last group go before the later one's first?
                if priority[first * groups + groups - 1] <= priority[second * groups]:
                    by_operator += 1
                else:
                    by_row += 1
    return max(1, problem.workload.rows) if by_operator > by_row else 1
