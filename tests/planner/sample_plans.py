"""Plans that several planner tests read."""

from __future__ import annotations

from planner.logical import (
    Agent,
    Body,
    Choose,
    Column,
    Compare,
    Const,
    Effect,
    Field,
    Format,
    Generate,
    Json,
    LogicalPlan,
    Loop,
    Map,
    Op,
    Ordered,
    Param,
    Project,
    Prompt,
    Reduce,
    Ref,
    Result,
    Scan,
    Sql,
    Tool,
    ToolRef,
    When,
)

LOOKUP = ToolRef("lookup", "d1", Effect.PURE)
PUBLISH = ToolRef("publish", "d2", Effect.WRITE)
POINTS = (
    '{"type":"object","properties":{"points":{"$ref":"#/$defs/Points"}},'
    '"$defs":{"Points":{"type":"array","items":{"type":"string"},"minItems":2,"maxItems":4}}}'
)


def scan(*columns: str, source: str = "rows") -> Scan:
    return Scan((), source, columns or ("question",))


def column(of: Scan, name: str = "question") -> Column:
    return Column((of,), name)


def ask(
    *segments: str | Op,
    model: str = "m",
    max_tokens: int = 16,
    temperature: float = 0.0,
    call_id: str = "",
    label: str = "",
) -> Generate:
    """A call whose prompt is `segments`: texts as literals, operators as references."""
    inputs = tuple(dict.fromkeys(s for s in segments if isinstance(s, Op)))
    refs = tuple(s if isinstance(s, str) else Ref(inputs.index(s)) for s in segments)
    return Generate(
        inputs,
        model,
        Prompt(refs),
        max_tokens=max_tokens,
        temperature=temperature,
        call_id=call_id,
        label=label,
    )


def query(name: str, value: Op, of: Scan) -> LogicalPlan:
    return LogicalPlan(((name, Result((value, of))),))


def headline() -> LogicalPlan:
    """Two shared steps and one of its own."""
    rows = scan()
    question = column(rows)
    facts = ask("List two facts.\nQuestion: ", question, label="facts")
    angle = ask("Facts: ", facts, "\nName the best angle.", label="angle")
    return query("headline", ask("Angle: ", angle, "\nWrite the headline."), rows)


def objection() -> LogicalPlan:
    """The first two steps of `headline` under other names, then a sampled one."""
    rows = scan()
    question = column(rows)
    known = ask("List two facts.\nQuestion: ", question, label="known")
    view = ask("Facts: ", known, "\nName the best angle.", label="view")
    drawn = ask(
        "Angle: ", view, "\nObject to ", question, temperature=0.7, call_id="draw", label="draw"
    )
    return query("objection", drawn, rows)


def chain(length: int, name: str = "chain") -> LogicalPlan:
    """`length` calls, each reading the one before."""
    rows = scan()
    value: Op = column(rows)
    for step in range(length):
        value = ask(f"Step {step}: ", value)
    return query(name, value, rows)


def everything() -> LogicalPlan:
    """Every operator, with bodies inside bodies and ordered writes."""
    rows = scan("question", "documents")
    question, documents = column(rows), column(rows, "documents")
    found = Tool((question,), tool=LOOKUP, params=("q",), label="found")
    stored = Sql((question,), "", "SELECT * FROM facts WHERE topic = $topic", ("topic",))
    points = Generate(
        (question, found),
        "m",
        Prompt(("Points for ", Ref(0), " given ", Ref(1))),
        Prompt(("You are brief.",)),
        64,
        label="points",
        schema_json=POINTS,
    )
    listed = Field((points,), "points")
    element, topic = Param((), 0), Param((), 1)
    expanded = Generate(
        (topic, element),
        "m",
        Prompt(("On ", Ref(0), " expand: ", Ref(1))),
        max_tokens=32,
        temperature=0.5,
        call_id="expand",
        label="expand",
    )
    texts = Map((listed, question), Body(2, expanded), label="texts")
    merged = Generate((Param((), 0),), "m", Prompt(("Merge: ", Ref(0))), label="merged")
    whole = Reduce((texts,), Body(1, merged), 4)
    verdict = Choose((whole,), "m", Prompt(("Good? ", Ref(0))), options=("yes", "no"))
    good = Compare((verdict, Const.of("yes")), "==")
    again = Generate((Param((), 0),), "m", Prompt(("Improve: ", Ref(0))), label="again")
    still = Compare((Param((), 0), Const.of("")), "!=")
    improved = Loop((Param((), 0),), Body(1, still), Body(1, again), 3, label="improved")
    chosen = When((good, whole), Body(1, Param((), 0)), Body(1, improved), label="chosen")
    helper = Agent(
        (chosen,),
        "m",
        Prompt(("Check ", Ref(0))),
        tools=(LOOKUP,),
        max_turns=4,
        label="helper",
    )
    first = Tool((helper,), tool=PUBLISH, params=("text",), call_id="publish", label="first")
    second = Tool(
        (question,), tool=PUBLISH, params=("text",), call_id="again", after=(first,), label="second"
    )
    text = Format((question, documents), Prompt((Ref(0), ": ", Ref(1))))
    answer = Project((text, helper, stored), names=("text", "checked", "facts"))
    return query("everything", Ordered((answer,), after=(second,)), rows)


def questions(count: int, distinct: int | None = None) -> dict[str, list[dict[str, Json]]]:
    """`count` rows, `distinct` of them different."""
    return {
        "rows": [{"question": f"Is option {i % (distinct or count)} good?"} for i in range(count)]
    }
