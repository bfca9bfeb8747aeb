"""`halo sql`, its shell, the notebook magic, `halo.sql`, run directories: as users meet them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

import halo
from halo.ai_sql.api import run_sql
from halo.ai_sql.batch import SqlBatch, SqlOptions
from halo.ai_sql.errors import SqlError
from halo.cli import run as run_verb
from halo.cli import sql as sql_verb
from halo.cli.sql_shell import Shell, is_whole
from halo.config import Config
from halo.errors import HaloError
from halo.magic import run_cell
from halo.session import Session

MAIN = "from halo.cli import main; main()"


def command(*args: str, cwd: Path, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HALO_ENGINE": "simulated", "COLUMNS": "100"}
    return subprocess.run(
        [sys.executable, "-P", "-c", MAIN, "sql", *args],
        cwd=cwd, env=environment, input=stdin, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


@pytest.fixture
def session() -> Iterator[Session]:
    with Session(engine="simulated") as opened:
        yield opened


@pytest.fixture
def folder(tmp_path: Path, database: Path) -> Path:
    shutil.copy(database, tmp_path / "shop.duckdb")
    return tmp_path


def test_a_table_on_the_terminal(folder: Path) -> None:
    done = command("SELECT id, AI_CLASSIFY(body, ['a', 'b']) AS k FROM reviews ORDER BY id LIMIT 3",
                   "--db", "shop.duckdb", cwd=folder)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "│ id │ k" in done.stdout and "3 rows" in done.stdout
    assert "calls" in done.stderr and "Traceback" not in done.stderr


def test_formats_of_the_output(folder: Path) -> None:
    text = "SELECT id, AI_SCORE('U {body}') AS s FROM reviews WHERE body IS NOT NULL LIMIT 2"
    csv = command(text, "--db", "shop.duckdb", "--format", "csv", cwd=folder)
    assert csv.stdout.splitlines()[0] == "id,s" and len(csv.stdout.splitlines()) == 3
    lines = command(text, "--db", "shop.duckdb", "--format", "jsonl", cwd=folder).stdout
    assert [set(json.loads(line)) for line in lines.splitlines()] == [{"id", "s"}] * 2
    document = json.loads(command(text, "--db", "shop.duckdb", "--json", cwd=folder).stdout)
    assert document["results"][0]["columns"][1] == {"name": "s", "type": "DOUBLE"}
    assert len(document["results"][0]["rows"]) == 2 and document["errors"] == []


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("SELECT 1 FORM t", 1, "syntax error"),
        ("DROP TABLE reviews", 5, "S002"),
        ("SELECT * FROM 'https://x.invalid/a.csv'", 5, "S301"),
        ("SELECT * FROM read_text('/etc/' || 'hostname')", 5, "may not be read"),
        (
            "SELECT AI_COMPLETE('x', returns := 'STRUCT(a VARCHAR)', max_tokens := 1)",
            3,
            "OutputType",
        ),
    ],
)
def test_exit_codes(folder: Path, text: str, code: int, said: str) -> None:
    done = command(text, cwd=folder)
    assert done.returncode == code, done.stderr
    assert said in done.stderr and "Traceback" not in done.stderr


def test_statements_from_a_file_and_from_standard_input(folder: Path) -> None:
    (folder / "q.sql").write_text("SELECT $n + 1 AS n; SELECT 2 AS m")
    done = command("-f", "q.sql", "--param", "n=4", "--format", "jsonl", cwd=folder)
    assert [json.loads(line) for line in done.stdout.splitlines()] == [{"n": 5}, {"m": 2}]
    done = command("--format", "jsonl", cwd=folder, stdin="SELECT 3 AS n")
    assert json.loads(done.stdout) == {"n": 3}


def test_rules_are_switched_off_by_name(folder: Path) -> None:
    text = "SELECT id FROM reviews WHERE AI_FILTER('{id}') LIMIT 2"
    off = command(text, "--db", "shop.duckdb", "--no-slice-limits", "--json", cwd=folder)
    assert json.loads(off.stdout)["calls"]["made"] == 60
    bad = command(text, "--db", "shop.duckdb", "--no-such-rule", cwd=folder)
    assert bad.returncode == 1 and "no rule 'such-rule'" in bad.stderr


def test_flags_and_the_text_are_told_apart(folder: Path) -> None:
    text = "-- a comment first\nSELECT 4 AS n"
    assert command(text, "--format", "jsonl", cwd=folder).stdout.strip() == '{"n":4}'
    first = command("--no-slice-limits", "SELECT 5 AS n", "--format", "jsonl", cwd=folder)
    assert first.stdout.strip() == '{"n":5}'
    wrong = command("SELECT 1", "--modle", "x", cwd=folder)
    assert wrong.returncode == 2 and "Did you mean '--model'" in wrong.stderr
    two = command("SELECT 1", "SELECT 2", cwd=folder)
    assert two.returncode == 2 and "one text in quotes" in two.stderr


def test_a_run_directory_holds_the_results(folder: Path) -> None:
    text = "SELECT id, AI_SCORE('U {body}') AS s FROM reviews; SELECT count(*) AS n FROM reviews"
    done = command(text, "--db", "shop.duckdb", "--out", "run", cwd=folder)
    assert done.returncode == 0, done.stderr
    with duckdb.connect() as connection:
        read = connection.execute(f"SELECT count(*) FROM '{folder}/run/results/q1.parquet'")
        assert read.fetchall() == [(60,)]
    assert (folder / "run" / "halo_errors.jsonl").read_text() == ""


HANGS = """
import asyncio
import itertools
import sys
from halo.cli import main
import runtime.backends.simulated as simulated
generate = simulated.SimulatedBackend.generate
calls = itertools.count(1)
async def hangs(self, *args, **kwargs):
    if next(calls) > 20:
        await asyncio.Event().wait()
    return await generate(self, *args, **kwargs)
simulated.SimulatedBackend.generate = hangs
sys.argv = ["halo", *sys.argv[1:]]
main()
"""
"""A run whose engine answers twenty calls and no other."""


def test_a_batch_in_parts_is_resumed_as_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    text = """CREATE TABLE n AS SELECT id FROM reviews WHERE AI_FILTER('Good? {body}');
        INSERT INTO n SELECT -1 AS id; INSERT INTO n SELECT -1 AS id;
        SELECT count(*) AS n, count(*) FILTER (WHERE id < 0) AS twice FROM n"""
    code = sql_verb.sql(
        [text], file=None, out=Path("run"), format="table", params=[], workflows=[], allow=[],
        config_file=None, flags={"engine": "simulated", "db": folder / "shop.duckdb"},
        dry_run=False, json_out=True,
    )  # fmt: skip
    begun = json.loads(capsys.readouterr().out)
    assert code == 0 and begun["results"][-1]["rows"][0][1] == 2
    for directory in ("run", "run/part1", "run/part3"):
        assert run_verb.resume(Path(directory), json_out=True, flags={}) == 0
        again = json.loads(capsys.readouterr().out)
        assert again["results"] == begun["results"] and again["calls"]["made"] <= 1
    assert not (folder / "run" / "part1" / "part1").exists()


def test_a_batch_is_resumed_from_python_without_writing_twice(folder: Path) -> None:
    path = folder / "shop.duckdb"
    with Session(engine="simulated", db=path) as session:
        for resume in (False, True, True):
            text = "INSERT INTO todo SELECT -1; INSERT INTO todo SELECT -1"
            run_sql(text, out=folder / "run", resume=resume, session=session).database.close()
            with duckdb.connect(path) as connection:
                found = connection.execute("SELECT count(*) FROM todo WHERE id < 0").fetchall()
            assert found == [(2,)]


def test_a_part_that_has_ended_keeps_its_rows_when_the_batch_is_resumed(folder: Path) -> None:
    text = """SELECT id, AI_COMPLETE('{id}', max_tokens := 4) AS c, sum(id) OVER () AS s,
            {'a': [id]} AS n, AI_COMPLETE('x {id}', returns := 'STRUCT(a VARCHAR)', max_tokens := 1)
            AS none FROM todo ORDER BY id;
        INSERT INTO todo SELECT id + 100 FROM todo; SELECT count(*) AS n FROM todo"""
    rows: list[list[list[object]]] = []
    errors: list[int] = []
    for resume in (False, True):
        with (
            Session(engine="simulated", db=folder / "shop.duckdb") as session,
            SqlBatch(text, session) as batch,
        ):
            results = batch.run(out=folder / "run", resume=resume)
            rows.append([[tuple(row) for row in result.tuples()] for result in results])
            errors.append(sum(len(result.errors) for result in results))
            made = [run.summary()["calls"]["made"] for run in batch.runs]
    assert rows[0] == rows[1] and len(rows[0][0]) == 5 and rows[0][2] == [(10,)]
    assert made == [0, 0, 0] and errors == [5, 5]
    with duckdb.connect() as connection:
        exported = connection.execute(
            f"SELECT count(*) FROM '{folder}/run/part1/results/q1.parquet'"
        )
        assert exported.fetchall() == [(5,)]


def test_files_that_are_not_there_are_told_before_any_call(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for text, reason in (
        ("SELECT AI_SCORE(a) FROM 'mising.csv'", "S301: there is no file 'mising.csv'"),
        ("COPY (SELECT AI_SCORE('x') AS s) TO 'no/s.csv'", "S301: there is no directory 'no'"),
    ):
        with pytest.raises(SqlError, match=reason) as raised:
            SqlBatch(text, session)
        place = str(raised.value).splitlines()[-1].index("^") - len("LINE 1: ")
        assert text[place:].startswith(("'mising.csv'", "'no/s.csv'"))


def test_a_killed_run_is_resumed_without_asking_or_writing_twice(folder: Path) -> None:
    (folder / "hangs.py").write_text(HANGS)
    environment = {**os.environ, "HALO_ENGINE": "simulated"}
    text = "CREATE TABLE t AS SELECT id, AI_COMPLETE('{id}') AS c FROM reviews"
    started = subprocess.Popen(
        [sys.executable, "-P", "hangs.py", "sql", text, "--db", "shop.duckdb", "--out", "run"],
        cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    journal = folder / "run" / "events.sqlite"
    for _ in range(600):
        if journal.exists() and _calls(journal) > 5:
            break
        time.sleep(0.05)
    started.send_signal(signal.SIGKILL)
    started.wait()
    before = _calls(journal)
    assert 5 < before <= 20
    for _ in range(2):
        resumed = subprocess.run(
            [sys.executable, "-P", "-c", MAIN, "resume", "run"],
            cwd=folder, env=environment, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert resumed.returncode == 0, resumed.stderr
    with duckdb.connect(folder / "shop.duckdb", read_only=True) as connection:
        assert connection.execute("SELECT count(*), count(c) FROM t").fetchall() == [(60, 60)]
    assert _calls(journal) == 60


def _calls(journal: Path) -> int:
    import sqlite3

    try:
        with sqlite3.connect(f"file:{journal}?mode=ro", uri=True) as connection:
            found = connection.execute("SELECT count(*) FROM calls WHERE kind = 'model'").fetchone()
        connection.close()
        return int(found[0])
    except sqlite3.Error:
        return 0


# --- the shell -----------------------------------------------------------------------------------


def shell(folder: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setenv("XDG_STATE_HOME", str(folder))
    left = iter(lines)

    def read(prompt: str) -> str:
        try:
            return next(left)
        except StopIteration:
            raise EOFError from None

    config = Config(engine="simulated", db=folder / "shop.duckdb")
    return Shell(config, SqlOptions(), read).run()


def test_the_shell(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [
        ".tables", "SELECT id,", "  AI_SCORE('U {body}') AS s FROM reviews", "LIMIT 2;",
        ".explain SELECT AI_SCORE('{lang}') FROM reviews;", ".models", ".mode csv",
        "CREATE TABLE mine AS SELECT 7 AS seven;", "SELECT * FROM mine;", "SELECT nope;",
        "SET ai_model = 'other';", "SELECT AI_COMPLETE('x') AS a;", ".models", ".errors",
        ".analyze", ".nothing", ".help", ".quit",
    ]  # fmt: skip
    assert shell(folder, lines, monkeypatch) == 0
    out, err = capsys.readouterr()
    assert "reviews(" in out and "2 rows" in out and "est. 3 calls" in out
    assert "seven\n7" in out and "model other" in out and "actual" in out
    assert "S003" in err and ".help lists" in err


def test_the_shell_helps_who_mistypes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [
        ".tabels", ".mode", ".read", "help",
        "SELECT AI_COMPLETE('x', returns := 'STRUCT(a VARCHAR)', max_tokens := 1) AS a;",
        "SELECT count(*) AS first FROM halo_errors;", "SELECT count(*) AS again FROM halo_errors;",
        ".errors", "SELECT nope FROM reviews;", "exit;", "SELECT 'not reached';",
    ]  # fmt: skip
    assert shell(folder, lines, monkeypatch) == 0
    said = capsys.readouterr()
    assert "Did you mean '.tables'" in said.err and ".read FILE" in said.err
    assert "\ntable\n" in said.out and ".quit" in said.out
    for column in ("first", "again"):
        under = said.out.split(f"│ {column} │")[1].splitlines()
        assert under[2].strip("│ ") == "1"
    assert "OutputTypeError" in said.out
    assert "LINE 1: SELECT nope FROM reviews" in said.err
    assert "not reached" not in said.out


def test_a_statement_is_whole_at_its_semicolon() -> None:
    assert is_whole("SELECT 1;") and is_whole("SELECT ';' ;")
    assert not is_whole("SELECT 1") and not is_whole("SELECT ';'") and not is_whole("SELECT '; ;")
    assert not is_whole("SELECT 1 -- ;")


# --- Python --------------------------------------------------------------------------------------


def test_sql_from_python(folder: Path) -> None:
    rows = [{"id": 1, "text": "a"}, {"id": 2, "text": "b"}]
    with Session(engine="simulated") as session:
        result = run_sql(
            "SELECT id, AI_SCORE('U {text}') AS s FROM mine WHERE id >= $low ORDER BY id",
            tables={"mine": rows}, parameters={"low": 1}, session=session,
        )  # fmt: skip
        assert len(result) == 2 and result[0]["id"] == 1 and result[-1]["id"] == 2
        assert [row["id"] for row in result[::-1]] == [2, 1]
        assert list(result.df()["id"]) == [1, 2]
        assert result.pl().shape == (2, 2) and result.arrow().num_rows == 2
        for suffix in ("parquet", "csv", "json", "jsonl"):
            path = result.write(folder / f"out.{suffix}")
            assert path.stat().st_size
        read = duckdb.sql(f"SELECT sum(id) FROM '{folder}/out.parquet'").fetchall()
        assert read == [(3,)]
        assert "<table>" in result._repr_html_() and "actual" in result.explain()
        with pytest.raises(IndexError):
            result[2]


def test_halo_sql_outside_a_workflow_is_a_batch() -> None:
    with Session(engine="simulated") as session:
        result = halo.sql("SELECT $n AS n, AI_COMPLETE('x') AS a", n=3, session=session)
        assert result[0]["n"] == 3 and isinstance(result[0]["a"], str)
        with pytest.raises(SqlError):
            halo.sql("SELECT nope", session=session)


def test_the_magic(capsys: pytest.CaptureFixture[str]) -> None:
    import pandas

    names: dict[str, object] = {"mine": pandas.DataFrame({"t": ["a", "b"]}), "low": 0}
    line = "answers --engine simulated"
    shown = run_cell(line, "SELECT t, AI_SCORE('U {t}') AS s FROM mine WHERE $low = 0", names)
    assert names["answers"] is shown and len(shown) == 2
    plan = run_cell("--engine simulated --explain", "SELECT AI_SCORE(t) FROM mine", names)
    assert "Generate AI_SCORE" in repr(plan) and "<" in plan._repr_html_()
    with pytest.raises(HaloError, match="%%halo"):
        run_cell("--nope", "SELECT 1", names)
    plan = run_cell("--engine simulated", "EXPLAIN SELECT AI_SCORE(t) FROM mine", names)
    assert "Generate AI_SCORE" in repr(plan) and plan._repr_html_().startswith("<pre>")
    assert run_cell("--engine simulated", "SET ai_model = 'x'", names) is None
    capsys.readouterr()
    text = "CREATE TABLE lost AS SELECT AI_COMPLETE(t, returns := 'INTEGER[]', max_tokens := 1)"
    shown = run_cell("--engine simulated", f"{text} AS n FROM mine", names)
    assert "--db FILE" in capsys.readouterr().err
    assert "2 rows written" in shown._repr_html_() and "without an answer" in shown._repr_html_()
    for session in names["_halo_sessions"].values():  # type: ignore[attr-defined]
        session.close()
