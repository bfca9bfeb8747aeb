"""Five primitive agent workflows and a trading graph, as published work on LLM workflow serving
measures them: experts in parallel, debate, reflection, iteration, fan-out over chunks.

In the expert prompts the role comes last, so that experts on one question share all but the role.
"""

from __future__ import annotations

from typing import Any

from workloads.graph import Ops, Workload
from workloads.text import below, words

BIG = "8b"
ROLES = (
    *("an accountant", "a lawyer", "an engineer", "a historian", "an economist", "a journalist"),
    *("a statistician",),
)
EXPERT_SYSTEM = (
    "You take part in a panel of experts on questions about financial reports. Read the context "
    "with care, quote numbers exactly and say which sentence they come from. Answer in your role "
    "only."
)


def _case(context: Any, question: Any) -> str:
    return f"Context: {context}\nQuestion: {question}\n"


def map_reduce(ops: Ops, context: Any, question: Any) -> Any:
    """Seven experts in parallel, then a summarizer: 8 calls."""
    case = _case(context, question)
    answers = [
        ops.llm(
            BIG, f"{case}Answer as {role}.", system=EXPERT_SYSTEM, max_tokens=32, name=f"expert{i}"
        )
        for i, role in enumerate(ROLES)
    ]
    said = "".join(f"Expert {i}: {answer}\n" for i, answer in enumerate(answers))
    return ops.llm(
        BIG,
        f"{case}{said}Give the answer that most of them support.",
        system="You summarize what a panel of experts said.",
        max_tokens=48,
        name="summary",
    )


def debate(ops: Ops, context: Any, question: Any) -> Any:
    """Three agents, two rounds; in the second each sees its own first answer and the others': 6
    calls."""
    case = _case(context, question)
    first = [
        ops.llm(
            BIG, f"{case}Answer as {role}.", system=EXPERT_SYSTEM, max_tokens=32, name=f"open{i}"
        )
        for i, role in enumerate(ROLES[:3])
    ]
    second = [
        ops.llm(
            BIG,
            f"{case}Answer as {role}.\nYou said: {first[i]}\n"
            + "".join(f"Another said: {other}\n" for j, other in enumerate(first) if j != i)
            + "Keep or correct your answer.",
            system=EXPERT_SYSTEM,
            max_tokens=32,
            name=f"reply{i}",
        )
        for i, role in enumerate(ROLES[:3])
    ]
    return ops.join(second)


def reflect(ops: Ops, context: Any, question: Any) -> Any:
    """Answer, two critics, a second answer that continues the first: 4 calls."""
    case = _case(context, question)
    answer = ops.llm(BIG, f"{case}Answer.", system=EXPERT_SYSTEM, max_tokens=32, name="answer")
    extraction = ops.llm(
        BIG, f"{case}Answer: {answer}\nAre the numbers in the context?",
        system="You check that numbers were read correctly.", max_tokens=32, name="extraction",
    )  # fmt: skip
    calculation = ops.llm(
        BIG, f"{case}Answer: {answer}\nFirst critique: {extraction}\nIs the calculation right?",
        system="You check calculations.", max_tokens=32, name="calculation",
    )  # fmt: skip
    return ops.llm(
        BIG,
        f"{case}Answer.\nYou said: {answer}\nCritique: {extraction}\nCritique: {calculation}\n"
        "Answer again.",
        system=EXPERT_SYSTEM, max_tokens=32, name="again",
    )  # fmt: skip


REVIEW_SYSTEM = words("review system", 400)


def iterative(ops: Ops, *chunks: Any) -> Any:
    """A summary that is refined with one chunk after the other: 6 calls in a chain."""
    summary: Any = ops.llm(
        BIG, f"Reviews: {chunks[0]}\nSummarize.", system=REVIEW_SYSTEM, max_tokens=40, name="begin"
    )
    for i, chunk in enumerate(chunks[1:], 1):
        summary = ops.llm(
            BIG, f"Summary so far: {summary}\nReviews: {chunk}\nRefine the summary.",
            system=REVIEW_SYSTEM, max_tokens=40, name=f"refine{i}",
        )  # fmt: skip
    return summary


def parallel(ops: Ops, *chunks: Any) -> Any:
    """Seven experts with long instructions of their own extract from six chunks each and summarize;
    a writer joins them: 50 calls."""
    parts: list[Any] = []
    for i, role in enumerate(ROLES):
        system = f"You are {role}. {words(f'expert {i}', 500)}"
        notes = [
            ops.llm(
                BIG, f"Reviews: {chunk}\nExtract.", system=system, max_tokens=16,
                name=f"note{i}_{k}",
            )
            for k, chunk in enumerate(chunks)
        ]  # fmt: skip
        said = "".join(f"- {note}\n" for note in notes)
        parts.append(
            ops.llm(BIG, f"Notes:\n{said}Summarize.", system=system, max_tokens=32, name=f"part{i}")
        )
    said = "".join(f"## {role}\n{part}\n" for role, part in zip(ROLES, parts, strict=True))
    return ops.llm(BIG, f"{said}Write the review.", max_tokens=48, name="writer")


DESKS = (("fundamentals", 4), ("market", 2), ("news", 5), ("social", 3))
RISKS = ("risky", "neutral", "safe")


def trading(ops: Ops, stock: Any, day: Any, *documents: Any) -> Any:
    """Four desks of analysts over 14 documents, a debate of bull and bear, eight traders each with
    three risk analysts in two rounds and a judge, a fund manager: 88 calls."""
    reports: list[Any] = []
    at = 0
    for desk, n in DESKS:
        system = f"You are an analyst of the {desk} desk. {words(desk, 300)}"
        read = [
            ops.llm(BIG, f"Stock: {stock}\nDocument: {documents[at + k]}\nWhat matters?",
                    system=system, max_tokens=16, name=f"{desk}{k}")
            for k in range(n)
        ]  # fmt: skip
        at += n
        said = "".join(f"- {note}\n" for note in read)
        reports.append(
            ops.llm(BIG, f"Stock: {stock}\n{said}Report.", system=system, max_tokens=32,
                    name=f"{desk}_report")
        )  # fmt: skip
    case = f"Stock: {stock}\n" + "".join(f"Report: {report}\n" for report in reports)
    history = ""
    for round_ in range(2):
        for side in ("bull", "bear"):
            said = ops.llm(
                BIG, f"{case}{history}Speak for the {side} side.", system=EXPERT_SYSTEM,
                max_tokens=24, name=f"{side}{round_}",
            )  # fmt: skip
            history += f"{side}: {said}\n"
    manager = ops.llm(
        BIG, f"{case}{history}Which side is right?", system=EXPERT_SYSTEM, max_tokens=24,
        name="manager",
    )  # fmt: skip
    decisions: list[Any] = []
    for t in range(8):
        plan = ops.llm(
            BIG, f"{case}Manager: {manager}\nDay: {day}\nYou are trader {t}. Propose a trade.",
            system=EXPERT_SYSTEM, max_tokens=24, name=f"trader{t}",
        )  # fmt: skip
        talk = f"{case}Manager: {manager}\nDay: {day}\nTrade: {plan}\n"
        for round_ in range(2):
            views = [
                ops.llm(
                    BIG, f"{talk}Speak as the {risk} analyst.", system=EXPERT_SYSTEM,
                    max_tokens=16, name=f"{risk}{t}_{round_}",
                )
                for risk in RISKS
            ]  # fmt: skip
            talk += "".join(f"{risk}: {view}\n" for risk, view in zip(RISKS, views, strict=True))
        decisions.append(
            ops.llm(BIG, f"{talk}Decide.", system=EXPERT_SYSTEM, max_tokens=16, name=f"judge{t}")
        )
    said = "".join(f"Trader {t}: {decision}\n" for t, decision in enumerate(decisions))
    return ops.llm(BIG, f"{case}{said}Allocate the fund.", max_tokens=32, name="fund")


# --- rows ----------------------------------------------------------------------------------------


def cases(count: int, seed: int) -> list[dict[str, str]]:
    """Contexts of 1,000 characters with six questions each; the questions of a context lie apart,
    as they would in a shuffled data set."""
    contexts = max(1, count // 6)
    return [
        {
            "context": words(f"case/{seed}/{i % contexts}", 1000),
            "question": words(f"question/{seed}/{i}", 60),
        }
        for i in range(count)
    ]


def items(count: int, seed: int) -> list[dict[str, str]]:
    """Items with six chunks of reviews, 500 characters each."""
    return [
        {f"chunk{k}": words(f"item/{seed}/{i}/{k}", 500) for k in range(6)} for i in range(count)
    ]


def short_items(count: int, seed: int) -> list[dict[str, str]]:
    """Items with six chunks of reviews, 250 characters each."""
    return [
        {f"chunk{k}": words(f"short/{seed}/{i}/{k}", 250) for k in range(6)} for i in range(count)
    ]


def stock_days(count: int, seed: int) -> list[dict[str, str]]:
    """Stocks on two days each. Of 14 documents, 12 are the same on the second day."""
    rows: list[dict[str, str]] = []
    for i in range(count):
        stock, day = i // 2, i % 2
        documents = {
            f"doc{k}": words(f"stock/{seed}/{stock}/{k}/{day if k in changing(stock) else 0}", 300)
            for k in range(14)
        }
        rows.append({"stock": f"S{seed}{stock}", "day": f"day {day + 1}", **documents})
    return rows


def changing(stock: int) -> tuple[int, int]:
    """The documents of a stock that are new on the second day: one of the news and one of the
    social desk."""
    return 6 + below(f"news/{stock}", 5), 11 + below(f"social/{stock}", 3)


CHUNKS = tuple(f"chunk{k}" for k in range(6))
CASE = ("context", "question")
DOCUMENTS = ("stock", "day", *(f"doc{k}" for k in range(14)))

# As many rows as the published runs have: six questions on each of 100 or 200 contexts, 200 and 100
# items, a batch of 80 stock days.
MAP_REDUCE = Workload("mapred", "map and reduce", CASE, map_reduce, cases, 600)
DEBATE = Workload("debate", "debate", CASE, debate, cases, 600)
REFLECT = Workload("reflect", "reflection", CASE, reflect, cases, 1200)
ITERATIVE = Workload("iterative", "iterative summary", CHUNKS, iterative, items, 200)
PARALLEL = Workload("parallel", "parallel chunks", CHUNKS, parallel, short_items, 100)
TRADING = Workload("trading", "trading desk", DOCUMENTS, trading, stock_days, 80)
