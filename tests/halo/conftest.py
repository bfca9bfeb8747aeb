"""What the tests of whole runs share."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "fixtures" / "runs"


@pytest.fixture(scope="session")
def run_until() -> Callable[..., bool]:
    """`run_until(events, script, *arguments)` runs a script of tests/fixtures/runs and kills it
    after so many announcements; never, for None. True when it finished."""

    def run(events: int | None, script: str, *arguments: Path) -> bool:
        child = subprocess.Popen(
            [sys.executable, str(SCRIPTS / script), *map(str, arguments)],
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

    return run
