"""An SGLang server as a child process: started, watched, restarted when it dies, stopped whole."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from halo.errors import HaloError
from runtime.clock import wall_s

CHECK_S = 0.5
STOP_S = 20.0
LOG_LINES = 15


class EngineStartError(HaloError):
    """A server did not come up; the message has the end of its log."""


class EngineProcess:
    """One server.

    Args:
        command: the program and its flags.
        url: where it will answer.
        log: its output goes there, appended.
        ready_s: how long it may take to come up.
        restarts: how often it is started again after it died.
        say: told what happens, a line each.
    """

    def __init__(
        self,
        command: Sequence[str],
        url: str,
        log: Path,
        *,
        environment: Mapping[str, str] | None = None,
        ready_s: float = 600.0,
        restarts: int = 3,
        say: Callable[[str], None] = print,
    ) -> None:
        self.url = url
        self.log = log
        self.starts = 0
        self._command = list(command)
        self._environment = {**os.environ, **(environment or {})}
        self._ready_s = ready_s
        self._restarts = restarts
        self._say = say
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()

    @property
    def pid(self) -> int | None:
        """Of the server's main process; None when it does not run."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def start(self) -> None:
        """Start it and wait until it is healthy. Raises `EngineStartError`."""
        if answers(self.url):
            raise EngineStartError(
                f"something answers at {self.url} already; choose another --port, or use it with "
                f"--engine sglang={self.url}"
            )
        self._launch()
        self._wait_ready()

    def watch(self) -> int:
        """Until `stop`: keep it running. Returns 0 when it was stopped, else its exit code after
        it died once more than it may be restarted."""
        while not self._stopping.wait(CHECK_S):
            process = self._process
            code = process.poll() if process is not None else None
            if code is None:
                continue
            self._say(f"the server ended with code {code}: {self._tail(3)}")
            self._kill_group()
            if self.starts > self._restarts:
                return code or 1
            self._say(f"starting it again ({self.starts} of {self._restarts})")
            self._launch()
            try:
                self._wait_ready()
            except EngineStartError as error:
                if self._stopping.is_set():
                    return 0
                self._say(str(error))
        return 0

    def stop(self) -> None:
        """End the server and all its processes. Safe to call twice, from any thread."""
        self._stopping.set()
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_S)
        self._kill_group()
        process.wait()
        self._process = None

    def _launch(self) -> None:
        self.starts += 1
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as file:
            try:
                self._process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env=self._environment,
                    start_new_session=True,
                )
            except OSError as error:
                raise EngineStartError(f"cannot run {self._command[0]}: {error}") from error

    def _wait_ready(self) -> None:
        deadline_s = wall_s() + self._ready_s
        while not answers(self.url):
            process = self._process
            code = process.poll() if process is not None else -1
            if code is not None:
                self._kill_group()
                raise EngineStartError(
                    f"the server ended with code {code} before it was ready; the end of {self.log}:"
                    f"\n{self._tail(LOG_LINES)}"
                )
            if wall_s() > deadline_s:
                self.stop()
                raise EngineStartError(
                    f"the server was not ready after {self._ready_s:g} s and was stopped; the end "
                    f"of {self.log}:\n{self._tail(LOG_LINES)}"
                )
            if self._stopping.wait(CHECK_S):
                raise EngineStartError("stopped while the server was starting")
        freeze_collector(self.url)

    def _kill_group(self) -> None:
        """What is left of the server: its workers live in its process group."""
        if self._process is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def _tail(self, lines: int) -> str:
        try:
            text = self.log.read_bytes()[-20_000:].decode("utf-8", errors="replace")
        except OSError:
            return "(no log)"
        kept = [line[:300] for line in text.splitlines() if line.strip()]
        return "\n".join(kept[-lines:])


def answers(url: str) -> bool:
    """Whether the server at `url` is healthy."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError, ValueError):
        return False


def freeze_collector(url: str) -> None:
    """Have a ready server keep what it has loaded out of Python's garbage collection: a full pass
    over it stops the server's front, and with it every request. Servers that cannot are left as
    they are."""
    with suppress(OSError), urllib.request.urlopen(f"{url}/freeze_gc", timeout=30) as answer:
        answer.read()
