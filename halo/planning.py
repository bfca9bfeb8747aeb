"""From the queries of a batch to its physical plan: merge, verify, rewrite, estimate, place, split
over workers. Makes no call and loads no engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

from halo.config import Config
from halo.queries import Query, tools_of
from planner.context import PlanContext
from planner.learnt import NOTHING_LEARNT, Learnt
from planner.logical import Json, LogicalPlan, ModelOp, SqlRows
from planner.merge import merge
from planner.physical import MAX_ROWS_IN_FLIGHT, PhysicalPlan, Worker, place
from planner.rewrite import Rewritten, rewrite
from planner.stats import PlanStats
from planner.verify import verify
from runtime.clock import wall_s
from runtime.kept_plan import KeptPlan
from runtime.tools import ToolSpec

if TYPE_CHECKING:
    from planner.schedule.adapt import Replanner
    from planner.schedule.assign import ScheduledPlan

CountRows = Callable[[SqlRows], int | None]

PLANNING_STEPS = 60
"""Steps of local search: with them, not the clock, as the limit, equal batches get equal plans."""


@dataclass(frozen=True)
class Prepared:
    """A batch, planned: what explain shows and run executes. `rewritten` says how the merged plan
    became the logical plan of `plan`; `planning_s` is what that and the rest of planning took."""

    queries: tuple[Query, ...]
    bound: tuple[LogicalPlan, ...]
    rewritten: Rewritten
    plan: PhysicalPlan
    stats: PlanStats
    tools: Mapping[str, ToolSpec]
    scheduled: ScheduledPlan | None = None
    planning_s: float = 0.0

    def _repr_html_(self) -> str:
        """The plan in a notebook: drawn, with its listing."""
        from planner.explain_html import render_fragment
        from planner.explain_view import View

        view = View(self.plan.logical, self.stats, physical=self.plan, rewritten=self.rewritten)
        return render_fragment(view)

    @property
    def rows_by_source(self) -> dict[str, list[dict[str, Json]]]:
        return {query.rows.source: query.rows.rows for query in self.queries}

    def replanner(self) -> Replanner | None:
        """Splits the rows that are left anew while the batch runs; None where they are not
        split."""
        if self.scheduled is None:
            return None
        from planner.schedule.adapt import Replanner

        return Replanner(self.scheduled, wall_s, max_steps=PLANNING_STEPS)


def plan_batch(
    queries: tuple[Query, ...],
    config: Config,
    workers_of: Callable[[str], Sequence[Worker]],
    *,
    learnt: Learnt = NOTHING_LEARNT,
    count_rows: CountRows | None = None,
    begun: KeptPlan | None = None,
) -> Prepared:
    """The plan of a batch. `workers_of` tells the workers of a model, `count_rows` how many rows a
    query of the plan makes, None when it cannot say; `learnt` is what earlier runs have taught.
    With `begun`, a run of the batch goes on: its operators and what was expected of them stay, and
    are placed anew. Raises `PlanError` and `WorkflowError`."""
    tools = tools_of(queries)
    began_s = wall_s()
    logical = merge({query.name: query.traced.plan for query in queries})
    verify(logical)
    models = {op.model for op in logical.walk_all() if isinstance(op, ModelOp)}
    workers = {model: workers_of(model) for model in sorted(models)}
    context = PlanContext(
        rows={query.rows.source: query.rows.rows for query in queries},
        count_tokens=_estimated_tokens,
        learnt=learnt,
        query_rows=_counted(logical, count_rows),
        enforces_choice=all(worker.choice for those in workers.values() for worker in those),
        cache_tokens=_smallest_cache(workers.values()),
    )
    if begun is None:
        rewritten = rewrite(logical, context, off=config.off, on=config.on)
    else:
        rewritten = Rewritten(logical, begun.plan.logical, context=context)
    logical = rewritten.plan
    stats = context.stats(logical, orders=True)
    if begun is not None:
        stats = replace(stats, ops=begun.stats.ops, relations=begun.stats.relations)
    plan = place(logical, stats, {model: those[0] for model, those in workers.items()})
    if not config.prefix_order:
        in_order = {name: tuple(range(len(order))) for name, order in plan.row_order.items()}
        plan = replace(plan, row_order=in_order, stage_order={})
    scheduled = _schedule(plan, stats, workers, tools, config)
    if scheduled is not None:
        # Every worker has a cache and slots of its own.
        times = min(len(those) for those in workers.values())
        rows_in_flight = min(MAX_ROWS_IN_FLIGHT, times * plan.rows_in_flight)
        plan = replace(scheduled.physical, rows_in_flight=rows_in_flight)
    if config.attention:
        from halo.attention import with_attention

        plan = with_attention(plan, stats, context, config)
    bound = tuple(query.traced.plan for query in queries)
    took_s = wall_s() - began_s
    return Prepared(queries, bound, rewritten, plan, stats, tools, scheduled, took_s)


def _schedule(
    plan: PhysicalPlan,
    stats: PlanStats,
    workers: Mapping[str, Sequence[Worker]],
    tools: Mapping[str, ToolSpec],
    config: Config,
) -> ScheduledPlan | None:
    """The rows split over workers, where a model has several; None where it has not."""
    if not any(len(those) > 1 for those in workers.values()):
        return None
    from halo.profiles import calibrated_timers
    from planner.schedule.assign import schedule_plan
    from planner.schedule.objective import Goal, Objective

    each = [worker for those in workers.values() for worker in those]
    return schedule_plan(
        plan,
        stats,
        _estimated_tokens,
        workers,
        now=wall_s,
        method=config.scheduler,
        budget_s=config.planning_s,
        seed=config.seed,
        max_steps=PLANNING_STEPS,
        objective=Objective(cast("Goal", config.objective)),
        timers=calibrated_timers(each, config.models_dir),
        tool_limits={name: spec.max_concurrency for name, spec in tools.items()},
    )


def _counted(plan: LogicalPlan, count_rows: CountRows | None) -> dict[str, int]:
    if count_rows is None:
        return {}
    found: dict[str, int] = {}
    for op in plan.walk():
        if isinstance(op, SqlRows) and (count := count_rows(op)) is not None:
            found[op.fingerprint] = count
    return found


def _smallest_cache(workers: Iterable[Sequence[Worker]]) -> int | None:
    known = [worker.cache_tokens for those in workers for worker in those]
    return min((each for each in known if each is not None), default=None)


def _estimated_tokens(text: str) -> int:
    from costmodel.tokens import estimate_tokens

    return estimate_tokens(text)
