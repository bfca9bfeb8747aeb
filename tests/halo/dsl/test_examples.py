"""The three workflows of the documentation trace into the plans that they describe."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel

import halo
from planner.logical import Generate, Map, Reduce, Ref, Sql, Tool
from planner.verify import verify

lm = halo.Model("qwen3-8b")


class Verdict(BaseModel):
    winner: Literal["for", "against"]
    reason: str


class Query(BaseModel):
    sql: str


class Answer(BaseModel):
    answer: str
    rows_used: int


@halo.tool(timeout=10, pure=True)
def search(query: str, k: int = 3) -> list[str]:
    """Searches."""
    return [query] * k


@halo.workflow
def debate(question: str, rounds: int = 2) -> Verdict:
    facts = search(question)
    pro = con = "(nothing yet)"
    for _ in range(rounds):
        pro = lm.gen(
            f"Facts: {facts}\nQuestion: {question}\nArgue FOR. Opponent: {con}", name="pro"
        )
        con = lm.gen(
            f"Facts: {facts}\nQuestion: {question}\nArgue AGAINST. Opponent: {pro}", name="con"
        )
    return lm.gen(f"Question: {question}\nFOR: {pro}\nAGAINST: {con}\nWho won?", out=Verdict)


@halo.workflow
def digest(chunks: list[str]) -> str:
    notes = halo.map(lambda c: lm.gen(f"Summarise in two sentences: {c}", max_tokens=80), chunks)
    return halo.reduce(lambda xs: lm.gen(f"Merge into one page: {xs}"), notes, fan_in=16)


def test_debate() -> None:
    traced = debate.trace("rows", ["question"])
    verify(traced.plan)
    ops = list(traced.plan.walk())
    calls = [op for op in ops if isinstance(op, Generate)]
    assert [op.label for op in calls] == ["pro", "con", "pro", "con", "gen"]
    assert sum(isinstance(op, Tool) for op in ops) == 1
    assert calls[0].prompt.segments == (
        "Facts: ",
        Ref(0),
        "\nQuestion: ",
        Ref(1),
        "\nArgue FOR. Opponent: (nothing yet)",
    )
    assert calls[-1].schema_json is not None and calls[-1].model == "qwen3-8b"
    assert set(traced.tools) == {"search"}


def test_rag(tmp_path: Path) -> None:
    import duckdb

    path = tmp_path / "shop.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE TABLE orders (id INTEGER, customer VARCHAR)")
    db = halo.sql.readonly(path)

    @halo.workflow
    def rag(question: str) -> Answer:
        hits = halo.sql(
            "SELECT content FROM docs WHERE content ILIKE '%'||$t||'%' LIMIT 5", t=question
        )
        q = lm.gen(f"Schema: {db.schema}\nWrite one SELECT for: {question}", out=Query)
        rows = db.query(q.sql, max_rows=50)
        return lm.gen(f"Question: {question}\nPassages: {hits}\nRows: {rows}", out=Answer)

    plan = rag.trace("rows", ["question"]).plan
    verify(plan)
    queries = [op for op in plan.walk() if isinstance(op, Sql)]
    assert {(q.text is None, q.database) for q in queries} == {(False, ""), (True, str(path))}
    calls = [op for op in plan.walk() if isinstance(op, Generate)]
    wrote = next(op for op in calls if '"sql"' in str(op.schema_json))
    assert "orders" in wrote.prompt.literal_prefix, "the schema is part of the shared prefix"


def test_digest() -> None:
    plan = digest.trace("rows", ["chunks"]).plan
    verify(plan)
    reduce = plan.outputs[0][1].value
    assert isinstance(reduce, Reduce) and reduce.fan_in == 16
    assert isinstance(reduce.inputs[0], Map)
    body = reduce.inputs[0].body.result
    assert isinstance(body, Generate) and body.max_tokens == 80
    assert body.prompt.literal_prefix == "Summarise in two sentences: "
