"""A grammar (EBNF as xgrammar reads it) whose sentences are exactly the options of a choice.

The options become a tree of what they begin with in common. A plain list of alternatives would do
by the book, but the engine's compiler joins equal endings: from "lines", "yes" and "yes, but" it
also makes "lines, but". In a tree no two branches can be taken for each other.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Node:
    """What may follow a beginning. `end`: the beginning itself is an option."""

    next: dict[str, _Node] = field(default_factory=lambda: dict[str, _Node]())
    end: bool = False


def choice_grammar(options: Iterable[str]) -> str:
    """The grammar.

    Example:
        >>> print(choice_grammar(["yes", "yes, but", "no"]))
        root ::= "yes" n1 | "no"
        n1 ::= "" | ", but"
    """
    return "\n".join(tree_rules(options, "n", root="root"))


def tree_rules(options: Iterable[str], prefix: str, *, root: str = "") -> list[str]:
    """The rules of the tree, the first for its root; rules are named `prefix` and a number."""
    tree = _Node()
    for option in options:
        node = tree
        for character in option:
            node = node.next.setdefault(character, _Node())
        node.end = True
    names = {id(tree): root or f"{prefix}0"}
    rules: list[str] = []
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        alternatives = ['""'] if node.end else []
        for character, child in node.next.items():
            text, after = character, child
            while len(after.next) == 1 and not after.end:
                ((character, after),) = after.next.items()
                text += character
            if not after.next:
                alternatives.append(quoted(text))
                continue
            name = names.setdefault(id(after), f"{prefix}{len(names)}")
            waiting.append(after)
            alternatives.append(f"{quoted(text)} {name}")
        rules.append(f"{names[id(node)]} ::= {' | '.join(alternatives)}")
    return rules


def quoted(text: str) -> str:
    """`text` as a terminal of a grammar."""
    return '"' + "".join(map(_character, text)) + '"'


def _character(character: str) -> str:
    if character.isascii() and (character.isalnum() or character in " ,.;:!?_-"):
        return character
    if character in '"\\':
        return f"\\{character}"
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
