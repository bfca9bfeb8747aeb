"""Halo: compile agentic workflows into query plans, run the whole batch, explain what it cost.

Users import `halo` alone. Names are loaded when first used, so that `import halo` stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from halo._siblings import check_siblings

check_siblings()

if TYPE_CHECKING:
    from halo.api import explain, run
    from halo.dsl.control import agent, loop, map, reduce, when
    from halo.dsl.mcp import mcp
    from halo.dsl.model import Model
    from halo.dsl.sql import sql
    from halo.dsl.tool import tool
    from halo.dsl.workflow import workflow
    from halo.pte_api import pte
    from halo.session import Session

_HOMES = {
    "Model": "halo.dsl.model",
    "Session": "halo.session",
    "agent": "halo.dsl.control",
    "explain": "halo.api",
    "loop": "halo.dsl.control",
    "map": "halo.dsl.control",
    "mcp": "halo.dsl.mcp",
    "pte": "halo.pte_api",
    "reduce": "halo.dsl.control",
    "run": "halo.api",
    "sql": "halo.dsl.sql",
    "tool": "halo.dsl.tool",
    "when": "halo.dsl.control",
    "workflow": "halo.dsl.workflow",
}

__version__ = "0.1.0"

__all__ = [
    "Model",
    "Session",
    "agent",
    "explain",
    "loop",
    "map",
    "mcp",
    "pte",
    "reduce",
    "run",
    "sql",
    "tool",
    "when",
    "workflow",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'halo' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
