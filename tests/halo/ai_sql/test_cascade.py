"""Cascades: the guarantee over many draws, and the plan on the simulated engine."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from halo.ai_sql.batch import SqlBatch, SqlOptions
from halo.ai_sql.thresholds import Thresholds, learn_thresholds, lower_bound, upper_bound
from halo.session import Session

DRAWS = 1000
INPUTS, SAMPLE = 1500, 200

Population = list[tuple[int, bool]]


def calibrated(draw: random.Random) -> Population:
    """Scores that mean what they say."""
    scores = [draw.choice([2, 5, 10, 90, 95, 99]) for _ in range(INPUTS)]
    return [(score, draw.random() < score / 100) for score in scores]


def overconfident(draw: random.Random) -> Population:
    """High scores that are often wrong, low ones that hide many a yes."""
    scores = [draw.choice([0, 10, 50, 90, 100]) for _ in range(INPUTS)]
    return [(score, draw.random() < 0.15 + 0.6 * score / 100) for score in scores]


def useless(draw: random.Random) -> Population:
    """Scores that tell nothing."""
    return [(draw.randint(0, 100), draw.random() < 0.3) for _ in range(INPUTS)]


def rare(draw: random.Random) -> Population:
    """Few are yes."""
    return [(min(100, draw.randint(0, 60) + 50 * yes), yes)
            for yes in (draw.random() < 0.04 for _ in range(INPUTS))]  # fmt: skip


def learn(
    population: Population, draw: random.Random, **targets: float
) -> tuple[Thresholds, set[int]]:
    chosen = set(draw.sample(range(INPUTS), SAMPLE))
    seen: Counter[int] = Counter(population[i][0] for i in chosen)
    yes: Counter[int] = Counter(population[i][0] for i in chosen if population[i][1])
    counts = Counter(score for score, _ in population)
    sample = {score: (n, yes[score]) for score, n in seen.items()}
    return learn_thresholds(counts, sample, **targets), chosen


def measure(
    population: Population, found: Thresholds, chosen: set[int]
) -> tuple[float, float, int]:
    """Precision, recall and calls of the trusted model."""
    right = said = yes = asked = 0
    for i, (score, truth) in enumerate(population):
        if i in chosen or found.reject <= score < found.accept:
            answer, asked = truth, asked + 1
        else:
            answer = score >= found.accept
        right += answer and truth
        said += answer
        yes += truth
    return right / said if said else 1.0, right / yes if yes else 1.0, asked


@pytest.mark.parametrize("make", [calibrated, overconfident, useless, rare])
def test_the_guarantee_holds_over_a_thousand_draws(make: object) -> None:
    """With precision and recall 0.9 at confidence 0.95, at most 5 % of the draws may miss a target.
    The bound of the test is three standard errors above that."""
    assert callable(make)
    draw = random.Random(11)
    population: Population = make(draw)
    missed = 0
    for _ in range(DRAWS):
        found, chosen = learn(population, draw, precision=0.9, recall=0.9, confidence=0.95)
        precision, recall, _ = measure(population, found, chosen)
        missed += precision < 0.9 or recall < 0.9
    assert missed <= DRAWS * 0.05 + 3 * (DRAWS * 0.05 * 0.95) ** 0.5


def test_good_scores_spare_most_calls() -> None:
    draw = random.Random(5)
    scores = [draw.choice([0, 1, 2, 98, 99, 100]) for _ in range(INPUTS)]
    population = [(score, draw.random() < score / 100) for score in scores]
    found, chosen = learn(population, draw, precision=0.9, recall=0.9, confidence=0.95)
    precision, recall, asked = measure(population, found, chosen)
    assert asked < INPUTS / 2 and precision >= 0.9 and recall >= 0.9


def test_a_guarantee_without_data_is_none() -> None:
    targets = {"precision": 0.9, "recall": 0.9, "confidence": 0.95}
    assert learn_thresholds({}, {}, **targets) == Thresholds()
    assert learn_thresholds({50: 900}, {}, **targets) == Thresholds()
    few = learn_thresholds({90: 900}, {90: (5, 5)}, **targets)
    assert few == Thresholds()


def test_the_bounds_are_those_of_the_tables() -> None:
    """Clopper and Pearson's exact limits for 8 of 20 at 95 %: 0.1912 and 0.6395."""
    assert lower_bound(8, 20, 0.025) == pytest.approx(0.1912, abs=1e-4)
    assert upper_bound(8, 20, 0.025) == pytest.approx(0.6395, abs=1e-4)
    assert lower_bound(0, 10, 0.05) == 0.0 and upper_bound(10, 10, 0.05) == 1.0


def test_a_cascade_answers_as_the_trusted_model_would() -> None:
    """The simulated cheap model knows nothing, so the trusted one must be asked about everything:
    the answers are exactly its own."""
    rows = [{"id": i, "t": f"text {i}"} for i in range(600)]
    options = SqlOptions(tables={"mine": rows})
    with Session(engine="simulated") as session:
        plain = "SELECT id, AI_FILTER('Good? {t}', model := 'large') AS f FROM mine ORDER BY id"
        with SqlBatch(plain, session, options) as batch:
            expected = list(batch.run()[0])
        cascaded = plain.replace("model := 'large'", "cascade := 'small->large'")
        with SqlBatch(cascaded, session, options) as batch:
            (result,) = batch.run()
            assert list(result) == expected
        asked = result.run.engine_requests
        assert asked == {"simulated:small": 600, "simulated:large": 600}


def test_few_inputs_are_all_asked_of_the_trusted_model() -> None:
    options = SqlOptions(tables={"mine": [{"t": f"text {i}"} for i in range(30)]})
    text = "SELECT AI_FILTER('Good? {t}', cascade := 'small→large') AS f FROM mine"
    with Session(engine="simulated") as session, SqlBatch(text, session, options) as batch:
        (result,) = batch.run()
    assert result.run.engine_requests == {"simulated:small": 0, "simulated:large": 30}


def test_a_join_as_labels_asks_once_for_each_left_text() -> None:
    left = [{"a": f"left {i}"} for i in range(6)]
    right = [{"b": f"right {i}"} for i in range(50)]
    options = SqlOptions(tables={"l": left, "r": right}, on=["join-as-labels"])
    text = "SELECT a, b FROM l JOIN r ON AI_FILTER(PROMPT('Does {0} go with {1}?', a, b))"
    with Session(engine="simulated") as session, SqlBatch(text, session, options) as batch:
        (result,) = batch.run()
        rows = list(result)
    # Fifty candidates are more than one prompt takes: two calls for each.
    assert result.run.summary()["calls"]["made"] == 12
    assert 0 < len(rows) < 300 and all(row["a"] and row["b"] for row in rows)
