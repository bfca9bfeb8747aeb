"""From a model's text to the value that its operator promises, with one second chance.

Engines enforce schemas and options while decoding, as far as they can; what comes back is checked
all the same, because an answer may be cut at its token limit and not every engine enforces all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

from costmodel.usage import OpMetrics
from planner.errors import PlanError
from planner.logical import Json
from runtime.backends.base import Message, Request
from runtime.dispatch import Dispatcher
from runtime.errors import ContextOverflowError, OutputTypeError
from runtime.json_schema import schema_validator
from runtime.records import CallRecord, CallSite
from runtime.values import excerpt, parse_json


class MisfitError(Exception):
    """A text is not of the declared type; the message says why."""


class JsonType:
    """Values of a JSON Schema. The schema is compiled on first use; who shows it to an engine first
    asks for `ensure_sound`."""

    def __init__(self, schema_json: str) -> None:
        self.schema_json = schema_json

    @cached_property
    def _validator(self) -> Any:
        try:
            return schema_validator(cast("dict[str, Any]", parse_json(self.schema_json)))
        except ValueError as error:
            raise PlanError(f"not a JSON Schema: {error}; schema: {self.schema_json}") from None

    def ensure_sound(self) -> None:
        """Raise `PlanError` when the schema is none, or refers to something outside itself."""
        _ = self._validator

    @property
    def wish(self) -> str:
        """What a model is told to answer with."""
        return f"JSON that fits this schema, and nothing else: {self.schema_json}"

    def parse(self, text: str) -> Json:
        """The value of `text`. Raises `MisfitError`."""
        try:
            value = parse_json(text)
        except ValueError as error:
            raise MisfitError(f"it is not JSON: {error}") from None
        self.check(value)
        return value

    def check(self, value: Json) -> None:
        """Raise `MisfitError` when `value` does not fit."""
        validator = self._validator
        if validator.is_valid(value):
            return
        error = next(iter(validator.iter_errors(value)))
        place = "".join(f"/{part}" for part in error.instance_path)
        raise MisfitError(f"it does not fit the schema: {error.message} (at {place or 'the top'})")

    def is_partial(self, text: str) -> bool:
        """Whether a text that was cut may have meant another value. Always: half of a number is a
        number."""
        return True


@dataclass(frozen=True, slots=True)
class Options:
    """One of several texts; space around an answer is not part of it."""

    options: tuple[str, ...]

    @property
    def wish(self) -> str:
        return f"one of these, and nothing else: {', '.join(map(repr, self.options))}"

    def parse(self, text: str) -> Json:
        """The option that `text` is. Raises `MisfitError`."""
        for answer in (text, text.strip()):
            if answer in self.options:
                return answer
        raise MisfitError(f"it is none of {', '.join(map(repr, self.options))}")

    def completed(self, text: str) -> str | None:
        """The one option that a text which was cut is the beginning of; None when it is several or
        none."""
        begun = text.strip()
        found = [option for option in self.options if begun and option.startswith(begun)]
        return found[0] if len(found) == 1 else None

    def is_partial(self, text: str) -> bool:
        """Whether a text that was cut may have been about to become another option."""
        answer = text.strip()
        return answer not in self.options or any(
            option.startswith(answer) and option != answer for option in self.options
        )


AnswerType = JsonType | Options


def answer_text(record: CallRecord) -> str:
    """The text of a model's answer."""
    return cast("str", cast("Mapping[str, Json]", record.value)["text"])


class Asker:
    """Asks models for values of a type."""

    def __init__(self, models: Dispatcher, metrics: dict[str, OpMetrics]) -> None:
        self.models = models
        self._metrics = metrics

    async def ask(
        self, worker: str, request: Request, site: CallSite, priority: int, answer_type: AnswerType
    ) -> Json:
        """The value of a model's answer to `request`.

        An answer that was cut at its token limit is asked for again with twice the limit; one that
        does not fit, with the reason in a second turn of the conversation. Raises
        `OutputTypeError` when the second answer does not fit either.
        """
        if isinstance(answer_type, JsonType):
            answer_type.ensure_sound()
        record = await self.models.complete(worker, request, site, priority=priority)
        try:
            return typed_answer(record, request.max_tokens, answer_type)
        except MisfitError as misfit:
            return await self.ask_again(
                worker, request, site, priority, answer_type, record, str(misfit)
            )

    async def ask_again(
        self,
        worker: str,
        request: Request,
        site: CallSite,
        priority: int,
        answer_type: AnswerType,
        record: CallRecord,
        reason: str,
    ) -> Json:
        """The value of a second answer: `record` is the first one, which does not fit for the given
        reason. Raises `OutputTypeError`."""
        text = answer_text(record)
        cut = record.finish_reason == "length"
        second = (
            replace(request, max_tokens=2 * request.max_tokens)
            if cut
            else replace(request, messages=_correction(request.messages, text, reason, answer_type))
        )
        try:
            record = await self.models.complete(
                worker, second, replace(site, turn=site.turn + 1), priority=priority
            )
        except ContextOverflowError:
            if not cut:
                raise
            self._count_error(site)
            raise OutputTypeError(
                f"the answer is not complete: {reason}, and there is no room for a longer one in "
                f"the model's context; shorten the prompt or ask for less; it began: "
                f"{excerpt(text)}"
            ) from None
        try:
            return typed_answer(record, second.max_tokens, answer_type)
        except MisfitError as misfit:
            self._count_error(site)
            raise OutputTypeError(
                f"the answer does not fit its type, also when asked again: {misfit}; raise "
                f"max_tokens, bound its strings (max_length), ask for a simpler type or use a "
                f"larger model; the answer: "
                f"{excerpt(answer_text(record))}"
            ) from None

    def _count_error(self, site: CallSite) -> None:
        self._metrics.setdefault(site.op, OpMetrics()).errors += 1


def typed_answer(record: CallRecord, max_tokens: int, answer_type: AnswerType) -> Json:
    """The value of a model's answer, which had at most `max_tokens`. Raises `MisfitError`."""
    text = answer_text(record)
    if record.finish_reason == "length" and isinstance(answer_type, Options):
        option = answer_type.completed(text)
        if option is not None:
            return option
    if record.finish_reason == "length" and answer_type.is_partial(text):
        raise MisfitError(f"it was cut at {max_tokens} tokens")
    return answer_type.parse(text)


def _correction(
    messages: Sequence[Message], text: str, reason: str, answer_type: AnswerType
) -> tuple[Message, ...]:
    return (
        *messages,
        Message("assistant", text),
        Message(
            "user",
            f"That answer cannot be used: {reason}. Answer again with {answer_type.wish}",
        ),
    )
