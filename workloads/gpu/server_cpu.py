"""Processor time of a server's processes.

One process of a server answers HTTP and tokenizes, one schedules and launches the kernels, one
turns tokens into text. Each runs on one core, so the one that needs as many seconds as a run lasts
is what the run waits for; a scheduler with nothing to do spins, without --sleep-on-idle.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

_PROC = Path("/proc")
_ROLES = {"::sched": "scheduler", "::detok": "detokenizer"}


class ServerCpu:
    """Seconds since `mark`, for servers on this machine; nothing where there is no /proc.

    Args:
        ports: of the servers, by model.
    """

    def __init__(self, ports: Mapping[str, int]) -> None:
        self._ports = ports
        self._marked: dict[str, dict[str, float]] = {}

    def mark(self) -> None:
        """Count from now on."""
        self._marked = self._read()

    def seconds(self) -> dict[str, dict[str, float]]:
        """By model and process."""
        return {
            model: {
                role: round(cpu_s - self._marked.get(model, {}).get(role, 0.0), 2)
                for role, cpu_s in roles.items()
            }
            for model, roles in self._read().items()
        }

    def _read(self) -> dict[str, dict[str, float]]:
        processes = dict(_processes())
        return {model: _roles(processes, port) for model, port in self._ports.items() if processes}


def _roles(processes: Mapping[int, tuple[int, float, str]], port: int) -> dict[str, float]:
    """Seconds of the processes of the server on `port`, by what they do."""
    mains = {
        pid for pid, (_, _, command) in processes.items() if f"--port {port} " in f"{command} "
    }
    seconds: dict[str, float] = {}
    for pid, (parent, cpu_s, command) in processes.items():
        role = next((r for mark, r in _ROLES.items() if mark in command), "")
        if pid in mains and not role:
            role = "front"
        elif parent not in mains:
            continue
        if role:
            seconds[role] = seconds.get(role, 0.0) + cpu_s
    return seconds


def _processes() -> list[tuple[int, tuple[int, float, str]]]:
    """Process, parent, seconds of processor time and command line of everything that runs."""
    found: list[tuple[int, tuple[int, float, str]]] = []
    ticks = os.sysconf("SC_CLK_TCK")
    for folder in _PROC.glob("[0-9]*"):
        try:
            command = (
                (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            )
            fields = (folder / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:
            continue  # ended meanwhile
        parent, user, system = int(fields[1]), int(fields[11]), int(fields[12])
        found.append((int(folder.name), (parent, (user + system) / ticks, command)))
    return found
