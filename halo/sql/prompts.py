"""PROMPT templates: `'text {0} text {1}'` over values, `'text {column}'` as sugar for it."""

from __future__ import annotations

import re

_HOLE = re.compile(r"\{\{|\}\}|\{(\d+)\}|\{([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)\}")


def holes(template: str) -> tuple[str | int | tuple[str, ...], ...]:
    """The template as texts, argument numbers and column paths. `{{` and `}}` are braces; other
    braces (of JSON, say) stand for themselves.

    Example:
        >>> holes("Is {0} about {r.topic}? {{x}}")
        ('Is ', 0, ' about ', ('r', 'topic'), '? {x}')
    """
    parts: list[str | int | tuple[str, ...]] = []
    literal: list[str] = []
    last = 0
    for match in _HOLE.finditer(template):
        literal.append(template[last : match.start()])
        last = match.end()
        if match[1] is None and match[2] is None:
            literal.append(match[0][0])
            continue
        if text := "".join(literal):
            parts.append(text)
        literal = []
        parts.append(int(match[1]) if match[1] is not None else tuple(match[2].split(".")))
    literal.append(template[last:])
    if text := "".join(literal):
        parts.append(text)
    return tuple(parts)
