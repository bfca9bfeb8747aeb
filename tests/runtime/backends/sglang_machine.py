"""Whether SGLang's CPU server can be installed and run here: `python sglang_machine.py`.

Exit code 0: yes. 3: no, and the reason is printed.
"""

from __future__ import annotations

import platform
import sys
from pathlib import Path

CANNOT = 3
PYTHONS = ((3, 11), (3, 13))
GLIBC = (2, 34)
X86_64_V2 = frozenset(("cx16", "lahf_lm", "popcnt", "sse4_1", "sse4_2", "ssse3"))
"""Instructions that numpy and torch are compiled for. Neither AVX2 nor AMX is needed."""


def why_not(
    system: str, machine: str, glibc: str, python: tuple[int, int], instructions: frozenset[str]
) -> str:
    """Why SGLang's CPU server cannot run; empty when it can."""
    if (system, machine) != ("Linux", "x86_64"):
        return f"it was tried on Linux x86_64 only; this is {system} {machine}"
    numbers = tuple(int(part) for part in glibc.split(".") if part.isdigit())
    if numbers < GLIBC:
        return f"SGLang's wheels need glibc 2.34 or later; here is {glibc or 'another C library'}"
    if not PYTHONS[0] <= python <= PYTHONS[1]:
        return "SGLang has wheels for Python 3.11 to 3.13; here is {}.{}".format(*python)
    missing = X86_64_V2 - instructions
    if missing:
        return f"numpy and torch need x86-64-v2; this processor lacks {', '.join(sorted(missing))}"
    return ""


def instructions_here() -> frozenset[str]:
    """The instruction sets of this machine's processor, as Linux names them."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    flags = next((line for line in lines if line.startswith("flags")), "")
    return frozenset(flags.partition(":")[2].split())


if __name__ == "__main__":
    reason = why_not(
        platform.system(),
        platform.machine(),
        platform.libc_ver()[1],
        sys.version_info[:2],
        instructions_here(),
    )
    if reason:
        print(f"SGLang's tests are skipped on this machine: {reason}")
        sys.exit(CANNOT)
