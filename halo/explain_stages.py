"""EXPLAIN of a planned batch, at each stage of its way from queries to a physical plan."""

from __future__ import annotations

from halo.errors import WorkflowError
from halo.gantt import explain_schedule, is_gantt
from halo.planning import Prepared
from planner.explain import explain, explain_physical

STAGES = ("bound", "merged", "optimized", "physical")


def explain_stage(
    prepared: Prepared, *, stage: str = "physical", format: str = "text", verbose: bool = False
) -> str:
    """The plan at a stage: bound (each query alone), merged, optimized or physical. Raises
    `WorkflowError` for another stage, `PlanError` for a format that does not exist."""
    if stage not in STAGES:
        raise WorkflowError(f"no stage {stage!r}; the stages are: {', '.join(STAGES)}")
    rewritten = prepared.rewritten
    if stage == "bound":
        parts = [explain(plan, format=format, verbose=verbose) for plan in prepared.bound]
        return "\n".join(parts)
    if stage == "merged":
        merged = rewritten.merged
        stats = rewritten.context.stats(merged)
        return explain(merged, stats=stats, format=format, verbose=verbose)
    if stage == "optimized":
        return explain(
            prepared.plan.logical,
            stats=prepared.stats,
            format=format,
            verbose=verbose,
            rewritten=rewritten,
        )
    if is_gantt(format):
        return explain_schedule(prepared.plan, prepared.stats, format)
    return explain_physical(
        prepared.plan,
        prepared.stats,
        format=format,
        verbose=verbose,
        rewritten=rewritten,
    )


def explain_prefixes(prepared: Prepared, capacity_tokens: int) -> str:
    """The static prefixes of a batch, and what a KV cache of `capacity_tokens` would hit."""
    from planner.explain_prefixes import prefix_report

    blocks = [worker.prefix_block_tokens for worker in prepared.plan.workers]
    return prefix_report(
        prepared.plan.logical,
        prepared.rewritten.context,
        prepared.plan.row_order,
        capacity_tokens=capacity_tokens,
        block_tokens=max(16, *blocks) if blocks else 16,
    )
