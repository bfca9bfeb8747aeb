"""Several questions about one text are one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from planner.context import PlanContext
from planner.logical import (
    Choose,
    Effect,
    Field,
    Filter,
    Generate,
    Json,
    LogicalPlan,
    Op,
    Prompt,
    Ref,
    Segment,
    canonical_json,
)
from planner.surgery import joined_literals, rebuild_rows, row_cone

TOKENS_PER_ANSWER = 16
"""Tokens that an answer takes beside its option: name, quotes, comma."""


def unsafe_fuse_calls(plan: LogicalPlan, context: PlanContext) -> LogicalPlan:
    """Ask several choices about the same text in one call with one answer for each.

    Only choices whose prompts differ in their words alone, before or after the same text, and none
    that a filter decides by. The text is then read once. The model answers all questions in one go
    and may answer differently: off unless asked for.
    """
    if Choose not in plan.kinds:
        return plan
    filtering = {
        each.fingerprint
        for op in plan.walk()
        if isinstance(op, Filter)
        for each in row_cone([op.predicate])
    }
    groups: dict[str, list[tuple[Choose, _Question]]] = {}
    for op in plan.walk():
        if isinstance(op, Choose) and op.fingerprint not in filtering:
            question = _question(op)
            if question is not None and op.effect is Effect.PURE and not op.after:
                groups.setdefault(question.key(op), []).append((op, question))
    answers: dict[str, Op] = {}
    for group in groups.values():
        if len(group) > 1:
            fused = _fused(group)
            for number, (op, _) in enumerate(group, 1):
                answers[op.fingerprint] = Field((fused,), f"answer_{number}", label=op.label)
    if not answers:
        return plan
    return rebuild_rows(plan, lambda original, op: answers.get(original.fingerprint, op))


@dataclass(frozen=True, slots=True)
class _Question:
    """A prompt that is a text over data, with words before or after it."""

    words: str
    data: Prompt
    words_first: bool

    def key(self, op: Choose) -> str:
        """Equal for questions that may be asked together."""
        system = _texts(op.system, op.inputs) if op.system is not None else None
        data = _texts(self.data, op.inputs)
        where: Json = [op.model, op.top_p, op.fresh, system, data, self.words_first]
        return canonical_json(where)


def _texts(prompt: Prompt, inputs: Sequence[Op]) -> list[Json]:
    return [
        segment if isinstance(segment, str) else {"of": inputs[segment.index].fingerprint}
        for segment in prompt.segments
    ]


def _question(op: Choose) -> _Question | None:
    segments = joined_literals(op.prompt).segments
    if len(segments) == 2:
        first, second = segments
        if isinstance(first, str) and isinstance(second, Ref):
            return _Question(first, Prompt((second,)), True)
        if isinstance(first, Ref) and isinstance(second, str):
            return _Question(second, Prompt((first,)), False)
    return None


def _fused(group: Sequence[tuple[Choose, _Question]]) -> Generate:
    first, question = group[0]
    asked = "\n".join(
        f"answer_{number}: {each.words.strip()} ({' or '.join(op.options)})"
        for number, (op, each) in enumerate(group, 1)
    )
    words = f"Give an answer to each of these:\n{asked}"
    segments: tuple[Segment, ...]
    data = question.data.segments
    segments = (words, "\n\n", *data) if question.words_first else (*data, "\n\n", words)
    schema: Json = {
        "type": "object",
        "properties": {
            f"answer_{number}": {"type": "string", "enum": list(op.options)}
            for number, (op, _) in enumerate(group, 1)
        },
        "required": [f"answer_{number}" for number in range(1, len(group) + 1)],
        "additionalProperties": False,
    }
    longest = sum(max(len(o) for o in op.options) + TOKENS_PER_ANSWER for op, _ in group)
    return Generate(
        first.inputs,
        first.model,
        Prompt(segments),
        replace(first.system) if first.system is not None else None,
        longest,
        0.0,
        first.top_p,
        fresh=first.fresh,
        schema_json=canonical_json(schema),
        label=" + ".join(op.label or "choice" for op, _ in group),
    )
