"""Memory, with and without control groups, and the model that it allows."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.models.choice import choose_default
from runtime.models.memory import Memory, read_memory

MEMINFO = "MemTotal: 16000000 kB\nMemFree: 100 kB\nMemAvailable: 12000000 kB\nHugePages_Total: 0\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text(MEMINFO)
    (tmp_path / "proc/self/cgroup").write_text("0::/\n")
    return tmp_path


def group(root: Path, path: str, limit: str, used: int, cache: int = 0) -> None:
    folder = root / "sys/fs/cgroup" / path
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\ninactive_file {cache}\n")


def test_the_machine_alone(root: Path) -> None:
    assert read_memory(root) == Memory(16_384_000_000, 12_288_000_000)


def test_a_control_group_limits_it(root: Path) -> None:
    (root / "proc/self/cgroup").write_text("0::/a/b\n")
    group(root, "a/b", "max", 0)
    group(root, "a", "4000000000", 3_000_000_000, cache=500_000_000)
    assert read_memory(root) == Memory(4_000_000_000, 1_500_000_000)


def test_the_root_group_of_a_container_counts(root: Path) -> None:
    group(root, ".", "2000000000", 500_000_000)
    assert read_memory(root) == Memory(2_000_000_000, 1_500_000_000)


def test_control_groups_of_version_one(root: Path) -> None:
    (root / "proc/self/cgroup").write_text("5:cpu:/x\n4:memory,hugetlb:/box\n")
    folder = root / "sys/fs/cgroup/memory/box"
    folder.mkdir(parents=True)
    (folder / "memory.limit_in_bytes").write_text("3000000000\n")
    (folder / "memory.usage_in_bytes").write_text("1000000000\n")
    unlimited = root / "sys/fs/cgroup/memory/memory.limit_in_bytes"
    unlimited.write_text("9223372036854771712\n")
    assert read_memory(root) == Memory(3_000_000_000, 2_000_000_000)


def test_a_system_without_proc(tmp_path: Path) -> None:
    assert read_memory(tmp_path).available_bytes is None


def test_enough_memory_takes_the_model_worth_reading() -> None:
    assert choose_default(Memory(8_000_000_000, 5_000_000_000))[1] == ""
    assert choose_default(Memory(None, None))[0] == "qwen2.5-coder-1.5b-instruct"


def test_too_little_memory_says_so_and_takes_the_small_one() -> None:
    name, warning = choose_default(Memory(8_000_000_000, 2_100_000_000))
    assert name == "smollm2-135m-instruct"
    assert "2.1 GB" in warning and "5.0 GB" in warning and "not worth reading" in warning
