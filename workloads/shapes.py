"""The six mixed workloads of the published evaluation and the trading graph, as shapes to schedule.

Topologies, models and tools follow the public templates of arXiv 2509.02121 (W1 to W6) and the
structure of the Trading workflow of arXiv 2603.16104. Prompt and answer lengths are assumptions:
they are not published.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

from halo.scheduling import (
    EngineSpec,
    Machine,
    ModelWork,
    Operation,
    PromptPart,
    ToolLaneSpec,
    ToolWork,
    Workload,
    engine_from_profiles,
    even_groups,
    worker_from_profiles,
)

SMALL, MEDIUM, LARGE = "gpt-oss-20b", "qwen3-14b", "qwen3-32b"

SYSTEM_TOKENS = 120
QUERY_TOKENS = 40
ANSWER_TOKENS = 120
TOOL_TOKENS = 350
SQL_S = 0.1
SQL_LIMIT, HTTP_LIMIT, PYTHON_LIMIT = 32, 256, 64


@dataclass
class Shape:
    """Builds a workload operator by operator."""

    operations: list[Operation] = field(default_factory=list[Operation])
    index: dict[str, int] = field(default_factory=dict[str, int])

    def add(self, operation: Operation) -> str:
        self.index[operation.name] = len(self.operations)
        self.operations.append(operation)
        return operation.name

    def tool(self, name: str, lane: str, seconds: float, after: Sequence[str] = ()) -> str:
        inputs = tuple(self.index[a] for a in after)
        return self.add(Operation(name, ToolWork(lane, seconds), inputs))

    def sql(self, name: str, *after: str) -> str:
        return self.tool(name, "sql", SQL_S, after)

    def http(self, name: str, seconds: float, *after: str) -> str:
        return self.tool(name, "http", seconds, after)

    def llm(
        self,
        name: str,
        model: str,
        *after: str,
        answer: int = ANSWER_TOKENS,
        system: int = SYSTEM_TOKENS,
        query: int = QUERY_TOKENS,
    ) -> str:
        """A call that reads its own system prompt, the query, and what each of `after` gave."""
        parts = [PromptPart(f"system:{name}", system)]
        if query:
            parts.append(PromptPart("query", query, True))
        for a in after:
            given = self.operations[self.index[a]].work
            tokens = given.output_tokens if isinstance(given, ModelWork) else TOOL_TOKENS
            parts.append(PromptPart(f"value:{a}", tokens, True))
        inputs = tuple(self.index[a] for a in after)
        return self.add(Operation(name, ModelWork(model, tuple(parts), answer), inputs))

    def workload(self, rows: int, groups: int) -> Workload:
        return Workload(tuple(self.operations), even_groups(rows, groups))


def w1() -> Shape:
    """IMDb-Diamond: 8 model calls, 9 tools."""
    s = Shape()
    plan = s.llm("plan", SMALL)
    tools = [s.http("titles", 3.0, plan), s.http("recent", 3.0, plan)]
    movie = s.llm("movie", MEDIUM, plan, *tools)
    people = [s.sql("people-name", plan), s.sql("people-job", plan)]
    person = s.llm("person", SMALL, plan, *people)
    alternate = [s.sql("aka-title", plan), s.sql("aka-region", plan)]
    akas = s.llm("akas", LARGE, plan, *alternate)
    hub1 = s.llm("hub1", SMALL, movie, person, s.sql("rating", plan))
    hub2 = s.llm("hub2", MEDIUM, hub1, akas, s.sql("genres", plan))
    tail = s.llm("tail", LARGE, hub2)
    s.llm("final", SMALL, hub2, tail, s.sql("most-voted", plan))
    return s


def w2() -> Shape:
    """IMDb-TripleChain: 10 model calls, 3 tools."""
    s = Shape()
    plan = s.llm("plan", SMALL)
    sanity = s.llm("sanity", LARGE)
    movie1 = s.llm("movie1", LARGE, plan, s.sql("titles", plan))
    movie2 = s.llm("movie2", LARGE, movie1)
    people1 = s.llm("people1", SMALL, plan, s.http("people", 3.0, plan))
    people2 = s.llm("people2", SMALL, people1)
    crew1 = s.llm("crew1", MEDIUM, plan, s.sql("crew", plan))
    crew2 = s.llm("crew2", MEDIUM, crew1)
    crew3 = s.llm("crew3", MEDIUM, crew2)
    s.llm("final", MEDIUM, plan, sanity, movie2, people2, crew3)
    return s


def w3() -> Shape:
    """FineWiki-LongChain: 9 model calls, 6 tools that need the query alone."""
    s = Shape()
    expand = s.llm("expand", SMALL, s.sql("newest"), s.sql("title-match"))
    time1 = s.llm("time1", SMALL, expand, s.sql("oldest"))
    time2 = s.llm("time2", SMALL, time1)
    cat1 = s.llm("cat1", LARGE, s.http("categories", 3.0))
    cat2 = s.llm("cat2", LARGE, cat1)
    link1 = s.llm("link1", MEDIUM, s.http("links", 3.0))
    link2 = s.llm("link2", MEDIUM, link1, expand)
    rewrite = s.llm("rewrite", SMALL)
    s.llm("final", MEDIUM, expand, time2, cat2, link1, link2, rewrite, s.sql("text"))
    return s


def w4() -> Shape:
    """FineWiki-Bridge: 9 model calls, 3 tools."""
    s = Shape()
    a0 = s.llm("a0", SMALL, s.sql("text"))
    a1 = s.llm("a1", SMALL, a0)
    a2 = s.llm("a2", SMALL, a1)
    b1 = s.llm("b1", LARGE, a1, s.http("categories", 3.0))
    b2 = s.llm("b2", LARGE, b1)
    c1 = s.llm("c1", MEDIUM, a0, s.sql("foreign"))
    c2 = s.llm("c2", MEDIUM, c1)
    s0 = s.llm("s0", MEDIUM, a2, b2, c2)
    s.llm("final", MEDIUM, a2, s0)
    return s


def w5() -> Shape:
    """TPCH-Trident: 7 model calls, 10 tools."""
    s = Shape()
    rule = s.tool("rule", "python", 0.001)
    e1 = s.llm("e1", MEDIUM, s.sql("q1", rule), s.sql("q6", rule))
    e2 = s.llm("e2", SMALL, s.sql("q3", rule), s.sql("q5", rule))
    e3 = s.llm("e3", LARGE, s.sql("q2", rule), s.sql("q9", rule))
    hub1 = s.llm("hub1", SMALL, e1, e2, s.http("q12", 6.0, rule))
    hub2 = s.llm("hub2", MEDIUM, hub1, e3, s.http("q14", 6.0, rule))
    tail = s.llm("tail", LARGE, hub2)
    s.llm("final", SMALL, hub2, tail, s.sql("q15", rule))
    return s


def w6() -> Shape:
    """TPCH-Fanout: 9 model calls, 13 tools; the second stage issues the first stage's SQL again,
    which the plan's merge has made one call each."""
    s = Shape()
    rule = s.tool("rule", "python", 0.001)
    nation = [s.sql(name, rule) for name in ("revenue", "brand", "returned", "inventory")]
    discount = s.sql("discount", rule)
    q5 = s.llm("q5", LARGE, *nation)
    q3 = s.llm("q3", MEDIUM, s.http("segment", 6.0, rule), s.http("q12", 6.0, rule))
    q1 = s.llm("q1", SMALL, discount)
    h0 = s.llm("h0", LARGE)
    h1 = s.llm("h1", LARGE)
    briefs = (q5, q3, q1, h0, h1)
    q5b = s.llm("q5b", LARGE, *briefs, *nation)
    q1b = s.llm("q1b", SMALL, *briefs, discount)
    n0 = s.llm("n0", LARGE, *briefs)
    s.llm("final", LARGE, q5b, q1b, n0)
    return s


def trading(model: str = MEDIUM) -> Shape:
    """The 88 calls of one model: analysts over documents, debate, eight trader chains, a manager.
    Chunks of one analyst share its long system prompt; turns of a debate go on from its history."""
    s = Shape()
    reports: list[str] = []
    for analyst, documents in (("fundamentals", 4), ("market", 2), ("news", 5), ("social", 3)):
        read = [_reader(s, model, f"{analyst}{i}", f"analyst:{analyst}") for i in range(documents)]
        reports.append(s.llm(f"{analyst}-summary", model, *read, query=0))
    turns: list[str] = []
    for i in range(2):
        for side in ("bull", "bear"):
            turns.append(_on(s, model, f"{side}{i}", reports, turns))
    manager = _on(s, model, "manager", reports, turns)
    judged: list[str] = []
    for t in range(8):
        trader = _on(s, model, f"trader{t}", reports, [manager])
        said = [trader]
        for i in range(2):
            for view in ("risky", "safe", "neutral"):
                said.append(_on(s, model, f"{view}{t}{i}", reports, said))
        judged.append(_on(s, model, f"judge{t}", reports, said))
    s.llm("fund", model, *judged, query=0)
    return s


def _reader(s: Shape, model: str, name: str, system: str) -> str:
    parts = (PromptPart(system, 600), PromptPart(f"document:{name}", 900, True))
    return s.add(Operation(name, ModelWork(model, parts, 200)))


def _on(s: Shape, model: str, name: str, reports: Sequence[str], said: Sequence[str]) -> str:
    parts = [PromptPart("system:desk", 200)]
    parts += [PromptPart(f"value:{r}", ANSWER_TOKENS, True) for r in reports]
    parts += [PromptPart(f"value:{t}", 150, True) for t in said]
    parts.append(PromptPart(f"role:{name}", 60, True))
    inputs = tuple(dict.fromkeys(s.index[i] for i in (*reports, *said)))
    return s.add(Operation(name, ModelWork(model, tuple(parts), 150), inputs))


SHAPES: dict[str, Callable[[], Shape]] = {
    "W1": w1, "W2": w2, "W3": w3, "W4": w4, "W5": w5, "W6": w6,
}  # fmt: skip

TOOL_LANES = (
    ToolLaneSpec("sql", SQL_LIMIT),
    ToolLaneSpec("http", HTTP_LIMIT),
    ToolLaneSpec("python", PYTHON_LIMIT),
)


MODELS = (SMALL, MEDIUM, LARGE)


@cache
def engines(hardware: str = "h200") -> Mapping[str, EngineSpec]:
    """The three models on one device, priced by its profile and theirs."""
    return {model: engine_from_profiles(model, hardware) for model in MODELS}


def gpus(n: int, hardware: str = "h200") -> Machine:
    """`n` workers of one device each, nothing loaded."""
    workers = [worker_from_profiles(f"gpu{i}", hardware, engines(hardware)) for i in range(n)]
    return Machine(tuple(workers), TOOL_LANES)
