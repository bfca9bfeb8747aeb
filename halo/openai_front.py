"""Any engine under the OpenAI HTTP API: `/v1/models`, `/v1/chat/completions`, `/v1/completions`.

What an engine cannot do is refused with the API's own error document, never ignored: log
probabilities, several answers from a greedy request, raw prompts of an engine that takes chats
alone. Unknown fields are ignored, as other servers do.

Browsers can send requests to servers on the same machine. Bodies must therefore say that they are
JSON, which a foreign page cannot without asking first, and be addressed to this machine's own name.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

from aiohttp import web
from pydantic import BaseModel, Field, ValidationError

from runtime.backends.base import Backend, Completion, Message, Request, Role, ToolCall, ToolSchema
from runtime.errors import BackendError, ContextOverflowError
from runtime.json_schema import SchemaError, schema_validator

MAX_BODY_BYTES = 64 << 20
MAX_ANSWERS = 128
_LOCAL_NAMES = ("127.0.0.1", "localhost", "[::1]")


@runtime_checkable
class StreamsText(Protocol):
    """An engine that gives answers piece by piece."""

    async def stream(self, request: Request, on_text: Callable[[str], None]) -> Completion: ...


@runtime_checkable
class TakesRawPrompts(Protocol):
    """An engine that continues a text or tokens without a chat template."""

    async def complete(
        self,
        prompt: str | Sequence[int],
        request: Request,
        on_text: Callable[[str], None] | None = None,
    ) -> Completion: ...


class RefusedError(Exception):
    """A request that is answered with an error document."""

    def __init__(self, status: int, message: str, *, kind: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.document = {"error": {"message": message, "type": kind, "param": None, "code": code}}


class _Function(BaseModel):
    name: str
    description: str = ""
    parameters: dict[str, Any] = Field(default_factory=dict[str, Any])
    arguments: str = ""


class _Tool(BaseModel):
    id: str = ""
    function: _Function


class _Part(BaseModel):
    type: str
    text: str = ""


class _Message(BaseModel):
    role: Role
    content: str | list[_Part] | None = None
    tool_calls: list[_Tool] = Field(default_factory=list[_Tool])
    tool_call_id: str = ""
    name: str = ""


class _StreamOptions(BaseModel):
    include_usage: bool = False


class _JsonSchema(BaseModel):
    schema_: dict[str, Any] = Field(alias="schema")


class _ResponseFormat(BaseModel):
    type: str
    json_schema: _JsonSchema | None = None


class _Body(BaseModel):
    """Fields that both kinds of completion share."""

    model: str
    max_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    n: int = Field(1, ge=1, le=MAX_ANSWERS)
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: _StreamOptions | None = None
    priority: int = 0
    logprobs: bool | int | None = None


class _ChatBody(_Body):
    messages: list[_Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    tools: list[_Tool] = Field(default_factory=list[_Tool])
    response_format: _ResponseFormat | None = None


class _CompletionBody(_Body):
    prompt: str | list[str] | list[int] | list[list[int]]


_B = TypeVar("_B", bound=_Body)


@dataclass(frozen=True)
class _Job:
    """One answer to produce. `raw` is the prompt of a completion without a template."""

    request: Request
    raw: str | list[int] | None = None


def openai_app(backend: Backend, model: str, rng: random.Random) -> web.Application:
    """The application. `rng` gives seeds to sampled requests that bring none."""
    front = _Front(backend, model, rng)
    app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[_errors_as_documents])
    app.add_routes(
        [
            web.get("/health", front.health),
            web.get("/v1/models", front.models),
            web.post("/v1/chat/completions", front.chat),
            web.post("/v1/completions", front.completions),
        ]
    )
    return app


class _Front:
    def __init__(self, backend: Backend, model: str, rng: random.Random) -> None:
        self._backend, self._model, self._rng = backend, model, rng
        self._numbers = 0

    async def health(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def models(self, _: web.Request) -> web.Response:
        capabilities = self._backend.capabilities
        entry = {
            "id": self._model,
            "object": "model",
            "created": 0,
            "owned_by": self._backend.name,
            "max_model_len": capabilities.context_tokens,
        }
        return web.json_response({"object": "list", "data": [entry]})

    async def chat(self, http: web.Request) -> web.StreamResponse:
        body = await self._body(http, _ChatBody)
        schema = None
        if body.response_format is not None and body.response_format.type != "text":
            schema = _schema_of(body.response_format)
        tools = tuple(
            ToolSchema(
                t.function.name,
                t.function.description,
                _schema_text(f"tool {t.function.name!r}", t.function.parameters),
            )
            for t in body.tools
        )
        request = replace(
            self._request(body, body.max_completion_tokens or body.max_tokens or 256),
            messages=tuple(_message(m) for m in body.messages),
            schema_json=schema,
            tools=tools,
        )
        jobs = [_Job(r) for r in self._answers(request, body)]
        return await self._respond(http, body, jobs, _ChatFormat(self._id(), self._model))

    async def completions(self, http: web.Request) -> web.StreamResponse:
        body = await self._body(http, _CompletionBody)
        if not isinstance(self._backend, TakesRawPrompts):
            raise _bad(f"engine {self._backend.name!r} takes chats: use /v1/chat/completions")
        request = self._request(body, body.max_tokens or 16)
        jobs = [_Job(r, p) for p in _prompts(body.prompt) for r in self._answers(request, body)]
        if not jobs or len(jobs) > MAX_ANSWERS:
            raise _bad(f"{len(jobs)} answers in one request; 1 to {MAX_ANSWERS} are given")
        return await self._respond(http, body, jobs, _TextFormat(self._id(), self._model))

    # ---- from HTTP to requests

    async def _body(self, http: web.Request, kind: type[_B]) -> _B:
        if http.content_type != "application/json":
            raise RefusedError(
                415, "the body must be application/json", kind="invalid_request_error"
            )
        try:
            body = kind.model_validate_json(await http.read())
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(p) for p in first["loc"]) or "body"
            raise _bad(f"{where}: {first['msg']}") from error
        if body.model != self._model:
            raise RefusedError(
                404,
                f"this server has the model {self._model!r}, not {body.model!r}",
                kind="invalid_request_error",
                code="model_not_found",
            )
        if body.logprobs:
            raise _bad("log probabilities are not served; leave `logprobs` out")
        return body

    def _request(self, body: _Body, max_tokens: int) -> Request:
        stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
        return Request(
            self._id(),
            self._model,
            (),
            max_tokens=max_tokens,
            temperature=body.temperature,
            top_p=body.top_p,
            stop=stop,
            priority=body.priority,
        )

    def _answers(self, request: Request, body: _Body) -> list[Request]:
        """`n` requests: the same one with different seeds."""
        if body.temperature == 0:
            return [request] * body.n
        first = self._rng.getrandbits(32) if body.seed is None else body.seed
        return [replace(request, key=f"{request.key}/{i}", seed=first + i) for i in range(body.n)]

    def _id(self) -> str:
        self._numbers += 1
        return f"{self._numbers:08x}"

    # ---- from answers to HTTP

    async def _respond(
        self, http: web.Request, body: _Body, jobs: list[_Job], form: _ChatFormat | _TextFormat
    ) -> web.StreamResponse:
        if body.stream:
            usage = body.stream_options is not None and body.stream_options.include_usage
            return await self._stream(http, jobs, form, include_usage=usage)
        answers = await _all(self._run(job) for job in jobs)
        document = form.document(answers)
        return web.json_response(document)

    async def _run(self, job: _Job, on_text: Callable[[str], None] | None = None) -> Completion:
        backend = self._backend
        if job.raw is not None:
            assert isinstance(backend, TakesRawPrompts)
            return await backend.complete(job.raw, job.request, on_text)
        # The text of a tool call is no text of the answer, so it is not told as it comes.
        if on_text is not None and isinstance(backend, StreamsText) and not job.request.tools:
            return await backend.stream(job.request, on_text)
        completion = await backend.generate(job.request)
        if on_text is not None and completion.text:
            on_text(completion.text)
        return completion

    async def _stream(
        self,
        http: web.Request,
        jobs: list[_Job],
        form: _ChatFormat | _TextFormat,
        *,
        include_usage: bool,
    ) -> web.StreamResponse:
        events = self._events(jobs)
        try:
            # The first event decides the status: a refused prompt is no stream.
            first = await anext(events)
            response = web.StreamResponse(headers={"Cache-Control": "no-cache"})
            response.content_type = "text/event-stream"
            await response.prepare(http)
            answers: list[Completion] = []
            event: tuple[int, str | Completion] | None = first
            while event is not None:
                index, piece = event
                if isinstance(piece, Completion):
                    answers.append(piece)
                await _send(response, form.chunk(index, piece))
                event = await anext(events, None)
            if include_usage:
                await _send(response, form.usage_chunk(answers))
            await response.write(b"data: [DONE]\n\n")
        finally:
            await events.aclose()
        return response

    async def _events(self, jobs: list[_Job]) -> AsyncGenerator[tuple[int, str | Completion]]:
        """Pieces of text and, last of each job, its completion. Raises the first error."""
        queue: asyncio.Queue[tuple[int, str | Completion | BaseException]] = asyncio.Queue()

        async def run(index: int, job: _Job) -> None:
            try:
                done = await self._run(job, lambda text: queue.put_nowait((index, text)))
            except BackendError as error:
                queue.put_nowait((index, error))
            else:
                queue.put_nowait((index, done))

        tasks = [asyncio.create_task(run(i, job)) for i, job in enumerate(jobs)]
        try:
            left = len(jobs)
            while left:
                index, piece = await queue.get()
                if isinstance(piece, BaseException):
                    raise piece
                left -= isinstance(piece, Completion)
                yield index, piece
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


class _ChatFormat:
    """Documents of chat completions."""

    def __init__(self, number: str, model: str) -> None:
        self._head = {"id": f"chatcmpl-{number}", "created": 0, "model": model}
        self._started: set[int] = set()

    def document(self, answers: Sequence[Completion]) -> dict[str, Any]:
        choices = [
            {
                "index": i,
                "message": {
                    "role": "assistant",
                    "content": a.text or (None if a.tool_calls else ""),
                    **({"tool_calls": _calls(a.tool_calls)} if a.tool_calls else {}),
                },
                "logprobs": None,
                "finish_reason": a.finish_reason,
            }
            for i, a in enumerate(answers)
        ]
        return {
            **self._head, "object": "chat.completion", "choices": choices,
            "usage": _usage(answers[:1], answers),
        }  # fmt: skip

    def chunk(self, index: int, piece: str | Completion) -> dict[str, Any]:
        delta: dict[str, Any] = {}
        if index not in self._started:
            self._started.add(index)
            delta["role"] = "assistant"
        finish = None
        if isinstance(piece, str):
            delta["content"] = piece
        else:
            finish = piece.finish_reason
            if piece.tool_calls:
                delta["tool_calls"] = _calls(piece.tool_calls)
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
        return {**self._head, "object": "chat.completion.chunk", "choices": [choice]}

    def usage_chunk(self, answers: Sequence[Completion]) -> dict[str, Any]:
        usage = _usage(answers[:1], answers)
        return {**self._head, "object": "chat.completion.chunk", "choices": [], "usage": usage}


class _TextFormat:
    """Documents of completions without a template."""

    def __init__(self, number: str, model: str) -> None:
        self._head = {"id": f"cmpl-{number}", "created": 0, "model": model}

    def document(self, answers: Sequence[Completion]) -> dict[str, Any]:
        choices = [
            {"index": i, "text": a.text, "logprobs": None, "finish_reason": a.finish_reason}
            for i, a in enumerate(answers)
        ]
        return {
            **self._head, "object": "text_completion", "choices": choices,
            "usage": _usage(answers, answers),
        }  # fmt: skip

    def chunk(self, index: int, piece: str | Completion) -> dict[str, Any]:
        text, finish = (piece, None) if isinstance(piece, str) else ("", piece.finish_reason)
        choice = {"index": index, "text": text, "logprobs": None, "finish_reason": finish}
        return {**self._head, "object": "text_completion", "choices": [choice]}

    def usage_chunk(self, answers: Sequence[Completion]) -> dict[str, Any]:
        usage = _usage(answers, answers)
        return {**self._head, "object": "text_completion", "choices": [], "usage": usage}


def _usage(prompts: Sequence[Completion], answers: Sequence[Completion]) -> dict[str, Any]:
    """Tokens of the prompts (counted once for several answers to one) and of all answers."""
    prompt = sum(a.usage.input_tokens for a in prompts)
    output = sum(a.usage.output_tokens for a in answers)
    usage: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
    }
    cached = [a.usage.cached_tokens for a in prompts]
    if all(c is not None for c in cached):
        usage["prompt_tokens_details"] = {"cached_tokens": sum(c or 0 for c in cached)}
    return usage


def _calls(calls: Sequence[ToolCall]) -> list[dict[str, Any]]:
    return [
        {
            "index": i,
            "id": c.id,
            "type": "function",
            "function": {"name": c.name, "arguments": c.arguments_json},
        }
        for i, c in enumerate(calls)
    ]


def _message(message: _Message) -> Message:
    content = message.content or ""
    if not isinstance(content, str):
        foreign = [p.type for p in content if p.type != "text"]
        if foreign:
            raise _bad(f"a message has a part of type {foreign[0]!r}; text alone is understood")
        content = "".join(p.text for p in content)
    calls = tuple(ToolCall(t.id, t.function.name, t.function.arguments) for t in message.tool_calls)
    return Message(message.role, content, calls, message.tool_call_id, message.name)


def _schema_of(form: _ResponseFormat) -> str:
    if form.type == "json_object":
        return '{"type": "object"}'
    if form.type != "json_schema" or form.json_schema is None:
        raise _bad("response_format: text, json_object or json_schema with its schema")
    return _schema_text("response_format", form.json_schema.schema_)


def _schema_text(place: str, schema: dict[str, Any]) -> str:
    try:
        schema_validator(schema)
    except SchemaError as error:
        raise _bad(f"{place}: no JSON Schema: {error}") from None
    return json.dumps(schema)


def _prompts(prompt: str | list[str] | list[int] | list[list[int]]) -> list[str | list[int]]:
    if isinstance(prompt, str):
        return [prompt]
    tokens = [p for p in prompt if isinstance(p, int)]
    return [tokens] if tokens else [p for p in prompt if not isinstance(p, int)]


async def _all(work: Any) -> list[Completion]:
    """Run to the end; the first error ends the others."""
    tasks = [asyncio.ensure_future(cast("Coroutine[Any, Any, Completion]", w)) for w in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _send(response: web.StreamResponse, document: dict[str, Any]) -> None:
    await response.write(b"data: " + json.dumps(document).encode() + b"\n\n")


def _bad(message: str) -> RefusedError:
    return RefusedError(400, message, kind="invalid_request_error")


def _refusal_of(error: BackendError) -> RefusedError:
    if isinstance(error, ContextOverflowError):
        return RefusedError(
            400, str(error), kind="invalid_request_error", code="context_length_exceeded"
        )
    if error.retryable:
        return RefusedError(503, str(error), kind="server_error")
    return _bad(str(error))


@web.middleware
async def _errors_as_documents(
    request: web.Request, handler: Callable[[web.Request], Any]
) -> web.StreamResponse:
    host = (
        request.host.rpartition(":")[0] if ":" in request.host.rpartition("]")[2] else request.host
    )
    if host not in _LOCAL_NAMES:
        refused = RefusedError(403, f"{request.host!r} is not this machine", kind="forbidden")
        return web.json_response(refused.document, status=403)
    try:
        return cast("web.StreamResponse", await handler(request))
    except RefusedError as error:
        return web.json_response(error.document, status=error.status)
    except BackendError as error:
        refused = _refusal_of(error)
        return web.json_response(refused.document, status=refused.status)
