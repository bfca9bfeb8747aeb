"""A run that is killed with SIGKILL at random moments and resumed ends as if undisturbed."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPT = "logged_run.py"
RunUntil = Callable[..., bool]
IN_FLIGHT = 16
FILES = ("results.jsonl", "results.parquet", "errors.jsonl", "plan.json")


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, run_until: RunUntil
) -> tuple[dict[str, bytes], int]:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert run_until(None, SCRIPT, folder / "run", folder / "log")
    lines = (folder / "log").read_text().splitlines()
    assert len(lines) == len(set(lines)), "an undisturbed run repeats nothing"
    return {name: (folder / "run" / name).read_bytes() for name in FILES}, len(lines)


def kill_and_resume(
    seed: int,
    kills: int,
    folder: Path,
    undisturbed: tuple[dict[str, bytes], int],
    run_until: RunUntil,
) -> None:
    expected, events = undisturbed
    rng = random.Random(seed)
    run = (SCRIPT, folder / "run", folder / "log")
    done = 0
    for _ in range(kills):
        if run_until(rng.randrange(1, max(2, events // kills)), *run):
            break
        done += 1
    else:
        assert run_until(None, *run)
    assert done, "the run must have been killed at least once"
    for name, content in expected.items():
        assert (folder / "run" / name).read_bytes() == content, name
    counts = Counter((folder / "log").read_text().splitlines())
    calls = {line: n for line, n in counts.items() if line.startswith("call")}
    assert sum(n - 1 for n in calls.values()) <= IN_FLIGHT * done
    writes = {line: n for line, n in counts.items() if line.startswith("write")}
    assert len(writes) == 60, "each row writes, under its own key"
    assert sum(n - 1 for n in writes.values()) <= done, "writes go one at a time"


@pytest.mark.parametrize("seed", range(10))
def test_fifty_kills(
    seed: int, tmp_path: Path, undisturbed: tuple[dict[str, bytes], int], run_until: RunUntil
) -> None:
    kill_and_resume(seed, 5, tmp_path, undisturbed, run_until)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1000, 1125))
def test_a_thousand_kills(
    seed: int, tmp_path: Path, undisturbed: tuple[dict[str, bytes], int], run_until: RunUntil
) -> None:
    kill_and_resume(seed, 8, tmp_path, undisturbed, run_until)
