"""Which model a run uses when nobody named one: the best that fits into memory."""

from __future__ import annotations

from runtime.models.catalogue import QWEN, SMOLLM2
from runtime.models.memory import Memory, read_memory


def choose_default(memory: Memory | None = None) -> tuple[str, str]:
    """(model name, warning). The warning is empty unless memory forces the small model.

    Example:
        >>> choose_default(Memory(16_000_000_000, 9_000_000_000))
        ('qwen2.5-coder-1.5b-instruct', '')
    """
    memory = read_memory() if memory is None else memory
    available = memory.available_bytes if memory.available_bytes is not None else memory.total_bytes
    if available is None or available >= QWEN.memory_bytes:
        return QWEN.name, ""
    return SMOLLM2.name, (
        f"warning: {available / 1e9:.1f} GB of memory is free and {QWEN.name} needs "
        f"{QWEN.memory_bytes / 1e9:.1f} GB, so {SMOLLM2.name} is used instead: its answers show "
        f"that a workflow runs, and are not worth reading; --model {QWEN.name} insists"
    )
