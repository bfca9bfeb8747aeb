"""What prompts begin with: the tree, the order of the rows, the hits of a cache."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st
from sample_plans import ask, column, query, scan

from costmodel.tokens import estimate_tokens
from planner.context import PlanContext
from planner.logical import Json, LogicalPlan
from planner.merge import merge
from planner.prefix_hits import simulate_hits
from planner.prefix_tree import TURN, PrefixTree, Reference, Template
from planner.row_order import best_order, shared_tokens
from planner.row_profile import RowProfile

PIECES = st.sampled_from(["a", "ab", "abc", "b", "", 1, 2])
RULES = "You are careful. Read the document and answer the question in one sentence. "


def tree_of(*prompts: Sequence[object], model: str = "m") -> PrefixTree:
    templates = [
        Template(f"op{i}", model, (*prompt, TURN), 10.0)  # type: ignore[arg-type]
        for i, prompt in enumerate(prompts)
    ]
    return PrefixTree(templates)


def plan_over(*columns: str) -> LogicalPlan:
    """Two calls: one begins with the first column, the other with the second."""
    rows = scan(*columns)
    first, second = column(rows, columns[0]), column(rows, columns[1])
    one = ask(RULES, "Document: ", first, "\nQuestion: ", second)
    return query("q", ask("About ", second, " and ", first, ": ", one), rows)


def table(count: int, documents: int, questions: int, seed: int = 1) -> list[dict[str, Json]]:
    drawn = random.Random(seed)
    return [
        {
            "document": f"Document {drawn.randrange(documents)} " * 20,
            "question": f"Question number {drawn.randrange(questions)}?",
        }
        for _ in range(count)
    ]


# --- the tree ------------------------------------------------------------------------------------


def test_text_is_split_where_prompts_part() -> None:
    a, b = Reference("a"), Reference("b")
    tree = tree_of(["Be brief. Ask ", a], ["Be brief. Tell ", a], ["Be brief. Ask ", b])
    first, second, third = (tree.paths[f"op{i}"] for i in range(3))
    assert [node.edge for node in first] == ["Be brief. ", "Ask ", a, TURN]
    assert [node.edge for node in second] == ["Be brief. ", "Tell ", a, TURN]
    assert first[0] is second[0]
    assert first[1] is third[1]
    assert first[2] is not third[2]
    assert first[0].calls == 30
    assert first[1].calls == 20


def test_models_share_nothing() -> None:
    tree = PrefixTree([Template("a", "m", ("Hi",)), Template("b", "n", ("Hi",))])
    assert tree.paths["a"][0] is not tree.paths["b"][0]


def test_equal_prompts_end_at_one_node() -> None:
    tree = tree_of(["Hi ", Reference("a")], ["Hi ", Reference("a")])
    assert tree.paths["op0"][-1].ops == ["op0", "op1"]


@settings(max_examples=80)
@given(st.lists(st.lists(PIECES, max_size=5), max_size=8))
def test_paths_spell_the_prompts(prompts: list[list[object]]) -> None:
    written = [
        [Reference(str(piece)) if isinstance(piece, int) else piece for piece in prompt]
        for prompt in prompts
    ]
    tree = tree_of(*written)
    for i, prompt in enumerate(written):
        spelled = [node.edge for node in tree.paths[f"op{i}"]]
        assert _spelled(spelled) == _spelled([*prompt, TURN])
    numbers = [node.number for node in tree.walk()]
    assert len(set(numbers)) == len(numbers)
    for left in tree.paths.values():
        for right in tree.paths.values():
            common = [a is b for a, b in zip(left, right, strict=False)]
            assert common == sorted(common, reverse=True)  # once parted, always parted


def _spelled(segments: Sequence[object]) -> list[object]:
    found: list[object] = []
    for segment in segments:
        found += list(segment) if isinstance(segment, str) else [segment]
    return found


def test_static_prefixes_worth_computing_once() -> None:
    a = Reference("a")
    tree = tree_of([RULES, TURN, "Ask ", a], [RULES, TURN, "Tell ", a], ["Short ", a], [RULES * 9])
    found = tree.static_prefixes(estimate_tokens, least_tokens=10)
    longest = found[0]
    shared = next(each for each in found if each.turns == (RULES,))
    assert longest.turns == (RULES * 9, "")
    assert longest.ops == ("op3",)
    assert shared.calls == 30
    assert all("Short" not in "".join(each.turns) for each in found)


# --- the order of the rows -----------------------------------------------------------------------


def ordered(plan: LogicalPlan, rows: list[dict[str, Json]]) -> tuple[tuple[int, ...], float, float]:
    """The best order, and the tokens shared in it and in input order."""
    context = PlanContext(rows={"rows": rows})
    stats = context.stats(plan, orders=True)
    order = stats.prefix_order["rows"]
    scores = [
        shared_tokens(stats.templates, "rows", context.profile, each)
        for each in (order, range(len(rows)))
    ]
    return order, scores[0], scores[1]


def test_rows_with_equal_beginnings_come_together() -> None:
    order, best, given_order = ordered(plan_over("document", "question"), table(200, 8, 150))
    assert sorted(order) == list(range(200))
    assert best > 3 * given_order
    documents = [table(200, 8, 150)[i]["document"] for i in order]
    changes = sum(a != b for a, b in itertools.pairwise(documents))
    assert changes < 20


def test_nothing_to_gain_keeps_the_input_order() -> None:
    order, _, _ = ordered(plan_over("document", "question"), table(1, 1, 1))
    assert order == (0,)
    unique: list[dict[str, Json]] = [{"document": f"d{i}", "question": f"q{i}"} for i in range(9)]
    assert ordered(plan_over("document", "question"), unique)[0] == tuple(range(9))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 60), st.integers(1, 5), st.integers(1, 5), st.integers(0, 9))
def test_an_order_is_a_permutation_that_is_never_worse(
    count: int, documents: int, questions: int, seed: int
) -> None:
    rows = table(count, documents, questions, seed)
    order, best, given_order = ordered(plan_over("document", "question"), rows)
    assert sorted(order) == list(range(count))
    assert best >= given_order


def test_an_answered_value_ends_what_rows_can_share() -> None:
    rows = scan("document", "question")
    answer = ask("Sum up ", column(rows, "document"), temperature=1.0, call_id="s")
    plan = query("q", ask(answer, " about ", column(rows, "question")), rows)
    context = PlanContext(rows={"rows": table(20, 2, 2)})
    templates = context.stats(plan).templates
    assert best_order(templates, "rows", context.profile) != ()
    reading = next(t for t in templates if isinstance(t.segments[0], Reference))
    assert isinstance(reading.segments[0], Reference)
    assert reading.segments[0].varies


# --- hits ----------------------------------------------------------------------------------------


def hits(rows: list[dict[str, Json]], capacity: int | None, order: Sequence[int]) -> float:
    plan = merge({"q": plan_over("document", "question")})
    context = PlanContext(rows={"rows": rows})
    tree = PrefixTree(context.stats(plan).templates)
    found = simulate_hits(
        tree, "rows", context.profile, order, capacity_tokens=capacity, block_tokens=4
    )
    assert 0 <= found.total.hit_tokens <= found.total.tokens
    return found.total.share


def test_a_good_order_needs_a_smaller_cache() -> None:
    rows = table(300, 10, 250)
    best = ordered(plan_over("document", "question"), rows)[0]
    roomy, small = hits(rows, None, range(300)), hits(rows, 200, range(300))
    assert small < roomy / 2
    assert hits(rows, 200, best) > 1.5 * small
    assert hits(rows, None, best) >= roomy - 0.02


def test_no_capacity_hits_nothing() -> None:
    assert hits(table(50, 2, 2), 0, range(50)) == 0


def test_many_rows_are_extrapolated_from_some() -> None:
    rows = table(400, 4, 400)
    context = PlanContext(rows={"rows": rows})
    tree = PrefixTree(context.stats(plan_over("document", "question")).templates)
    found = simulate_hits(
        tree, "rows", context.profile, range(400), capacity_tokens=None, block_budget=500
    )
    assert 0 < found.rows < found.of_rows == 400


def test_a_profile_counts_once() -> None:
    counted: list[str] = []

    def count(text: str) -> int:
        counted.append(text)
        return len(text)

    profile = RowProfile({"rows": table(50, 3, 3)}, count)
    profile.codes(("rows", ("document",)))
    profile.token_counts(("rows", ("document",)))
    assert len(counted) == 3
