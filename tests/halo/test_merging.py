"""Merging, seen from outside: what the engine was asked, and what EXPLAIN says."""

from __future__ import annotations

import halo

QUESTIONS = [{"question": f"Is option {i} better than doing nothing?"} for i in range(30)]
lm = halo.Model()


@halo.workflow
def headline(question: str) -> str:
    facts = lm.gen(f"List two facts.\nQuestion: {question}", max_tokens=16, name="facts")
    angle = lm.gen(f"Facts: {facts}\nName the best angle.", max_tokens=16, name="angle")
    return lm.gen(f"Angle: {angle}\nWrite the headline.", max_tokens=16, name="headline")


@halo.workflow
def objection(question: str) -> str:
    known = lm.gen(f"List two facts.\nQuestion: {question}", max_tokens=16, name="known")
    view = lm.gen(f"Facts: {known}\nName the best angle.", max_tokens=16, name="view")
    return lm.gen(f"Angle: {view}\nWrite the objection.", max_tokens=16, name="objection")


def test_two_workflows_make_each_shared_call_once() -> None:
    with halo.Session(engine="simulated") as session:
        merged = session.run([(headline, QUESTIONS), (objection, QUESTIONS)])
        text = session.explain([(headline, QUESTIONS), (objection, QUESTIONS)])
    # Two shared operators and one of its own for each workflow: 4 calls a question, not 6.
    assert sum(merged.engine_requests.values()) == 30 * 4
    assert merged.summary()["calls"]["made"] == 30 * 4
    assert "est. 120 calls (180 alone)" in text
    assert text.count("shared by headline,objection") >= 2


def test_a_merged_batch_answers_what_its_queries_answer_alone() -> None:
    with halo.Session(engine="simulated") as session:
        merged = session.run([(headline, QUESTIONS), (objection, QUESTIONS)])
        alone = [session.run(flow, QUESTIONS) for flow in (headline, objection)]
    assert merged.values("headline") == alone[0].values()
    assert merged.values("objection") == alone[1].values()


def test_equal_rows_share_greedy_calls_and_keep_sampled_ones() -> None:
    @halo.workflow
    def both(question: str) -> dict[str, str]:
        return {
            "greedy": lm.gen(f"Answer: {question}", max_tokens=16),
            "drawn": lm.gen(f"Answer: {question}", max_tokens=16, temperature=1.0),
        }

    rows = [{"question": "Tea or coffee?"}] * 5
    with halo.Session(engine="simulated") as session:
        result = session.run(both, rows)
    answers = result.values()
    assert sum(result.engine_requests.values()) == 1 + 5
    assert len({a["greedy"] for a in answers if isinstance(a, dict)}) == 1
    assert len({a["drawn"] for a in answers if isinstance(a, dict)}) == 5
