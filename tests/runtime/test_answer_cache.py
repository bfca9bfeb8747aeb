"""Answers kept between runs: what is kept, who gets it, how it stays small."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from costmodel.usage import Usage
from runtime.answer_cache import FILE, GROUP, AnswerCache
from runtime.errors import CacheError
from runtime.records import CallRecord, CallSite

CALL = CallRecord(
    key="k",
    kind="model",
    name="m",
    op="op",
    query="q",
    row_key="r",
    value={"text": "An answer, ü, \ud800", "tool_calls": []},
    usage=Usage(12, 5, 3),
    finish_reason="stop",
    end_s=2.0,
)


def kept(directory: Path, *records: CallRecord, scope: str = "local", now: str = "1") -> None:
    cache = AnswerCache(directory, scope=scope, now=now)
    for record in records:
        cache.put(record)
    cache.close()


def test_an_answer_comes_back_as_a_call_that_took_nothing(tmp_path: Path) -> None:
    kept(tmp_path / "new" / "cache", CALL)
    cache = AnswerCache(tmp_path / "new" / "cache", scope="local")
    found = cache.get("k")
    assert found is not None
    assert found.value == CALL.value
    assert (found.kind, found.name, found.finish_reason) == ("model", "m", "stop")
    assert (found.usage, found.end_s, found.attempts) == (Usage(), 0.0, 0)
    assert cache.get("other") is None
    cache.close()


@pytest.mark.parametrize(
    "record",
    [
        replace(CALL, effect="sampled"),
        replace(CALL, effect="write"),
        replace(CALL, error="ToolError: no"),
        replace(CALL, kind="sql"),
    ],
)
def test_what_is_not_kept(tmp_path: Path, record: CallRecord) -> None:
    kept(tmp_path, record)
    cache = AnswerCache(tmp_path, scope="local")
    assert cache.get("k") is None
    cache.close()


def test_a_fresh_answer_is_not_kept(tmp_path: Path) -> None:
    site = CallSite("op", "q", 0, "r", fresh=True)
    key = site.key("k")
    kept(tmp_path, replace(CALL, key=key))
    cache = AnswerCache(tmp_path, scope="local")
    assert (cache.get(key), cache.get("k")) == (None, None)
    cache.close()


def test_answers_of_another_engine_are_no_answers_and_results_of_tools_are(tmp_path: Path) -> None:
    kept(tmp_path, CALL, replace(CALL, key="t", kind="tool", name="find", value=[1]))
    cache = AnswerCache(tmp_path, scope="simulated seed=1")
    assert cache.get("k") is None
    found = cache.get("t")
    assert found is not None
    assert found.value == [1]
    cache.close()


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    many = [replace(CALL, key=f"k{i}", value={"text": "x" * 1000}) for i in range(20)]
    kept(tmp_path, *many, now="1")
    cache = AnswerCache(tmp_path, scope="local", now="2")
    assert cache.get("k3") is not None
    cache.flush()
    size = cache.size_bytes
    assert cache.prune(size) == 0
    assert cache.prune(size // 2) == 10
    assert cache.size_bytes <= size // 2
    assert cache.get("k3") is not None
    assert cache.clear() == 10
    assert cache.groups() == []
    cache.close()


def test_a_cache_that_grows_too_large_is_cut(tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path, scope="local", max_bytes=100_000)
    for i in range(3 * GROUP):
        cache.put(replace(CALL, key=f"k{i}", value={"text": "x" * 300}))
    cache.close()
    cache = AnswerCache(tmp_path, scope="local")
    assert 0 < cache.size_bytes <= 100_000
    cache.close()


def test_groups_tell_what_was_saved(tmp_path: Path) -> None:
    kept(tmp_path, CALL, replace(CALL, key="j"))
    cache = AnswerCache(tmp_path, scope="local", now="2")
    assert cache.get("k") and cache.get("k") and cache.get("j")
    cache.flush()
    (group,) = cache.groups()
    assert (group.kind, group.name, group.scope) == ("model", "m", "local")
    assert (group.answers, group.hits) == (2, 3)
    assert (group.input_tokens, group.output_tokens) == (36, 15)
    cache.close()


def test_a_file_that_is_no_cache_is_refused(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"no database, whatever the name says" * 50)
    with pytest.raises(CacheError, match="delete it, or name another"):
        AnswerCache(tmp_path)
    other = tmp_path / "other"
    AnswerCache(other).close()
    with sqlite3.connect(other / FILE) as connection:
        connection.execute("UPDATE meta SET value = '99'")
    connection.close()
    with pytest.raises(CacheError, match="version 99"):
        AnswerCache(other)


def test_two_processes_use_one_cache(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from runtime.answer_cache import AnswerCache\n"
        "from runtime.records import CallRecord\n"
        "cache = AnswerCache(Path(sys.argv[1]), scope='s')\n"
        "for i in range(600):\n"
        "    cache.put(CallRecord(sys.argv[2] + str(i), 'model', 'm', '', '', '', {'text': 'x'}))\n"
        "cache.close()\n"
    )
    processes = [
        subprocess.Popen([sys.executable, "-P", "-c", script, str(tmp_path), name])
        for name in ("a", "b")
    ]
    assert [process.wait(60) for process in processes] == [0, 0]
    cache = AnswerCache(tmp_path, scope="s")
    assert sum(group.answers for group in cache.groups()) == 1200
    cache.close()
