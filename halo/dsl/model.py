"""`halo.Model`: a language model that a workflow calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar, overload

from halo.dsl.eager import record
from halo.dsl.lazy import make
from halo.dsl.lift import prompt_of, scope_here
from halo.dsl.schema import schema_json
from halo.dsl.trace import fault, located
from planner.logical import Choose, Generate, Op, Prompt

T = TypeVar("T")
OptionT = TypeVar("OptionT", bound=str)


class Model:
    """A model by name; without one, the session's default model.

    `max_tokens`, `temperature` and `top_p` are defaults of its calls. Temperature 0 (greedy) makes
    equal calls one call; above 0 every written call draws for itself.
    """

    def __init__(
        self,
        name: str = "",
        *,
        max_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
    ) -> None:
        self.name = name
        self.max_tokens = max_tokens
        self.temperature = temperature
        self.top_p = top_p

    def __repr__(self) -> str:
        return f"Model({self.name!r})"

    @overload
    def gen(
        self,
        prompt: str,
        *,
        system: str | None = None,
        out: None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        stop: str | Sequence[str] = (),
        name: str | None = None,
    ) -> str: ...

    @overload
    def gen(
        self,
        prompt: str,
        *,
        out: type[T],
        system: str | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        stop: str | Sequence[str] = (),
        name: str | None = None,
    ) -> T: ...

    @overload
    def gen(
        self,
        prompt: str,
        *,
        out: object,
        system: str | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        stop: str | Sequence[str] = (),
        name: str | None = None,
    ) -> Any: ...

    def gen(
        self,
        prompt: str,
        *,
        system: str | None = None,
        out: object = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        stop: str | Sequence[str] = (),
        name: str | None = None,
    ) -> Any:
        """The model's answer to `prompt`: text, or a value of the type `out`.

        `out` is a pydantic model, `Literal[...]`, an Enum, bool, int, float, or a list of those;
        its JSON Schema is enforced while decoding. `stop` ends a text. `name` is for EXPLAIN.
        """
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        schema = answer_schema(out)

        def build() -> Any:
            inputs: dict[Op, int] = {}
            texts = call_prompts(prompt, system, inputs)
            options = self.options(max_tokens, temperature, top_p)
            with located():
                op = Generate(
                    tuple(inputs),
                    label=name or "gen",
                    prompt=texts[0],
                    system=texts[1],
                    schema_json=schema,
                    stop=stops,
                    **options,
                    call_id=scope_here().tracer.next_call_id()
                    if options["temperature"] > 0
                    else "",
                )
            return make(op, str if out is None else out)

        return record(build, str if out is None else out)

    def choose(
        self,
        prompt: str,
        options: Sequence[OptionT],
        *,
        system: str | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        name: str | None = None,
    ) -> OptionT:
        """One of `options` (at least two different texts), enforced while decoding."""
        plain = tuple(options)
        if not all(type(option) is str for option in plain):
            raise fault("an option of lm.choose is no plain text", "Options are fixed texts")

        def build() -> Any:
            inputs: dict[Op, int] = {}
            texts = call_prompts(prompt, system, inputs)
            settings = self.options(None, temperature, top_p)
            split = scope_here().tracer.split
            if any(not isinstance(part, str) for option in plain for part in split(option)):
                raise fault("an option of lm.choose holds a lazy value", "Options are fixed texts")
            with located():
                op = Choose(
                    tuple(inputs),
                    label=name or "choose",
                    prompt=texts[0],
                    system=texts[1],
                    options=plain,
                    **settings,
                    call_id=scope_here().tracer.next_call_id()
                    if settings["temperature"] > 0
                    else "",
                )
            return make(op, str)

        return record(build, str)  # type: ignore[no-any-return]

    def options(
        self, max_tokens: int | None, temperature: float | None, top_p: float | None
    ) -> dict[str, Any]:
        """The fields that every model operator has: those of the call, else the model's."""
        return {
            "model": self.name,
            "max_tokens": self.max_tokens if max_tokens is None else max_tokens,
            "temperature": float(self.temperature if temperature is None else temperature),
            "top_p": float(self.top_p if top_p is None else top_p),
        }


def call_prompts(
    prompt: object, system: object, inputs: dict[Op, int]
) -> tuple[Prompt, Prompt | None]:
    """The prompt and the system prompt of a call, over shared `inputs`."""
    first = prompt_of(prompt, inputs)
    return first, None if system is None else prompt_of(system, inputs, "a system prompt")


def answer_schema(out: object) -> str | None:
    """The JSON Schema of a declared answer; None for text."""
    if out is None or out is str:
        return None
    try:
        return schema_json(out)
    except TypeError as error:
        raise fault(
            f"out={out!r} is no type of an answer ({error})",
            "Use a pydantic model, Literal[...], an Enum, bool, int, float or a list of those",
        ) from error
