"""What an SGLang server's own log says of its prefill steps."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

_PREFILL = re.compile(r"Prefill batch.*?#new-seq: (\d+), #new-token: (\d+), #cached-token: (\d+)")


class ServerLogs:
    """Counts prefill steps between two moments.

    Args:
        paths: the log of each server, by model. Servers that an earlier call has started are left
            out if their logs are not there.
    """

    def __init__(self, paths: Mapping[str, Path]) -> None:
        self._paths = paths
        self._at: dict[str, int] = {}

    def mark(self) -> None:
        """Count from here."""
        self._at = {m: path.stat().st_size for m, path in self._paths.items() if path.exists()}

    def prefill_steps(self) -> dict[str, dict[str, int]]:
        """By model, since `mark`: steps that computed prompts, the requests in them, their new and
        their cached tokens."""
        return {model: self._since(self._paths[model], at) for model, at in self._at.items()}

    def _since(self, path: Path, offset: int) -> dict[str, int]:
        with path.open("rb") as file:
            file.seek(offset)
            text = file.read().decode(errors="replace")
        found = [tuple(map(int, match.groups())) for match in _PREFILL.finditer(text)]
        return {
            "steps": len(found),
            "requests": sum(f[0] for f in found),
            "new_tokens": sum(f[1] for f in found),
            "cached_tokens": sum(f[2] for f in found),
        }
