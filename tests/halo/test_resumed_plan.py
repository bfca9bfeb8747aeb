"""What resume continues is the plan that ran, whatever the planner would make of the batch now."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest

import halo
from halo.analyze import explain_analyze
from halo.cli.run import resume, run
from halo.errors import RunDirectoryError
from halo.learn import learnt_from
from planner.logical import CALLS, Choose, Filter, Sql
from planner.op import walk
from runtime.kept_plan import read_plan
from runtime.run_directory import RunDirectory

lm = halo.Model()
FIXTURES = Path(__file__).parents[1] / "fixtures"
ROWS = 40
GOOD, SHORT = "Is it good?", "Is it short?"
FLOW = """
name: letters
columns: [text]
steps:
  good: {choose: ["yes", "no"], prompt: "Is it good? {{ text }}"}
  short: {choose: ["yes", "no"], prompt: "Is it short? {{ text }}"}
  reply: {prompt: "Reply to: {{ text }}", max_tokens: 8}
where: good == 'yes' and short == 'yes'
return: reply
"""


@halo.workflow
def kinds(text: str) -> dict[str, str]:
    return {
        "good": lm.choose(f"Is it good? {text}", ["yes", "no"]),
        "short": lm.choose(f"Is it short? {text}", ["yes", "no"]),
    }


@pytest.fixture
def letters(tmp_path: Path) -> Path:
    """Rows of which the simulated engine finds nearly all good and few of them short."""
    texts = [f"letter {i}" for i in range(400)]
    found = halo.run(kinds, [{"text": text} for text in texts], engine="simulated").values()
    short: dict[bool, list[str]] = {True: [], False: []}
    for text, value in zip(texts, found, strict=True):
        assert isinstance(value, dict)
        if value["good"] == "yes":
            short[value["short"] == "yes"].append(text)
    chosen = short[True][:4] + short[False][: ROWS - 4]
    # Evenly mixed, so that a sample sees the rates of the whole.
    mixed = [chosen[i * 7 % ROWS] for i in range(ROWS)]
    path = tmp_path / "letters.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in mixed))
    (tmp_path / "letters.yaml").write_text(FLOW)
    return path


def first_question(out: Path) -> str:
    """What the filter asks that sees every row."""
    plan = read_plan(RunDirectory.open(out)).plan.logical
    innermost = next(op for op in plan.walk() if isinstance(op, Filter))
    (choice,) = (op for op in walk((innermost.predicate,)) if isinstance(op, Choose))
    return str(choice.prompt.segments[0]).strip()


def begin(letters: Path, out: Path, *, sample: int = 0, budget: str = "") -> int:
    flags: dict[str, Any] = {"engine": "simulated", **({"budget": budget} if budget else {})}
    flow = str(letters.with_suffix(".yaml"))
    return run(
        [flow], str(letters), out=out, config_file=None, flags=flags, dry_run=False,
        json_out=False, sample=sample,
    )  # fmt: skip


def go_on(out: Path) -> int:
    # The budget counts anew; this one is never reached.
    return resume(out, json_out=False, flags={"budget": "calls=1000"})


def test_a_sampled_run_goes_on_with_the_order_that_the_sample_chose(
    letters: Path, tmp_path: Path
) -> None:
    assert begin(letters, tmp_path / "whole") == 0
    assert first_question(tmp_path / "whole") == GOOD
    assert begin(letters, tmp_path / "run", sample=10, budget="calls=30") == 4
    assert first_question(tmp_path / "run") == SHORT
    kept = (tmp_path / "run" / "plan.json").read_bytes()
    assert go_on(tmp_path / "run") == 0
    assert (tmp_path / "run" / "plan.json").read_bytes() == kept
    for name in ("results.jsonl", "errors.jsonl"):
        whole, resumed = ((tmp_path / run / name).read_bytes() for run in ("whole", "run"))
        assert resumed == whole
    calls = (tmp_path / "run" / "trace.jsonl").read_text().splitlines()
    assert len(calls) == ROWS + 4 + 4, "no row that is not short was asked whether it is good"
    text = explain_analyze(tmp_path / "run")
    assert text.index(SHORT) < text.index(GOOD)


def test_what_earlier_runs_taught_may_be_gone(letters: Path, tmp_path: Path) -> None:
    assert begin(letters, tmp_path / "whole", sample=10) == 0
    flow = halo.spec.load_spec(letters.with_suffix(".yaml"))
    with halo.Session(engine="simulated", learn=[tmp_path / "whole"], budget="calls=30") as session:
        assert session.run(flow, letters, out=tmp_path / "run").budget_reached
    with halo.Session(engine="simulated") as session:
        result = session.run(flow, letters, out=tmp_path / "run", resume=True)
    assert not result.stopped and len(result.values()) == 4
    assert first_question(tmp_path / "run") == SHORT


def test_another_workflow_is_still_refused(letters: Path, tmp_path: Path) -> None:
    assert begin(letters, tmp_path / "run", sample=10, budget="calls=30") == 4
    letters.with_suffix(".yaml").write_text(FLOW.replace(GOOD, "Is it fine?"))
    with pytest.raises(RunDirectoryError, match=r"'letters' is not what .* began with"):
        go_on(tmp_path / "run")


# --- plans of earlier versions -------------------------------------------------------------------


@pytest.fixture
def cities(tmp_path: Path) -> Callable[..., halo.Session]:
    database = tmp_path / "cities.duckdb"
    with duckdb.connect(database) as connection:
        connection.execute(
            "CREATE TABLE cities AS SELECT 'c' || (i % 5) AS name FROM range(9) t(i)"
        )

    def session(**settings: Any) -> halo.Session:
        return halo.Session(engine="simulated", db=database, **settings)

    return session


@halo.workflow
def look(name: str) -> str:
    found = halo.sql("SELECT count(*) AS n FROM cities WHERE name = lower($name)", name=name)
    return lm.gen(f"{name} is there: {found}", max_tokens=8)


NAMES = [{"name": f"{letter}{i}"} for letter in "cC" for i in range(10)]


def rewrite_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def begin_before_derived(cities: Callable[..., halo.Session], out: Path) -> None:
    """A run as a Halo began it that did not know `Sql.derived` yet, and kept no `merged`."""
    with cities(off=["derive_sql_parameters"], budget="calls=5") as session:
        assert session.run(look, NAMES, out=out).budget_reached
    rewrite_json(out / "plan.json", lambda document: document.pop("merged"))
    rewrite_json(out / "manifest.json", lambda document: document.pop("halo"))
    assert "derived" not in (out / "plan.json").read_text()


def test_a_run_from_before_a_field_was_added_goes_on(
    cities: Callable[..., halo.Session], tmp_path: Path
) -> None:
    begin_before_derived(cities, tmp_path / "run")
    with cities() as session:
        whole = session.run(look, NAMES, out=tmp_path / "whole")
        resumed = session.run(look, NAMES, out=tmp_path / "run", resume=True)
    assert any(isinstance(op, Sql) and op.derived for op in whole.plan.logical.walk())
    assert not any(isinstance(op, Sql) and op.derived for op in resumed.plan.logical.walk())
    assert resumed.values() == whole.values() and not resumed.stopped
    calls = resumed.summary()["calls"]
    assert calls["made"] + calls["replayed"] == calls["requested"]
    # The five rows that the budget allowed have ended; how many queries of the others had begun
    # by then depends on the threads.
    assert sum(calls["engine_requests"].values()) == len(NAMES) - 5


def test_a_plan_from_before_fields_were_added_fits_its_journal(tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path / "run", {})
    shutil.copy(FIXTURES / "plans" / "before_fields_were_added.json", directory.plan)
    kept = read_plan(directory)
    # The file has expectations for the operators that call, by their fingerprints of then.
    calling = {op.fingerprint for op in kept.plan.logical.walk() if isinstance(op, CALLS)}
    assert len(calling) == 2 and calling <= kept.stats.ops.keys()
    assert kept.merged is None


def without_a_field(document: dict[str, Any]) -> None:
    for node in document["plan"]["logical"]["nodes"]:
        node.pop("max_tokens", None)


def with_other_names(document: dict[str, Any]) -> None:
    document["plan"]["priority"] = {"0" * 32: 0}


@pytest.mark.parametrize("change", [without_a_field, with_other_names])
def test_a_plan_that_cannot_be_read_any_more_says_whose_it_is(
    cities: Callable[..., halo.Session], tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    out = tmp_path / "run"
    with cities(budget="calls=5") as session:
        session.run(look, NAMES, out=out)
        rewrite_json(out / "plan.json", change)
        said = rf"written by Halo {halo.__version__}, .*cannot read its plan.*with that Halo"
        with pytest.raises(RunDirectoryError, match=said):
            session.run(look, NAMES, out=out, resume=True)
    for read in (explain_analyze, lambda path: learnt_from([path])):
        with pytest.raises(RunDirectoryError, match=said):
            read(out)
