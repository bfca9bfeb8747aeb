"""Makes the helpers of these tests importable; a checkpoint, and a real SGLang server, a
session."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from halo.engine_process import EngineProcess
from runtime.models.store import ModelStore

sys.path.insert(0, str(Path(__file__).parent))

CONVERT_S = 240.0
LOG_BYTES = 4_000


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """What the servers said last is part of the report of a failure."""
    report = yield
    if report.failed and "sglang" in item.nodeid:
        from sglang_server import logs

        for log in logs:
            end = log.read_bytes()[-LOG_BYTES:].decode("utf-8", errors="replace")
            report.sections.append((f"the end of {log}", end))
    return report


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint with random weights and a tokenizer."""
    pytest.importorskip("torch", reason="the extra `torch` is not installed")
    from tiny_checkpoint import write_checkpoint

    return write_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny-llama")


@pytest.fixture(scope="session")
def sglang_python() -> str:
    """The Python of SGLang's own environment: `make sglang-env`, HALO_SGLANG_PYTHON."""
    python = os.environ.get("HALO_SGLANG_PYTHON", "")
    if not python:
        pytest.fail("set HALO_SGLANG_PYTHON to the Python of SGLang's environment: make test-live")
    return python


@pytest.fixture(scope="session")
def smollm2(sglang_python: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model that answers; HALO_SGLANG_MODEL names one that is there already."""
    from sglang_server import BYTECODE, NO_INSTRUCTIONS

    ready = os.environ.get("HALO_SGLANG_MODEL", "")
    if ready:
        return Path(ready)
    folder = tmp_path_factory.mktemp("smollm2")
    file = ModelStore().pull("smollm2-135m-instruct").weights
    script = Path(__file__).parent / "gguf_to_folder.py"
    command = [sglang_python, "-P", str(script), str(file), str(folder)]
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=CONVERT_S,
        env={**os.environ, **BYTECODE},
    )
    if done.returncode == -signal.SIGILL:
        pytest.skip(NO_INSTRUCTIONS)
    if done.returncode:
        pytest.fail(f"{script.name} ended with code {done.returncode}:\n{done.stdout[-4000:]}")
    return folder


@pytest.fixture(scope="session")
def sglang_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EngineProcess]:
    """A server with SmolLM2-135M; HALO_SGLANG_URL names one that runs already."""
    from sglang_server import free_port, start_sglang

    running = os.environ.get("HALO_SGLANG_URL", "")
    log = tmp_path_factory.mktemp("sglang") / "server.log"
    if running:
        yield EngineProcess([], running, log)
        return
    python, model = request.getfixturevalue("sglang_python"), request.getfixturevalue("smollm2")
    # The chat route reads calls of tools with it; older releases refuse tools without.
    flags = ("--tool-call-parser", "qwen25", "--skip-server-warmup")
    engine = start_sglang(python, model, log, free_port(), *flags)
    yield engine
    engine.stop()


@pytest.fixture(scope="session")
def halo_server(checkpoint: Path) -> Iterator[str]:
    """The address of `halo models serve` with the small checkpoint, in a process of its own."""
    command = ["models", "serve", str(checkpoint), "--engine", "torch", "--port", "0", "--exact"]
    with subprocess.Popen(
        [Path(sys.executable).with_name("halo"), *command], stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        address = re.search(r"http://\S+", server.stdout.readline())
        yield address[0] if address is not None else pytest.fail("halo models serve did not start")
        server.terminate()


@pytest.fixture(scope="session")
def vllm_server() -> str:
    """The address of a running vLLM (its CPU build will do), HALO_VLLM_URL."""
    return os.environ.get("HALO_VLLM_URL") or pytest.fail("set HALO_VLLM_URL to a vLLM server")
