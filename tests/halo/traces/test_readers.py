"""Every format from a sample file: recognised by content, and read into the same record."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import pytest

from halo.errors import InputError, TraceFormatError
from halo.traces.counting import fill_tokens, priced_turns
from halo.traces.read import READERS, find_files, read_piece, read_traces, recognise, split
from halo.traces.record import Problems, Trace

SAMPLES = Path(__file__).parents[2] / "fixtures" / "traces" / "samples"
FORMATS = {
    "openai_conversations.jsonl": "openai-chat",
    "openai_calls.jsonl": "openai-chat",
    "openai_batch.jsonl": "openai-chat",
    "openai_flat.jsonl": "openai-chat",
    "openai_document.json": "openai-chat",
    "anthropic_conversations.jsonl": "anthropic-messages",
    "anthropic_calls.jsonl": "anthropic-messages",
    "claude_code_disk.jsonl": "claude-code",
    "claude_code_stream.jsonl": "claude-code",
    "gemini_session.json": "gemini-cli",
    "gemini_session.jsonl": "gemini-cli",
    "inspect_log.json": "inspect",
    "inspect_log.eval": "inspect",
    "mini.traj.json": "mini-swe-agent",
    "swe.traj": "swe-agent",
    "tau_bench.json": "tau-bench",
    "tau2.json": "tau-bench",
    "otlp.jsonl": "otlp",
}


def read(name: str) -> list[Trace]:
    problems = Problems()
    traces = list(read_traces(SAMPLES / name, problems))
    if name != "tau_bench.json":
        assert problems.kept == []
    return traces


def tokens(trace: Trace) -> list[tuple[int | None, int | None, int | None]]:
    return [(t.prompt_tokens, t.cached_tokens, t.completion_tokens) for t in trace.turns]


@pytest.mark.parametrize("name", FORMATS)
def test_recognised_by_content_whatever_its_name(name: str, tmp_path: Path) -> None:
    other = tmp_path / "data"
    shutil.copy(SAMPLES / name, other)
    assert recognise(other).name == FORMATS[name]
    assert len(list(read_traces(other))) >= 1


def test_every_sample_has_a_test_and_every_reader_a_sample() -> None:
    assert {path.name for path in SAMPLES.iterdir()} == set(FORMATS)
    assert {*FORMATS.values(), "halo-run"} == {reader.name for reader in READERS}


@pytest.mark.parametrize("name", FORMATS)
def test_every_sample_is_priced(name: str) -> None:
    for trace in read(name):
        fill_tokens(trace)
        for turn in priced_turns(trace):
            assert turn.context_tokens > 0
            assert turn.decode_tokens > 0
            assert turn.cached_tokens is None or 0 <= turn.cached_tokens <= turn.context_tokens


def test_openai_conversations() -> None:
    ferry, old = read("openai_conversations.jsonl")
    assert (ferry.id, ferry.model, ferry.passed) == ("ferry", "llama-3.1-8b", True)
    assert tokens(ferry) == [(1200, 0, 40), (1260, 1152, 18)]
    first = ferry.turns[0]
    assert [message.role for message in first.inputs] == ["system", "user"]
    assert first.output.reasoning == "Look it up."
    assert first.output.calls[0].arguments == {"route": "north"}
    assert ferry.turns[1].inputs[0].text == "22:40"
    assert ferry.tools and ferry.tools[0].name == "timetable"
    assert old.turns[0].output.calls[0].name == "calc"
    assert old.turns[1].inputs[0].tool_name == "calc"
    assert tokens(old) == [(None, None, None), (None, None, None)]


def test_openai_calls_are_put_together_by_their_prompts() -> None:
    traces = {trace.id: trace for trace in read("openai_calls.jsonl")}
    assert sorted(traces) == ["r1", "r2"]
    found = traces["r1"]
    # The first call lacks the field that the second has: an unreported zero.
    assert tokens(found) == [(300, 0, 20), (340, 320, 9)]
    assert found.turns[1].inputs[0].role == "tool"
    assert (found.turns[0].start_s, found.turns[1].end_s) == (10.0, 12.2)
    assert tokens(traces["r2"]) == [(12, None, 3)]


def test_batch_output_and_flat_messages() -> None:
    (row,) = read("openai_batch.jsonl")
    assert row.id == "row-7" and tokens(row) == [(50, None, 2)]
    second, first = read("openai_flat.jsonl")
    assert (first.id, second.id) == ("A", "B")
    assert tokens(first) == [(9, None, 2), (16, None, 2)]
    (document,) = read("openai_document.json")
    assert document.turns[0].output.text == "Hello."


def test_anthropic_counts_cached_tokens_outside() -> None:
    (found,) = read("anthropic_conversations.jsonl")
    assert tokens(found) == [(2001, 0, 60), (2090, 2000, 8)]
    assert found.turns[0].cache_write_tokens == 2000
    assert found.turns[0].output.reasoning == "Ask the tool."
    assert found.turns[1].inputs[0].text == "rain"
    (calls,) = read("anthropic_calls.jsonl")
    assert tokens(calls) == [(20, 0, 60), (90, 60, 8)]


def test_claude_code_lines_of_one_call_are_grouped() -> None:
    (found,) = read("claude_code_disk.jsonl")
    assert tokens(found) == [(12503, 12000, 85), (13003, 12500, 20), (503, 0, 12)]
    assert found.turns[0].output.text == "Looking."
    assert found.turns[0].output.reasoning_hidden
    assert [turn.new_segment for turn in found.turns] == [False, False, True]
    assert found.turns[2].thread == "sidechain"


def test_claude_code_stream_completions_are_scaled_to_the_total() -> None:
    (found,) = read("claude_code_stream.jsonl")
    assert sum(turn.completion_tokens or 0 for turn in found.turns) == pytest.approx(120, abs=1)
    assert {turn.completion_origin for turn in found.turns} == {"scaled"}
    assert found.answer == "All good."
    assert any("claude-small" in note for note in found.notes)


@pytest.mark.parametrize("name", ["gemini_session.json", "gemini_session.jsonl"])
def test_gemini_thoughts_are_outside_output(name: str) -> None:
    (found,) = read(name)
    assert tokens(found) == [(8000, 0, 80), (8200, 7900, 12)]
    assert found.turns[0].output.reasoning == "Plan List the files."
    assert found.turns[1].inputs[0].text == "a.py"


@pytest.mark.parametrize("name", ["inspect_log.json", "inspect_log.eval"])
def test_inspect_samples(name: str) -> None:
    (found,) = read(name)
    assert tokens(found) == [(1000, 900, 30), (1084, 1024, 9)]
    assert found.turns[0].inputs[0].text == "You may use tools."
    assert found.turns[0].output.reasoning == "Use python."
    answer = found.turns[1].inputs[0]
    assert (answer.text, answer.seconds, answer.is_error) == ("42", 0.25, False)
    assert (found.passed, found.expected, found.answer) == (True, "42", "42")
    assert found.turns[0].end_s is not None
    assert any("cache" in note for note in found.notes)
    assert any("scorers" in note for note in found.notes)


def test_mini_swe_agent_charges_format_errors() -> None:
    (found,) = read("mini.traj.json")
    assert tokens(found) == [(500, 0, 20), (560, 512, 15), (600, 512, 12)]
    assert [turn.dropped_output for turn in found.turns] == [False, True, False]
    assert found.turns[0].output.calls[0].arguments == {"command": "ls"}
    observed = found.turns[1].inputs[0]
    assert (observed.role, observed.exit_code) == ("tool", 0)
    assert (found.turns[0].start_s, found.turns[0].end_s) == (100.0, 103.0)
    assert found.answer == "diff"


def test_swe_agent_scales_to_totals() -> None:
    (found,) = read("swe.traj")
    assert len(found.turns) == 2
    assert sum(turn.completion_tokens or 0 for turn in found.turns) == 64
    assert found.turns[1].inputs[0].role == "tool"
    assert found.turns[0].output.calls[0].name == "bash"
    assert any("1 paid calls left no step" in note for note in found.notes)


def test_tau_bench() -> None:
    problems = Problems()
    (found,) = read_traces(SAMPLES / "tau_bench.json", problems)
    assert (found.passed, found.score, found.expected) == (True, 1.0, "W1")
    assert found.turns[1].inputs[0].is_error is True
    assert problems.count == 1 and "timeout" in problems.kept[0].text
    (two,) = read("tau2.json")
    assert (two.passed, two.model) == (False, "llama-3.1-8b")
    assert tokens(two) == [(700, None, 20), (740, None, 4)]
    assert two.turns[0].output.calls[0].arguments == {"id": "u"}


def test_otlp_spans_in_any_order() -> None:
    (found,) = read("otlp.jsonl")
    assert tokens(found) == [(1400, 0, 30), (1500, 1408, 9)]
    assert found.turns[0].output.calls[0].name == "search"
    answer = found.turns[1].inputs[0]
    assert (answer.role, answer.text, answer.seconds) == ("tool", "found", 0.5)


def test_otlp_without_messages_has_the_tools_that_ran(tmp_path: Path) -> None:
    def span(
        number: int, start: int, name: str, attributes: dict[str, object]
    ) -> dict[str, object]:
        kinds = {int: "intValue", str: "stringValue"}
        return {
            "traceId": "t", "spanId": str(number), "name": name,
            "startTimeUnixNano": str(start * 10**9), "endTimeUnixNano": str((start + 1) * 10**9),
            "attributes": [
                {"key": key, "value": {kinds[type(value)]: value}}
                for key, value in attributes.items()
            ],
        }  # fmt: skip

    chat = {"gen_ai.operation.name": "chat", "gen_ai.usage.input_tokens": 900,
            "gen_ai.usage.output_tokens": 9}  # fmt: skip
    tool = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "search",
            "gen_ai.tool.call.arguments": '{"q": "x"}', "error.type": "timeout"}  # fmt: skip
    spans = [span(1, 1, "chat", chat), span(2, 3, "tool", tool), span(3, 5, "chat", chat)]
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]}))
    (found,) = read_traces(path)
    assert not found.has_content and found.notes == []
    assert found.turns[0].output.calls[0].arguments == {"q": "x"}
    answer = found.turns[1].inputs[0]
    assert (answer.tool_name, answer.is_error, answer.seconds) == ("search", True, 1.0)


def test_gzip(tmp_path: Path) -> None:
    packed = tmp_path / "log.gz"
    packed.write_bytes(gzip.compress((SAMPLES / "openai_conversations.jsonl").read_bytes()))
    assert [trace.id for trace in read_traces(packed)] == ["ferry", "old-form"]
    packed.write_bytes(packed.read_bytes()[:-40])
    problems = Problems()
    list(read_traces(packed, problems))
    assert problems.count >= 1


# --- bad input -----------------------------------------------------------------------------------


def test_unknown_format_says_what_was_tried(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"hello": 1, "world": [2]}')
    with pytest.raises(TraceFormatError) as caught:
        recognise(path)
    assert [name for name, _ in caught.value.tried] == [reader.name for reader in READERS]
    assert "hello, world" in str(caught.value)
    assert "otlp: no resourceSpans" in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"\n\n", b"\x00\x01\x02", b"not json", b"[]", b"123", b"{"]
)
def test_what_is_no_trace_at_all(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(content)
    with pytest.raises(TraceFormatError, match="no reader knows"):
        recognise(path)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file matches"):
        find_files([str(tmp_path / "*.jsonl")])
    with pytest.raises(InputError, match="has no files"):
        find_files([str(tmp_path)])
    shutil.copy(SAMPLES / "swe.traj", tmp_path)
    assert [path.name for path in find_files([str(tmp_path)])] == ["swe.traj"]


def test_broken_lines_are_counted_and_the_rest_is_read(tmp_path: Path) -> None:
    good = (SAMPLES / "openai_conversations.jsonl").read_text().splitlines()
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join([good[0], '{"messages": [{"role"', "7", "", good[1], good[0][:300]]))
    problems = Problems()
    assert len(list(read_traces(path, problems))) == 2
    assert [problem.place.rsplit(":", 1)[1] for problem in problems.kept] == ["2", "3", "6"]
    assert problems.count == 3


def test_a_broken_first_line_does_not_hide_the_format(tmp_path: Path) -> None:
    good = (SAMPLES / "openai_conversations.jsonl").read_text()
    path = tmp_path / "x.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "cut\n' + good)
    problems = Problems()
    assert len(list(read_traces(path, problems))) == 2
    assert problems.count == 1


@pytest.mark.parametrize(
    "name", ["tau_bench.json", "inspect_log.json", "swe.traj", "mini.traj.json"]
)
def test_truncated_documents_give_what_came_before(name: str, tmp_path: Path) -> None:
    data = (SAMPLES / name).read_bytes()
    for share in (0.2, 0.5, 0.8, 0.97):
        path = tmp_path / "cut"
        path.write_bytes(data[: int(len(data) * share)])
        problems = Problems()
        try:
            traces = list(read_traces(path, problems))
        except TraceFormatError:
            continue  # cut before anything that tells the format
        assert problems.count >= 1
        for trace in traces:
            fill_tokens(trace)


@pytest.mark.parametrize("name", FORMATS)
def test_flipped_bytes_never_escape_as_other_errors(name: str, tmp_path: Path) -> None:
    from random import Random

    random = Random(name)
    data = bytearray((SAMPLES / name).read_bytes())
    for _ in range(25):
        changed = bytearray(data)
        for _ in range(random.randrange(1, 12)):
            changed[random.randrange(len(changed))] = random.choice(b'{}[]",:0a\\\xff\n')
        path = tmp_path / "x"
        path.write_bytes(changed)
        try:
            for trace in read_traces(path, Problems()):
                fill_tokens(trace)
                priced_turns(trace)
        except InputError:
            continue


def test_values_of_wrong_types_are_survived(tmp_path: Path) -> None:
    wrong = [None, 3, "x", [], {}, True, [1], {"a": []}, -1, 1e308]
    for name in FORMATS:
        if name.endswith(".eval"):
            continue
        text = (SAMPLES / name).read_text()
        documents = (
            [json.loads(line) for line in text.splitlines()]
            if name.endswith(".jsonl")
            else [json.loads(text)]
        )
        for value in wrong:
            for depth in (1, 2, 3, 4, 5):
                changed = [_replaced(document, depth, value) for document in documents]
                path = tmp_path / "x"
                path.write_text("\n".join(json.dumps(each) for each in changed))
                try:
                    for trace in read_traces(path, Problems()):
                        fill_tokens(trace)
                        priced_turns(trace)
                except InputError:
                    continue


def _replaced(value: object, depth: int, by: object) -> object:
    """`value` with every second part at a depth replaced."""
    if depth == 0:
        return by
    if isinstance(value, dict):
        return {
            key: _replaced(each, depth - 1, by) if place % 2 else each
            for place, (key, each) in enumerate(value.items())
        }
    if isinstance(value, list):
        return [_replaced(each, depth - 1, by) for each in value]
    return value


@pytest.mark.parametrize(
    ("usage", "expected", "note"),
    [
        ({"prompt_tokens": -5, "completion_tokens": 3}, (None, None, 3), "no call can have"),
        ({"prompt_tokens": 1e15, "completion_tokens": 3}, (None, None, 3), "no call can have"),
        ({"prompt_tokens": "many", "completion_tokens": 3}, (None, None, 3), "not a number"),
        (
            {
                "prompt_tokens": 10,
                "completion_tokens": 3,
                "prompt_tokens_details": {"cached_tokens": 90},
            },
            (100, 90, 3),
            "beside it",
        ),
        (
            {"prompt_tokens": 10, "completion_tokens": 3, "prompt_tokens_details": None},
            (10, None, 3),
            "",
        ),
    ],
)
def test_absurd_counts(usage: object, expected: object, note: str, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"messages": messages, "usage": [usage]}))
    (found,) = read_traces(path)
    assert tokens(found) == [expected]
    assert any(note in each for each in found.notes) or not note


def test_tool_answers_without_calls_are_noted(tmp_path: Path) -> None:
    messages = [
        {"role": "user", "content": "a"},
        {"role": "tool", "tool_call_id": "lost", "content": "r"},
        {"role": "assistant", "content": "b"},
    ]
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"messages": messages}))
    (found,) = read_traces(path)
    assert found.notes == ["1 tool answers without a call in the trace"]


def test_pieces_of_a_file_give_each_trace_once(tmp_path: Path) -> None:
    line = (SAMPLES / "openai_conversations.jsonl").read_text().splitlines()[0]
    path = tmp_path / "x.jsonl"
    names = [f"t{number}" for number in range(200)]
    path.write_text("\n".join(line.replace('"ferry"', f'"{name}"') for name in names))
    pieces = split(path, 5000)
    assert len(pieces) > 10
    problems = Problems()
    found = [trace for piece in pieces for trace in read_piece(piece, problems)]
    assert [trace.id for trace in found] == names
    assert [trace.place.rsplit(":", 1)[1] for trace in found] == [str(i + 1) for i in range(200)]
