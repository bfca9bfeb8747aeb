"""Real SGLang servers on the CPU, for tests."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import pytest

from halo.engine_flags import Wish, choose_flags
from halo.engine_process import EngineProcess, EngineStartError

READY_S = 300.0
ANSWER_S = 300.0
"""A test that has asked the server waits this long at most."""
NO_INSTRUCTIONS = "this processor lacks an instruction that SGLang's environment is compiled for"

BYTECODE = {"PYTHONDONTWRITEBYTECODE": ""}
"""The first start compiles what SGLang imports, 60 s of processor time; it is kept."""

logs: list[Path] = []
"""What the servers of this session say."""


def start_sglang(python: str, model: Path, log: Path, port: int, *flags: str) -> EngineProcess:
    """A server started as `halo engine start --cpu` does."""
    log.touch()
    logs.append(log)
    wish = Wish(str(model), name="live", port=port, cpu=True, extra=flags)
    launcher = Path(__file__).parents[3] / "runtime" / "backends" / "sglang_cpu.py"
    engine = EngineProcess(
        [python, "-P", str(launcher), *choose_flags(wish).values],
        f"http://127.0.0.1:{port}",
        log,
        environment={"OMP_NUM_THREADS": "1", **BYTECODE},
        ready_s=READY_S,
        say=lambda line: None,
    )
    try:
        engine.start()
    except EngineStartError as error:
        said = log.read_text("utf-8", errors="replace").lower()
        if "illegal instruction" in said or f"code {-signal.SIGILL} " in str(error):
            pytest.skip(NO_INSTRUCTIONS)
        pytest.fail(str(error))  # it has the end of the log
    return engine


def free_port() -> int:
    """A port of the loopback address that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
