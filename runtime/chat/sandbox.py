"""A model's chat template, run by minijinja: nothing outside its values is in reach, and steps are
limited."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

FUEL = 20_000_000
"""Steps of the template engine; a conversation of thousands of turns needs a small part of it."""


class TemplateRefusedError(Exception):
    """A template cannot be read, or does not take a conversation; the message says why."""


class SandboxedTemplate:
    """A chat template. It is compiled on first use.

    Args:
        names: further values that the template sees, such as `bos_token`.
        strftime: the date in a layout, for templates that print it; a `ValueError` refuses.
    """

    def __init__(
        self, source: str, names: Mapping[str, Any], strftime: Callable[[str], str]
    ) -> None:
        self._source = source
        self._names = dict(names)
        self._strftime = strftime

    @property
    def takes_tools(self) -> bool:
        """Whether the template shows tools to the model."""
        return "tools" in self._source

    def render(self, turns: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> str:
        """The prompt of a conversation, ready for the answer. Raises `TemplateRefusedError`."""
        import minijinja

        environment = self._environment
        try:
            return str(
                environment.render_template(
                    "chat",
                    messages=turns,
                    tools=tools or None,
                    add_generation_prompt=True,
                    **self._names,
                )
            )
        except (minijinja.TemplateError, ValueError, TypeError) as error:
            raise TemplateRefusedError(f"refused the conversation: {error}") from error

    @cached_property
    def _environment(self) -> Any:
        import minijinja

        environment = minijinja.Environment(
            fuel=FUEL, trim_blocks=True, lstrip_blocks=True, auto_escape_callback=lambda _: False
        )
        environment.add_filter("tojson", to_json)
        environment.add_filter("from_json", json.loads)
        environment.add_global("raise_exception", _refuse)
        environment.add_global("strftime_now", self._strftime)
        try:
            environment.add_template("chat", self._source)
        except minijinja.TemplateError as error:
            raise TemplateRefusedError(f"cannot be read: {error}") from error
        return environment


def to_json(value: Any, indent: int | None = None) -> str:
    """As templates expect it: spaces after separators, nothing escaped for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> str:
    raise ValueError(message)
