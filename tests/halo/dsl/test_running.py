"""Workflows on the simulated engine: the documented examples, and eager runs beside batches."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydantic import BaseModel

import halo

PAGE = Path(__file__).parents[3] / "docs" / "dsl.md"


lm = halo.Model()


class Note(BaseModel):
    title: str
    points: list[str] = []


@halo.tool(pure=True)
def look(word: str) -> list[Note]:
    """Looks a word up."""
    return [Note(title=word, points=["é", '"quoted"'])]


@halo.workflow
def varied(q: str, extra: dict[str, Any]) -> dict[str, Any]:
    found = look(q)
    note = lm.gen(f"{found} {found[0]} {extra['list']}", out=Note)
    texts = halo.map(lambda each: lm.gen(f"{q}: {each}", max_tokens=8), note.points)
    state = halo.loop(
        lambda s: {"text": lm.gen(f"{s['text']} {note}", max_tokens=8), "log": f"{s['log']}|"},
        {"text": q, "log": ""},
        until=lambda s: s["log"] == "||",
        max_rounds=5,
    )
    merged = halo.reduce(lambda group: lm.gen(f"{group}", max_tokens=8), ["a", "b", "c"], fan_in=2)
    kind = lm.choose(f"{texts} {state}", ["x", "y"])
    ending = halo.when(kind == "x", lambda: lm.gen(f"{merged}", max_tokens=4), lambda: merged)
    return {"title": note.title, "texts": texts, "state": state, "ending": ending}


def test_an_eager_run_answers_what_a_batch_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every prompt reads the same, or the simulated answers would differ."""
    rows = [{"q": q, "extra": {"list": [1, None, {"k": "v"}]}} for q in ("tea", "coffee", "milk")]
    with halo.Session(engine="simulated") as session:
        monkeypatch.setattr("halo.session.default_session", lambda: session)
        batch = session.run(varied, rows)
        assert not batch.errors
        assert [varied(**row) for row in rows] == batch.values()  # type: ignore[arg-type]


def test_every_example_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 6
    module = ModuleType("dsl_examples")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), module.__dict__)
