"""Traces made to be slow, to call home or to be huge: they are analysed like others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from halo.trace_report.build import ReportOptions
from halo.trace_report.patterns.all_rules import judge
from halo.trace_report.tool_families import ends_in_bare_expression
from halo.trace_report.view import View
from halo.trace_report.words import is_telling, words
from halo.traces import json_stream, source
from halo.traces.counting import fill_tokens, load_tokenizer
from halo.traces.openai_chat import conversation
from halo.traces.read import read_traces
from halo.traces.record import Problems


def view_of(messages: list[dict[str, Any]], tools: Any = None) -> View:
    trace = conversation({"messages": messages, "tools": tools, "model": "llama-3.1-8b"}, "x")
    fill_tokens(trace)
    return View(trace, ReportOptions().analyzer().book.rates("llama-3.1-8b"))


def call(name: str, arguments: str, id: str = "c") -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"role": "assistant", "content": "", "tool_calls": [{"id": id, "function": function}]}


def answer(text: str, id: str = "c") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": id, "content": text}


# Each repeats what would make an unbounded expression try again from every place.
SLOW = {
    "boxed": "\\boxed{" * 30_000,
    "braces": "\\boxed{" + "{}" * 60_000,
    "answer tag": "<answer>" * 20_000 + " " * 100_000,
    "final answer": "final answer " * 20_000,
    "blanks": "the answer is" + " " * 200_000 + "x",
    "stars": "answer: " + "*" * 200_000,
    "digits": "1," * 100_000,
    "quotes": '"\\' * 100_000,
    "traceback": "Traceback (most recent call last\n" * 20_000,
    "syntax": '{ "name" : "' * 30_000,
    "code": "((" * 20_000,
    "letters": "a" * 300_000,
}


@pytest.mark.parametrize("text", SLOW.values(), ids=SLOW)
def test_texts_made_to_be_slow(text: str) -> None:
    view = view_of(
        [
            {"role": "user", "content": text},
            {**call("python", json.dumps({"code": text})), "content": text},
            answer(text),
            {**call("web_search", text, "d"), "content": text},
            answer(text, "d"),
            {"role": "assistant", "content": f"{text}\nFinal answer: 1234"},
        ]
    )
    assert set(judge(view)) == {
        "confirmatory", "tool_mixing", "tool_priors", "format_collapse", "repeated_calls",
        "unread_answers", "cache_loss",
    }  # fmt: skip


def test_a_schema_that_names_an_address_calls_nobody(outside_reference: str) -> None:
    tools = [{"name": "a", "parameters": {"$ref": outside_reference}}]
    view = view_of([{"role": "user", "content": "x"}, call("a", "{}")], tools)
    assert judge(view)["format_collapse"].status == "clear"


@pytest.mark.parametrize("schema", [{"type": "object"}, {"minProperties": 1}])
def test_deep_arguments_of_a_declared_tool_are_no_error(schema: dict[str, Any]) -> None:
    for arguments in ("[" * 400 + "]" * 400, '{"q": ' * 400 + "1" + "}" * 400):
        view = view_of(
            [{"role": "user", "content": "x"}, call("a", arguments)],
            [{"name": "a", "parameters": schema}],
        )
        assert judge(view)["format_collapse"].status == "clear"


def test_deep_code_is_no_error() -> None:
    assert not ends_in_bare_expression("(" * 5000)
    assert not ends_in_bare_expression("x\n" * 50_000)
    assert not ends_in_bare_expression("-" * 9000 + "1")


def test_deep_json_is_a_problem(tmp_path: Path) -> None:
    good = json.dumps({"messages": [{"role": "assistant", "content": "a"}]})
    deep = '{"messages": ' + "[" * 100_000 + "]" * 100_000 + "}"
    path = tmp_path / "x.jsonl"
    path.write_text(f"{good}\n{deep}\n{good}")
    problems = Problems()
    assert len(list(read_traces(path, problems))) == 2
    assert problems.count == 1


def test_a_line_too_long_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "LONGEST_LINE_BYTES", 4000)
    short = json.dumps({"messages": [{"role": "assistant", "content": "a"}]})
    long = json.dumps({"messages": [{"role": "assistant", "content": "a" * 9000}]})
    path = tmp_path / "x.jsonl"
    path.write_text(f"{short}\n{long}\n{short}\n")
    problems = Problems()
    assert len(list(read_traces(path, problems))) == 2
    assert [problem.text for problem in problems.kept] == ["longer than 4,000 bytes"]


def test_an_item_too_long_ends_a_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "LARGEST_ITEM_CHARACTERS", 5000)
    monkeypatch.setattr(json_stream, "_BLOCK", 1000)
    result = {
        "task_id": 1,
        "reward": 1,
        "info": {},
        "traj": [{"role": "assistant", "content": "a"}],
    }
    huge = {**result, "traj": [{"role": "assistant", "content": "a" * 20_000}]}
    path = tmp_path / "x.json"
    path.write_text(json.dumps([result, result, huge, result], indent=1))
    problems = Problems()
    assert len(list(read_traces(path, problems))) == 2
    assert "longer than 5,000 characters" in problems.kept[0].text


def test_thousands_of_turns() -> None:
    messages: list[dict[str, Any]] = [{"role": "user", "content": "go"}]
    for number in range(3000):
        name = ("python", "web_search")[number % 2]
        messages += [call(name, f'{{"q": "{number}"}}', f"c{number}")]
        messages += [answer(f"value_{number} " * 5, f"c{number}")]
    view = view_of(messages)
    verdicts = judge(view)
    assert verdicts["tool_mixing"].status == "fired"
    assert view.totals.turns == 3000


def test_words_of_scripts_without_blanks_can_be_met_again() -> None:
    read, written = set(words("東京都の人口は約一千四百万人です。")), set(words("人口は千四百万人"))
    assert {word for word in read & written if is_telling(word)} >= {"人口", "百万"}


def test_a_tokenizer_counts(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    model = tokenizers.models.WordLevel({"one": 0, "two": 1, "?": 2}, unk_token="?")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    file = tmp_path / "tokenizer.json"
    tokenizer.save(str(file))
    counter = load_tokenizer(tmp_path)
    assert (counter.origin, counter.count("one two three")) == ("tokenized", 3)
    trace = conversation({"messages": [{"role": "assistant", "content": "one two"}]}, "x")
    fill_tokens(trace, counter)
    assert trace.turns[0].completion_origin == "tokenized"
