"""Memory that this process may use: the machine's, or less where a control group limits it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_UNLIMITED_BYTES = 1 << 60
"""Control groups of version 1 write a number near 2**63 for "no limit"."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes in total and available now; None when the system does not say."""

    total_bytes: int | None
    available_bytes: int | None


def read_memory(root: Path = Path("/")) -> Memory:
    """The smaller of what the machine has and what the control group of this process allows.
    `root` is where /proc and /sys are, for tests."""
    total, available = _machine(root)
    for limit, used in _group_limits(root):
        total = limit if total is None else min(total, limit)
        left = max(0, limit - used)
        available = left if available is None else min(available, left)
    return Memory(total, available)


def _machine(root: Path) -> tuple[int | None, int | None]:
    try:
        text = (root / "proc/meminfo").read_text("ascii")
    except OSError:
        return _machine_without_proc(), None
    sizes: dict[str, int] = {}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        number = rest.split()
        if number and number[0].isdigit():
            sizes[name] = int(number[0]) * 1024
    return sizes.get("MemTotal"), sizes.get("MemAvailable", sizes.get("MemFree"))


def _machine_without_proc() -> int | None:
    import os

    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _group_limits(root: Path) -> list[tuple[int, int]]:
    """(limit, used without reclaimable cache) of each group from this process's own to the top."""
    try:
        lines = (root / "proc/self/cgroup").read_text("utf-8").splitlines()
    except OSError:
        return []
    found: list[tuple[int, int]] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            base = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        folder = Path(path.lstrip("/"))
        for part in (folder, *folder.parents):
            limit = _number(base / part / names[0])
            if limit is None or limit >= _UNLIMITED_BYTES:
                continue
            used = _number(base / part / names[1]) or 0
            found.append(
                (limit, max(0, used - _reclaimable(base / part / "memory.stat", names[2])))
            )
    return found


def _number(path: Path) -> int | None:
    try:
        text = path.read_text("ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _reclaimable(path: Path, name: str) -> int:
    try:
        lines = path.read_text("ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name} ")), 0)
