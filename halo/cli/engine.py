"""`halo engine start`."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import FrameType

from halo.engine_flags import Wish, choose_flags
from halo.engine_process import EngineProcess
from halo.errors import ConfigError

PYTHON_VARIABLE = "HALO_SGLANG_PYTHON"


def start(
    wish: Wish,
    *,
    python: str | None,
    gpu: str | None,
    log: Path,
    ready_s: float,
    restarts: int,
    command: list[str],
    show: bool,
) -> int:
    """Start a server, keep it running, stop it: when interrupted, or when `command` has ended.

    `command` runs with `HALO_ENGINE` naming the server; its exit code is returned. With `show`,
    only what would be run is printed.
    """
    flags = choose_flags(wish)
    program = [*_launcher(python, cpu=wish.cpu), *flags.values]
    if show:
        print(shlex.join(program))
        for reason in flags.reasons:
            print(f"  {reason}")
        return 0
    url = f"http://{wish.host}:{wish.port}"
    environment = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
    if wish.cpu:
        environment["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", "1")
    engine = EngineProcess(
        program, url, log, environment=environment, ready_s=ready_s, restarts=restarts, say=_say
    )

    def interrupted(signum: int, frame: FrameType | None) -> None:
        threading.Thread(target=engine.stop, daemon=True).start()
        if signum == signal.SIGINT:
            raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupted)
    signal.signal(signal.SIGINT, interrupted)
    _say(f"starting SGLang with {wish.model}; log: {log}")
    try:
        engine.start()
        _say(f"ready: --engine sglang={url}")
        if not command:
            return engine.watch()
        watcher = threading.Thread(target=engine.watch, daemon=True)
        watcher.start()
        variables = {**os.environ, "HALO_ENGINE": f"sglang={url}"}
        return subprocess.run(command, env=variables, check=False).returncode
    except KeyboardInterrupt:
        return 130 if command else 0
    finally:
        engine.stop()
        _say("stopped")


def _launcher(python: str | None, *, cpu: bool) -> list[str]:
    """The program that starts the server, with the Python of SGLang's own environment."""
    chosen = python or os.environ.get(PYTHON_VARIABLE) or sys.executable
    if Path(chosen).is_dir():
        chosen = str(Path(chosen) / "bin" / "python")
    probe = "import importlib.util, sys; sys.exit(importlib.util.find_spec('sglang') is None)"
    try:
        found = subprocess.run([chosen, "-P", "-c", probe], capture_output=True, check=False)
    except OSError as error:
        raise ConfigError(f"cannot run {chosen}: {error}") from error
    if found.returncode:
        raise ConfigError(
            f"{chosen} has no SGLang. It wants an environment of its own, because it pins torch "
            "and much else: python3 -m venv ~/sglang && ~/sglang/bin/pip install sglang==0.5.17, "
            f"then pass --python ~/sglang or set {PYTHON_VARIABLE}"
        )
    import runtime.backends

    folder = Path(next(iter(runtime.backends.__path__)))
    return [chosen, "-P", str(folder / ("sglang_cpu.py" if cpu else "sglang_launch.py"))]


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
