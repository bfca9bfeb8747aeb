"""EXPLAIN: golden texts, honest numbers, formats that other programs can read."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
import strategies
from hypothesis import given, settings
from sample_plans import (
    LOOKUP,
    ask,
    chain,
    column,
    everything,
    headline,
    objection,
    query,
    questions,
    scan,
)

from costmodel.tokens import estimate_tokens
from costmodel.usage import OpMetrics, Usage
from planner.errors import PlanError
from planner.explain import FORMATS, explain, explain_physical
from planner.logical import (
    Body,
    Const,
    Format,
    Generate,
    Json,
    LogicalPlan,
    Map,
    Op,
    Param,
    Prompt,
    Ref,
    Scan,
    Tool,
)
from planner.merge import merge
from planner.physical import PhysicalPlan, Worker, place
from planner.stats import PlanStats, estimate

Golden = Callable[[str, str], None]
SIM = Worker("simulated:m", "simulated", "m", 16, 4096, prefix_cache=True, prefix_block_tokens=2)


def batch() -> LogicalPlan:
    return merge({"headline": headline(), "objection": objection()})


def stats_of(plan: LogicalPlan, rows: dict[str, list[dict[str, Json]]] | None = None) -> PlanStats:
    return estimate(plan, rows or questions(30), estimate_tokens)


def placed(plan: LogicalPlan, worker: Worker = SIM) -> tuple[PhysicalPlan, PlanStats]:
    stats = stats_of(plan)
    return place(plan, stats, {"m": worker}), stats


def ran(plan: LogicalPlan, **changes: OpMetrics) -> Mapping[str, OpMetrics]:
    """Metrics of every call: 30 uses, 25 made. `changes` by label."""
    usage = Usage(input_tokens=400, output_tokens=200, cached_tokens=100)
    usual = OpMetrics(
        requested=30, made=25, shared=3, replayed=2, retries=1, busy_s=1.5, usage=usage
    )
    return {
        op.fingerprint: changes.get(op.label, usual)
        for op in plan.walk_all()
        if isinstance(op, Generate)
    }


# --- golden texts --------------------------------------------------------------------------------


def test_a_bound_query(golden: Golden) -> None:
    golden("explain/bound.txt", explain(objection()))


def test_a_merged_batch(golden: Golden) -> None:
    golden("explain/merged.txt", explain(batch(), stats=stats_of(batch())))


def test_every_operator_and_nested_bodies(golden: Golden) -> None:
    plan = merge({"everything": everything()})
    rows: list[dict[str, Json]] = [
        {"question": f"Question {i % 3}", "documents": ["a", "b"]} for i in range(6)
    ]
    stats = stats_of(plan, {"rows": rows})
    golden("explain/everything.txt", explain(plan, stats=stats))
    golden("explain/everything-verbose.txt", explain(plan, verbose=True))


def test_a_physical_plan(golden: Golden) -> None:
    golden("explain/physical.txt", explain_physical(*placed(batch())))


def test_analyze(golden: Golden) -> None:
    physical, stats = placed(batch())
    text = explain_physical(physical, stats, ran(physical.logical), volatile=False)
    golden("explain/analyze.txt", text)


# --- numbers -------------------------------------------------------------------------------------


def test_the_header_says_calls_merged_and_alone() -> None:
    first = explain(batch(), stats=stats_of(batch())).splitlines()[0]
    assert first.startswith("Batch of 2 queries  est. 120 calls (180 alone)  ")
    alone = explain(headline(), stats=stats_of(headline())).splitlines()[0]
    assert "est. 90 calls  " in alone


def test_lines_say_which_queries_share_them() -> None:
    text = explain(batch(), stats=stats_of(batch()))
    assert [
        line.split()[1] for line in text.splitlines() if "shared by headline,objection" in line
    ] == [
        "Scan(rows,",
        "Column(question)",
        "Generate",
        "Generate",
    ]


def test_cached_tokens_are_predicted_for_the_engine_that_will_run() -> None:
    def share(text: str) -> str:
        found = re.search(r"\((\d+ %) prefix-cached, predicted\)", text.splitlines()[0])
        assert found is not None
        return found[1]

    whole_blocks = explain_physical(*placed(batch()))
    large_blocks = explain_physical(*placed(batch(), replace(SIM, prefix_block_tokens=512)))
    no_cache = explain_physical(*placed(batch(), replace(SIM, prefix_cache=False)))
    assert share(whole_blocks) != "0 %"
    assert share(large_blocks) == share(no_cache) == "0 %"


def test_analyze_puts_actual_beside_estimate_with_the_error() -> None:
    physical, stats = placed(batch())
    usage = Usage(input_tokens=500, output_tokens=300, predicted_cached_tokens=60)
    facts = OpMetrics(requested=60, made=20, shared=40, busy_s=2.5, errors=2, usage=usage)
    lines = explain_physical(physical, stats, ran(physical.logical, facts=facts)).splitlines()
    [at] = [i for i, line in enumerate(lines) if "Generate facts" in line]
    calls, tokens, times = lines[at + 1 : at + 4]
    assert "actual 20  est. 30 (+50 %)  of 60 uses: 20 made, 40 shared, 0 replayed" in calls
    assert "in  actual 500  est. 360 (-28 %)  60 cached (predicted)" in tokens
    assert "out  actual 300  est. ~240 (-20 %)" in tokens
    assert "busy 2.50 s  retries 0  errors 2" in times


def test_analyze_sums_up_what_was_saved_and_never_mixes_measured_with_predicted() -> None:
    physical, stats = placed(batch())
    predicted = OpMetrics(
        requested=30, made=30, usage=Usage(input_tokens=70, predicted_cached_tokens=7)
    )
    unknown = OpMetrics(requested=30, made=30, usage=Usage(input_tokens=11))
    metrics = ran(physical.logical, facts=predicted, angle=unknown)
    text = explain_physical(physical, stats, metrics)
    assert (
        "calls 60 saved by merging queries; requested 120, made 110: "
        "6 saved by sharing equal calls, 4 replayed"
    ) in text
    assert (
        "prefix reuse: 200 of 800 input tokens (simulated), 7 of 70 input tokens (predicted), "
        "unknown for 11 input tokens"
    ) in text


def test_analyze_of_a_run_that_made_no_call() -> None:
    physical, stats = placed(batch())
    text = explain_physical(physical, stats, {})
    assert "actual 0  est. 30 (none happened)" in text
    assert "prefix reuse: no model call was made" in text


def test_volatile_numbers_are_hidden_on_request() -> None:
    physical, stats = placed(batch())
    metrics = [
        ran(physical.logical),
        {
            op: replace(m, busy_s=9.0, usage=Usage(1, 2, 3))
            for op, m in ran(physical.logical).items()
        },
    ]
    texts = [explain_physical(physical, stats, m, volatile=False) for m in metrics]
    assert texts[0] == texts[1]
    assert explain_physical(physical, stats, metrics[0]) != explain_physical(
        physical, stats, metrics[1]
    )


def test_an_operator_of_two_bodies_prints_its_numbers_once() -> None:
    rows = scan()
    each = ask("Sum ", Param((), 0))
    maps = [Map((Const.of(items),), Body(1, each)) for items in (["a"], ["b", "c"])]
    plan = query("q", Format(tuple(maps), Prompt((Ref(0), Ref(1)))), rows)
    text = explain(plan, stats=stats_of(plan))
    assert text.count("Generate(") == 2
    assert text.count("est. 3 calls") == 2  # the header and one place
    assert "counted at #" in text


# --- form ----------------------------------------------------------------------------------------


def wide() -> LogicalPlan:
    """Long texts, many inputs, many queries, names that try to break lines and markup."""
    plans: dict[str, LogicalPlan] = {}
    for i in range(12):
        rows = scan("a</pre>\n", source="<b>\x1b[31m")
        parts: list[str | Op] = ["<script>alert('x')</script>" * 20]
        for j in range(15):
            parts += [f' "part" {j} \n --> & ', ask(f"{j} \u202e ", column(rows, "a</pre>\n"))]
        plans[f'query "{i}" <i>'] = query("x", ask(*parts, label="end\n]; judge"), rows)
    return merge(plans)


def test_no_line_is_longer_than_120_characters() -> None:
    for plan in (wide(), batch(), merge({"everything": everything()})):
        physical, stats = placed(plan)
        for text in (
            explain(plan, stats=stats),
            explain_physical(physical, stats),
            explain_physical(physical, stats, ran(plan)),
        ):
            assert max(len(line) for line in text.splitlines()) <= 120


def test_verbose_shortens_nothing() -> None:
    text = explain(wide(), verbose=True)
    assert "<script>alert('x')</script>" * 20 in text
    assert "…" not in text
    assert 'query "11" <i>' in text


def test_what_does_not_print_is_escaped() -> None:
    text = explain(wide(), verbose=True)
    assert all(line.isprintable() for line in text.splitlines())


def test_a_stable_text() -> None:
    assert explain(batch()) == explain(batch())


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_names_every_call(form: str) -> None:
    physical, stats = placed(merge({"everything": everything(), "headline": headline()}))
    text = explain_physical(physical, stats, ran(physical.logical), format=form)
    for label in ("points", "expand", "again", "helper", "facts"):
        assert label in text


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("plan", [chain(5000), merge({f"q{i}": chain(10) for i in range(500)})])
def test_deep_and_wide_plans_print(form: str, plan: LogicalPlan) -> None:
    physical, stats = placed(plan)
    assert explain_physical(physical, stats, format=form)


def test_an_unknown_format_is_named_with_those_that_exist() -> None:
    with pytest.raises(PlanError, match=r"'svg'.*text, json, mermaid, dot, html"):
        explain(headline(), format="svg")


def test_json_has_everything_by_number() -> None:
    physical, stats = placed(batch())
    found = json.loads(explain_physical(physical, stats, ran(physical.logical), format="json"))
    assert [op["number"] for op in found["operators"]] == list(range(len(found["operators"])))
    facts = next(op for op in found["operators"] if op["label"] == "facts")
    assert facts["queries"] == ["headline", "objection"]
    assert facts["fields"]["prompt"] == ["List two facts.\nQuestion: ", {"ref": "#1"}]
    assert facts["estimate"]["calls"] == 30
    assert facts["actual"]["made"] == 25
    assert facts["actual"]["usage"]["cached_tokens"] == 100
    assert (facts["worker"], facts["priority"]) == ("simulated:m", 3)
    assert found["estimate"]["calls_alone"] == 180
    assert found["workers"][0]["max_in_flight"] == 16


def test_json_of_bodies_says_where_an_operator_is() -> None:
    found = json.loads(explain(everything(), format="json"))
    by_label = {op["label"]: op for op in found["operators"] if op["label"]}
    again, improved, chosen = by_label["again"], by_label["improved"], by_label["chosen"]
    assert again["body"] == {"operator": improved["number"], "title": "step"}
    assert improved["body"] == {"operator": chosen["number"], "title": "otherwise"}
    assert by_label["expand"]["inputs"] == ["%1", "%0"]
    assert by_label["helper"]["fields"]["tools"] == [
        {"name": "lookup", "digest": LOOKUP.digest, "effect": "pure"}
    ]


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_html_is_one_page_whose_data_is_text() -> None:
    physical, stats = placed(wide())
    page = explain_physical(physical, stats, format="html", verbose=True)
    parser = _Tags()
    parser.feed(page)
    allowed = {"html", "head", "meta", "title", "style", "body", "svg", "g", "rect", "text", "path"}
    assert parser.tags <= allowed | {"pre"}
    assert "<script>alert('x')</script>" * 20 in parser.text
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")
    drawing = ElementTree.fromstring(page[page.index("<svg") : page.index("</svg>") + 6])
    boxes = [g for g in drawing if g.tag.endswith("g")]
    assert len(boxes) == len(list(physical.logical.walk())) - 1 + 12  # a Result is an output box


def test_dot_quotes_balance_and_every_edge_has_its_ends() -> None:
    text = explain(wide(), format="dot")
    defined = set(re.findall(r"^ *(\w+) \[", text, re.MULTILINE))
    for start, end in re.findall(r"^ *(\w+) -> (\w+)", text, re.MULTILINE):
        assert {start, end} <= defined
    for line in text.splitlines():
        assert len(re.findall(r'(?<!\\)(?:\\\\)*"', line)) % 2 == 0


def test_mermaid_labels_hold_no_markup() -> None:
    text = explain(wide(), format="mermaid")
    assert text.startswith("flowchart TD\n")
    for label in re.findall(r'\["(.*?)"\]|\(\["(.*?)"\]\)', text):
        plain = "".join(label).replace("<br/>", "")
        assert not re.search(r'[<>"`\[\]{}&]', plain)


def test_tool_arguments_are_shown_by_name() -> None:
    rows = scan()
    tool = Tool((column(rows),), tool=LOOKUP, params=("topic",), label="found")
    assert "Tool found(lookup, topic=#1) <- #1" in explain(query("q", tool, rows))


@settings(max_examples=50)
@given(strategies.plans())
def test_any_plan_prints_in_any_format(plan: LogicalPlan) -> None:
    sources = {op.source for op in plan.walk() if isinstance(op, Scan)}
    rows: dict[str, list[dict[str, Json]]] = {source: [] for source in sources}
    stats = stats_of(plan, rows)
    for form in FORMATS:
        assert explain(plan, stats=stats, metrics={}, format=form)
