"""Tools: what they are. (The runner that calls them is `runtime.tool_runner`.)"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from planner.logical import Effect, Json, ToolRef, canonical_json

OnRows = Callable[[Sequence[Json]], None]
"""Is told of rows that a tool or a query has given, in whatever thread it runs."""


@dataclass(frozen=True)
class ToolSpec:
    """A registered Python or HTTP tool.

    Attributes:
        name: unique within a session.
        function: called with keyword arguments in a thread, or awaited when it is a coroutine
            function; None for HTTP tools. What a generator yields are the rows of its value.
        parameters: JSON Schema of the arguments (an object schema).
        effect: WRITE until its author says otherwise.
        timeout_s, max_concurrency, retries: limits for each tool; retries apply to PURE tools,
            never to a write.
        url, method: of an HTTP tool (arguments travel as query for GET, as JSON body otherwise).
        version: the author's word that behaviour changed; part of the digest.
    """

    name: str
    function: Callable[..., Any] | None
    description: str = ""
    parameters: dict[str, Any] = field(default_factory=lambda: {"type": "object", "properties": {}})
    effect: Effect = Effect.WRITE
    timeout_s: float = 60.0
    max_concurrency: int = 8
    retries: int = 1
    url: str = ""
    method: str = "GET"
    version: str = ""

    @property
    def digest(self) -> str:
        """Changes when what the tool is asked or promises changes; equal tools merge."""
        text = canonical_json(
            [self.name, self.parameters, self.effect.value, self.url, self.method, self.version]
        )
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def ref(self) -> ToolRef:
        return ToolRef(self.name, self.digest, self.effect)
