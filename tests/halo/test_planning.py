"""Planning as a user meets it: rules by name, EXPLAIN at every stage, lessons, the answer cache."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import halo
from halo.cli import _with_rules
from halo.cli.app import app
from halo.errors import CacheError, HaloError, PlanError
from planner.rules import RULES

lm = halo.Model()
ROWS = [{"question": f"Which of {i % 4}?"} for i in range(12)]


@halo.workflow
def told_twice(question: str) -> str:
    """Two equal calls, one of which is written as a text first."""
    text = f"Question: {question}"
    one = lm.gen(f"Answer.\n{text}", max_tokens=8, name="one")
    kind = lm.choose(f"Kind of {one}?", ["good", "bad"], name="kind")
    return f"{one} {kind}"


@halo.workflow
def drawn(question: str) -> str:
    return lm.gen(f"Vary {question}", temperature=1.0, max_tokens=8)


def session(**settings: Any) -> halo.Session:
    return halo.Session(engine="simulated", **settings)


def test_rules_can_be_switched_off_by_name() -> None:
    with session(off=("choose_with_one_token",)) as off, session() as on:
        assert "max_tokens=1)" not in off.explain(told_twice, ROWS, verbose=True)
        text = on.explain(told_twice, ROWS)
    assert "rewrites: choose_with_one_token(" in text
    with session(off=("nonsense",)) as wrong, pytest.raises(PlanError, match="no rule is named"):
        wrong.prepare(told_twice, ROWS)


def test_every_subset_of_rules_gives_the_same_answers() -> None:
    with session(off=tuple(r.name for r in RULES if r.default)) as plain:
        expected = plain.run(told_twice, ROWS).values()
    with session() as full:
        assert full.run(told_twice, ROWS).values() == expected


@pytest.mark.parametrize("stage", ["bound", "merged", "optimized", "physical"])
@pytest.mark.parametrize("format", ["text", "json", "mermaid", "dot", "html"])
def test_every_stage_prints_in_every_format(stage: str, format: str) -> None:
    with session() as one:
        text = one.explain([(told_twice, ROWS), (drawn, ROWS)], stage=stage, format=format)
    if format == "json":
        for part in text.split("\n}\n{") if stage == "bound" else [text]:
            assert "operators" in part
    if format == "html":
        HTMLParser().feed(text)
    assert "Vary" in text or format == "dot" or "prompt" in text


def test_verbose_shows_the_plan_after_each_rule() -> None:
    with session() as one:
        text = one.explain(told_twice, ROWS, stage="optimized", verbose=True)
    assert "--- after fold_constants (pass 1): same as above" in text
    assert "--- after choose_with_one_token (pass 1)\n#0 Scan" in text


def test_the_json_of_explain_tells_what_each_rule_saved() -> None:
    with session() as one:
        document = json.loads(one.explain(told_twice, ROWS, format="json"))
    rules = {entry["rule"]: entry["saved"] for entry in document["rewrites"]}
    assert set(rules["choose_with_one_token"]) == {"calls", "input_tokens", "output_tokens"}
    assert "unsafe_fuse_calls" in document["rules_off"]


def test_a_plan_shows_itself_in_a_notebook() -> None:
    with session() as one:
        page = one.prepare(told_twice, ROWS)._repr_html_()
    assert page.startswith("<div")
    assert "<svg" in page
    assert "<script" not in page


# --- the command line ----------------------------------------------------------------------------


def test_no_rule_flags_are_options_for_every_rule() -> None:
    given = ["run", "--no-fold-constants", "--no-prime", "x.yaml", "--no-fuse_maps"]
    assert _with_rules(given) == [
        "run", "--off", "fold_constants", "--no-prime", "x.yaml", "--off", "fuse_maps",
    ]  # fmt: skip
    assert _with_rules(["sql", "--no-fuse_maps"]) == ["sql", "--no-fuse_maps"]


@pytest.fixture
def batch(tmp_path: Path) -> list[str]:
    flow, rows = tmp_path / "flow.yaml", tmp_path / "rows.jsonl"
    flow.write_text(
        "columns: [question]\nsteps:\n  kind: {prompt: 'Kind of {{ question }}?', "
        "choose: [good, bad]}\nreturn: kind\n"
    )
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return [str(flow), "-i", str(rows), "--engine", "simulated"]


def invoke(*arguments: str) -> str:
    done = CliRunner().invoke(app, [*arguments], standalone_mode=False)
    if done.exception:
        raise done.exception
    return done.stdout


def test_explain_takes_rules(batch: list[str]) -> None:
    assert "choose_with_one_token" in invoke("explain", *batch)
    text = invoke("explain", *batch, "--off", "choose_with_one_token")
    assert "switched off: choose_with_one_token" in text


def test_explain_tells_what_a_cache_would_hit(batch: list[str]) -> None:
    text = invoke("explain", *batch, "--kv-tokens", "1000")
    assert "prefix cache of 1,000 tokens in blocks of 16" in text
    assert "of prompt tokens in the planned order" in text
    assert "(simulated on 12 of 12 rows)" in text


def test_a_run_teaches_the_next(batch: list[str], tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    invoke("run", *batch, "--out", out, "--json")
    assert "* learnt from earlier runs" in invoke("explain", *batch, "--learn", out)
    assert "° measured on a sample" in invoke("explain", *batch, "--sample", "4")
    with pytest.raises(HaloError, match="no run directory"):
        invoke("explain", *batch, "--learn", str(tmp_path / "nothing"))


def test_answers_are_kept_when_asked_for(batch: list[str], tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    first = json.loads(invoke("run", *batch, "--cache", cache, "--json"))["calls"]
    second = json.loads(invoke("run", *batch, "--cache", cache, "--json"))["calls"]
    assert (first["made"], first["cached"]) == (4, 0)
    assert (second["made"], second["cached"], second["replayed"], second["shared"]) == (0, 4, 4, 8)
    assert second["engine_requests"] == {"simulated:simulated": 0}
    invoke("cache", cache, "--prune", "0.0006")
    third = json.loads(invoke("run", *batch, "--cache", cache, "--json"))["calls"]
    assert third["made"] + third["cached"] == 4
    assert third["made"] > 0
    document = json.loads(invoke("cache", cache, "--json"))
    assert sum(group["answers"] for group in document["groups"]) == 4
    assert "dropped 4 answers" in invoke("cache", cache, "--clear")
    other = json.loads(invoke("run", *batch, "--json"))["calls"]
    assert other["cached"] == 0
    with pytest.raises(CacheError, match="has no answer cache"):
        invoke("cache", str(tmp_path / "none"))


def test_a_run_from_the_cache_is_whole_without_it(batch: list[str], tmp_path: Path) -> None:
    cache, out = str(tmp_path / "cache"), tmp_path / "run"
    invoke("run", *batch, "--cache", cache, "--json")
    invoke("run", *batch, "--cache", cache, "--out", str(out), "--json")
    plain = tmp_path / "plain"
    invoke("run", *batch, "--out", str(plain), "--json")
    assert (out / "results.jsonl").read_text() == (plain / "results.jsonl").read_text()
    again = json.loads(invoke("resume", str(out), "--json"))
    assert again["calls"]["made"] == 0


def test_sampled_answers_are_not_kept(tmp_path: Path) -> None:
    with session(cache=tmp_path) as one:
        assert one.run(drawn, ROWS).cached_answers == 0
        again = one.run(drawn, ROWS)
    assert again.cached_answers == 0
    assert sum(again.engine_requests.values()) == len(ROWS)
