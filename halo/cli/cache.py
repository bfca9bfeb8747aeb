"""`halo cache`: what an answer cache holds, and how to make it smaller."""

from __future__ import annotations

import json as json_format
from dataclasses import asdict
from pathlib import Path

from halo.errors import CacheError
from runtime.answer_cache import FILE, AnswerCache


def cache(directory: Path, *, prune_mb: float | None, clear: bool, json_out: bool) -> int:
    """Print what the cache in `directory` holds, after making it smaller if asked; returns the exit
    code. Raises `CacheError` when there is none."""
    if not (directory / FILE).is_file():
        raise CacheError(
            f"{directory} has no answer cache; `halo run --cache {directory}` makes one"
        )
    found = AnswerCache(directory)
    try:
        dropped = 0
        if clear:
            dropped = found.clear()
        elif prune_mb is not None:
            dropped = found.prune(int(prune_mb * 1e6))
        groups, size = found.groups(), found.size_bytes
    finally:
        found.close()
    if json_out:
        document = {
            "path": str(found.path),
            "size_bytes": size,
            "dropped": dropped,
            "groups": [asdict(group) for group in groups],
        }
        print(json_format.dumps(document, ensure_ascii=False))
        return 0
    if clear or prune_mb is not None:
        print(f"dropped {dropped:,} answers")
    answers = sum(group.answers for group in groups)
    print(f"{found.path}: {answers:,} answers, {size / 1e6:,.1f} MB")
    for group in groups:
        who = f"{group.kind} {group.name}" + (f" on {group.scope}" if group.scope else "")
        saved = f"{group.hits:,} uses"
        if group.kind == "model":
            saved += f", {group.input_tokens:,} + {group.output_tokens:,} tokens saved"
        print(f"  {who}: {group.answers:,} answers, {group.size_bytes / 1e6:,.1f} MB, {saved}")
    return 0
