"""What records say of the machine: the card's idle time, the servers' processor time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from workloads.gpu import server_cpu
from workloads.gpu.card_watch import CardWatch
from workloads.gpu.server_cpu import ServerCpu

BURN = """
import subprocess, sys, time
def burn(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
if "--port" in sys.argv:
    for name in ("sglang::scheduler", "sglang::detokenizer", "resource_tracker"):
        child = subprocess.Popen([sys.executable, sys.argv[0], name],
                                 stdout=subprocess.PIPE, stdin=subprocess.PIPE)
        child.stdout.readline()
else:
    burn(0.3 if sys.argv[-1].endswith("scheduler") else 0.1)
print("burnt", flush=True)
sys.stdin.read()
"""


def test_the_drivers_utilization_is_what_a_card_was_not_idle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    done = tmp_path / "done"
    # It goes on until it is ended, like the real one, after four samples.
    tool.write_text(
        f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n'
        f'for u in 100 50 "[N/A]" 0 ; do echo "$u"; done\ntouch {done}\nexec sleep 600\n'
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with CardWatch(3) as watch:
        while not done.exists():
            pass
    assert watch.idle_share == 0.5
    assert "-i 3" in (tmp_path / "asked").read_text()
    with CardWatch(None) as watch:
        pass
    assert watch.idle_share is None


def test_without_the_drivers_tool_nothing_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with CardWatch(0) as watch:
        pass
    assert watch.idle_share is None


def test_where_there_is_no_proc_nothing_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_cpu, "_PROC", tmp_path)
    processors = ServerCpu({"8b": 54_321})
    processors.mark()
    assert processors.seconds() == {}


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc")
def test_the_seconds_of_a_server_go_to_what_its_processes_do(tmp_path: Path) -> None:
    processors = ServerCpu({"8b": 54_321, "1b": 5_432})
    processors.mark()
    script = tmp_path / "server.py"
    script.write_text(BURN)
    command = [sys.executable, str(script), "--port", "54321", "--more"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, start_new_session=True
    ) as server:
        assert server.stdout is not None
        server.stdout.readline()
        told = processors.seconds()
        processors.mark()
        later = processors.seconds()
        os.killpg(server.pid, 9)
    assert set(told["8b"]) == {"front", "scheduler", "detokenizer"}
    assert told["8b"]["scheduler"] >= 0.3 > told["8b"]["detokenizer"] >= 0.1
    assert later["8b"]["scheduler"] < 0.1
    # A port that begins alike is another server's.
    assert told["1b"] == {}
