"""YAML workflows are the plans of the same Python workflows, and what is dumped loads back."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel

import halo
from halo.errors import WorkflowError
from halo.flow import Traced
from halo.load import load_flow
from halo.spec import dump_spec, load_spec, load_spec_text
from halo.spec.steps import STEPS
from planner.logical import (
    Const,
    Effect,
    Generate,
    LogicalPlan,
    Op,
    Prompt,
    Ref,
    Result,
    Scan,
    Sql,
    Tool,
)
from planner.verify import verify

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
COLUMNS = ("question", "items", "k")
lm = halo.Model()


class Verdict(BaseModel):
    winner: Literal["for", "against"]
    reason: str


class Draft(BaseModel):
    text: str
    scores: list[int]
    done: bool


@halo.tool(pure=True)
def search(query: str, k: int = 3) -> list[str]:
    """Searches."""
    return [query] * k


@halo.tool
def post(text: str) -> str:
    """Posts."""
    return text


@halo.tool(effect="sampled")
def draw(low: float) -> float:
    """Draws."""
    return low


TOOLS = {each.name: each.spec for each in (search, post, draw)}


def same_plan(flow: Any, text: str) -> Traced:
    """Both build one plan, and its dump loads back as that plan."""
    from_python = flow.trace("rows", COLUMNS)
    from_yaml = load_spec_text(text, f"{flow.name}.yaml", tools=TOOLS).trace("rows", COLUMNS)
    verify(from_python.plan)
    assert from_yaml.plan.fingerprint == from_python.plan.fingerprint
    assert set(from_yaml.tools) == set(from_python.tools)
    for traced in (from_python, from_yaml):
        again = load_spec_text(dump_spec(traced), "dumped.yaml", tools=TOOLS)
        assert again.trace("rows", COLUMNS).plan.fingerprint == traced.plan.fingerprint
    return from_yaml


def test_the_example_is_one_plan_in_both_languages() -> None:
    columns = ("id", "question")
    yaml_flow, python_flow = (
        load_flow(str(EXAMPLES / name)) for name in ("debate.yaml", "debate.py:debate")
    )
    assert yaml_flow.name == python_flow.name == "debate"
    plans = [flow.trace("rows", columns).plan for flow in (yaml_flow, python_flow)]
    assert plans[0].fingerprint == plans[1].fingerprint
    labels = [[op.label for op in plan.walk()] for plan in plans]
    assert labels[0] == labels[1]


def test_the_example_runs_over_the_example_questions() -> None:
    with halo.Session(engine="simulated") as session:
        result = session.run(load_spec(EXAMPLES / "debate.yaml"), EXAMPLES / "questions.jsonl")
    values: list[Any] = result.values()
    assert len(values) == 30
    assert {value["winner"] for value in values} <= {"for", "against"}


def test_calls_tools_sampling_and_members() -> None:
    @halo.workflow
    def panel(question: str, k: int) -> dict[str, object]:
        found = search(f"about {question}")
        first = lm.gen(f"{found[0]}\nFor {question}", temperature=0.7, top_p=0.9, stop=["\n"])
        second = lm.gen(f"Against {question}", temperature=0.7, system=f"k is {k}")
        verdict = halo.Model("judge").gen(f"{first}{second}", out=Verdict, max_tokens=9)
        level = halo.Model("judge").choose(f"How good? {verdict}", ["yes", "no"])
        return {"winner": verdict.winner, "level": level, "inner": {"k": k}}

    same_plan(
        panel,
        """
        tools: {search: {python: "x.py:search"}}
        steps:
          query: {value: "about {{ question }}"}
          found: {tool: search, args: {query: "{{ query }}"}}
          first:
            prompt: "{{ found[0] }}\\nFor {{ question }}"
            temperature: 0.7
            top_p: 0.9
            stop: "\\n"
          second: {prompt: "Against {{question}}", system: "k is {{ k }}", temperature: 0.7}
          verdict:
            model: judge
            prompt: "{{ first }}{{ second }}"
            out: {winner: [for, against], reason: text}
            max_tokens: 9
          level: {choose: [yes, no], prompt: "How good? {{ verdict }}", model: judge}
        return: {winner: verdict.winner, level: level, inner: {k: k}}
        """,
    )


@pytest.mark.parametrize(
    ("written", "python"),
    [
        ("text", str),
        ("integer", int),
        ("number", float),
        ("boolean", bool),
        ("list of text", list[str]),
        ("'list[text]'", list[str]),
        ("list of list of integer", list[list[int]]),
        ("[a, b]", Literal["a", "b"]),
        ("[1, 2]", Literal[1, 2]),
        ("[only]", Literal["only"]),
        ("{winner: [for, against], reason: string}", Verdict),
        ("{text: text, scores: list of integer, done: boolean}", Draft),
    ],
)
def test_types_are_those_of_python(written: str, python: Any) -> None:
    @halo.workflow
    def typed(question: str) -> object:
        answer: object = lm.gen(f"Q: {question}", out=python)
        return answer

    same_plan(typed, f"steps: {{a: {{prompt: 'Q: {{{{ question }}}}', out: {written}}}}}")


def test_map_and_reduce_with_captures() -> None:
    @halo.workflow
    def digest(question: str, items: list[str]) -> str:
        head = lm.gen(f"Head {question}", out=Draft)
        notes = halo.map(
            lambda item: halo.map(
                lambda part: lm.gen(f"{head.text} {question} {item} {part}"), search(item)
            ),
            items,
        )
        return halo.reduce(lambda group: lm.gen(f"Merge for {question}: {group}"), notes, fan_in=4)  # type: ignore[arg-type, return-value]

    same_plan(
        digest,
        """
        columns: [question, items]
        tools: {search: {python: "x.py:search"}}
        steps:
          head:
            prompt: "Head {{ question }}"
            out: {text: text, scores: list of integer, done: boolean}
          notes:
            foreach: items
            as: item
            do:
              steps:
                parts: {tool: search, args: {query: "{{ item }}"}}
                each:
                  foreach: parts
                  as: part
                  do: {prompt: "{{ head.text }} {{ question }} {{ item }} {{ part }}"}
          page:
            reduce: notes
            as: group
            fan_in: 4
            do: {prompt: "Merge for {{ question }}: {{ group }}"}
        """,
    )


def test_branches_and_loops() -> None:
    @halo.workflow
    def refine(question: str, k: int) -> object:
        draft = lm.gen(f"Draft {question}", out=Draft)
        better = halo.loop(
            lambda state: lm.gen(f"{question} improve {state}", out=Draft, temperature=0.5),
            draft,
            until=lambda state: state.done | (k > 3),
            max_rounds=3,
        )
        return halo.when(
            (better.text != "none") & ~better.done,
            lambda: lm.gen(f"Praise {better.text} of {question}"),
            lambda: lm.gen(f"Blame {question}", temperature=1.0),
        )

    same_plan(
        refine,
        """
        steps:
          draft:
            prompt: "Draft {{ question }}"
            out: &draft {text: text, scores: list of integer, done: boolean}
          better:
            loop:
              state: "{{ draft }}"
              until: state.done or (k > 3)
              max_rounds: 3
              do: {prompt: "{{ question }} improve {{ state }}", out: *draft, temperature: 0.5}
          good: {value: "{{ better.text }}"}
          end:
            when: better.text != 'none' and not better.done
            then: {prompt: "Praise {{ good }} of {{ question }}"}
            else: {prompt: "Blame {{ question }}", temperature: 1}
        """,
    )


def test_writes_keep_their_order_and_are_kept_when_nobody_reads_them() -> None:
    @halo.workflow
    def announce(question: str, items: list[str]) -> str:
        post("start")
        halo.map(lambda item: post(f"{item} of {question}"), items)
        post(text=f"end of {question}")
        low = draw(1)
        return lm.gen(f"Done {question} {low}")

    traced = same_plan(
        announce,
        """
        tools: {post: {python: "x.py:post"}, draw: {python: "x.py:draw"}}
        steps:
          start: {tool: post, args: {text: start}}
          each: {foreach: items, do: {tool: post, args: {text: "{{ item }} of {{ question }}"}}}
          end: {tool: post, args: {text: "end of {{ question }}"}}
          low: {tool: draw, args: {low: 1}}
          done: {prompt: "Done {{ question }} {{ low }}"}
        """,
    )
    writes = [op for op in traced.plan.walk() if op.effect is Effect.WRITE]
    assert [len(op.after) for op in writes] == [0, 1, 1]
    assert writes[1].after == (writes[0],)


def test_queries() -> None:
    db = halo.sql.readonly("shop.duckdb")

    @halo.workflow
    def rag(question: str, k: int) -> object:
        hits = halo.sql("SELECT * FROM docs WHERE a = $t AND n > $n AND b = '$x'", t=question, n=k)
        text = lm.gen(f"Write SQL for {question}")
        rows = db.query(text, max_rows=50)
        return lm.gen(f"{hits} {rows} {hits[0]['a']}")

    same_plan(
        rag,
        """
        databases: {shop: shop.duckdb}
        steps:
          hits:
            sql: SELECT * FROM docs WHERE a = $t AND n > $n AND b = '$x'
            params: {t: question, n: k}
          text: {prompt: "Write SQL for {{ question }}"}
          rows: {query: text, database: shop, max_rows: 50}
          answer: {prompt: "{{ hits }} {{ rows }} {{ hits[0].a }}"}
        """,
    )


def test_agents() -> None:
    @halo.workflow
    def ask(question: str) -> object:
        found = halo.agent(lm, f"Find {question}", tools=[search], out=Verdict, max_turns=3)
        return halo.agent(lm, f"Post {found.reason}", tools=[post, search], temperature=0.5)

    same_plan(
        ask,
        """
        tools: {search: {python: "x.py:search"}, post: {python: "x.py:post"}}
        steps:
          found:
            agent:
              prompt: Find {{ question }}
              tools: [search]
              out: {winner: [for, against], reason: text}
              max_turns: 3
          end: {agent: {prompt: "Post {{ found.reason }}", tools: [post, search], temperature: 0.5}}
        """,
    )


def test_braces_in_data_and_in_literals_stay_what_they_are() -> None:
    flow = load_spec_text(
        "steps:\n"
        "  a:\n"
        "    prompt: |-\n"
        "      {{ '{{' }} x }} {\"a\": {\"b\": 1}} {{ '{' }}{{ question }}}\n",
    )
    [call] = [op for op in flow.trace("rows", COLUMNS).plan.walk() if isinstance(op, Generate)]
    assert call.prompt.segments == ('{{ x }} {"a": {"b": 1}} {', Ref(0), "}")
    assert call.prompt.render(["{{ question }}"]).endswith("{{{ question }}}")


def test_columns_with_any_name() -> None:
    flow = load_spec_text(
        "columns: ['a name', in]\nsteps: {a: {prompt: \"{{ row['a name'] }} {{ row.in }}\"}}"
    )
    traced = flow.trace("rows", ("a name", "in"))
    assert load_spec_text(dump_spec(traced)).trace("rows", ("a name", "in")).plan == traced.plan


def test_steps_may_be_written_in_any_order() -> None:
    forward = "steps: {b: {prompt: 'B {{ a }}'}, a: {prompt: 'A {{ question }}'}}\nreturn: b"
    backward = "steps: {a: {prompt: 'A {{ question }}'}, b: {prompt: 'B {{ a }}'}}"
    plans = [load_spec_text(text).trace("rows", COLUMNS).plan for text in (forward, backward)]
    assert plans[0] == plans[1]


def test_a_chain_of_two_thousand_steps_in_reverse_order() -> None:
    steps = [f"  s{i}: {{prompt: 'x {{{{ s{i - 1} }}}}'}}" for i in range(2000, 0, -1)]
    text = "steps:\n" + "\n".join(steps) + "\n  s0: {prompt: 'x {{ question }}'}\nreturn: s2000"
    plan = load_spec_text(text).trace("rows", COLUMNS).plan
    assert sum(isinstance(op, Generate) for op in plan.walk()) == 2001


def test_ids_keep_sampled_calls_what_they_are_when_steps_move() -> None:
    one = "{prompt: 'A {{ question }}', temperature: 1, id: one}"
    two = "{prompt: 'B {{ question }}', temperature: 1}"
    plans = [
        load_spec_text(f"steps: {{{steps}}}\nreturn: {{one: one, two: two}}", "w.yaml")
        for steps in (f"one: {one}, two: {two}", f"two: {two}, one: {one}")
    ]
    first, second = (flow.trace("rows", COLUMNS) for flow in plans)
    assert first.plan == second.plan
    assert load_spec_text(dump_spec(first)).trace("rows", COLUMNS).plan == first.plan


def test_a_constant_condition_takes_its_branch_when_the_file_is_read() -> None:
    text = "steps: {a: {when: false, then: {prompt: x}, else: {prompt: 'y {{ question }}'}}}"
    plan = load_spec_text(text).trace("rows", COLUMNS).plan
    assert [op.prompt.segments for op in plan.walk() if isinstance(op, Generate)] == [
        ("y ", Ref(0))
    ]


def test_databases_are_relative_to_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "w.yaml"
    path.write_text("databases: {d: d.duckdb}\nsteps: {a: {sql: SELECT 1, database: d}}")
    monkeypatch.chdir(tmp_path)
    plans = [load_spec(each).trace("rows", ("q",)).plan for each in (path, Path("w.yaml"))]
    assert plans[0] == plans[1]
    [query] = [op for op in plans[0].walk() if isinstance(op, Sql)]
    assert query.database == str(tmp_path / "d.duckdb")


# --- tools ---------------------------------------------------------------------------------------

TOOL_FILE = '''
import halo

@halo.tool(pure=True, timeout=5)
def decorated(text: str) -> str:
    """Decorated."""
    return text.upper()

def plain(text: str, times: int = 2) -> str:
    """Plain."""
    return text * times
'''


def test_tools_of_a_file_and_of_http(tmp_path: Path) -> None:
    (tmp_path / "my_tools.py").write_text(TOOL_FILE)
    path = tmp_path / "w.yaml"
    path.write_text(
        "tools:\n"
        "  shout: {python: 'my_tools.py:decorated'}\n"
        "  repeat: {python: 'my_tools.py:plain', effect: pure, timeout_s: 3}\n"
        "  page: {http: 'https://example.org/api', params: {q: text, n: integer}, effect: pure}\n"
        "steps:\n"
        "  a: {tool: shout, args: {text: '{{ q }}'}}\n"
        "  b: {tool: repeat, args: {text: '{{ a }}'}}\n"
        "  c: {tool: page, args: {q: '{{ b }}', n: 3}}\n"
    )
    traced = load_spec(path).trace("rows", ("q",))
    shout, repeat, page = (traced.tools[name] for name in ("shout", "repeat", "page"))
    assert (shout.name, shout.effect, shout.timeout_s) == ("shout", Effect.PURE, 5)
    assert (repeat.effect, repeat.timeout_s, repeat.description) == (Effect.PURE, 3, "Plain.")
    assert (page.url, page.method) == ("https://example.org/api", "GET")
    assert page.parameters["required"] == ["q", "n"]
    [call] = [op for op in traced.plan.walk() if isinstance(op, Tool) and op.tool.name == "repeat"]
    assert call.params == ("text", "times")
    assert shout.function is not None and shout.function(text="a") == "A"
    http_again = tmp_path / "again.yaml"
    http_again.write_text(dump_spec(traced, directory=tmp_path))
    assert load_spec(http_again).trace("rows", ("q",)).plan == traced.plan


def test_a_workflow_with_tools_runs(tmp_path: Path) -> None:
    (tmp_path / "more_tools.py").write_text(TOOL_FILE)
    path = tmp_path / "w.yaml"
    path.write_text(
        "tools: {repeat: {python: 'more_tools.py:plain', effect: pure}}\n"
        "steps: {b: {tool: repeat, args: {text: '{{ q }}'}}}\n"
    )
    with halo.Session(engine="simulated") as session:
        assert session.run(load_spec(path), [{"q": "ab"}]).values() == ["abab"]


# --- what has no form ----------------------------------------------------------------------------


def _plan(build: Callable[[Scan], Op]) -> Traced:
    scan = Scan((), "rows", ("q",))
    return Traced(LogicalPlan((("w", Result((build(scan), scan))),)))


@pytest.mark.parametrize(
    "build",
    [
        lambda scan: Generate((Const.of(1),), "", Prompt((Ref(0),))),
        lambda scan: Generate((), "", Prompt(("a", "b"))),
        lambda scan: Generate((scan,), "", Prompt((Ref(0),))),
    ],
)
def test_a_plan_that_yaml_cannot_say_is_refused(build: Callable[[Scan], Op]) -> None:
    with pytest.raises(WorkflowError, match="no form in YAML"):
        dump_spec(_plan(build))


def test_several_queries_are_no_document() -> None:
    scan = Scan((), "rows", ("q",))
    result = Result((Const.of(1), scan))
    with pytest.raises(WorkflowError, match="a, b"):
        dump_spec(Traced(LogicalPlan((("a", result), ("b", result)))))


def test_the_schema_of_a_database_in_a_prompt(tmp_path: Path) -> None:
    import duckdb

    with duckdb.connect(str(tmp_path / "shop.duckdb")) as connection:
        connection.execute("CREATE TABLE docs (id INTEGER, content VARCHAR)")
    path = tmp_path / "w.yaml"
    path.write_text(
        "databases: {shop: shop.duckdb}\n"
        "steps: {a: {prompt: 'Tables: {{ databases.shop.schema }} Q: {{ q }}'}}\n"
    )
    [call] = [
        op for op in load_spec(path).trace("rows", ("q",)).plan.walk() if isinstance(op, Generate)
    ]
    assert "docs(id INTEGER, content VARCHAR)" in call.prompt.literal_prefix
    path.write_text(path.read_text().replace("shop.duckdb", "missing.duckdb"))
    with pytest.raises(WorkflowError, match=r"w\.yaml:2: steps\.a\.prompt: .*missing\.duckdb"):
        load_spec(path).trace("rows", ("q",))


DOCUMENTED = re.findall(r"```yaml\n(.*?)```", (EXAMPLES.parent / "yaml.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("text", DOCUMENTED)
def test_the_documentation_holds(text: str, tmp_path: Path) -> None:
    (tmp_path / "tools.py").write_text(
        "import halo\n\n"
        "@halo.tool(pure=True)\n"
        "def search(query: str, k: int = 3) -> list[str]:\n    return [query] * k\n\n"
        "def price(name: str) -> float:\n    return 1.0\n"
    )
    (tmp_path / "w.yaml").write_text(text)
    load_spec(tmp_path / "w.yaml")


def test_every_kind_of_step_is_documented() -> None:
    documented = "\n".join(DOCUMENTED)
    assert [kind for kind in STEPS if f"{kind}:" not in documented] == []
