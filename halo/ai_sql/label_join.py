"""A semantic join as multi-label classification: one call for each left text with the candidates of
the right side listed, instead of one call for each pair.

It changes the text that the model sees, and so may change its answers: it is an unsafe rule, off
unless asked for (`--unsafe-join-as-labels`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from halo.ai_sql.calls import CallSpec
from planner.logical import (
    Collect,
    Column,
    Field,
    Generate,
    Json,
    Op,
    Prompt,
    Recover,
    Ref,
    Relation,
    Segment,
    SqlRows,
    canonical_json,
)

RULE = "join-as-labels"
MAX_LABELS = 40
"""Candidates in one prompt; more are asked about in further calls."""
_CANDIDATE = "[candidate]"
_SYSTEM = (
    f"The question has {_CANDIDATE} in the place of a candidate. List the numbers of the "
    "candidates for which the answer is yes, counted from 1; none, one or several."
)


class TableNamer(Protocol):
    """Names tables of answers: the compiler."""

    def add_table(self, prefix: str, relation: Collect) -> str: ...


def applies(spec: CallSpec, on_error: str) -> bool:
    """Whether a join's predicate can be asked this way: a filter on one value of each side."""
    shown = [each for each in spec.segments if isinstance(each, int)]
    return (
        spec.function == "AI_FILTER"
        and sorted(shown) == [0, 1]
        and spec.cascade is None
        and not spec.temperature
        and on_error == "null"
    )


def labelled_pairs(
    spec: CallSpec, rows: SqlRows, columns: tuple[str, ...], namer: TableNamer
) -> tuple[Relation, list[Op], Op, Op]:
    """The pairs of `rows`, their keys, and the value and error of each."""
    first, second = dict.fromkeys(each for each in spec.segments if isinstance(each, int))
    left, right = columns[first], columns[second]
    grouped = replace(
        rows,
        text=(
            f"SELECT {left}, list({right} ORDER BY {right}) AS labels FROM (SELECT {left}, {right},"
            f" row_number() OVER (PARTITION BY {left} ORDER BY {right}) AS n FROM ({rows.text})) "
            f"GROUP BY {left}, (n - 1) // {MAX_LABELS} ORDER BY {left}, min(n)"
        ),
        columns=(left, "labels"),
    )
    given = (Column((grouped,), left), Column((grouped,), "labels"))
    segments: list[Segment] = [
        _CANDIDATE if each == second else Ref(0) if each == first else str(each)
        for each in spec.segments
    ]
    schema: Json = {
        "type": "object",
        "properties": {
            "answer": {
                "type": "array",
                "items": {"type": "integer", "minimum": 1, "maximum": MAX_LABELS},
                "maxItems": MAX_LABELS,
            }
        },
        "required": ["answer"],
        "additionalProperties": False,
    }
    asked = Generate(
        given,
        spec.model,
        Prompt((*segments, "\n\nCandidates:\n", Ref(1))),
        system=Prompt((_SYSTEM,)),
        max_tokens=spec.max_tokens or 4 * MAX_LABELS,
        schema_json=canonical_json(schema),
        label=f"{spec.function} as labels",
        fresh=not spec.cache,
    )
    detail = Recover((Field((asked,), "answer"),), detail=True)
    answers = Collect(
        (grouped, *given, Field((detail,), "value"), Field((detail,), "error")),
        (left, "labels", "chosen", "error"),
        ("VARCHAR", "VARCHAR[]", "INTEGER[]", "VARCHAR"),
        label=spec.label,
    )
    name = namer.add_table("ai", answers)
    pairs = SqlRows(
        (answers,),
        text=(
            f"SELECT {left}, labels[n] AS {right}, list_contains(chosen, n) AS halo_v, error AS "
            f"halo_e FROM (SELECT *, unnest(range(1, len(labels) + 1)) AS n FROM {name})"
        ),
        columns=(left, right, "halo_v", "halo_e"),
        tables=(name,),
    )
    keys: list[Op] = [Column((pairs,), column) for column in columns]
    return pairs, keys, Column((pairs,), "halo_v"), Column((pairs,), "halo_e")
