"""A run that is killed with SIGKILL at random moments and resumed ends as if undisturbed."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "fixtures" / "runs" / "logged_run.py"
IN_FLIGHT = 16
FILES = ("results.jsonl", "results.parquet", "errors.jsonl", "plan.json")


def run_until(directory: Path, log: Path, events: int | None) -> bool:
    """Run, and kill after `events` requests and writes (never, for None). True when it finished."""
    child = subprocess.Popen(
        [sys.executable, str(SCRIPT), str(directory), str(log)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert child.stdout is not None and child.stderr is not None
    with child:
        if events is not None and len(child.stdout.read(events)) == events:
            child.kill()
            return False
        _, errors = child.communicate()
    assert child.returncode == 0, errors.decode()
    return True


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], int]:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert run_until(folder / "run", folder / "log", None)
    lines = (folder / "log").read_text().splitlines()
    assert len(lines) == len(set(lines)), "an undisturbed run repeats nothing"
    return {name: (folder / "run" / name).read_bytes() for name in FILES}, len(lines)


def kill_and_resume(
    seed: int, kills: int, folder: Path, undisturbed: tuple[dict[str, bytes], int]
) -> None:
    expected, events = undisturbed
    rng = random.Random(seed)
    done = 0
    for _ in range(kills):
        if run_until(folder / "run", folder / "log", rng.randrange(1, max(2, events // kills))):
            break
        done += 1
    else:
        assert run_until(folder / "run", folder / "log", None)
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
def test_fifty_kills(seed: int, tmp_path: Path, undisturbed: tuple[dict[str, bytes], int]) -> None:
    kill_and_resume(seed, 5, tmp_path, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1000, 1125))
def test_a_thousand_kills(
    seed: int, tmp_path: Path, undisturbed: tuple[dict[str, bytes], int]
) -> None:
    kill_and_resume(seed, 8, tmp_path, undisturbed)
