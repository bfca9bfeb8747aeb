"""Prompts begin with what rows share."""

from __future__ import annotations

from dataclasses import replace

from planner.context import PlanContext
from planner.logical import LogicalPlan, ModelOp, Op, Prompt, Ref, Segment
from planner.stats import PlanStats
from planner.surgery import joined_literals, transform_plan

BREAK = "\n\n"


def unsafe_hoist_stable_parts(plan: LogicalPlan, context: PlanContext) -> LogicalPlan:
    """Put the paragraphs of a prompt that vary least first: literals, then columns of few values.

    A prefix cache holds what prompts begin with. A prompt that begins with the row's document
    shares nothing; with the instruction first it shares the instruction, and rows with equal
    documents share both. Paragraphs are kept whole, and keep their order where they vary equally.
    The model reads them in another order and may answer differently: off unless asked for.
    """
    stats: list[PlanStats] = []

    def hoist(op: Op) -> Op:
        if not isinstance(op, ModelOp):
            return op
        blocks = _paragraphs(op.prompt)
        if len(blocks) < 2 or not op.prompt.references:
            return op
        if not stats:
            stats.append(context.stats(plan))
        varies = [_varies(block, op, stats[0]) for block in blocks]
        order = sorted(range(len(blocks)), key=varies.__getitem__)
        if order == list(range(len(blocks))):
            return op
        segments: list[Segment] = []
        for place, i in enumerate(order):
            segments += [BREAK, *blocks[i]] if place else blocks[i]
        return replace(op, prompt=joined_literals(Prompt(tuple(segments))))

    return transform_plan(plan, hoist, ModelOp)


def _paragraphs(prompt: Prompt) -> list[list[Segment]]:
    """The segments between blank lines."""
    blocks: list[list[Segment]] = [[]]
    for segment in prompt.segments:
        if isinstance(segment, Ref):
            blocks[-1].append(segment)
            continue
        for number, text in enumerate(segment.split(BREAK)):
            if number:
                blocks.append([])
            blocks[-1].append(text)
    cleaned: list[list[Segment]] = [[s for s in block if s != ""] for block in blocks]
    return [block for block in cleaned if block]


def _varies(block: list[Segment], op: ModelOp, stats: PlanStats) -> float:
    """How many different texts a paragraph has: 0 for a literal."""
    found = [stats.of(op.inputs[s.index]).distinct for s in block if isinstance(s, Ref)]
    return max(found, default=0.0)
