"""A server that speaks as SGLang does and computes nothing: for measuring clients, and for seeing
which prompts they send.

Answers are the same function of the prompt as those of `workloads.gpu.serve`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from typing import Any

from aiohttp import web

from workloads.child_service import ChildService, serve_until_closed
from workloads.text import words
from workloads.threaded_app import ThreadedApp

PER_MODEL = 4096


class StubServer(ThreadedApp):
    """Serves on a thread of its own until it is closed.

    Args:
        model: the name it serves.
        tokenizer: the folder of a byte-level tokenizer (`workloads.gpu.models.write_tokenizer`).
        answer_s: how long an answer takes.

    Attributes:
        prompts: how often each prompt came, with the answer's length.
    """

    def __init__(self, model: str, tokenizer: str, *, answer_s: float = 0.0) -> None:
        self.prompts: dict[tuple[str, int], int] = {}
        self.calls = 0
        self._model = model
        self._tokenizer = tokenizer
        self._answer_s = answer_s
        self._running = 0
        app = web.Application(client_max_size=2**30)
        app.router.add_post("/generate", self._generate)
        app.router.add_get("/server_info", self._server_info)
        app.router.add_get("/model_info", self._model_info)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/v1/loads", self._loads)
        app.router.add_route("*", "/flush_cache", self._done)
        app.router.add_route("*", "/abort_request", self._done)
        app.router.add_get("/health", self._done)
        super().__init__(app, backlog=4096)

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        body: Any = json.loads(await request.read())
        prompt = str(body["text"])
        n_tokens = int(body["sampling_params"]["max_new_tokens"])
        self.calls += 1
        self.prompts[prompt, n_tokens] = self.prompts.get((prompt, n_tokens), 0) + 1
        self._running += 1
        try:
            if self._answer_s:
                done = asyncio.Event()
                asyncio.get_running_loop().call_later(self._answer_s, done.set)
                await done.wait()
        finally:
            self._running -= 1
        answer: dict[str, Any] = {
            "text": words(hashlib.sha256(prompt.encode()).hexdigest(), n_tokens),
            "meta_info": {
                "id": body.get("rid", ""),
                "finish_reason": {"type": "length", "length": n_tokens},
                "prompt_tokens": len(prompt.encode()),
                "completion_tokens": n_tokens,
                "cached_tokens": 0,
            },
        }
        if not body.get("stream"):
            return web.json_response(answer)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        first = {**answer, "meta_info": {**answer["meta_info"], "finish_reason": None}}
        for event in (first, answer):
            await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        return response

    async def _server_info(self, _: web.Request) -> web.Response:
        return web.json_response(
            {
                "version": "stub", "max_running_requests": PER_MODEL, "max_total_num_tokens": 2**20,
                "chunked_prefill_size": 8192, "schedule_policy": "fcfs", "page_size": 1,
                "enable_priority_scheduling": True, "schedule_low_priority_values_first": True,
            }
        )  # fmt: skip

    async def _model_info(self, _: web.Request) -> web.Response:
        return web.json_response({"model_path": self._model, "tokenizer_path": self._tokenizer})

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": self._model, "max_model_len": 131072}]})

    async def _loads(self, _: web.Request) -> web.Response:
        load = {"num_running_reqs": self._running, "num_waiting_reqs": 0,
                "num_waiting_uncached_tokens": 0, "token_usage": 0.0}  # fmt: skip
        return web.json_response({"loads": [load]})

    async def _done(self, _: web.Request) -> web.Response:
        return web.Response(text="ok")


class StubProcess(ChildService):
    """The server in a process of its own; arguments as of `StubServer`."""

    def __init__(self, model: str, tokenizer: str, *, answer_s: float = 0.0) -> None:
        super().__init__("workloads.stub_server", model, tokenizer, str(answer_s))


if __name__ == "__main__":
    with StubServer(sys.argv[1], sys.argv[2], answer_s=float(sys.argv[3])) as served:
        serve_until_closed(served.url)
