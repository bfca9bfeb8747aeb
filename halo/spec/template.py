"""Texts with references: `Who won {{ question }}?`, `{{ verdict.reasons[0] }}`.

There is nothing else between the braces: no filters, no loops, no calls. A template is split once,
when the file is read; data that is put into its places is never scanned again, so a document that
contains braces stays a document.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn

from pydantic_core import PydanticCustomError

NAME = r"[^\W\d][\w-]*"
STRING = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
ESCAPE_HINT = "for literal braces write {{ '{{' }}"

_NAME = re.compile(NAME)
_STEP = re.compile(rf"\s*(?:\.\s*({NAME})|\[\s*(-?\d+)\s*\]|\[\s*({STRING})\s*\])", re.DOTALL)
_STRING = re.compile(STRING, re.DOTALL)
_BRACES = re.compile(rf"\{{\{{((?:{STRING}|[^'\"{{}}])*)\}}\}}", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Reference:
    """`root.key[0]["other key"]`: a value and the way to a member of it. `before` is the text in
    front of the reference, for messages."""

    root: str
    keys: tuple[str | int, ...] = ()
    before: str = field(default="", compare=False, repr=False)

    def __str__(self) -> str:
        return self.root + "".join(
            f".{k}" if isinstance(k, str) and _NAME.fullmatch(k) else f"[{quoted(k)}]"
            for k in self.keys
        )


@dataclass(frozen=True, slots=True)
class Template:
    """Literal and reference parts; literals are never empty and never side by side."""

    parts: tuple[str | Reference, ...]


def is_name(text: str) -> bool:
    """Whether `text` can stand bare in a reference."""
    return _NAME.fullmatch(text) is not None


def refuse(problem: str, before: str = "", field: str = "") -> NoReturn:
    """Raise the error that pydantic collects with the path of the field. `before` is the text in
    front of the place; `field` is the field inside a mapping."""
    context = {"problem": problem, "before": before, "field": field}
    raise PydanticCustomError("halo", "{problem}", context)


def quoted(key: str | int) -> str:
    """A key or a text literal inside a reference or a condition."""
    if isinstance(key, int):
        return str(key)
    escaped = key.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"'{escaped}'"


def unquoted(literal: str) -> str:
    """The text of a quoted literal: `\\n` and `\\t` are line break and tab, any other character
    after a backslash is itself."""
    return re.sub(
        r"\\(.)",
        lambda m: {"n": "\n", "t": "\t"}.get(m[1], m[1]),
        literal[1:-1],
        flags=re.DOTALL,
    )


def match_reference(text: str, at: int) -> tuple[Reference, int] | None:
    """The reference at `at` and where it ends; None when there is none."""
    root = _NAME.match(text, at)
    if root is None:
        return None
    keys: list[str | int] = []
    end = root.end()
    while step := _STEP.match(text, end):
        name, number, string = step.groups()
        keys.append(name or (int(number) if number else unquoted(string)))
        end = step.end()
    return Reference(root[0], tuple(keys), text[:at]), end


def parse_reference(text: str) -> Reference:
    """A whole text as a reference, with or without braces."""
    bare = text.strip()
    if bare.startswith("{{") and bare.endswith("}}"):
        bare = bare[2:-2].strip()
    found = match_reference(bare, 0)
    if found is None or found[1] != len(bare):
        refuse(_not_a_reference(bare))
    return found[0]


def _not_a_reference(text: str) -> str:
    return (
        f"{text!r:.60} is no reference; expected the name of a step or column, then .field, [0] or "
        "['key'] (there is no other logic in a template)"
    )


def parse_template(text: str) -> Template:
    """The parts of a text. Refuses braces that hold anything but one reference or one quoted
    text."""
    parts: list[str | Reference] = []

    def add(literal: str) -> None:
        if parts and isinstance(parts[-1], str):
            parts[-1] += literal
        elif literal:
            parts.append(literal)

    at = 0
    while (start := text.find("{{", at)) >= 0:
        add(text[at:start])
        before = text[:start]
        match = _BRACES.match(text, start)
        if match is None:
            problem = "without its }}" if "}}" not in text[start:] else "that is malformed"
            refuse(f"a {{{{ {problem}; {ESCAPE_HINT}", before)
        inside = match[1].strip()
        if _STRING.fullmatch(inside):
            add(unquoted(inside))
        else:
            found = match_reference(inside, 0)
            if found is None or found[1] != len(inside):
                refuse(f"{_not_a_reference(inside)}; {ESCAPE_HINT}", before)
            parts.append(Reference(found[0].root, found[0].keys, before))
        at = match.end()
    add(text[at:])
    return Template(tuple(parts))


_RUNS = re.compile(r"\{{2,}|\{\Z")


def escaped(literal: str) -> str:
    """Literal text as it is written in a template, safe in front of a reference."""
    return _RUNS.sub(lambda run: f"{{{{ '{run[0]}' }}}}", literal)


def template_text(parts: tuple[str | Reference, ...]) -> str:
    """The text that `parse_template` reads as `parts`."""
    write: Callable[[str | Reference], str] = lambda part: (  # noqa: E731
        escaped(part) if isinstance(part, str) else f"{{{{ {part} }}}}"
    )
    return "".join(write(part) for part in parts)
