"""Known statements: golden plans and results, each equal to the statement with UDFs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from udf_oracle import Oracle, canonical, same_rows

from halo.ai_sql.batch import SqlBatch, SqlOptions
from halo.dsl.model import Model
from halo.dsl.workflow import workflow
from halo.session import Session
from planner.logical import Filter, Limit, ModelOp, SqlRows, Tool

Golden = Callable[[str, str], None]

EXAMPLES: dict[str, str] = {
    "cheap_predicates_first": """
        SELECT id, title FROM reviews
        WHERE AI_FILTER(PROMPT('Does this review complain about delivery? {0}', body))
        AND stars <= 2 AND lang = 'en'""",
    "typed_extraction": """
        SELECT id, x.product, x.severity
        FROM (SELECT id, AI_EXTRACT(body, {'product': 'VARCHAR', 'severity': 'INTEGER'}) AS x
              FROM reviews WHERE stars = 1)
        WHERE x.severity >= 3""",
    "aggregate_with_filter_and_having": """
        SELECT product_id, count(*) AS n,
               AI_AGG(body, 'List the three most common complaints') FILTER (WHERE stars <= 2)
                   AS complaints
        FROM reviews GROUP BY product_id HAVING count(*) >= 5""",
    "semantic_join": """
        SELECT c.id, p.code FROM claims c JOIN policies p
          ON c.line = p.line
          AND AI_FILTER(PROMPT('Is claim {0} covered by clause {1}?', c.text, p.clause))
        WHERE c.amount > 10""",
    "top_k": """
        SELECT id FROM reviews WHERE lang = 'de'
        ORDER BY AI_SCORE(PROMPT('How urgent is this? {0}', body)) DESC, id LIMIT 20""",
    "map_then_reduce": """
        WITH s AS (SELECT product_id,
                          AI_COMPLETE(PROMPT('Summarise in one sentence: {0}', body),
                                      max_tokens := 60) AS r
                   FROM reviews WHERE stars <= 3)
        SELECT product_id, AI_SUMMARIZE_AGG(r) AS summary FROM s GROUP BY product_id""",
    "label": "SELECT id, AI_CLASSIFY(body, ['invoice', 'contract', 'other']) AS kind FROM reviews",
    "labels_with_descriptions": """
        SELECT AI_CLASSIFY(title, [{'label': 'a', 'description': 'first'}, {'label': 'b'}]) AS k,
               count(*) FROM reviews GROUP BY ALL""",
    "several_labels": """
        SELECT id, unnest(AI_CLASSIFY(body, ['x', 'y', 'z'], multi := true)) AS k FROM reviews""",
    "sentiment": "SELECT AI_SENTIMENT(body) AS s, count(*) FROM reviews GROUP BY s",
    "translate": "SELECT DISTINCT AI_TRANSLATE(title, 'en', 'de') AS t FROM reviews",
    "summarize": "SELECT id, AI_SUMMARIZE(body) AS s FROM reviews WHERE id < 9",
    "typed_answer": "SELECT id, AI_COMPLETE('{body}?', returns := 'INTEGER') + 1 AS n FROM reviews",
    "struct_answer": """
        SELECT id, r.a, r.b[1] AS b FROM (SELECT id, AI_COMPLETE('{body}?',
            returns := 'STRUCT(a BOOLEAN, b VARCHAR[])') AS r FROM reviews)""",
    "questions_as_fields": """
        SELECT id, AI_EXTRACT(body, {'who': 'Who wrote this?', 'when': 'DATE'}) AS x FROM reviews
        WHERE stars = 2""",
    "fields_as_a_list": "SELECT AI_EXTRACT(title, ['a', 'b']).b AS b FROM reviews WHERE id < 5",
    "similarity": """
        SELECT id, round(AI_SIMILARITY(body, title), 5) AS s FROM reviews
        ORDER BY s DESC NULLS LAST, id LIMIT 5""",
    "embedding": "SELECT id, len(AI_EMBED(body)) AS n FROM reviews WHERE id < 4",
    "chunks": """
        SELECT id, unnest(ai_chunks(repeat(body || '. ', 20), tokens := 16, overlap := 4)) AS c
        FROM reviews WHERE id < 3""",
    "constant_prompt": "SELECT id, AI_COMPLETE('Say hello') AS hello FROM reviews",
    "concatenation": "SELECT id, AI_COMPLETE('About: ' || body) AS c FROM reviews WHERE id < 6",
    "nested_calls": """
        SELECT id, AI_CLASSIFY(AI_SUMMARIZE(body), ['good', 'bad']) AS k FROM reviews
        WHERE stars < 3""",
    "case_arms": """
        SELECT id, CASE WHEN stars > 3 THEN AI_COMPLETE('Praise: {body}')
                        WHEN stars < 2 THEN AI_COMPLETE('Pity: {body}') ELSE 'neutral' END AS c
        FROM reviews""",
    "case_with_ai_test": """
        SELECT id, CASE WHEN AI_FILTER('Angry? {body}') THEN AI_COMPLETE('Calm: {body}') END AS c
        FROM reviews""",
    "or_guard": "SELECT id FROM reviews WHERE stars >= 4 OR AI_FILTER('Good? {body}')",
    "and_in_select": "SELECT id, stars = 1 AND AI_FILTER('Bad? {body}') AS b FROM reviews",
    "negated_filter": "SELECT id FROM reviews WHERE NOT AI_FILTER('Good? {body}') AND lang = 'en'",
    "two_filters": """
        SELECT id FROM reviews WHERE AI_FILTER('Good? {body}') AND AI_FILTER('Short? {title}')""",
    "filter_is_null": "SELECT id FROM reviews WHERE AI_FILTER('Good? {body}') IS NULL",
    "coalesce_guard": """
        SELECT id, coalesce(stars, AI_COMPLETE('Stars? {body}', returns := 'INTEGER')) AS s
        FROM reviews""",
    "count_filtered": """
        SELECT lang, count(*) FILTER (WHERE stars < 4 AND AI_FILTER('Bad? {body}')) AS bad
        FROM reviews GROUP BY lang""",
    "average_score": """
        SELECT lang, avg(AI_SCORE('Urgent? {body}')) AS urgency FROM reviews
        GROUP BY lang HAVING count(*) > 3""",
    "having_on_a_score": """
        SELECT product_id FROM reviews GROUP BY product_id
        HAVING max(AI_SCORE('Urgent? {body}')) > 50""",
    "group_by_label": """
        SELECT AI_CLASSIFY(body, ['red', 'blue']) AS k, lang, count(*) AS n FROM reviews
        WHERE stars IS NOT NULL GROUP BY k, lang""",
    "agg_in_order": """
        SELECT lang, AI_AGG(body, 'Tell the story' ORDER BY id DESC) AS s FROM reviews
        WHERE product_id = 2 GROUP BY lang""",
    "agg_without_groups": "SELECT AI_SUMMARIZE_AGG(title) AS s FROM reviews WHERE stars = 5",
    "agg_of_nothing": "SELECT AI_AGG(title, 'x') AS s FROM reviews WHERE stars = 99",
    "left_join": """
        SELECT c.id, p.code FROM claims c LEFT JOIN policies p
        ON c.line = p.line AND AI_FILTER('Covers {c.text}? {p.clause}') WHERE c.amount > 20""",
    "full_join": """
        SELECT c.id, p.code FROM claims c FULL JOIN policies p
        ON c.line = p.line AND AI_FILTER('Covers {c.text}? {p.clause}')""",
    "semi_join": """
        SELECT c.id FROM claims c SEMI JOIN policies p
        ON c.line = p.line AND AI_FILTER('Covers {c.text}? {p.clause}')""",
    "anti_join": """
        SELECT c.id FROM claims c ANTI JOIN policies p
        ON c.line = p.line AND AI_FILTER('Covers {c.text}? {p.clause}')""",
    "cross_join": """
        SELECT c.id, p.code FROM claims c, policies p
        WHERE c.line = p.line AND AI_FILTER('Covers {c.text}? {p.clause}') AND c.amount < 9""",
    "exists": """
        SELECT c.id FROM claims c WHERE c.amount < 30 AND EXISTS (SELECT 1 FROM policies p
        WHERE p.line = c.line AND AI_FILTER('Covers {c.text}? {p.clause}'))""",
    "correlated_scalar": """
        SELECT c.id, (SELECT max(AI_SCORE('{c.text} / {p.clause}')) FROM policies p
                      WHERE p.line = c.line) AS best FROM claims c""",
    "in_subquery": """
        SELECT id FROM reviews WHERE product_id IN
        (SELECT product_id FROM reviews WHERE AI_FILTER('Good? {body}') AND stars = 5)""",
    "union": """
        SELECT AI_CLASSIFY(body, ['a', 'b']) AS k FROM reviews WHERE lang = 'en'
        UNION ALL SELECT AI_CLASSIFY(title, ['a', 'b']) FROM reviews WHERE lang = 'de'""",
    "window": """
        SELECT id, row_number() OVER (PARTITION BY lang ORDER BY AI_SCORE('U {body}') DESC
               NULLS LAST, id) AS r FROM reviews QUALIFY r <= 2""",
    "pushed_into_subquery": """
        SELECT id, k FROM (SELECT id, lang, AI_CLASSIFY(body, ['a', 'b']) AS k FROM reviews) AS d
        WHERE d.lang = 'fr' AND k = 'a'""",
    "unused_output": """
        SELECT id FROM (SELECT id, AI_COMPLETE('{body}') AS c FROM reviews) AS d WHERE id < 5""",
    "projection_after_limit": """
        SELECT id, AI_COMPLETE('Why? {body}') AS why FROM reviews WHERE stars = 1
        ORDER BY id LIMIT 3""",
    "cte_used_twice": """
        WITH s AS (SELECT id, AI_CLASSIFY(body, ['a', 'b']) AS k FROM reviews WHERE stars < 3)
        SELECT x.id FROM s x JOIN s y ON x.k = y.k AND x.id = y.id + 1""",
    "same_call_twice": """
        SELECT id, AI_SCORE('U {body}') AS a, AI_SCORE('U {body}') + 1 AS b FROM reviews
        WHERE AI_SCORE('U {body}') > 30""",
    "foreign_names": """
        SELECT id, ai_query('small', 'Sum up {body}') AS a, AI.CLASSIFY(title, categories =>
        ['p', 'q']) AS b, llm_complete({'model_name': 'small'}, {'prompt': 'What is {t}?',
        'context_columns': [{'data': title, 'name': 't'}]}) AS c, prompt('Hi {0}', lang) AS d
        FROM reviews WHERE AI.IF(('Is it ', body, ' good?')) AND stars = 5""",
    "from_first": "FROM reviews SELECT id WHERE AI_FILTER('Good? {body}') AND id < 20",
    "alias_in_where": """
        SELECT id, AI_SCORE('U {body}') AS s FROM reviews WHERE s > 50 ORDER BY s DESC, id""",
}  # fmt: skip


@pytest.fixture(scope="module")
def session(database: Path) -> Iterator[Session]:
    with Session(engine="simulated", db=database) as opened:
        yield opened


def plan_text(batch: SqlBatch) -> str:
    """What the statement has become: queries, calls, filters and limits."""
    lines: list[str] = []
    for compiled in batch.compiled:
        for op in compiled.plan.walk_all():
            if isinstance(op, SqlRows):
                lines.append(op.text)
            elif isinstance(op, ModelOp | Tool):
                lines.append(f"  {op.kind} {op.label}")
            elif isinstance(op, Filter):
                lines.append("  Filter")
            elif isinstance(op, Limit):
                lines.append(f"  Limit {op.count}")
    return "\n".join(lines)


@pytest.mark.parametrize("name", EXAMPLES)
def test_example(session: Session, oracle: Oracle, golden: Golden, name: str) -> None:
    text = " ".join(EXAMPLES[name].split())
    with SqlBatch(text, session) as batch:
        (result,) = batch.run()
        rows = list(result.tuples())
        calls = result.run.summary()["calls"]["made"]
        plan = plan_text(batch)
    oracle.asked = 0
    expected = oracle.run(text)
    asked = oracle.asked
    assert same_rows(rows, expected)
    assert calls <= asked
    shown = sorted(map(canonical, rows))
    excerpt = [*shown[:5], *([f"... {len(shown)} rows"] if len(shown) > 5 else [])]
    golden(
        f"sql/{name}.txt",
        "\n".join([text, "", plan, "", f"{calls} calls, {asked} as UDFs", *excerpt]),
    )


def test_documents_on_disk(session: Session, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    for number, text in enumerate(["an invoice", "a contract", "an invoice"]):
        (tmp_path / "docs" / f"{number}.txt").write_text(text)
    sql = (
        f"SELECT filename, AI_CLASSIFY(content, ['invoice', 'contract'], model := 'small') AS kind "
        f"FROM read_text('{tmp_path}/docs/*.txt') ORDER BY filename"
    )
    with SqlBatch(sql, session) as batch:
        (result,) = batch.run()
        rows = list(result)
    assert [Path(row["filename"]).name for row in rows] == ["0.txt", "1.txt", "2.txt"]
    assert rows[0]["kind"] == rows[2]["kind"]
    assert result.run.summary()["calls"]["made"] == 2


def test_a_workflow_is_run_once_for_each_distinct_input(session: Session) -> None:
    model = Model("m")

    @workflow
    def debate(question: str, rounds: int = 1) -> str:
        answer = model.gen(f"Answer: {question}")
        for _ in range(2):
            answer = model.gen(f"Improve {answer} for {question}, {rounds} rounds")
        return answer

    sql = (
        "SELECT q.id, q.text, AI_RUN('debate', q.text, rounds := 2) AS verdict "
        "FROM questions q SEMI JOIN todo USING (id) ORDER BY q.id"
    )
    with SqlBatch(sql, session, SqlOptions(workflows=[debate])) as batch:
        (result,) = batch.run()
        rows = list(result)
    distinct = sorted({row["text"] for row in rows})
    given = [{"question": text, "rounds": 2} for text in distinct]
    answers = dict(zip(distinct, session.run(debate, given).values(), strict=True))
    assert [row["verdict"] for row in rows] == [answers[row["text"]] for row in rows]
    requests = sum(result.run.engine_requests.values())
    assert requests == 3 * len(distinct)
