"""Schemas as grammars, checked by another implementation of grammars than the engine's."""

from __future__ import annotations

import json
from typing import Any, Literal

import pytest
from llguidance import LLMatcher, LLTokenizer
from llguidance.gbnf_to_lark import gbnf_to_lark
from pydantic import BaseModel, Field

from halo.dsl.schema import json_schema, schema_json
from runtime.backends.json_grammar import json_grammar

BYTES = LLTokenizer("byte")


class Part(BaseModel):
    name: str = Field(max_length=25)
    weight: float | None
    kind: Literal["a", "ab", "b"]


class Whole(BaseModel):
    parts: list[Part] = Field(max_length=2)
    score: int = Field(ge=1, le=12)
    sure: bool
    more: dict[str, int]


def accepts(schema: dict[str, Any] | str, text: str) -> bool:
    """Whether `text` is a whole sentence of the grammar."""
    grammar = json_grammar(schema if isinstance(schema, str) else json.dumps(schema))
    assert grammar is not None
    matcher = LLMatcher(BYTES, LLMatcher.grammar_from_lark(gbnf_to_lark(grammar)))
    assert not matcher.is_error(), matcher.get_error()
    data = list(text.encode())
    return matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting()


GOOD: dict[str, Any] = {
    "parts": [
        {"name": "bolt M4", "weight": -1.5, "kind": "ab"},
        {"name": "", "weight": None, "kind": "b"},
    ],
    "score": 12,
    "sure": True,
    "more": {'x "M4" \\': 1, "y": -20},
}


def test_documents_of_a_type_are_sentences() -> None:
    assert accepts(schema_json(Whole), json.dumps(GOOD, ensure_ascii=False))
    assert accepts(schema_json(Whole), json.dumps(GOOD | {"parts": [], "more": {}}))


@pytest.mark.parametrize(
    "change",
    [
        {"score": 13}, {"score": 0}, {"sure": 1}, {"sure": None}, {"parts": GOOD["parts"] * 2},
        {"parts": [{"name": "x" * 26, "weight": 1, "kind": "a"}]},
        {"parts": [{"name": "x", "weight": 1, "kind": "abb"}]},
        {"parts": [{"name": "x", "kind": "a"}]}, {"more": {"x": "1"}},
    ],
)  # fmt: skip
def test_other_documents_are_not(change: dict[str, Any]) -> None:
    assert not accepts(schema_json(Whole), json.dumps(GOOD | change))


def test_there_is_no_free_whitespace_and_no_end_before_the_end() -> None:
    text = json.dumps(GOOD)
    assert accepts(schema_json(Whole), text)
    assert not accepts(schema_json(Whole), json.dumps(GOOD, indent=1))
    assert not accepts(schema_json(Whole), text + " ")
    assert not accepts(schema_json(Whole), text[:-1])


@pytest.mark.parametrize("least", [0, 1, 7, 12])
@pytest.mark.parametrize("most", [12, 19, 20, 21, 40])
def test_bounds_of_strings_are_exact(least: int, most: int) -> None:
    schema = {"type": "string", "minLength": least, "maxLength": most}
    for length in range(most + 2):
        assert accepts(schema, json.dumps("é" * length, ensure_ascii=False)) == (
            least <= length <= most
        )


def test_members_that_may_be_missing() -> None:
    members = {name: {"type": "integer"} for name in "abc"}
    schema = {"type": "object", "properties": members, "required": ["b"]}
    for present in ("abc", "ab", "bc", "b"):
        assert accepts(schema, json.dumps(dict.fromkeys(present, 1)))
    for wrong in ("ac", "a", "", "ba"):
        assert not accepts(schema, json.dumps(dict.fromkeys(wrong, 1)))


def test_recursive_types() -> None:
    class Tree(BaseModel):
        label: str
        children: list[Tree]

    schema = json_schema(Tree)
    assert accepts(schema, '{"label": "r", "children": [{"label": "l", "children": []}]}')
    assert not accepts(schema, '{"label": "r", "children": [{"label": "l"}]}')


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "^a+$"},
        {"type": "string", "format": "date"},
        {"type": "number", "minimum": 0},
        {"type": "integer", "minimum": 0},
        {"allOf": [{"type": "string"}]},
        {"type": "object", "properties": {"a": {}}, "additionalProperties": {"type": "string"}},
        {"$ref": "https://example.org/other.json"},
        {"not": {"type": "string"}},
    ],
)
def test_what_it_cannot_say_is_left_to_the_engine(schema: dict[str, Any]) -> None:
    assert json_grammar(json.dumps(schema)) is None
