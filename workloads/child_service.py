"""A service in a process of its own: in the client's process it would take the interpreter from
what is measured."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Self

CHECKOUT = Path(__file__).parent.parent


class ChildService:
    """`python -m MODULE ARGUMENTS...`, which calls `serve_until_closed`, until it is closed. A
    context manager.

    Attributes:
        url: where it listens.
    """

    def __init__(self, module: str, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=CHECKOUT,
        )  # fmt: skip
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()
        if not self.url:
            raise RuntimeError(f"{module} ended with {self._process.wait()}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop serving. Safe to call twice."""
        self._process.terminate()
        with self._process:  # closes the pipes and waits
            pass


def serve_until_closed(url: str) -> None:
    """In the child, which serves on another thread: tell where, and stay until the parent ends."""
    print(url, flush=True)
    sys.stdin.read()
