"""A local OpenAI-compatible server that answers at once and counts: requests, distinct prompts,
tokens (estimated as four bytes). What benchmarks of calls are measured with.

Every contender is told only its address, so what it sends is what it would send to any server.
Answers follow from the prompt's hash: "yes", "no", a label, or JSON when a schema asks for it.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast


@dataclass
class Counts:
    """What the server was asked since the last `reset`."""

    requests: int = 0
    repeated: int = 0
    """Requests that are second attempts, by what the OpenAI client says in a header."""
    prompts: Counter[str] = field(default_factory=Counter[str])
    input_tokens: int = 0

    @property
    def distinct(self) -> int:
        return len(self.prompts)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024  # clients that connect all at once are not turned away

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are no news."""


class CountingServer:
    """The server, in a thread. A context manager; `url` ends with /v1."""

    def __init__(self, latency_s: float = 0.0) -> None:
        self.counts = Counts()
        self._lock = threading.Lock()
        outer = self
        wait = threading.Event().wait

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = 1 << 16  # an answer is one write, headers and all

            def log_message(self, format: str, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                self._send({"object": "list", "data": [{"id": "bench", "object": "model"}]})

            def do_POST(self) -> None:
                size = int(self.headers.get("Content-Length", 0))
                asked = json.loads(self.rfile.read(size))
                if latency_s:
                    wait(latency_s)
                again = self.headers.get("x-stainless-retry-count", "0") != "0"
                self._send(outer.answer(asked, again))

            def _send(self, document: dict[str, Any]) -> None:
                data = json.dumps(document).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> CountingServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def reset(self) -> Counts:
        """The counts so far; counting starts anew."""
        with self._lock:
            counts, self.counts = self.counts, Counts()
        return counts

    def answer(self, asked: dict[str, Any], again: bool = False) -> dict[str, Any]:
        """An answer to a chat completion request; `again` when it is a second attempt."""
        text = json.dumps(asked.get("messages", []), sort_keys=True)
        tokens = len(text.encode()) // 4
        with self._lock:
            self.counts.requests += 1
            self.counts.repeated += again
            self.counts.prompts[text] += 1
            self.counts.input_tokens += tokens
        content = _content(asked, text)
        usage = {"prompt_tokens": tokens, "completion_tokens": 1, "total_tokens": tokens + 1}
        choice = {
            "index": 0,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": content},
            "logprobs": None,
        }
        return {
            "id": "x", "object": "chat.completion", "created": 0,
            "model": asked.get("model", "bench"), "choices": [choice], "usage": usage,
        }  # fmt: skip


def _content(asked: dict[str, Any], text: str) -> str:
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
    schema = _schema(asked)
    if schema is not None:
        return json.dumps(_instance(schema, number, schema.get("$defs", {})))
    listed = re.findall(r"^- (\w+)$", json.loads(json.dumps(text)), re.MULTILINE)
    if listed:
        return str(listed[number % len(listed)])
    if "yes or no" in text:
        return "yes" if number % 2 else "no"
    return "True" if number % 2 else "False"


def _schema(asked: dict[str, Any]) -> dict[str, Any] | None:
    wanted = cast("dict[str, Any]", asked.get("response_format") or {})
    found = cast("dict[str, Any] | None", wanted.get("json_schema"))
    return None if found is None else cast("dict[str, Any]", found.get("schema", found))


def _instance(schema: dict[str, Any], number: int, defs: dict[str, Any]) -> Any:
    """A value of a schema; `defs` are those that a `$ref` names."""
    if "$ref" in schema:
        return _instance(defs[str(schema["$ref"]).rpartition("/")[2]], number, defs)
    if "enum" in schema:
        return schema["enum"][number % len(schema["enum"])]
    if "const" in schema:
        return schema["const"]
    for several in ("anyOf", "allOf", "oneOf"):
        if several in schema:
            return _instance(schema[several][0], number, defs)
    match schema.get("type"):
        case "object":
            return {
                name: _instance(each, number // 7 + i, defs)
                for i, (name, each) in enumerate(schema.get("properties", {}).items())
            }
        case "array":
            return [_instance(schema.get("items", {}), number, defs)]
        case "integer" | "number":
            return number % 100
        case "boolean":
            return bool(number % 2)
        case _:
            return f"text {number % 1000}"
