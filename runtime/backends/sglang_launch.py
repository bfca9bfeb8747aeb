"""Start an SGLang server of whatever release: `python sglang_launch.py FLAGS`.

Runs with the Python of SGLang's own environment, as a file: it imports nothing of Halo. It does
what `python -m sglang.launch_server FLAGS` does, after it has asked this SGLang which flags it
knows. Flags that an older one does not know are left out, or say it as that one did, if a server
can do without them; the log tells. All others are SGLang's to accept or to refuse.
"""

from __future__ import annotations

import argparse
import importlib
import runpy
import sys
from collections.abc import Collection, Sequence
from typing import Any

OLDER: dict[str, tuple[str, ...]] = {
    "--enable-priority-scheduling": (),
    "--schedule-low-priority-values-first": (),
    "--disable-priority-preemption": ("--priority-scheduling-preemption-threshold", "1000000000"),
    "--constrained-json-disable-any-whitespace": (),
    "--cuda-graph-backend-decode": ("--disable-cuda-graph",),
    "--cuda-graph-backend-prefill": (),
    "--cuda-graph-max-bs-decode": (),
    "--enable-deterministic-inference": (),
}
"""Flags that not every 0.5 release has, and how the others say it; nothing where they cannot."""

RENAMED = {"--cuda-graph-max-bs-decode": "--cuda-graph-max-bs"}
"""Flags that had another name and take the same value."""


def fit_flags(flags: Sequence[str], known: Collection[str]) -> tuple[list[str], list[str]]:
    """`flags` for an SGLang that has the `known` ones, and a line on each that it has not.

    Example:
        >>> flags = ["--cuda-graph-backend-decode", "disabled", "--port", "1"]
        >>> fit_flags(flags, {"--port", "--disable-cuda-graph"})[0]
        ['--disable-cuda-graph', '--port', '1']
        >>> fit_flags(["--cuda-graph-max-bs-decode", "512"], {"--cuda-graph-max-bs"})[0]
        ['--cuda-graph-max-bs', '512']
    """
    fitted: list[str] = []
    said: list[str] = []
    dropping = False
    for given in flags:
        word = given
        if word.startswith("--"):
            name, separator, value = word.partition("=")
            if name not in known and RENAMED.get(name) in known:
                said.append(f"no {name}: {RENAMED[name]} instead")
                name = RENAMED[name]
                word = f"{name}{separator}{value}"
            dropping = name in OLDER and name not in known
            if dropping:
                older = OLDER[name] if OLDER[name][:1] and OLDER[name][0] in known else ()
                fitted += older
                instead = f"{' '.join(older)} instead" if older else "left out"
                said.append(f"no {name}: {instead}")
        if not dropping:
            fitted.append(word)
    return fitted, said


def fit_to_this_sglang(flags: Sequence[str]) -> list[str]:
    """`flags`, fitted to the SGLang of this environment; what changes is printed."""
    parser = argparse.ArgumentParser()
    try:
        server_args: Any = importlib.import_module("sglang.srt.server_args")
        server_args.ServerArgs.add_cli_args(parser)
    except (ImportError, AttributeError) as error:
        print(f"this SGLang does not tell its flags: {error!r}", file=sys.stderr, flush=True)
        return list(flags)
    known = {name for action in parser._actions for name in action.option_strings}
    fitted, said = fit_flags(flags, known)
    for line in said:
        print(f"this SGLang has {line}", file=sys.stderr, flush=True)
    return fitted


if __name__ == "__main__":
    sys.argv[1:] = fit_to_this_sglang(sys.argv[1:])
    # As the main module under its own name: the processes that it spawns import that one again.
    runpy.run_module("sglang.launch_server", run_name="__main__", alter_sys=True)
