"""Whether an attention technique may serve what a plan asks of an engine, and which one pays.

`costmodel.attention` says what each technique needs and what it does to the reuse of prefixes. Here
that meets the plan: for each model operator on a worker, how long its prompts are, how much of them
other calls have computed before, and what kind of call it is. A technique serves a whole engine, so
one operator that it must not serve refuses it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from costmodel.attention import AttentionProfile, Use, native
from costmodel.hardware import HardwareProfile
from costmodel.models import ModelProfile
from costmodel.step import PrefillChunk, StepLoad, StepModel
from costmodel.techniques.named import NamedTechnique, named_technique
from planner.context import PlanContext
from planner.errors import TechniqueRefusedError
from planner.logical import Agent, Choose, ModelOp
from planner.numbers import percent
from planner.physical import PhysicalPlan, Worker
from planner.prefix_hits import simulate_hits
from planner.prefix_tree import PrefixTree
from planner.stats import PlanStats

AUTO = "auto"
"""The setting that leaves the choice to the planner."""
SHARED_SHARE = 0.1
"""Share of an operator's prompt tokens from which its prefixes count as shared. Less is a chat
template and a few words of instruction, which are no loss."""
BLOCK_TOKENS = 16

ShapeOf = Callable[[Worker], "tuple[ModelProfile, HardwareProfile]"]
"""The model of a worker and the device that it runs on. Raises `ProfileError` when not known."""


@dataclass(frozen=True, slots=True)
class Served:
    """What one operator asks of a worker: calls, mean tokens of one, and the share of its prompt
    tokens that the prefix cache answers (predicted)."""

    op: ModelOp
    calls: float
    prompt_tokens: float
    output_tokens: float
    reused: float

    @property
    def shares_prefix(self) -> bool:
        # Each turn of an agent goes on from the cache of the turn before.
        return self.reused >= SHARED_SHARE or isinstance(self.op, Agent)


@dataclass(frozen=True)
class Wanted:
    """What was asked for, and what may be assumed.

    Attributes:
        setting: as the user wrote it: a technique, or `auto`.
        allow_approximate: whether answers may differ from the model's own.
        checkpoints: names of techniques for which the model's weights were made.
    """

    setting: str
    allow_approximate: bool = True
    checkpoints: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Choice:
    """The technique of a worker; None is the model's own attention. `refused`: why not others."""

    technique: NamedTechnique | None
    refused: Mapping[str, str] = field(default_factory=dict[str, str])


def with_techniques(
    plan: PhysicalPlan, stats: PlanStats, context: PlanContext, wanted: Wanted, shape_of: ShapeOf
) -> PhysicalPlan:
    """The plan with the technique of each worker decided: the one that was asked for, or with
    `auto` the fastest of those that the engine offers and that nothing speaks against.

    Raises `TechniqueRefusedError` when one was asked for that must not serve the plan.
    """
    workers: list[Worker] = []
    for worker in plan.workers:
        served = served_by(worker, plan, stats, context)
        if wanted.setting == AUTO:
            chosen = choose_technique(worker, served, wanted, shape_of).technique
            attention = chosen.name if chosen is not None else ""
        else:
            technique = named_technique(wanted.setting)
            reason = refusal(technique, worker, served, wanted, shape_of)
            if reason is not None:
                raise TechniqueRefusedError(wanted.setting, worker.name, reason)
            attention = wanted.setting
        workers.append(replace(worker, attention=attention))
    return replace(plan, workers=tuple(workers))


def choose_technique(
    worker: Worker, served: Sequence[Served], wanted: Wanted, shape_of: ShapeOf
) -> Choice:
    """The technique that serves `served` in least time by the cost model, of those that the engine
    of `worker` offers and that are not refused; the model's own attention where that is fastest."""
    refused: dict[str, str] = {}
    best: NamedTechnique | None = None
    if not worker.techniques or not served:
        return Choice(None, refused)
    model, hardware = shape_of(worker)
    least_s = _seconds(native(model), model, hardware, worker, served)
    for name in worker.techniques:
        technique = named_technique(name)
        reason = refusal(technique, worker, served, wanted, shape_of)
        if reason is not None:
            refused[name] = reason
            continue
        seconds = _seconds(technique.profile, model, hardware, worker, served)
        if seconds < least_s:
            best, least_s = technique, seconds
    return Choice(best, refused)


def refusal(
    technique: NamedTechnique,
    worker: Worker,
    served: Sequence[Served],
    wanted: Wanted,
    shape_of: ShapeOf,
) -> str | None:
    """Why a technique must not serve what is asked of a worker, naming the operator; None when it
    may."""
    title = technique.profile.title
    if technique.name not in worker.techniques:
        offered = ", ".join(worker.techniques) or "none"
        return (
            f"the engine {worker.engine!r} does not offer {title}; techniques it offers: {offered}"
        )
    model, _ = shape_of(worker)
    for each in served:
        reason = _refusal_of(technique.profile, model, worker, each, wanted)
        if reason is not None:
            return f"call {each.op.label or each.op.kind!r}: {reason}"
    return None


def _refusal_of(
    profile: AttentionProfile, model: ModelProfile, worker: Worker, served: Served, wanted: Wanted
) -> str | None:
    if isinstance(served.op, Choose) and profile.exactness != "exact":
        return (
            "the options of a choice are scored behind one prompt, which an engine with "
            f"{profile.title} does not do"
        )
    reason = profile.refusal(
        model,
        Use(
            prompt_tokens=served.prompt_tokens,
            output_tokens=served.output_tokens,
            batch=worker.max_in_flight,
            allow_approximate=wanted.allow_approximate,
            shares_prefix=served.shares_prefix,
            checkpoints=wanted.checkpoints,
        ),
    )
    if reason is not None and profile.prefix_reuse == "exact_prompt" and served.shares_prefix:
        reused = f"{percent(served.reused, 1.0)} of its prompt tokens are cached, predicted"
        return f"{reason} ({'it goes on turn by turn' if isinstance(served.op, Agent) else reused})"
    return reason


def served_by(
    worker: Worker, plan: PhysicalPlan, stats: PlanStats, context: PlanContext
) -> list[Served]:
    """What the operators of a plan ask of a worker, those that ask nothing left out."""
    ops = {op.fingerprint: op for op in plan.logical.walk_all() if isinstance(op, ModelOp)}
    here = {
        key: op
        for key, op in ops.items()
        if worker.name in (plan.placements.get(key), *plan.rows_by_worker(op))
        and stats.of(op).calls > 0
    }
    reused = _reused(here, worker, plan, stats, context)
    return [
        Served(
            op,
            stats.of(op).calls,
            stats.of(op).input_tokens / stats.of(op).calls,
            stats.of(op).output_tokens / stats.of(op).calls,
            reused.get(key, 0.0),
        )
        for key, op in here.items()
    ]


def _reused(
    ops: Mapping[str, ModelOp],
    worker: Worker,
    plan: PhysicalPlan,
    stats: PlanStats,
    context: PlanContext,
) -> dict[str, float]:
    """The share of each operator's prompt tokens that other calls on the worker computed before,
    by a simulation of its cache; where the rows are not known yet, by the estimate."""
    if not worker.prefix_cache:
        return {}
    block = max(BLOCK_TOKENS, worker.prefix_block_tokens)
    shares = {
        key: stats.of(op).cached_tokens(block) / max(1.0, stats.of(op).input_tokens)
        for key, op in ops.items()
    }
    tree = PrefixTree([each for each in context.stats(plan.logical).templates if each.op in ops])
    for source, order in plan.row_order.items():
        found = simulate_hits(
            tree,
            source,
            context.profile,
            order,
            capacity_tokens=worker.cache_tokens,
            block_tokens=block,
        )
        shares |= {op: max(shares[op], hits.share) for op, hits in found.ops.items()}
    return shares


def _seconds(
    profile: AttentionProfile,
    model: ModelProfile,
    hardware: HardwareProfile,
    worker: Worker,
    served: Iterable[Served],
) -> float:
    """Seconds of all calls: prompts less what is reused, and tokens decoded in full batches."""
    steps = StepModel(model, hardware, profile)
    seconds = 0.0
    for each in served:
        reused = 0.0 if profile.prefix_reuse == "exact_prompt" else each.reused
        cached = int(each.prompt_tokens * reused)
        prompt = PrefillChunk(max(1, round(each.prompt_tokens) - cached), cached)
        context = round(each.prompt_tokens + each.output_tokens / 2)
        decode = StepLoad(decode_contexts=(context,) * worker.max_in_flight)
        seconds += each.calls * steps.cost(StepLoad((prompt,))).time_s
        decoded = each.calls * each.output_tokens / worker.max_in_flight
        seconds += decoded * steps.cost(decode).time_s
    return seconds
