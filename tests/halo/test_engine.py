"""`halo engine start`: the flags it chooses, and a child process that is watched and stopped."""

from __future__ import annotations

import ast
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from halo.engine_flags import Wish, choose_flags
from halo.engine_process import EngineProcess, EngineStartError, answers
from halo.errors import ConfigError
from workloads.gpu.models import write_model

SERVER = """
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"ok")
    def log_message(self, *_): pass
print("listening", flush=True)
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture
def port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def engine(port: int, tmp_path: Path) -> Iterator[EngineProcess]:
    process = EngineProcess(
        [sys.executable, "-c", SERVER, str(port)], f"http://127.0.0.1:{port}",
        tmp_path / "logs" / "server.log", ready_s=60, restarts=1, say=lambda line: None,
    )  # fmt: skip
    yield process
    process.stop()


# --- flags ---------------------------------------------------------------------------------------


def flags_of(**wish: object) -> str:
    return " ".join(choose_flags(Wish(**{"model": "org/m", **wish})).values)  # type: ignore[arg-type]


def test_the_plans_order_holds_and_nothing_is_reachable_from_outside() -> None:
    flags = flags_of()
    assert "--host 127.0.0.1" in flags and "--served-model-name m" in flags
    # With metrics, every priority would cost a server gauges in every step.
    assert "--enable-metrics" not in flags
    assert "--enable-priority-scheduling" in flags and "--disable-priority-preemption" in flags
    # SGLang refuses priorities together with its own prefix order.
    lpm = flags_of(policy="lpm")
    assert "--schedule-policy lpm" in lpm and "priority" not in lpm


def test_memory_and_chunks_follow_the_device() -> None:
    big = flags_of(hardware="h100-sxm")
    small = flags_of(hardware="l40s")
    tiny = flags_of(hardware="rtx-4090")
    assert "--chunked-prefill-size 4096" in big and "--chunked-prefill-size 4096" in small
    assert "--chunked-prefill-size 2048" in tiny
    assert "--cuda-graph-max-bs-decode 1024" in flags_of(hardware="h200")
    assert "--cuda-graph" not in big + small + tiny
    assert "--mem-fraction-static 0.88" in big
    assert "--mem-fraction-static 0.44" in flags_of(hardware="h100-sxm", share=0.5)
    assert "--mem-fraction-static" not in flags_of()


def test_answers_are_decoded_in_the_steps_that_read_prompts_where_that_was_measured() -> None:
    mixed = "--enable-mixed-chunk"
    assert mixed in flags_of() and mixed not in flags_of(mixed_chunk=False)
    assert mixed not in flags_of(cpu=True) + flags_of(seeded=True) + flags_of(adapters=("a=/a",))
    assert mixed in flags_of(cpu=True, mixed_chunk=True)


def test_wishes_become_flags_and_the_users_own_come_last() -> None:
    flags = flags_of(
        host_cache_gib=40, mixed_chunk=True, seeded=True, memory_saver=True, metrics=True,
        adapters=("law=/a",), extra=("--tp-size", "2"),
    )  # fmt: skip
    for flag in (
        "--enable-hierarchical-cache --hicache-size 40", "--enable-mixed-chunk",
        "--enable-deterministic-inference", "--enable-memory-saver", "--lora-paths law=/a",
        "--enable-metrics",
    ):  # fmt: skip
        assert flag in flags
    assert flags.endswith("--tp-size 2")
    assert "--device cpu" in flags_of(cpu=True)


def test_a_model_that_cannot_fit_is_refused_with_the_sizes(tmp_path: Path) -> None:
    model = str(write_model("8b", tmp_path))
    assert "--chunked-prefill-size" in flags_of(model=model, hardware="h100-sxm")
    with pytest.raises(ConfigError, match=r"weights take 15\.0 GiB"):
        flags_of(model=model, hardware="rtx-4090", share=0.5)
    with pytest.raises(ConfigError, match="plan, lpm"):
        flags_of(policy="best")
    with pytest.raises(ConfigError, match="0 to 1"):
        flags_of(share=2)


def test_every_flag_has_a_reason() -> None:
    flags = choose_flags(Wish("m", hardware="h200", host_cache_gib=1, seeded=True))
    assert flags.reasons and all(": " in reason for reason in flags.reasons)


# --- the process ---------------------------------------------------------------------------------


def test_a_server_is_started_and_stopped_whole(engine: EngineProcess) -> None:
    engine.start()
    assert answers(engine.url) and engine.pid is not None
    pid = engine.pid
    engine.stop()
    engine.stop()
    assert not answers(engine.url) and engine.pid is None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert "listening" in engine.log.read_text()


def test_a_server_that_dies_is_started_again_but_not_for_ever(engine: EngineProcess) -> None:
    engine.start()
    codes: list[int] = []
    watcher = threading.Thread(target=lambda: codes.append(engine.watch()), daemon=True)
    watcher.start()
    deaths = 0
    while watcher.is_alive():
        pid = engine.pid
        if pid is not None and answers(engine.url):
            os.kill(pid, signal.SIGKILL)
            deaths += 1
        watcher.join(0.05)
    assert engine.starts == 2 and deaths >= 2 and codes == [-signal.SIGKILL]


def test_a_server_that_does_not_come_up_shows_the_end_of_its_log(port: int, tmp_path: Path) -> None:
    broken = [sys.executable, "-c", "print('cuda is not here'); raise SystemExit(3)"]
    engine = EngineProcess(broken, f"http://127.0.0.1:{port}", tmp_path / "log", ready_s=60)
    with pytest.raises(EngineStartError, match=r"code 3(.|\n)*cuda is not here"):
        engine.start()


def test_a_port_that_is_taken_is_not_used_by_mistake(engine: EngineProcess, tmp_path: Path) -> None:
    engine.start()
    other = EngineProcess(["true"], engine.url, tmp_path / "other.log")
    with pytest.raises(EngineStartError, match="already"):
        other.start()


def test_a_program_that_cannot_be_run_is_named(port: int, tmp_path: Path) -> None:
    engine = EngineProcess(["/no/such/python"], f"http://127.0.0.1:{port}", tmp_path / "log")
    with pytest.raises(EngineStartError, match="/no/such/python"):
        engine.start()


# --- the command ---------------------------------------------------------------------------------


def halo(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from halo.cli import main; main()", *arguments],
        capture_output=True, text=True, check=False, env={**os.environ, **environment},
    )  # fmt: skip


OLD_SERVER_ARGS = """
class ServerArgs:
    @staticmethod
    def add_cli_args(parser):
        parser.add_argument("--priority-scheduling-preemption-threshold")
"""


@pytest.fixture
def fake_environment(tmp_path: Path) -> Path:
    """An environment whose SGLang is a small web server, of a release without priorities."""
    package = tmp_path / "site" / "sglang"
    (package / "srt").mkdir(parents=True)
    for folder in (package, package / "srt"):
        (folder / "__init__.py").write_text("")
    (package / "srt" / "server_args.py").write_text(OLD_SERVER_ARGS)
    source = SERVER.replace("int(sys.argv[1])", "int(sys.argv[sys.argv.index('--port') + 1])")
    (package / "launch_server.py").write_text(source)
    python = tmp_path / "env" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path / "site"} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return tmp_path / "env"


def test_a_command_runs_beside_the_server_and_ends_it(
    fake_environment: Path, port: int, tmp_path: Path
) -> None:
    code = "import os, sys; print(os.environ['HALO_ENGINE']); sys.exit(7)"
    done = halo(
        "engine", "start", "--model", "m", "--python", str(fake_environment), "--port", str(port),
        "--log", str(tmp_path / "log"), "--", sys.executable, "-c", code,
    )  # fmt: skip
    assert done.returncode == 7, done.stderr
    assert done.stdout.strip() == f"sglang=http://127.0.0.1:{port}"
    assert "ready" in done.stderr and done.stderr.rstrip().endswith("stopped")
    assert not answers(f"http://127.0.0.1:{port}")


def test_a_server_gets_the_flags_that_its_release_knows(
    fake_environment: Path, port: int, tmp_path: Path
) -> None:
    launcher = fake_environment.parent / "site" / "sglang" / "launch_server.py"
    launcher.write_text(f"import sys\nprint(sys.argv)\n{launcher.read_text()}")
    done = halo(
        "engine", "start", "--model", "m", "--python", str(fake_environment), "--port", str(port),
        "--log", str(tmp_path / "log"), "--flag", "--my-own 1", "--", sys.executable, "-c", "",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    log = (tmp_path / "log").read_text()
    assert "this SGLang has no --enable-priority-scheduling: left out" in log
    got = ast.literal_eval(next(line for line in log.splitlines() if line.startswith("[")))
    assert not {"--enable-priority-scheduling", "--disable-priority-preemption"} & set(got)
    at = got.index("--priority-scheduling-preemption-threshold")
    assert got[at + 1].isdigit()
    # What the user gave is SGLang's to refuse.
    assert got[-2:] == ["--my-own", "1"] and got[got.index("--port") + 1] == str(port)


def test_an_environment_without_sglang_is_explained(tmp_path: Path) -> None:
    done = halo("engine", "start", "--model", "m", "--python", sys.executable)
    assert done.returncode == 2 or done.returncode == 1
    assert "pip install sglang" in done.stderr and "Traceback" not in done.stderr


def test_show_prints_the_command_and_why(fake_environment: Path) -> None:
    done = halo(
        "engine", "start", "--model", "m", "--python", str(fake_environment), "--show",
        "--flag", "--tp-size 2",
    )  # fmt: skip
    first, *reasons = done.stdout.splitlines()
    assert done.returncode == 0 and first.endswith("--tp-size 2") and "sglang_launch" in first
    assert any("--schedule-policy" in reason for reason in reasons) and json.dumps(reasons)
