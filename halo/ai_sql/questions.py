"""From a call to the model operator that answers it: the prompt, the type of the answer, the value.

The stable part of every prompt (instruction, labels, examples) comes before the data, so that all
rows of a call share it as a prefix. Data stands in reference segments, never in instructions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from halo.ai_sql.calls import CallSpec
from halo.ai_sql.types import schema_of
from planner.logical import (
    Body,
    Choose,
    Compare,
    Const,
    Field,
    Generate,
    Json,
    Op,
    Param,
    Prompt,
    Reduce,
    Ref,
    Segment,
    canonical_json,
)

YES, NO = "yes", "no"
SCORE_MAX = 100
"""AI_SCORE answers a whole number from 0 to this: a range that every engine can enforce."""

_FILTER_SYSTEM = (
    # Small models miss far less with these words: see docs/benchmarks/sql.md.
    "The user asks a question about a text. Answer yes if the answer is yes, else answer no."
)
_SCORE_SYSTEM = (
    f"Answer with one whole number from 0 to {SCORE_MAX}: how much what is asked holds, where 0 is "
    f"not at all and {SCORE_MAX} is as much as can be."
)
_AGG_FAN_IN = 64
_AGG_CONTEXT_TOKENS = 4096
"""Assumed context of a model that does not tell its own."""
_AGG_GROUP_TOKENS = 12_000
"""Even where the context allows more: models overlook what stands in the middle of long prompts."""

_MAX_TOKENS = {
    "AI_COMPLETE": 256,
    "AI_FILTER": 4,
    "AI_CLASSIFY": 32,
    "AI_EXTRACT": 256,
    "AI_SCORE": 8,
    "AI_AGG": 256,
}


def answer_op(
    spec: CallSpec,
    args: Sequence[Op],
    *,
    model: str | None = None,
    key: str = "",
    context_tokens: int | None = None,
) -> Op:
    """The value of a call over its arguments, as JSON of the type of the call.

    `key` is the identity of a sampled call; `model` overrides the spec's; `context_tokens` is the
    model's context, which bounds the groups of an aggregate.
    """
    builder = {
        "AI_COMPLETE": _complete,
        "AI_FILTER": _filter,
        "AI_CLASSIFY": _classify,
        "AI_EXTRACT": _extract,
        "AI_SCORE": _score,
        "AI_AGG": _aggregate,
    }[spec.function]
    return builder(spec, tuple(args), _Call(spec, model, key, context_tokens))


class _Call:
    """What the model operators of one spec have in common."""

    def __init__(
        self, spec: CallSpec, model: str | None, key: str, context_tokens: int | None
    ) -> None:
        self.context_tokens = context_tokens
        self._spec = spec
        self._model = spec.model if model is None else model
        self._key = key

    def generate(
        self, args: tuple[Op, ...], prompt: Prompt, system: str, schema: Json = None
    ) -> Generate:
        spec = self._spec
        return Generate(
            args,
            self._model,
            prompt,
            system=self._system(system),
            max_tokens=spec.max_tokens or _MAX_TOKENS[spec.function],
            temperature=spec.temperature,
            call_id=self._key if spec.temperature > 0 else "",
            schema_json=None if schema is None else canonical_json(schema),
            label=spec.label,
            fresh=not spec.cache,
        )

    def choose(
        self, args: tuple[Op, ...], prompt: Prompt, system: str, options: tuple[str, ...]
    ) -> Choose:
        spec = self._spec
        longest = max(len(option.encode()) for option in options)
        return Choose(
            args,
            self._model,
            prompt,
            system=self._system(system),
            max_tokens=spec.max_tokens or max(_MAX_TOKENS[spec.function], longest),
            temperature=spec.temperature,
            call_id=self._key if spec.temperature > 0 else "",
            options=options,
            label=spec.label,
            fresh=not spec.cache,
        )

    def _system(self, instruction: str) -> Prompt | None:
        examples = "".join(
            f"\n\nInput: {given}\nAnswer: {answer}" for given, answer in self._spec.examples
        )
        text = f"{instruction}\n\nExamples:{examples}" if examples else instruction
        return Prompt((text,)) if text.strip() else None


def prompt_of(spec: CallSpec) -> Prompt:
    """The prompt as written."""
    return Prompt(
        tuple(Ref(part) if isinstance(part, int) else part for part in spec.segments) or ("",)
    )


def _complete(spec: CallSpec, args: tuple[Op, ...], call: _Call) -> Op:
    if not spec.returns or schema_of(spec.returns) == {"type": "string"}:
        return call.generate(args, prompt_of(spec), "")
    return _boxed(call, args, prompt_of(spec), "", cast("Json", schema_of(spec.returns)))


def _filter(spec: CallSpec, args: tuple[Op, ...], call: _Call) -> Op:
    answer = call.choose(args, prompt_of(spec), _FILTER_SYSTEM, (YES, NO))
    return Compare((answer, Const.of(YES)), "==")


def _classify(spec: CallSpec, args: tuple[Op, ...], call: _Call) -> Op:
    labels = tuple(label for label, _ in spec.labels)
    listed = "\n".join(
        f"- {label}: {text}" if text else f"- {label}" for label, text in spec.labels
    )
    if not spec.multi:
        system = f"Give the label that fits the text best.\nLabels:\n{listed}"
        return call.choose(args, prompt_of(spec), system, labels)
    system = f"List the labels that fit the text; none, one or several.\nLabels:\n{listed}"
    schema: Json = {"type": "array", "items": {"enum": list(labels)}, "maxItems": len(labels)}
    return _boxed(call, args, prompt_of(spec), system, schema)


def _extract(spec: CallSpec, args: tuple[Op, ...], call: _Call) -> Op:
    lines = [
        f"- {name}: {question}" if question else f"- {name}" for name, _, question in spec.fields
    ]
    system = "Extract these fields from the text, as JSON:\n" + "\n".join(lines)
    properties: dict[str, Json] = {
        name: cast("Json", schema_of(kind)) for name, kind, _ in spec.fields
    }
    schema: Json = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return call.generate(args, prompt_of(spec), system, schema)


def _score(spec: CallSpec, args: tuple[Op, ...], call: _Call) -> Op:
    schema: Json = {"type": "integer", "minimum": 0, "maximum": SCORE_MAX}
    return _boxed(call, args, prompt_of(spec), _SCORE_SYSTEM, schema)


def _boxed(call: _Call, args: tuple[Op, ...], prompt: Prompt, system: str, schema: Json) -> Op:
    """An answer that is no object, as the member of one: engines that enforce schemas while
    decoding expect an object at the top."""
    if isinstance(schema, dict) and schema.get("type") == "object":
        return call.generate(args, prompt, system, schema)
    boxed: Json = {
        "type": "object",
        "properties": {"answer": schema},
        "required": ["answer"],
        "additionalProperties": False,
    }
    return Field((call.generate(args, prompt, system, boxed),), "answer")


def _aggregate(spec: CallSpec, args: tuple[Op, ...], call: _Call) -> Op:
    system = (
        f"{spec.task}\n\nThe user gives a JSON list of texts: inputs, or answers to this same task "
        "for parts of the inputs. Answer the task for all of them together."
    )
    segments: tuple[Segment, ...] = (Ref(0),)
    body = Body(1, call.generate((Param((), 0),), Prompt(segments), system))
    return Reduce(args, body, _AGG_FAN_IN, _group_tokens(spec, call), label=spec.label)


def _group_tokens(spec: CallSpec, call: _Call) -> int:
    """Tokens of a group: what the context leaves beside the answer and the instruction, with a
    quarter to spare because tokens are estimated from bytes."""
    context = call.context_tokens or _AGG_CONTEXT_TOKENS
    answer = spec.max_tokens or _MAX_TOKENS[spec.function]
    instruction = len(spec.task.encode()) // 3 + 128
    return max(64, min(_AGG_GROUP_TOKENS, int(0.75 * (context - answer - instruction))))
