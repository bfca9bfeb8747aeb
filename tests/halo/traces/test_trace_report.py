"""`halo trace report` and `halo.pte`, as people meet them."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import halo
from costmodel.errors import ProfileError
from costmodel.pte import carry_cost
from halo.cli import main
from halo.errors import InputError
from halo.testing import assert_pte_below
from halo.trace_report import build
from halo.trace_report.build import ReportOptions, build_report
from halo.trace_report.html import render_html
from halo.trace_report.rates_book import RatesBook
from halo.trace_report.tally import Tally, median_interval, spread_of
from halo.trace_report.text import render_text
from halo.trace_report.view import View
from halo.trace_report.what_if import capped, without_costliest
from halo.traces import source
from halo.traces.counting import fill_tokens
from halo.traces.openai_chat import conversation
from halo.traces.read import number_lines, read_piece, split
from halo.traces.record import Problems

SAMPLES = Path(__file__).parents[2] / "fixtures" / "traces" / "samples"
ECHARTS_SHA256 = "b66b25aeb4df84e33199dc21694014d336d222cbd9deb0e5a7c14bd6aa0d0fd0"
HOSTILE = (
    "</script><script>alert(1)</script><img src=x onerror=alert(2)>",
    "{red|text} ${x} `y` \u202egpj.exe\u2028\u0000\x1b[31m\ud800",
    '=HYPERLINK("http://x")',
)


def talk(
    answer: str = "Rain.", *, tokens: int = 900, cached: int | None = 1024, id: str = "t"
) -> dict[str, Any]:
    """A conversation of two calls whose tool answer has about `tokens` tokens."""
    details = {} if cached is None else {"prompt_tokens_details": {"cached_tokens": cached}}
    cold = {} if cached is None else {"prompt_tokens_details": {"cached_tokens": 0}}
    call = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    return {
        "id": id,
        "model": "llama-3.1-8b",
        "messages": [
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c", "content": answer},
            {"role": "assistant", "content": "It rains."},
        ],
        "usage": [
            {"prompt_tokens": 2000, "completion_tokens": 100, **cold},
            {"prompt_tokens": 2100 + tokens, "completion_tokens": 50, **details},
        ],
    }  # fmt: skip


def view_of(fields: dict[str, Any]) -> View:
    trace = conversation(fields, "x")
    fill_tokens(trace)
    return View(trace, RatesBook(ReportOptions().pricing, "llama-3.1-8b").rates(""))


@pytest.fixture
def run_cli(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["halo", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return run


# --- the command line ----------------------------------------------------------------------------


def test_all_formats_in_one_report(run_cli: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = run_cli("trace", "report", SAMPLES, "--json")
    assert code == 0
    report = json.loads(out)
    assert report["schema"] == "halo-pte-report-1"
    assert report["files"] == 18
    assert set(report["formats"]) == {
        "openai-chat", "anthropic-messages", "claude-code", "gemini-cli", "inspect",
        "mini-swe-agent", "swe-agent", "tau-bench", "otlp",
    }  # fmt: skip
    assert report["problems"]["count"] == 1  # the crashed run of tau-bench
    totals = report["totals"]
    assert sum(totals["causes"].values()) == pytest.approx(totals["pte"])
    # A prefix that others left in a cache makes a trace cheaper than its own ideal.
    assert max(totals["ideal"], totals["pte"]) <= totals["full"]
    assert totals["measured"] is None  # some calls do not say what was cached
    assert report["stand_ins"]["claude-x"] == "llama-3.1-70b"
    assert any("claude-x is priced as" in each for each in report["limits"])
    assert {each["pattern"] for each in report["patterns"]} == {
        "confirmatory", "tool_mixing", "tool_priors", "format_collapse", "repeated_calls",
        "unread_answers", "cache_loss",
    }  # fmt: skip
    for scenario in report["what_if"]:
        assert scenario["pte"] >= 0


def test_terminal_csv_and_page(
    run_cli: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    page, rows = tmp_path / "r.html", tmp_path / "r.csv"
    code, out, err = run_cli(
        "trace", "report", SAMPLES / "openai_conversations.jsonl", "--model", "llama-3.1-8b",
        "--hardware", "h200", "--html", page, "--csv", rows, "--what-if-hardware", "l40s",
        "--what-if-model", "qwen3-8b",
    )  # fmt: skip
    assert code == 0
    assert f"wrote {rows}" in err and f"wrote {page}" in err
    for heading in ("totals, PTE", "worst traces", "tools, by", "patterns", "what if", "limits"):
        assert heading in out
    assert "on h200: gamma" in out and "on l40s" in out and "with qwen3-8b" in out
    with rows.open(encoding="utf-8", newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert [line["id"] for line in lines] == ["ferry", "old-form"]
    assert lines[0]["cached_tokens"] == "1152" and lines[1]["cached_tokens"] == ""
    assert lines[0]["passed"] == "true" and lines[1]["passed"] == ""
    assert page.read_text("utf-8").startswith("<!doctype html>")
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--model", "llama-3.1-9b"], "llama-3.1-8b"),
        (["--hardware", "h2000"], "h200"),
        (["--hardware", "h2000", "--mode", "paper"], "H200"),
        (["--what-if-hardware", "h2000"], "h200"),
        (["--tokenizer", "/nowhere/tokenizer.json"], "tokenizer"),
    ],
)
def test_unknown_names_offer_the_nearest(
    run_cli: Callable[..., tuple[int, str, str]], arguments: list[str], expected: str
) -> None:
    code, out, err = run_cli("trace", "report", SAMPLES / "swe.traj", *arguments)
    assert (code, out) == (1, "")
    assert expected in err and "Traceback" not in err


def test_usage_errors(run_cli: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    for arguments in (["--mode", "x"], ["--peak", "x"], ["--batch", "-2"]):
        code, _, err = run_cli("trace", "report", SAMPLES / "swe.traj", *arguments)
        assert code in (1, 2) and err
    code, _, err = run_cli("trace", "report", tmp_path / "no.jsonl")
    assert code == 1 and "no file matches" in err
    code, _, err = run_cli(
        "trace", "report", SAMPLES / "swe.traj", "--html", tmp_path / "none" / "x.html"
    )
    assert code == 1 and "cannot write" in err


def test_unknown_files_among_known_ones_are_problems(
    run_cli: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    other = tmp_path / "notes.txt"
    other.write_text("hello")
    code, out, _ = run_cli("trace", "report", SAMPLES / "swe.traj", other)
    assert code == 0 and "no reader knows this format" in out
    code, _, err = run_cli("trace", "report", other)
    assert code == 1 and "tried, with the first mismatch" in err


def test_a_trace_does_not_choose_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("config.json").write_text("{}")
    Path("folder").mkdir()
    book = RatesBook(ReportOptions().pricing)
    for name in ("config.json", "folder", "../x/config.json", ".", "h200.toml", ""):
        assert book.rates(name).model == "llama-3.1-70b"
        assert book.stand_ins[name or "(no model named)"] == "llama-3.1-70b"
    assert book.rates("meta-llama/Llama-3.1-70B-Instruct").model == "llama-3.1-70b"
    assert book.rates("openrouter/qwen/qwen3-32b:free").model == "qwen3-32b"
    assert len(book.stand_ins) == 6
    given = RatesBook(ReportOptions().pricing, "openrouter/qwen/qwen3-32b:free")
    assert given.rates("llama-3.1-8b").model == "qwen3-32b"


def test_calls_of_another_model_are_noted(tmp_path: Path) -> None:
    fields = talk()
    fields["messages"][1]["model"] = "qwen3-8b"
    fields["messages"][1]["usage"] = fields.pop("usage")[0]
    report = build_report([write(tmp_path / "x.jsonl", [fields])], ReportOptions())
    assert any("qwen3-8b are priced as llama-3.1-8b" in note for note in report["notes"])


def test_a_broken_journal_among_files_is_a_problem(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "events.sqlite").write_bytes(b"not a database at all, but long enough" * 50)
    report = build_report([run, SAMPLES / "swe.traj"], ReportOptions())
    assert report["counts"]["traces"] == 1
    assert report["problems"]["count"] == 1
    assert "events.sqlite" in report["problems"]["first"][0]["text"]


def test_help_names_the_options(run_cli: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = run_cli("trace", "report", "--help")
    assert code == 0
    for option in ("--model", "--hardware", "--mode", "--html", "--csv", "--json"):
        assert option in out


# --- what the report counts ----------------------------------------------------------------------


def write(path: Path, talks: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(json.dumps(each) for each in talks), "utf-8", "surrogatepass")
    return path


def test_processes_and_pieces_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    talks = [
        talk("word " * (number % 40), tokens=100 + number, id=f"t{number}") for number in range(90)
    ]
    files = [write(tmp_path / f"{name}.jsonl", talks[place::2]) for place, name in enumerate("ab")]
    options = ReportOptions(top=7, with_texts=True, jobs=1)
    alone_rows: list[dict[str, Any]] = []
    alone = build_report(files, options, alone_rows.extend)
    monkeypatch.setattr(build, "CHUNK_BYTES", 4000)
    monkeypatch.setattr(build, "SMALL_BYTES", 0)
    rows: list[dict[str, Any]] = []
    split = build_report(files, ReportOptions(top=7, with_texts=True, jobs=2), rows.extend)
    assert rows == alone_rows and len(rows) == 90
    assert json.loads(json.dumps(split), parse_float=lambda x: round(float(x), 6)) == json.loads(
        json.dumps(alone), parse_float=lambda x: round(float(x), 6)
    )
    assert [each["id"] for each in split["worst"]] == [f"t{number}" for number in range(89, 82, -1)]


def test_places_of_pieces_are_those_of_the_whole_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [json.dumps(talk("word " * (number % 60), id=f"t{number}")) for number in range(60)]
    lines[20:20] = ["", "not JSON", "  "]
    lines[50:50] = ["[1]"]
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(lines), "utf-8")
    rows: list[dict[str, Any]] = []
    whole = build_report([path], ReportOptions(jobs=1), rows.extend)
    monkeypatch.setattr(build, "CHUNK_BYTES", 4000)
    monkeypatch.setattr(source, "_MOST_FINDS", 3)
    cut: list[dict[str, Any]] = []
    pieces = build_report([path], ReportOptions(jobs=1), cut.extend)
    assert [row["place"] for row in cut] == [row["place"] for row in rows]
    assert pieces["problems"] == whole["problems"]
    assert [each["place"][-3:] for each in whole["problems"]["first"]] == [":22", ":51"]


def test_lines_of_a_piece_are_counted_by_whoever_needs_them(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [talk(id=str(number)) for number in range(30)])
    pieces = split(path, 4000)
    assert len(pieces) > 3
    numbered = list(number_lines([*pieces, *split(path, 1 << 30), *pieces]))
    for given, counted in zip(
        [*pieces, *pieces], [*numbered[: len(pieces)], *numbered[-len(pieces) :]], strict=True
    ):
        alone = [trace.place for trace in read_piece(given, Problems())]
        assert [trace.place for trace in read_piece(counted, Problems())] == alone
    path.unlink()
    assert list(number_lines(pieces)) == pieces


def test_shared_prefixes_are_charged_once(tmp_path: Path) -> None:
    shared = {"role": "system", "content": "Rules. " * 500}
    talks = []
    for number in range(4):
        fields = talk(id=f"t{number}", tokens=number)
        fields["messages"] = [
            shared,
            {"role": "user", "content": f"Task {number}"},
            *fields["messages"][1:],
        ]
        talks.append(fields)
    report = build_report([write(tmp_path / "x.jsonl", talks)], ReportOptions())
    totals = report["totals"]
    once = totals["shared_prefix_tokens"] / 3
    assert 1900 < once < 2000  # the system prompt's part of a first prompt of 2,000
    assert totals["ideal_shared_prefixes_once"] == pytest.approx(totals["ideal"] - 3 * once)


def test_labels_split_the_distribution(tmp_path: Path) -> None:
    talks = [{**talk(id=str(n), tokens=100 * n), "reward": n % 2} for n in range(12)]
    report = build_report([write(tmp_path / "x.jsonl", talks)], ReportOptions())
    found = report["distribution"]
    assert (found["passed"]["count"], found["failed"]["count"]) == (6, 6)
    assert found["passed"]["p50"] > found["failed"]["p50"]
    assert found["all"]["median_95"][0] <= found["all"]["p50"] <= found["all"]["median_95"][1]


def test_quantiles() -> None:
    spread = spread_of([4.0, 1.0, 3.0, 2.0])
    assert spread is not None
    assert (spread["p50"], spread["max"], spread["median_95"]) == (2.5, 4.0, None)
    assert spread_of([]) is None
    assert median_interval([float(n) for n in range(101)]) == (40.0, 61.0)


def test_a_tally_keeps_what_may_still_be_among_the_worst(tmp_path: Path) -> None:
    analyzer = ReportOptions().analyzer()
    analyses = [
        analyzer.analyze(
            conversation(talk(tokens=100 * (number % 5), id=str(number)), f"p:{number}")
        )
        for number in range(10)
    ]
    whole = Tally(keep=4)
    first, floors = Tally(keep=4), Tally(keep=4, with_rows=False)
    for analysis in analyses[:5]:
        first.add(analysis)
    first.settle()
    assert first.least_of_worst == first.worst[3][0] > 0 == Tally(keep=4).least_of_worst
    floors.floor = first.least_of_worst
    for analysis in analyses:
        whole.add(analysis)
    for analysis in analyses[5:]:
        floors.add(analysis)
    whole.settle()
    floors.settle()
    assert len(floors.worst) == 4 and not floors.rows and floors.traces == 5
    first.merge(floors)
    assert [each["id"] for *_, each in first.worst] == [each["id"] for *_, each in whole.worst]


def test_a_tally_survives_json() -> None:
    tally = Tally(keep=2)
    analyzer = ReportOptions().analyzer()
    for number in range(3):
        tally.add(analyzer.analyze(conversation(talk(tokens=number * 50, id=str(number)), "p")))
    again = Tally.from_json(json.loads(json.dumps(tally.to_json())))
    assert again == tally


# --- what if, and who carries what ---------------------------------------------------------------


def test_capping_an_answer_equals_a_trace_with_a_shorter_one() -> None:
    long, short = view_of(talk(tokens=3000)), view_of(talk(tokens=1000))
    assert capped(long, 1000) == short.turns
    assert capped(long, 10_000) == long.turns


def test_removing_the_only_call_leaves_one_turn() -> None:
    view = view_of(talk(tokens=900))
    (left,) = without_costliest(view, 1)
    assert left.context_tokens == 2000  # neither the call nor its answer
    assert without_costliest(view, 0) == view.turns


def test_carry_agrees_with_the_cost_model() -> None:
    view = view_of(talk(tokens=900))
    assert view.carry(700.0, 1) == pytest.approx(
        carry_cost(view.rates, 700.0, view.turns, view.costs, 1)
    )


def test_thinking_that_the_server_drops_is_no_cache_loss() -> None:
    fields = talk(tokens=3000, cached=2048)
    fields["usage"][0]["completion_tokens"] = 4000
    fields["usage"][0]["completion_tokens_details"] = {"reasoning_tokens": 3900}
    view = view_of(fields)
    assert view.turns[0].dropped_tokens == 3900
    assert view.costs[1].lost_tokens == 2100 - 2048


def test_reported_counts_after_estimated_ones_go_to_the_new_messages() -> None:
    fields = talk(tokens=900)
    fields["usage"][0] = {}
    view = view_of(fields)
    answer = view.trace.turns[1].inputs[0]
    assert answer.tokens == pytest.approx(
        3000 - view.turns[0].context_tokens - view.turns[0].decode_tokens
    )


# --- from Python ---------------------------------------------------------------------------------


def test_halo_pte() -> None:
    cost = halo.pte(talk(), model="llama-3.1-8b", hardware="h200")
    assert cost.measured == cost.value
    assert cost.ideal < cost.value < cost.full
    assert sum(cost.causes.values()) == pytest.approx(cost.value)
    assert len(cost.turns) == 2 and cost.hardware == "h200"
    assert "cache_loss" in cost.findings
    unknown = halo.pte(talk(cached=None)["messages"], model="llama-3.1-8b")
    assert unknown.measured is None and unknown.value == pytest.approx(unknown.full)


def test_a_model_by_its_configuration(tmp_path: Path) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096,
        "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False,
        "torch_dtype": "bfloat16", "max_position_embeddings": 131072,
    }  # fmt: skip
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    known = halo.pte(talk(), model="llama-3.1-8b").value
    for path in (file, tmp_path):
        assert halo.pte(talk(), model=path).value == pytest.approx(known, rel=1e-6)
    file.write_text(json.dumps({**config, "num_key_value_heads": 32}))
    assert halo.pte(talk(), model=file).gamma == pytest.approx(0.00876, rel=0.01)


def test_halo_pte_takes_anthropic_messages_too() -> None:
    line = (SAMPLES / "anthropic_conversations.jsonl").read_text("utf-8")
    cost = halo.pte(json.loads(line), model="llama-3.1-8b")
    assert len(cost.turns) == 2 and cost.measured is not None


def test_halo_pte_refuses_what_it_cannot_price() -> None:
    with pytest.raises(InputError, match="no assistant message"):
        halo.pte([{"role": "user", "content": "Hi"}], model="llama-3.1-8b")
    with pytest.raises(ProfileError, match=r"llama-3\.1-8b"):
        halo.pte(talk(), model="llama-3.1-8c")


def test_assert_pte_below() -> None:
    cost = assert_pte_below(talk(), 1e9, model="llama-3.1-8b")
    with pytest.raises(AssertionError, match="dearest call: 1, ") as caught:
        assert_pte_below(talk(), cost.value, model="llama-3.1-8b")
    assert "cache loss" in str(caught.value)


# --- hostile text --------------------------------------------------------------------------------


def hostile_talk() -> dict[str, Any]:
    fields = talk()
    nasty = "\n".join(HOSTILE)
    call = {"id": nasty, "function": {"name": nasty, "arguments": nasty}}
    fields["id"] = HOSTILE[2] + nasty
    fields["model"] = nasty
    fields["expected"] = nasty
    fields["tools"] = [{"name": nasty, "description": nasty, "parameters": {nasty: nasty}}]
    fields["messages"] = [
        {"role": "system", "content": nasty},
        {"role": "user", "content": nasty},
        {"role": "assistant", "content": nasty, "reasoning_content": nasty, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": nasty, "name": nasty, "content": nasty},
        {"role": "assistant", "content": nasty},
    ]
    return fields


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.policy = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        fields = dict(attrs)
        if fields.get("http-equiv") == "Content-Security-Policy":
            self.policy = fields["content"] or ""


def hostile_page(tmp_path: Path) -> str:
    path = write(tmp_path / "x.jsonl", [hostile_talk(), talk()])
    return render_html(build_report([path], ReportOptions(with_texts=True)))


def test_hostile_text_makes_no_markup(tmp_path: Path) -> None:
    page = hostile_page(tmp_path)
    tags = _Tags()
    tags.feed(page)
    assert tags.tags.count("script") == 3 and "img" not in tags.tags
    assert not [name for name, _ in tags.attributes if name.startswith("on")]
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    style = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    assert len(scripts) == 2
    for text in [*scripts, *style]:
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in tags.policy
    assert tags.policy.startswith("default-src 'none'; ")
    assert "unsafe" not in tags.policy
    data = re.search(r'id="data">(.*?)</script>', page, re.DOTALL)
    assert data and json.loads(data.group(1))["counts"]["traces"] == 2


def test_hostile_text_commands_no_terminal_and_no_spreadsheet(
    tmp_path: Path, run_cli: Callable[..., tuple[int, str, str]]
) -> None:
    path = write(tmp_path / "x.jsonl", [hostile_talk()])
    code, out, _ = run_cli("trace", "report", path, "--csv", tmp_path / "x.csv")
    assert code == 0
    assert all(character.isprintable() or character == "\n" for character in out)
    with (tmp_path / "x.csv").open(
        encoding="utf-8", newline="", errors="surrogateescape"
    ) as stream:
        (line,) = csv.DictReader(stream)
    assert line["id"].startswith("'=")


def test_the_vendored_library_is_the_published_one() -> None:
    folder = Path(halo.__file__).parent / "assets" / "echarts"
    digest = hashlib.sha256((folder / "echarts.min.js").read_bytes()).hexdigest()
    assert digest == ECHARTS_SHA256
    assert "Apache License" in (folder / "LICENSE").read_text("utf-8")


def test_the_text_of_an_empty_page_of_findings_is_whole(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [talk()])
    text = render_text(build_report([path], ReportOptions(top=0)))
    assert "worst traces" in text
