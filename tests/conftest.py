"""What all tests share.

Golden files: `pytest --golden` rewrites them instead of comparing.

Properties are tried on the same examples in every run, so that a run can be repeated and its time
says nothing. `HYPOTHESIS_PROFILE=default pytest ...` looks for new ones.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "repeatable", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

FIXTURES = Path(__file__).parent / "fixtures"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden", action="store_true", help="rewrite golden files")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """`golden("explain/batch.txt", text)`: the text equals the file under tests/fixtures."""

    def compare(name: str, text: str) -> None:
        path = FIXTURES / name
        if request.config.getoption("--golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n", "utf-8")
        assert path.exists(), f"no golden file {name}; write it with: pytest --golden"
        assert text + "\n" == path.read_text("utf-8"), f"{name} differs; rewrite with --golden"

    return compare


@pytest.fixture(params=["file", "http"])
def outside_reference(request: pytest.FixtureRequest) -> Iterator[str]:
    """A `$ref` that must not be followed: a file, or the address of a server that gets no
    request."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        address = f"http://127.0.0.1:{server.getsockname()[1]}/schema.json"
        yield "file:///etc/passwd" if request.param == "file" else address
        with pytest.raises(BlockingIOError):
            server.accept()
