"""What the backend and the engine's process say to each other: one JSON document a line.

To the engine: `{"op": "add", "id": 7, "request": {...}}`, `{"op": "cancel", "id": 7}`; the end of
the stream means that nobody waits any more. From it: an event with an `id`, or about the engine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, cast

from runtime.backends.base import Message, Request, ToolCall, ToolSchema

Event = dict[str, Any]
"""`event` is one of: ready, failed (the model cannot be loaded), alive, prefilled, done, error."""


def encode(document: Mapping[str, Any]) -> bytes:
    """One line. Lone surrogates are kept as JSON escapes."""
    return json.dumps(document, separators=(",", ":")).encode("ascii") + b"\n"


def decode(line: bytes) -> Event:
    """The document of a line. Raises `ValueError`."""
    value = json.loads(line)
    if not isinstance(value, dict):
        raise ValueError(f"not a message: {line[:80]!r}")
    return cast("Event", value)


def request_document(request: Request) -> dict[str, Any]:
    """`request` as JSON can say it."""
    return asdict(request)


def request_from(document: Mapping[str, Any]) -> Request:
    """The request of `request_document`."""
    values = dict(document)
    values["messages"] = tuple(_message(m) for m in values["messages"])
    values["tools"] = tuple(ToolSchema(**t) for t in values["tools"])
    values["stop"] = tuple(values["stop"])
    values["options"] = tuple(values["options"])
    return Request(**values)


def _message(document: Mapping[str, Any]) -> Message:
    values = dict(document)
    values["tool_calls"] = tuple(ToolCall(**c) for c in values["tool_calls"])
    return Message(**values)
