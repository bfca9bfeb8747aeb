"""What is wrong with a YAML workflow is told with file, line, field and a way out."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from halo.errors import WorkflowError
from halo.spec import load_spec, load_spec_text


def problem(text: str) -> str:
    with pytest.raises(WorkflowError) as caught:
        load_spec_text(textwrap.dedent(text).lstrip("\n"), "debate.yaml")
    return str(caught.value)


HEAD = "columns: [question]\nsteps:\n"


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (
            "  judge:\n    promt: x\n",
            "debate.yaml:4: steps.judge.promt: unknown field; did you mean 'prompt'?",
        ),
        (
            "  judge:\n    prompt: x\n    max_token: 3\n",
            "debate.yaml:5: steps.judge.max_token: unknown field; did you mean 'max_tokens'?",
        ),
        (
            "  judge:\n    prompt: Who won {{ qestion }}?\n",
            "debate.yaml:4: steps.judge.prompt: there is no step or column 'qestion'; did you mean "
            "'question'?",
        ),
        (
            "  judge:\n    prompt: |\n      Hello\n\n      {{ pro }}\n",
            "debate.yaml:7: steps.judge.prompt: there is no step or column 'pro'; steps known "
            "here: none; columns: question",
        ),
        (
            "  a:\n    prompt: x {{ b }}\n  b:\n    prompt: x {{ c }}\n  c: {value: '{{ a }}'}\n",
            "debate.yaml:3: steps.a: the steps form a cycle: a → b → c → a",
        ),
        ("  a: {prompt: '{{ a }}'}\n", "debate.yaml:3: steps.a: the steps form a cycle: a → a"),
        (
            "  a: {prompt: x}\n  b: {prompt: y}\n  a: {prompt: z}\n",
            "debate.yaml:5: steps.a: 'a' is there twice (first in line 3)",
        ),
        ("  a: {prompt: x, model: }\n", "debate.yaml:3: steps.a.model: expected a model's name"),
        ("  a: {choose: [x], prompt: y}\n", "debate.yaml:3: steps.a.choose: a choice needs at"),
        ("  a: {choose: [x, x], prompt: y}\n", "steps.a: choose has the option 'x' twice"),
        ("  a: {choose: [1, 2], prompt: y}\n", "steps.a.choose[0]: expected a text, got 1; write"),
        ("  a: {choose: [x, y]}\n", "debate.yaml:3: steps.a.prompt: missing"),
        (
            "  a: {prompt: x, out: {n: intger}}\n",
            "steps.a.out: unknown type 'intger'; did you mean",
        ),
        (
            "  a: {prompt: x, out: {type: object, properties: {n: {type: strng}}}}\n",
            "debate.yaml:3: steps.a.out: bad JSON Schema at properties/n/type",
        ),
        (
            "  a: {prompt: x, out: {type: string, score: integer}}\n",
            "steps.a.out: a mapping with `type: string` is a JSON Schema, and 'score' is no",
        ),
        (
            "  a: {prompt: x, out: {type: array, items: {$ref: 'http://e.org/x'}}}\n",
            "steps.a.out: bad JSON Schema: $ref 'http://e.org/x' is outside",
        ),
        (
            "  a: {tool: serch}\n",
            "debate.yaml:3: steps.a.tool: unknown tool 'serch'; there are: no",
        ),
        ("  a: {sql: 'SELECT 1', database: d}\n", "steps.a.database: unknown database 'd'"),
        ("  a: {sql: 'SELECT $q'}\n", "debate.yaml:3: steps.a.params: the query names $q"),
        ("  a: {sql: 'SELECT 1', params: {q: question}}\n", "steps.a.params.q: no $q in the query"),
        ("  a: {sql: 'SELECT {{ question }}'}\n", "steps.a.sql: values are no part of a query"),
        ("  a: {prompt: '{{ question | upper }}'}\n", "'question | upper' is no reference"),
        ("  a: {prompt: 'x {{ question'}\n", "steps.a.prompt: a {{ without its }}"),
        ("  a: {prompt: '{{{ question }}}'}\n", "for literal braces write {{ '{{' }}"),
        (
            "  a: {prompt: x, out: {winner: text}}\n  b: {prompt: '{{ a.winer }}'}\n",
            "debate.yaml:4: steps.b.prompt: a has no field 'winer'; did you mean 'winner'?",
        ),
        ("  a: {prompt: x}\n  b: {prompt: '{{ a.b }}'}\n", "a is a text and has no members"),
        (
            "  a: {prompt: x, out: list of text}\n  b: {prompt: '{{ a.b }}'}\n",
            "a is a list; write [0] for an element, or use foreach",
        ),
        ("  a: {prompt: x}\n  b: {foreach: a, do: {value: 1}}\n", "steps.b.foreach: expected a li"),
        (
            "  a: {prompt: x}\n  b: {foreach: question, as: a, do: {prompt: '{{ a }}'}}\n",
            "debate.yaml:4: steps.b.as: 'a' is the name of something outside this block",
        ),
        (
            "  a: {prompt: x}\n  b: {foreach: question, do: {steps: {a: {prompt: y}}}}\n",
            "debate.yaml:4: steps.b.do.steps.a: 'a' is the name of something outside this block",
        ),
        ("  question: {prompt: x}\n", "steps.question: a column is named 'question' as well"),
        ("  row: {prompt: x}\n", "debate.yaml:3: steps.row: 'row' cannot be a name"),
        ("  2nd: {prompt: x}\n", "debate.yaml:3: steps.2nd: '2nd' cannot be a name"),
        ("  a: {when: question = 'x', then: {value: 1}}\n", "steps.a.when: equality is written =="),
        ("  a: {when: 1 < question < 3, then: {value: 1}}\n", "cannot be chained"),
        ("  a: {when: question + 1, then: {value: 1}}\n", "expected the end of the condition"),
        ("  a: {when: {left: question, op: '=', right: 1}, then: {value: 1}}\n", "operator '='"),
        (
            "  a: {loop: {state: 1, until: state, while: state, do: {value: 2}}}\n",
            "steps.a.loop: a loop has exactly one of `until` and `while`",
        ),
        ("  a: {prompt: x, tool: y}\n", "steps.a: a step is one of prompt and tool, not both"),
        ("  a: {}\n", "debate.yaml:3: steps.a: no kind of step; a step has one of the fields pr"),
        ("  a: text\n", "debate.yaml:3: steps.a: expected a step (a mapping), got 'text'"),
        ("  a: {prompt: x, temperature: -1}\n", "steps.a.temperature: should be greater than or"),
        ("  a: {prompt: x, max_tokens: many}\n", "steps.a.max_tokens: expected an integer, got"),
        ("  a: {prompt: x, id: one}\n", "steps.a.id: only calls that sample or write have an id"),
        (
            "  a: {prompt: x, id: i, temperature: 1}\n  b: {prompt: y, id: i, temperature: 1}\n",
            "steps.b.id: another call has the id 'i'",
        ),
        ("  a: {value: ['{{ question }}']}\n", "steps.a.value: a list holds references"),
        ("  a: {prompt: x}\nreturn: b\n", "debate.yaml:4: return: there is no step or column 'b'"),
        (
            "  a: {prompt: x}\nretrun: a\n",
            "debate.yaml:4: retrun: unknown field; did you mean 'ret",
        ),
        (
            "  a: {agent: {prompt: x, tools: [find]}}\n",
            "steps.a.agent.tools[0]: unknown tool 'find'",
        ),
        ("  a: {prompt: x}\n 1: {prompt: y}\n", "debate.yaml:4: not YAML"),
        ("  a: {prompt: x}\n  1: {prompt: y}\n", "debate.yaml:4: a key must be a text; write '1'"),
        ("  a: !python/name:os.system {}\n", "debate.yaml:3: unknown tag"),
        ("  a: {prompt: !x y}\n", "debate.yaml:3: unknown tag '!x'"),
        ("  a: &a {value: *a}\n", "debate.yaml:3: nested too deeply, or an alias that contains"),
        ("  a: {prompt: \x01}\n", "debate.yaml:3: the character U+0001 is not allowed"),
    ],
)
def test_messages(steps: str, message: str) -> None:
    assert message in problem(HEAD + steps)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "debate.yaml: the file is empty"),
        ("- a\n", "debate.yaml:1: expected a mapping with `steps:`"),
        ("name: x\n", "debate.yaml:1: steps: missing"),
        ("steps: {}\n", "debate.yaml:1: steps: expected at least one entry"),
        ("steps: {a: {value: 1}}\n---\nx: 1\n", "not YAML"),
        ("columns: [a, a]\nsteps: {b: {value: 1}}\n", "columns: the column 'a' is there twice"),
        (
            "columns: {a: txt}\nsteps: {b: {value: 1}}\n",
            "columns: unknown type 'txt'; did you mean",
        ),
        (
            "tools: {t: {pthon: x}}\nsteps: {b: {value: 1}}\n",
            "debate.yaml:1: tools.t.pthon: unknown",
        ),
        (
            "tools: {t: {python: x}}\nsteps: {b: {value: 1}}\n",
            "tools.t.python: expected file.py:fun",
        ),
        (
            "tools: {t: {python: 'no.py:f'}}\nsteps: {b: {value: 1}}\n",
            "tools.t.python: no file no.",
        ),
        (
            "tools: {t: {http: 'ftp://x'}}\nsteps: {b: {value: 1}}\n",
            "tools.t.http: 'ftp://x' is no",
        ),
        ("tools: {'a b': {http: 'http://x'}}\nsteps: {b: {value: 1}}\n", "cannot name a tool"),
    ],
)
def test_messages_outside_the_steps(text: str, message: str) -> None:
    assert message in problem(text)


def test_all_errors_of_a_file_are_told_at_once_in_its_order() -> None:
    lines = problem(
        """
        steps:
          b: {promt: x}
          a: {prompt: x, top_p: 7, max_tokens: 0}
        model: 3
        """
    ).splitlines()
    assert [line.split(": ")[:2] for line in lines] == [
        ["debate.yaml:2", "steps.b.promt"],
        ["debate.yaml:3", "steps.a.max_tokens"],
        ["debate.yaml:3", "steps.a.top_p"],
        ["debate.yaml:4", "model"],
    ]


def test_an_alias_bomb_is_refused() -> None:
    levels = "".join(f"  - &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]\n" for i in range(1, 9))
    assert "more than 100000 values" in problem(f"x:\n  - &l0 [a]\n{levels}steps: {{}}\n")


def test_a_missing_column_is_named_when_rows_are_known() -> None:
    declared = load_spec_text("columns: [question]\nsteps: {a: {prompt: '{{ question }}'}}")
    with pytest.raises(
        WorkflowError, match=r"needs the column 'question'; the rows have: id, text"
    ):
        declared.trace("rows", ("id", "text"))
    open_ended = load_spec_text("steps: {a: {prompt: '{{ question }}'}}", "w.yaml")
    with pytest.raises(WorkflowError, match=r"w\.yaml:1: steps\.a\.prompt: .*'qestion'\?"):
        open_ended.trace("rows", ("id", "qestion"))


TOOLS = """
import halo

@halo.tool(pure=True)
def find(query: str, k: int = 3) -> str:
    return query

def plain(x: int) -> int:
    return x

number = 3
"""


@pytest.mark.parametrize(
    ("tool", "step", "message"),
    [
        ("python: 't.py:fnd'", "value: 1", "tools.t.python: unknown function 'fnd'; did you mean"),
        ("python: 't.py:plain'", "value: 1", "tools.t: plain is a plain function; decorate it"),
        ("python: 't.py:number'", "value: 1", "number in t.py is no function"),
        ("python: 't.py:find', effect: pure", "value: 1", "tools.t.effect: find is a halo.tool"),
        ("python: 'broken.py:f'", "value: 1", "cannot be imported: ZeroDivisionError"),
        ("python: 't.py:find'", "tool: t", "steps.a.args: tool 't' needs the arguments query"),
        ("python: 't.py:find'", "tool: t, args: {query: x, kk: 1}", "did you mean 'k'?"),
        ("python: 't.py:find'", "tool: t, args: {query: 3}", "steps.a.args.query: the value does"),
    ],
)
def test_tools(tmp_path: Path, tool: str, step: str, message: str) -> None:
    (tmp_path / "t.py").write_text(TOOLS)
    (tmp_path / "broken.py").write_text("1 / 0\n")
    path = tmp_path / "w.yaml"
    path.write_text(f"tools: {{t: {{{tool}}}}}\nsteps: {{a: {{{step}}}}}\n")
    with pytest.raises(WorkflowError) as caught:
        load_spec(path)
    assert str(caught.value).startswith(f"{path}:")
    assert message in str(caught.value)
