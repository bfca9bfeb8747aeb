"""Conditions: `verdict.winner == 'for' and score >= 3`, read by a small parser.

References, literals, == != < <= > >= in, and, or, not, parentheses; nothing is ever evaluated as
Python. `truthy(x)` is the truth of a value as a boolean.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias, cast

from halo.spec.template import (
    STRING,
    Reference,
    match_reference,
    parse_reference,
    quoted,
    refuse,
    unquoted,
)

if TYPE_CHECKING:
    from planner.logical import Json

COMPARISONS = ("==", "!=", "<=", ">=", "<", ">", "in")
KEYWORDS = frozenset(("and", "or", "not", "in", "truthy", "true", "false", "null"))
MAX_DEPTH = 50

_SPACE = re.compile(r"\s*")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?(?![\w.])")
_TEXT = re.compile(STRING, re.DOTALL)
_SYMBOL = re.compile(r"==|!=|<=|>=|<|>|\(|\)|\[|\]|,")
_WORD = re.compile(r"[^\W\d][\w-]*")
_WORDS: dict[str, Any] = {"true": True, "false": False, "null": None}


@dataclass(frozen=True, slots=True)
class Literal:
    """A plain value: a text, a number, true, false, null, or a list of those."""

    value: Json


@dataclass(frozen=True, slots=True)
class Operation:
    """An operator (as `planner.logical.Compare` has them) over one or two operands."""

    operator: str
    operands: tuple[Condition, ...]


Condition: TypeAlias = "Reference | Literal | Operation"


def parse_condition(given: object) -> Condition:
    """A condition as a text, or as {left: REFERENCE, op: OPERATOR, right: LITERAL}."""
    if isinstance(given, str):
        return _Parser(given).parse()
    if isinstance(given, bool):
        return Literal(given)
    if not isinstance(given, dict):
        refuse("expected a condition such as verdict.winner == 'for'")
    fields = cast("dict[str, Any]", given)
    if set(fields) != {"left", "op", "right"}:
        refuse("a condition as a mapping has exactly the fields left, op and right")
    if not isinstance(fields["left"], str):
        refuse("left is a reference, such as verdict.winner")
    if fields["op"] not in COMPARISONS:
        refuse(f"unknown operator {fields['op']!r}; the operators are: {' '.join(COMPARISONS)}")
    return Operation(fields["op"], (parse_reference(fields["left"]), Literal(fields["right"])))


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.depth = 0

    def parse(self) -> Condition:
        condition = self.disjunction()
        self.skip()
        if self.at != len(self.text):
            self.refuse("expected the end of the condition")
        return condition

    def disjunction(self) -> Condition:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self.refuse("the condition is nested too deeply")
        left = self.conjunction()
        while self.word("or"):
            left = Operation("or", (left, self.conjunction()))
        self.depth -= 1
        return left

    def conjunction(self) -> Condition:
        left = self.negation()
        while self.word("and"):
            left = Operation("and", (left, self.negation()))
        return left

    def negation(self) -> Condition:
        negations = 0
        while self.word("not"):
            negations += 1
        condition = self.comparison()
        for _ in range(negations):
            condition = Operation("not", (condition,))
        return condition

    def comparison(self) -> Condition:
        left = self.atom()
        operator, negated = self.operator()
        if not operator:
            return left
        compared: Condition = Operation(operator, (left, self.atom()))
        if self.operator()[0]:
            self.refuse("comparisons cannot be chained; join them with `and`")
        return Operation("not", (compared,)) if negated else compared

    def operator(self) -> tuple[str, bool]:
        self.skip()
        for symbol in COMPARISONS[:-1]:
            if self.text.startswith(symbol, self.at):
                self.at += len(symbol)
                return symbol, False
        if self.text.startswith("=", self.at):
            self.refuse("equality is written ==")
        if self.word("in"):
            return "in", False
        start = self.at
        if self.word("not"):
            if self.word("in"):
                return "in", True
            self.at = start
        return "", False

    def atom(self) -> Condition:
        self.skip()
        if self.symbol("("):
            inside = self.disjunction()
            self.expect(")")
            return inside
        if self.word("truthy"):
            self.expect("(")
            inside = self.disjunction()
            self.expect(")")
            return Operation("truthy", (inside,))
        if self.symbol("["):
            return self.list()
        if self.text.startswith("{{", self.at):
            end = self.text.find("}}", self.at)
            if end < 0:
                self.refuse("a {{ without its }}")
            reference = parse_reference(self.text[self.at : end + 2])
            before, self.at = self.text[: self.at], end + 2
            return Reference(reference.root, reference.keys, before)
        literal = self.literal()
        if literal is not None:
            return literal
        word = _WORD.match(self.text, self.at)
        found = match_reference(self.text, self.at)
        if found is None or (word and word[0] in KEYWORDS):
            self.refuse("expected a reference, a text in quotes, a number or a list")
        self.at = found[1]
        return found[0]

    def list(self) -> Literal:
        values: list[Json] = []
        while not self.symbol("]"):
            if values:
                self.expect(",")
            literal = self.literal()
            if literal is None:
                self.refuse("a list in a condition holds texts in quotes, numbers, true or false")
            values.append(literal.value)
        return Literal(values)

    def literal(self) -> Literal | None:
        self.skip()
        if match := _TEXT.match(self.text, self.at):
            self.at = match.end()
            return Literal(unquoted(match[0]))
        if match := _NUMBER.match(self.text, self.at):
            self.at = match.end()
            return Literal(json.loads(match[0]))
        for word, value in _WORDS.items():
            if self.word(word):
                return Literal(value)
        return None

    def word(self, word: str) -> bool:
        self.skip()
        match = _WORD.match(self.text, self.at)
        # `in.field` and `or[0]` are references to values of those names, which cannot exist.
        if match is None or match[0] != word:
            return False
        self.at = match.end()
        return True

    def symbol(self, symbol: str) -> bool:
        self.skip()
        match = _SYMBOL.match(self.text, self.at)
        if match is None or match[0] != symbol:
            return False
        self.at = match.end()
        return True

    def expect(self, symbol: str) -> None:
        if not self.symbol(symbol):
            self.refuse(f"expected {symbol}")

    def skip(self) -> None:
        match = _SPACE.match(self.text, self.at)
        self.at = match.end() if match else self.at

    def refuse(self, problem: str) -> NoReturn:
        here = self.text[self.at : self.at + 20]
        refuse(
            f"{problem}, at {here!r}" if here else f"{problem}, at the end", self.text[: self.at]
        )


def condition_text(condition: Condition) -> str:
    """The text that `parse_condition` reads as `condition`."""
    match condition:
        case Reference():
            return str(condition)
        case Literal(value=value):
            return _literal_text(value)
        case Operation(operator="not", operands=(only,)):
            return f"not {_operand(only)}"
        case Operation(operator="truthy", operands=(only,)):
            return f"truthy({condition_text(only)})"
        case Operation(operator=operator, operands=operands):
            return f" {operator} ".join(_operand(each) for each in operands)


def _operand(condition: Condition) -> str:
    text = condition_text(condition)
    nested = isinstance(condition, Operation) and condition.operator != "truthy"
    return f"({text})" if nested else text


def _literal_text(value: Json) -> str:
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, list):
        return f"[{', '.join(_literal_text(each) for each in value)}]"
    return json.dumps(value)


def is_literal(value: Json) -> bool:
    """Whether a value can be written inside a condition."""
    if isinstance(value, list):
        return all(not isinstance(each, list | dict) for each in value)
    return not isinstance(value, dict)
