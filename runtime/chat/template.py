"""Prompts for engines that tokenize here: pieces of text, each to be encoded on its own.

Control tokens are texts such as `<|im_start|>`, and a document may contain the same texts. Where
one does, a break mark is put inside it before the template is rendered: the mark is a character
that no value contains, templates pass it through (also through `trim`, `split` and `tojson`), and
whoever turns the rendered text into tokens encodes the pieces between marks on their own. So the
document's text reaches the model unchanged, spelled with plain tokens, and only the template's own
control tokens are control tokens. A prompt without such texts is one piece, tokenized as by any
other runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from typing import Any

from runtime.backends.base import Message, ToolSchema
from runtime.chat.sandbox import SandboxedTemplate, TemplateRefusedError, to_json
from runtime.chat.turns import Guard, offer_of, turn_of
from runtime.errors import ModelFileError

PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
"""For files without a chat template, which are base models."""

_MARKS = range(0xE000, 0xF8FF)  # the private use area: no meaning, so hardly ever in texts


class ChatTemplate:
    """A chat template with the texts that are control tokens of its model.

    Args:
        source: the template; `PLAIN_TEMPLATE` for none.
        special_texts: what the tokenizer takes as one token wherever it stands.
        bos_token, eos_token: what templates may print.
        now: the date that some templates print.
    """

    def __init__(
        self,
        source: str,
        special_texts: Collection[str],
        *,
        bos_token: str = "",
        eos_token: str = "",
        now: Callable[[], datetime] | None = None,
    ) -> None:
        self._template = SandboxedTemplate(
            source, {"bos_token": bos_token, "eos_token": eos_token}, self._strftime
        )
        self._special = sorted((t for t in special_texts if t), key=len, reverse=True)
        self._beginnings = {t[:i] for t in self._special for i in range(1, len(t))}
        self._ends = {t[i:] for t in self._special for i in range(1, len(t))}
        self._longest = max(map(len, self._special), default=0)
        self._now = now

    @property
    def takes_tools(self) -> bool:
        """Whether the template shows tools to the model."""
        return self._template.takes_tools

    def pieces(
        self, messages: Sequence[Message], tools: Sequence[ToolSchema] = ()
    ) -> tuple[str, ...]:
        """The prompt: texts to be encoded one by one, each with control tokens where they stand,
        and joined. Raises `ModelFileError` when the template does not take this conversation."""
        values = [m.content for m in messages]
        values.extend(part for m in messages for c in m.tool_calls for part in (c.name, c.id))
        values.extend(c.arguments_json for m in messages for c in m.tool_calls)
        values.extend(part for m in messages for part in (m.name, m.tool_call_id))
        values.extend(part for t in tools for part in (t.name, t.description, t.parameters_json))
        mark = _unused_mark(values)
        guard = self._guard(mark)
        turns = [turn_of(message, guard(message.content), guard) for message in messages]
        offered = [offer_of(tool, guard) for tool in tools]
        if not self.takes_tools:
            if offered:
                turns, offered = _with_tool_text(turns, offered), []
            turns = [_without_tool_turns(turn) for turn in turns]
        try:
            rendered = self._template.render(turns, offered)
        except TemplateRefusedError as error:
            raise ModelFileError(f"the model's chat template {error}") from error
        return tuple(piece for piece in rendered.split(mark) if piece)

    def _strftime(self, layout: str) -> str:
        if self._now is None:
            raise ValueError("it asks for the date, which would make answers unrepeatable")
        return self._now().strftime(layout)

    def breaks_of(self, text: str) -> list[int]:
        """Where marks must go in `text`: inside each special text, and at an end that could be a
        part of one."""
        places: set[int] = set()
        if not self._special:
            return []
        for special in self._special:
            at = text.find(special)
            while at >= 0:
                places.add(at + 1)
                at = text.find(special, at + 1)
        tail = text[-self._longest :]
        if any(tail[i:] in self._beginnings for i in range(len(tail))):
            places.add(len(text))
        head = text[: self._longest]
        if any(head[:i] in self._ends for i in range(1, len(head) + 1)):
            places.add(0)
        return sorted(places)

    def _guard(self, mark: str) -> Guard:
        """Puts `mark` into values."""

        def guard(value: str) -> str:
            value = value.encode(errors="replace").decode()  # a lone surrogate has no UTF-8
            parts: list[str] = []
            start = 0
            for place in self.breaks_of(value):
                parts.append(value[start:place])
                start = place
            return mark.join((*parts, value[start:]))

        return guard


def _unused_mark(values: Sequence[str]) -> str:
    used = set("").union(*values) if values else set[str]()
    for code in _MARKS:
        if chr(code) not in used:
            return chr(code)
    raise ModelFileError("the prompt contains every character of the private use area")


def _with_tool_text(
    turns: list[dict[str, Any]], tools: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """For templates that know no tools: they are described in the system message."""
    lines = "\n".join(to_json(tool) for tool in tools)
    text = (
        "You may call one or more functions. Their signatures:\n"
        f"{lines}\n"
        "To call one, answer with this and nothing else, as often as needed:\n"
        '<tool_call>\n{"name": "function name", "arguments": {"argument": "value"}}\n</tool_call>'
    )
    if turns and turns[0]["role"] == "system":
        return [{**turns[0], "content": f"{turns[0]['content']}\n\n{text}"}, *turns[1:]]
    return [{"role": "system", "content": text}, *turns]


def _without_tool_turns(turn: dict[str, Any]) -> dict[str, Any]:
    """For templates that know no tools: calls and results as the text of ordinary turns."""
    if turn["role"] == "tool":
        content = f"Result of {turn.get('name', '')}:\n{turn['content']}"
        return {"role": "user", "content": content}
    calls = turn.get("tool_calls")
    if not calls:
        return turn
    said = [turn["content"]] if turn["content"] else []
    for call in calls:
        body = {"name": call["function"]["name"], "arguments": call["function"]["arguments"]}
        said.append(f"<tool_call>\n{to_json(body)}\n</tool_call>")
    return {"role": turn["role"], "content": "\n".join(said)}
