"""A server that misbehaves on purpose: SGLang's and OpenAI's routes, on a thread of its own.

`behave` decides for each call, by its number, how it goes wrong; None answers properly.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections.abc import Callable
from typing import Any

from aiohttp import web

from workloads.threaded_app import ThreadedApp

BEHAVIOURS = (
    *("429", "429-after", "500", "503", "reset", "truncated", "garbage", "html", "empty"),
    *("length", "duplicate", "abort"),
)
"""Everything but stalls, which need a deadline: twelve ways to fail (`length` and `duplicate` are
answers, odd ones)."""

MODEL = "tiny"


class FaultServer(ThreadedApp):
    """Serves until it is closed.

    Attributes:
        calls: bodies of the generation calls, in order.
        asked: set once a call has come.
        aborted: request ids of `/abort_request`.
        stalled: calls that wait until `release`.
        load: what the server does, as `/v1/loads` tells it.
        fields: what it says that a request may hold; None for not saying.
        flushes_refused: how often `/flush_cache` says that requests run.
        load_route: where it tells that, `/get_load` for a server as old as 0.5.8.
        complete_at: length of a stream up to the event that says why it stopped.
    """

    def __init__(
        self,
        tokenizer: str = "",
        behave: Callable[[int, dict[str, Any]], str | None] = lambda number, body: None,
        *,
        info: dict[str, Any] | None = None,
    ) -> None:
        self.behave = behave
        self.calls: list[dict[str, Any]] = []
        self.aborted: list[str] = []
        self.paths: list[str] = []
        self.headers: dict[str, str] = {}
        self.cut_at: int | None = None
        self.complete_at = 0
        self.load: dict[str, Any] = {
            "num_running_reqs": 1, "num_waiting_reqs": 0, "num_waiting_uncached_tokens": 0,
        }  # fmt: skip
        self.fields: list[str] | None = None
        self.load_route = "/v1/loads"
        self.loads_hang = False
        self.flushes_refused = 0
        self.healthy = True
        self._tokenizer = tokenizer
        self._info = info or {}
        self.asked = threading.Event()
        self._released = asyncio.Event()
        app = web.Application(client_max_size=2**26)
        app.router.add_post("/generate", self._generate)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_route("*", "/{path:.*}", self._other)
        super().__init__(app, shutdown_s=0.1)

    def release(self) -> None:
        """Let stalled calls go."""
        self._loop.call_soon_threadsafe(self._released.set)

    def close(self) -> None:
        """Let stalled calls go, and stop serving."""
        if self._thread.is_alive():
            self.release()
        super().close()

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        body: dict[str, Any] = json.loads(await request.read())
        prompt = body.get("text") or str(body.get("input_ids"))
        n_tokens = body["sampling_params"]["max_new_tokens"]
        meta = {
            "id": body.get("rid"), "finish_reason": {"type": "stop", "matched": 2},
            "prompt_tokens": len(prompt), "completion_tokens": 3, "cached_tokens": 1,
            "prefill_finished_time": 10.0, "request_finished_ts": 10.25, "queue_time": 0.5,
        }  # fmt: skip
        answer = {"text": reply(prompt), "meta_info": meta}
        how = self._how(body)
        if how == "length":
            meta["finish_reason"] = {"type": "length", "length": n_tokens}
        if how == "abort":
            meta["finish_reason"] = {"type": "abort", "message": "evicted", "status_code": 503}
        first = {**answer, "text": "", "meta_info": {**meta, "finish_reason": None}}
        if how in ("400", "overflow"):
            text = "The input (9 tokens) is longer than the model's context length (8 tokens)."
            return web.json_response(
                {"error": {"message": text if how == "overflow" else "bad schema"}}, status=400
            )
        return await self._send(request, how, body, answer, [first, answer])

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body: dict[str, Any] = json.loads(await request.read())
        prompt = json.dumps(body["messages"])
        how = self._how(body)
        if how is not None and how.startswith("refuse:"):
            return web.json_response({"error": {"message": how[7:]}}, status=400)
        text = reply(prompt)
        if "response_format" in body and how != "free":
            schema = body["response_format"]["json_schema"]["schema"]
            options = schema.get("properties", {}).get("choice", {}).get("enum")
            text = json.dumps({"choice": options[-1]}) if options else "{}"
        choice: dict[str, Any] = {
            "index": 0, "message": {"role": "assistant", "content": text},
            "finish_reason": "length" if how == "length" else "stop",
        }  # fmt: skip
        if "top_logprobs" in body:
            choice["logprobs"] = {
                "content": [{"token": "no", "logprob": -0.1, "top_logprobs": [
                    {"token": "no", "logprob": -0.1}, {"token": " yes", "logprob": -2.0}]}]
            }  # fmt: skip
        if how == "abort":
            choice["finish_reason"] = None
        usage = {
            "prompt_tokens": len(prompt), "completion_tokens": 3,
            "prompt_tokens_details": {"cached_tokens": 1},
        }  # fmt: skip
        answer = {"object": "chat.completion", "choices": [choice], "usage": usage}
        half = len(text) // 2
        events = [
            {"choices": [{"index": 0, "delta": {"role": "assistant", "content": part}}]}
            for part in (text[:half], text[half:])
        ]
        events.append(
            {"choices": [{"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]}]}
        )
        events.append({"choices": [], "usage": usage})
        return await self._send(request, how, body, answer, events)

    def _how(self, body: dict[str, Any]) -> str | None:
        self.calls.append(body)
        self.asked.set()
        return self.behave(len(self.calls) - 1, body)

    async def _send(
        self,
        request: web.Request,
        how: str | None,
        body: dict[str, Any],
        answer: dict[str, Any],
        events: list[dict[str, Any]],
    ) -> web.StreamResponse:
        match how:
            case "429":
                return web.json_response({"error": "slow down"}, status=429, headers=self.headers)
            case "429-after":
                return web.json_response(
                    {"error": "slow down"}, status=429, headers={"Retry-After": "2"}
                )
            case "500" | "503" | "401" | "404":
                return web.Response(text="trouble", status=int(how))
            case "reset":
                assert request.transport is not None
                request.transport.abort()
                return web.Response()
            case "garbage":
                return web.Response(body=b"\x00\xff\xfe{not json")
            case "html":
                return web.Response(text="<html><h1>Gateway</h1></html>", content_type="text/html")
            case "empty":
                return web.Response(body=b"")
            case "stall":
                await self._released.wait()
        if not body.get("stream"):
            data = json.dumps(answer).encode()
            if how == "truncated":
                return await self._cut(request, data, len(data) // 2, "application/json")
            return web.Response(body=data, content_type="application/json", headers=self.headers)
        lines = [f"data: {json.dumps(event, ensure_ascii=False)}\n\n" for event in events]
        if how == "duplicate":
            lines.append(lines[-1])
        lines[1:1] = [": keep-alive\n\n"]
        lines.append("data: [DONE]\n\n")
        ends = next((i for i, line in enumerate(lines) if '"stop"' in line), len(lines) - 1)
        self.complete_at = len("".join(lines[: ends + 1]).encode())
        data = "".join(lines).encode()
        cut = len(data) // 2 if how == "truncated" else self.cut_at
        if cut is not None:
            # A proxy that ends the stream properly, in the middle.
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            await response.write(data[:cut])
            return response
        return web.Response(body=data, content_type="text/event-stream")

    async def _cut(
        self, request: web.Request, data: bytes, at: int, content_type: str
    ) -> web.StreamResponse:
        """Promise `data`, send a part, and break the connection."""
        response = web.StreamResponse(
            headers={"Content-Type": content_type, "Content-Length": str(len(data))}
        )
        await response.prepare(request)
        await response.write(data[:at])
        assert request.transport is not None
        request.transport.close()
        return response

    async def _other(self, request: web.Request) -> web.StreamResponse:
        path = request.path
        self.paths.append(path)
        match path:
            case "/server_info":
                return web.json_response(
                    {
                        "version": "0.0", "max_running_requests": 8, "max_total_num_tokens": 4096,
                        "enable_priority_scheduling": True,
                        "schedule_low_priority_values_first": True, "enable_memory_saver": True,
                        **self._info,
                    }
                )  # fmt: skip
            case "/model_info":
                return web.json_response({"model_path": MODEL, "tokenizer_path": self._tokenizer})
            case "/v1/models":
                return web.json_response({"data": [{"id": MODEL, "max_model_len": 4096}]})
            case "/openapi.json" if self.fields is not None:
                schema = {"properties": {name: {} for name in self.fields}}
                return web.json_response({"components": {"schemas": {"GenerateReqInput": schema}}})
            case self.load_route:
                if self.loads_hang:
                    await self._released.wait()
                old = path == "/get_load"
                return web.json_response([self.load] if old else {"loads": [self.load]})
            case "/abort_request":
                self.aborted.append((await request.json())["rid"])
                return web.Response()
            case "/health":
                return web.Response(status=200 if self.healthy else 503)
            case "/flush_cache" if self.flushes_refused:
                self.flushes_refused -= 1
                return web.Response(text="Flush cache failed.", status=400)
            case (
                "/flush_cache"
                | "/update_weights_from_disk"
                | "/release_memory_occupation"
                | "/load_lora_adapter"
            ):
                return web.json_response({"success": True})
            case "/resume_memory_occupation":
                return web.json_response({"success": False, "message": "nothing was released"})
            case _:
                return web.Response(status=404, text="404: Not Found")


def reply(prompt: str) -> str:
    """The answer to a prompt, the same for the same prompt, with characters of several bytes."""
    return f"ä€ {hashlib.sha256(prompt.encode()).hexdigest()[:12]}"
