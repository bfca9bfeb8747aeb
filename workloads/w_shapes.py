"""Six mixed workflows of models, queries and HTTP services: the shapes W1 to W6 that published work
on batch optimizers for agent workflows is measured with, rebuilt on generated data.

Model names are roles: `8b` stands for the larger model, `1b` for the smaller one.
"""

from __future__ import annotations

import re
from typing import Any

from workloads.graph import Ops, Workload
from workloads.text import WORDS, below, words

BIG, SMALL = "8b", "1b"
ANSWER = 24


def _role(name: str, task: str) -> str:
    """An operator's own instruction, about 300 characters, the same for every row."""
    return (
        f"You are {name}, one of several analysts who work on the same question. {task} Use what "
        "the other analysts and the tools say, and nothing else. Do not repeat their words. Answer "
        "with one small JSON object and no explanation; leave out what you do not know."
    )


def _step(
    ops: Ops,
    name: str,
    model: str,
    task: str,
    question: Any,
    *,
    answer: int = ANSWER,
    **inputs: Any,
) -> Any:
    prompt = f"Question: {question}\n"
    for label, value in inputs.items():
        prompt += f"## {label}\n{value}\n"
    return ops.llm(model, prompt, system=_role(name, task), max_tokens=answer, name=name)


def keyword(reply: str) -> str:
    """The search keyword in a plan."""
    return WORDS[below(reply, len(WORDS))]


# --- IMDb ----------------------------------------------------------------------------------------

TITLES = (
    "SELECT primary_title, start_year FROM title_basics "
    "WHERE primary_title ILIKE '%' || $kw || '%' ORDER BY tconst LIMIT 6"
)
PEOPLE = (
    "SELECT primary_name, birth_year FROM name_basics "
    "WHERE primary_name ILIKE '%' || $kw || '%' ORDER BY nconst LIMIT 6"
)
PROFESSIONS = (
    "SELECT primary_profession, count(*) AS n FROM name_basics WHERE primary_name "
    "ILIKE '%' || $kw || '%' GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 5"
)
AKAS = (
    "SELECT title, region FROM title_akas WHERE title ILIKE '%' || $kw || '%' "
    "ORDER BY title_id, region LIMIT 6"
)
REGIONS = (
    "SELECT region, count(*) AS n FROM title_akas WHERE title ILIKE '%' || $kw || '%' "
    "GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 5"
)
RATING = (
    "SELECT count(*) AS n, round(avg(average_rating), 2) AS rating FROM title_basics "
    "JOIN title_ratings USING (tconst) WHERE primary_title ILIKE '%' || $kw || '%'"
)
GENRES = (
    "SELECT genres, count(*) AS n FROM title_basics WHERE primary_title ILIKE '%' || $kw || '%' "
    "GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 5"
)
MOST_VOTED = (
    "SELECT primary_title, num_votes FROM title_basics JOIN title_ratings USING (tconst) "
    "WHERE primary_title ILIKE '%' || $kw || '%' ORDER BY num_votes DESC, tconst LIMIT 6"
)
CREW = (
    "SELECT primary_title, directors FROM title_basics JOIN title_crew USING (tconst) "
    "WHERE primary_title ILIKE '%' || $kw || '%' ORDER BY tconst LIMIT 6"
)


def imdb_diamond(ops: Ops, uq: Any) -> Any:
    """W1: 8 model calls, 9 tools; three branches that join twice."""
    plan = _step(ops, "plan", BIG, "Choose a search keyword.", uq)
    kw = ops.function(keyword, plan)
    movie = _step(
        ops, "movie", SMALL, "Find the titles meant.", uq, plan=plan,
        found=ops.http("titles", kw), recent=ops.http("recent", kw),
    )  # fmt: skip
    person = _step(
        ops, "person", BIG, "Find the people meant.", uq, plan=plan,
        people=ops.sql(PEOPLE, kw=kw), professions=ops.sql(PROFESSIONS, kw=kw),
    )  # fmt: skip
    akas = _step(
        ops, "akas", SMALL, "Find alternate titles.", uq, plan=plan,
        titles=ops.sql(AKAS, kw=kw), regions=ops.sql(REGIONS, kw=kw),
    )  # fmt: skip
    hub1 = _step(
        ops, "hub1", BIG, "Join titles and people.", uq, movie=movie, person=person,
        rating=ops.sql(RATING, kw=kw),
    )  # fmt: skip
    hub2 = _step(
        ops, "hub2", SMALL, "Add alternate titles.", uq, hub=hub1, akas=akas,
        genres=ops.sql(GENRES, kw=kw),
    )  # fmt: skip
    tail = _step(ops, "tail", SMALL, "Judge how sure the answer is.", uq, hub=hub2)
    return _step(
        ops, "final", BIG, "Write the answer.", uq, hub=hub2, tail=tail,
        voted=ops.sql(MOST_VOTED, kw=kw),
    )  # fmt: skip


def imdb_triple_chain(ops: Ops, uq: Any) -> Any:
    """W2: 10 model calls, 3 tools; three chains side by side."""
    plan = _step(ops, "plan", BIG, "Choose a search keyword.", uq)
    sanity = _step(ops, "sanity", SMALL, "Write the question in canonical form.", uq)
    kw = ops.function(keyword, plan)
    movie1 = _step(
        ops, "movie1", SMALL, "List titles.", uq, plan=plan, titles=ops.sql(TITLES, kw=kw)
    )
    movie2 = _step(ops, "movie2", SMALL, "Rank the titles.", uq, titles=movie1)
    people1 = _step(
        ops, "people1", BIG, "List people.", uq, plan=plan, found=ops.http("people", kw)
    )
    people2 = _step(ops, "people2", BIG, "Rank the people.", uq, people=people1)
    crew1 = _step(ops, "crew1", SMALL, "List the crew.", uq, plan=plan, crew=ops.sql(CREW, kw=kw))
    crew2 = _step(ops, "crew2", SMALL, "Group the crew.", uq, crew=crew1)
    crew3 = _step(ops, "crew3", SMALL, "Name the best of the crew.", uq, groups=crew2)
    return _step(
        ops, "final", BIG, "Write the answer.", uq, keyword=kw, sanity=sanity, movies=movie2,
        people=people2, crew=crew3,
    )  # fmt: skip


# --- wiki ----------------------------------------------------------------------------------------

NEWEST = (
    "SELECT title, left(wikitext, 120) AS text FROM pages WHERE wikitext ILIKE '%' || $uq || '%' "
    "ORDER BY date_modified DESC, page_id LIMIT 4"
)
OLDEST = NEWEST.replace("DESC, page_id", "ASC, page_id")
PAGE_TITLES = (
    "SELECT page_id, title FROM pages WHERE title ILIKE '%' || $uq || '%' ORDER BY page_id LIMIT 5"
)
FOREIGN = (
    "SELECT title, in_language FROM pages WHERE in_language <> 'en' AND wikitext ILIKE "
    "'%' || $uq || '%' ORDER BY page_id LIMIT 6"
)
FULL_TEXT = (
    "SELECT title, left(wikitext, 160) AS text FROM pages WHERE wikitext ILIKE '%' || $uq || '%' "
    "ORDER BY page_id LIMIT 3"
)


def wiki_long_chain(ops: Ops, uq: Any) -> Any:
    """W3: 9 model calls, 6 tools; four branches of which one feeds two others."""
    expand = _step(
        ops, "expand", BIG, "Summarize the pages.", uq, newest=ops.sql(NEWEST, uq=uq),
        titles=ops.sql(PAGE_TITLES, uq=uq),
    )  # fmt: skip
    time1 = _step(
        ops, "time1", BIG, "Put events in order.", uq, summary=expand,
        oldest=ops.sql(OLDEST, uq=uq),
    )  # fmt: skip
    time2 = _step(ops, "time2", BIG, "Name the turning point.", uq, timeline=time1)
    cat1 = _step(ops, "cat1", SMALL, "Classify.", uq, categories=ops.http("categories", uq))
    cat2 = _step(ops, "cat2", SMALL, "Name the main category.", uq, classes=cat1)
    link1 = _step(ops, "link1", SMALL, "Choose links.", uq, links=ops.http("links", uq))
    link2 = _step(ops, "link2", SMALL, "Explain the links.", uq, links=link1, summary=expand)
    rewrite = _step(ops, "rewrite", BIG, "Write the title as a question.", uq)
    return _step(
        ops, "final", BIG, "Write the article's abstract.", uq, summary=expand, time=time2,
        category=cat2, links=link1, explained=link2, asked=rewrite,
        text=ops.sql(FULL_TEXT, uq=uq),
    )  # fmt: skip


def wiki_bridge(ops: Ops, uq: Any) -> Any:
    """W4: 9 model calls, 3 tools; a chain with two bridges."""
    a0 = _step(ops, "a0", BIG, "Summarize the pages.", uq, pages=ops.sql(NEWEST, uq=uq))
    a1 = _step(ops, "a1", BIG, "Name the open points.", uq, summary=a0)
    a2 = _step(ops, "a2", BIG, "Settle the open points.", uq, points=a1)
    b1 = _step(
        ops,
        "b1",
        SMALL,
        "Classify the points.",
        uq,
        points=a1,
        categories=ops.http("categories", uq),
    )
    b2 = _step(ops, "b2", SMALL, "Choose a class.", uq, classes=b1)
    c1 = _step(
        ops, "c1", SMALL, "Compare with other languages.", uq, summary=a0,
        foreign=ops.sql(FOREIGN, uq=uq),
    )  # fmt: skip
    c2 = _step(ops, "c2", SMALL, "Name the difference.", uq, compared=c1)
    s0 = _step(ops, "s0", SMALL, "Join the branches.", uq, settled=a2, kind=b2, difference=c2)
    return _step(ops, "final", BIG, "Write the answer.", uq, settled=a2, joined=s0)


# --- TPC-H ---------------------------------------------------------------------------------------

REVENUE_BY_NATION = (
    "SELECT n_name, round(sum(l_extendedprice * (1 - l_discount)), 2) AS revenue FROM lineitem "
    "JOIN supplier ON l_suppkey = s_suppkey JOIN nation ON s_nationkey = n_nationkey JOIN region "
    "ON n_regionkey = r_regionkey WHERE r_name = split_part($p, ' ', 1) AND year(l_shipdate) = "
    "CAST(split_part($p, ' ', 3) AS INTEGER) GROUP BY 1 ORDER BY 2 DESC LIMIT 5"
)
PRICING = (
    "SELECT l_returnflag, l_linestatus, sum(l_quantity) AS quantity, count(*) AS n FROM lineitem "
    "WHERE year(l_shipdate) <= CAST(split_part($p, ' ', 3) AS INTEGER) GROUP BY 1, 2 ORDER BY 1, 2"
)
FORECAST = (
    "SELECT round(sum(l_extendedprice * l_discount), 2) AS revenue FROM lineitem WHERE "
    "year(l_shipdate) = CAST(split_part($p, ' ', 3) AS INTEGER) AND l_discount "
    "BETWEEN 0.05 AND 0.07 AND l_quantity < 24"
)
PRIORITIES = (
    "SELECT o_orderpriority, count(*) AS n FROM orders JOIN customer ON o_custkey = c_custkey "
    "WHERE c_mktsegment = split_part($p, ' ', 2) GROUP BY 1 ORDER BY 1"
)
SUPPLIERS = (
    "SELECT s_name, round(s_acctbal, 2) AS balance FROM supplier JOIN nation ON s_nationkey = "
    "n_nationkey JOIN region ON n_regionkey = r_regionkey WHERE r_name = split_part($p, ' ', 1) "
    "ORDER BY s_acctbal DESC, s_suppkey LIMIT 5"
)
BRANDS = "SELECT p_brand, count(*) AS n FROM part GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 5"
TOP_SUPPLIER = (
    "SELECT l_suppkey, round(sum(l_extendedprice), 2) AS revenue FROM lineitem WHERE "
    "year(l_shipdate) = CAST(split_part($p, ' ', 3) AS INTEGER) GROUP BY 1 ORDER BY 2 DESC, 1 "
    "LIMIT 3"
)
RETURNED = REVENUE_BY_NATION.replace("WHERE r_name", "WHERE l_returnflag = 'R' AND r_name")
BANDS = (
    "SELECT l_discount, count(*) AS n FROM lineitem WHERE year(l_shipdate) = "
    "CAST(split_part($p, ' ', 3) AS INTEGER) GROUP BY 1 ORDER BY 1 LIMIT 6"
)


def parameters(question: str) -> str:
    """The rule that reads region, segment and year out of a question."""
    found = dict(re.findall(r"(\w+)=(\w+)", question))
    region, segment = found.get("region", "ASIA"), found.get("segment", "BUILDING")
    return f"{region} {segment} {found.get('year', '1994')}"


def tpch_trident(ops: Ops, uq: Any) -> Any:
    """W5: 7 model calls, 10 tools; three experts, two hubs, a tail."""
    p = ops.function(parameters, uq)
    e1 = _step(
        ops, "e1", SMALL, "Judge prices.", uq, pricing=ops.sql(PRICING, p=p),
        forecast=ops.sql(FORECAST, p=p),
    )  # fmt: skip
    e2 = _step(
        ops, "e2", BIG, "Judge orders.", uq, priorities=ops.sql(PRIORITIES, p=p),
        nations=ops.sql(REVENUE_BY_NATION, p=p),
    )  # fmt: skip
    e3 = _step(
        ops, "e3", SMALL, "Judge suppliers.", uq, suppliers=ops.sql(SUPPLIERS, p=p),
        returned=ops.sql(RETURNED, p=p),
    )  # fmt: skip
    hub1 = _step(
        ops, "hub1", BIG, "Join prices and orders.", uq, prices=e1, orders=e2,
        report=ops.http("q12", p),
    )  # fmt: skip
    hub2 = _step(
        ops, "hub2", SMALL, "Add suppliers.", uq, hub=hub1, suppliers=e3, report=ops.http("q14", p)
    )
    tail = _step(ops, "tail", SMALL, "Name the risk.", uq, hub=hub2)
    return _step(
        ops, "final", BIG, "Write the report.", uq, hub=hub2, risk=tail,
        top=ops.sql(TOP_SUPPLIER, p=p),
    )  # fmt: skip


def tpch_fanout(ops: Ops, uq: Any) -> Any:
    """W6: 9 model calls, 13 tools; five briefs, each read by three analysts of a second stage, two
    of which ask the same queries again."""
    p = ops.function(parameters, uq)

    def four() -> dict[str, Any]:
        return {
            "nations": ops.sql(REVENUE_BY_NATION, p=p),
            "brands": ops.sql(BRANDS),
            "returned": ops.sql(RETURNED, p=p),
            "suppliers": ops.sql(SUPPLIERS, p=p),
        }

    q5 = _step(ops, "q5", SMALL, "Brief on nations.", uq, **four())
    q3 = _step(
        ops, "q3", SMALL, "Brief on segments.", uq, segments=ops.http("segments", p),
        report=ops.http("q12", p),
    )  # fmt: skip
    q1 = _step(ops, "q1", BIG, "Brief on discounts.", uq, bands=ops.sql(BANDS, p=p))
    h0 = _step(ops, "h0", SMALL, "Brief on what is usual.", uq)
    h1 = _step(ops, "h1", SMALL, "Brief on what may go wrong.", uq)
    briefs = {
        "nations_brief": q5,
        "segments_brief": q3,
        "discounts_brief": q1,
        "usual": h0,
        "risk": h1,
    }
    again5 = _step(ops, "again5", SMALL, "Check the nations.", uq, **briefs, **four())
    again1 = _step(
        ops, "again1", BIG, "Check the discounts.", uq, **briefs, bands=ops.sql(BANDS, p=p)
    )
    notes = _step(ops, "notes", SMALL, "Note what is missing.", uq, **briefs)
    return _step(
        ops, "final", BIG, "Write the report.", uq, nations=again5, discounts=again1, notes=notes
    )


# --- rows ----------------------------------------------------------------------------------------

DISTINCT_SHARE = 0.75
"""Questions are drawn from a pool of this share of the rows' number, the popular ones more
often."""


def movie_questions(count: int, seed: int) -> list[dict[str, str]]:
    """Questions about movies, drawn with repetition from a pool."""
    pool = max(1, int(count * DISTINCT_SHARE))
    return [
        {"uq": f"Which film about {words(f'imdb/{seed}/{_popular(seed, i, pool)}', 40)}?"}
        for i in range(count)
    ]


def wiki_titles(count: int, seed: int) -> list[dict[str, str]]:
    """Titles of articles, drawn with repetition from a pool."""
    pool = max(1, int(count * DISTINCT_SHARE))
    return [
        {"uq": " ".join(WORDS[below(f"wiki/{seed}/{_popular(seed, i, pool)}/{k}", 32)]
                        for k in range(2))}
        for i in range(count)
    ]  # fmt: skip


def tpch_questions(count: int, seed: int) -> list[dict[str, str]]:
    """Region, segment and year, each drawn evenly: at most 175 different questions."""
    regions = ("AFRICA", "AMERICA", "ASIA", "EUROPE", "MIDDLE_EAST")
    segments = ("AUTOMOBILE", "BUILDING", "FURNITURE", "HOUSEHOLD", "MACHINERY")
    return [
        {
            "uq": f"region={regions[below(f'r{seed}/{i}', 5)]} "
            f"segment={segments[below(f's{seed}/{i}', 5)]} year={1992 + below(f'y{seed}/{i}', 7)}"
        }
        for i in range(count)
    ]


def _popular(seed: int, i: int, pool: int) -> int:
    """A place in the pool: half of the draws fall on its first third."""
    hot = below(f"hot/{seed}/{i}", 2)
    return below(f"draw/{seed}/{i}", max(1, pool // 3) if hot else pool)


BOTH = (BIG, SMALL)
COUNT = 1024
"""Questions of the published runs."""

W1 = Workload("w1", "IMDb diamond", ("uq",), imdb_diamond, movie_questions, COUNT, "imdb", BOTH)
W2 = Workload(
    "w2", "IMDb triple chain", ("uq",), imdb_triple_chain, movie_questions, COUNT, "imdb", BOTH
)
W3 = Workload("w3", "wiki long chain", ("uq",), wiki_long_chain, wiki_titles, COUNT, "wiki", BOTH)
W4 = Workload("w4", "wiki bridge", ("uq",), wiki_bridge, wiki_titles, COUNT, "wiki", BOTH)
W5 = Workload("w5", "TPC-H trident", ("uq",), tpch_trident, tpch_questions, COUNT, "tpch", BOTH)
W6 = Workload("w6", "TPC-H fan-out", ("uq",), tpch_fanout, tpch_questions, COUNT, "tpch", BOTH)
