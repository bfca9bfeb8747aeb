"""Cascades in the plan: a cheap model scores, a sample teaches thresholds, the trusted model
decides what is left. See `halo.ai_sql.thresholds` for the guarantee.

Fewer inputs than `MIN_INPUTS` are all asked of the trusted model: there is nothing to gain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from halo.ai_sql.calls import CallSpec
from halo.ai_sql.questions import SCORE_MAX, answer_op, prompt_of
from halo.ai_sql.thresholds import learn_thresholds
from planner.logical import (
    Body,
    Collect,
    Column,
    Compare,
    Const,
    Field,
    Filter,
    Generate,
    Json,
    Op,
    Param,
    Prompt,
    Recover,
    Relation,
    SqlRows,
    Tool,
    When,
    canonical_json,
)
from runtime.tools import ToolSpec

SAMPLE_INPUTS = 200
MIN_INPUTS = 2 * SAMPLE_INPUTS
TOOL = "halo_thresholds"
_SYSTEM = (
    f"Answer with one whole number from 0 to {SCORE_MAX}: how sure it is that the answer to the "
    f"question is yes, where 0 is surely no and {SCORE_MAX} is surely yes."
)


class TableNamer(Protocol):
    """Names tables of answers: the compiler."""

    def add_table(self, prefix: str, relation: Collect) -> str:
        """The name that texts know `relation` by."""
        ...

    def use_tool(self, tool: ToolSpec) -> None:
        """The plan calls `tool`."""
        ...


def cascade_rows(
    spec: CallSpec, rows: SqlRows, columns: tuple[str, ...], namer: TableNamer
) -> tuple[Op, Relation, list[Op]]:
    """The value of a cascaded filter, the rows that it is a value of, and their key columns."""
    assert spec.cascade is not None
    cheap, trusted = spec.cascade
    keys = ", ".join(columns)
    scored = replace(
        rows,
        text=(
            f"SELECT {keys}, row_number() OVER (ORDER BY hash({keys})) <= {SAMPLE_INPUTS} AS "
            f"halo_sampled FROM ({rows.text}) QUALIFY count(*) OVER () >= {MIN_INPUTS}"
        ),
        columns=(*columns, "halo_sampled"),
    )
    args = [Column((scored,), name) for name in columns]
    score = Recover((_score(spec, args, cheap),))
    scores = Collect(
        (scored, *args, score), (*columns, "score"), (*("VARCHAR" for _ in columns), "INTEGER"),
        label="cascade scores",
    )  # fmt: skip
    sample = Filter((scored, Column((scored,), "halo_sampled")), label="cascade sample")
    truth = Recover((answer_op(spec, args, model=trusted),))
    sampled = Collect(
        (sample, score, truth), ("score", "truth"), ("INTEGER", "BOOLEAN"), label="cascade sample"
    )
    scores_name = namer.add_table("ai", scores)
    sampled_name = namer.add_table("ai", sampled)
    counts = SqlRows(
        (scores, sampled),
        text=(
            "SELECT (SELECT list([score, n] ORDER BY score) FROM (SELECT score, count(*) AS n FROM "
            f"{scores_name} WHERE score IS NOT NULL GROUP BY score)) AS population, (SELECT "
            "list([score, n, yes] ORDER BY score) FROM (SELECT score, count(*) AS n, "
            f"count(*) FILTER (WHERE truth) AS yes FROM {sampled_name} WHERE score IS NOT NULL AND "
            "truth IS NOT NULL GROUP BY score)) AS sample"
        ),
        columns=("population", "sample"),
        tables=(scores_name, sampled_name),
        label="cascade counts",
    )
    tool = thresholds_tool()
    namer.use_tool(tool)
    targets = [Const.of(number) for _, number in spec.settings]
    learnt = Tool(
        (Column((counts,), "population"), Column((counts,), "sample"), *targets),
        tool=tool.ref,
        params=("population", "sample", *(name for name, _ in spec.settings)),
        label="cascade thresholds",
        fresh=not spec.cache,
    )
    thresholds = Collect(
        (counts, Field((learnt,), "accept"), Field((learnt,), "reject")),
        ("accept", "reject"),
        ("INTEGER", "INTEGER"),
        label="cascade thresholds",
    )
    thresholds_name = namer.add_table("ai", thresholds)
    joined = " AND ".join(f"h.{name} = s.{name}" for name in columns)
    selected = ", ".join(f"h.{name}" for name in columns)
    decided = replace(
        rows,
        inputs=(*rows.inputs, scores, thresholds),
        tables=(*rows.tables, scores_name, thresholds_name),
        text=(
            f"SELECT {selected}, CASE WHEN s.score >= t.accept THEN true WHEN s.score < t.reject "
            f"THEN false END AS halo_decided FROM ({rows.text}) AS h LEFT JOIN {scores_name} AS s "
            f"ON {joined} CROSS JOIN {thresholds_name} AS t ORDER BY {selected}"
        ),
        columns=(*columns, "halo_decided"),
    )
    own: list[Op] = [Column((decided,), name) for name in columns]
    verdict = Column((decided,), "halo_decided")
    params = [Param((), index) for index in range(len(own) + 1)]
    ask = Body(len(params), answer_op(spec, params[1:], model=trusted))
    keep = Body(len(params), params[0])
    undecided = Compare((verdict, Const.of(None)), "==")
    value = When((undecided, verdict, *own), ask, keep, label=spec.label)
    return value, decided, own


def _score(spec: CallSpec, args: Sequence[Op], model: str) -> Op:
    schema: Json = {
        "type": "object",
        "properties": {"answer": {"type": "integer", "minimum": 0, "maximum": SCORE_MAX}},
        "required": ["answer"],
        "additionalProperties": False,
    }
    asked = Generate(
        tuple(args), model, prompt_of(spec), system=Prompt((_SYSTEM,)), max_tokens=16,
        schema_json=canonical_json(schema), label="AI_FILTER cheap", fresh=not spec.cache,
    )  # fmt: skip
    return Field((asked,), "answer")


def thresholds_tool() -> ToolSpec:
    """The tool that learns thresholds from counts by score."""
    from planner.logical import Effect

    number = {"type": "number"}
    return ToolSpec(
        TOOL,
        _learn,
        "Learns the thresholds of a cascade.",
        {
            "type": "object",
            "properties": {
                "population": {"type": ["array", "null"]},
                "sample": {"type": ["array", "null"]},
                "precision": number,
                "recall": number,
                "confidence": number,
            },
        },
        effect=Effect.PURE,
        version="1",
    )


def _learn(
    population: list[list[int]] | None,
    sample: list[list[int]] | None,
    precision: float,
    recall: float,
    confidence: float,
) -> dict[str, int]:
    found = learn_thresholds(
        {int(s): n for s, n in population or []},
        {score: (n, yes) for score, n, yes in sample or []},
        precision=precision,
        recall=recall,
        confidence=confidence,
    )
    return {"accept": found.accept, "reject": found.reject}
