"""One SGLang server as an engine, over its own API.

Prompts are rendered here with the model's own template, so that what Halo plans on, what it sends
and what the server caches are the same text. Answers stream their first token only: enough to know
when a prompt is in the radix cache, and nearly as cheap as no stream.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, cast
from urllib.parse import urlsplit

from costmodel.tokens import BYTES_PER_TOKEN
from runtime.backends.base import Backend, Capabilities, Completion, Request, ToolCall
from runtime.backends.http_client import HttpClient
from runtime.backends.sglang_info import NAME, ServerInfo, probe
from runtime.backends.sglang_wire import (
    Answer,
    WireOptions,
    generate_payload,
    read_answer,
    read_load,
)
from runtime.backends.tool_call_text import read_tool_calls
from runtime.chat.format import ChatFormat
from runtime.clock import Clock
from runtime.errors import BackendError, EngineUnreachableError, TruncatedAnswerError
from runtime.fleet.admission import Admission, Load

POLL_S = 0.1
"""How often a busy server is asked for its load."""
STALL_S = 30.0
"""A server that has not told its load for this long is taken to hang: its calls are given up, and
can be tried elsewhere."""
CONTROL_TIMEOUT_S = 120.0
SETTLE_S = 30.0
"""A server notices the end of an answer a step after the answer has left it; a step takes this long
at most."""

LOAD_ROUTES = ("/v1/loads?include=core", "/get_load")
"""Where a server tells its load, newest first; 0.5.1 to 0.5.8 have the second only."""

PRIME_TOKENS = 128
"""Shared tokens from which it pays to compute a prefix once, before its fan-out: holding the others
costs one round trip, not sharing costs the prefix again for each request in the same step."""

_log = logging.getLogger("halo.sglang")


def capabilities_of(
    info: ServerInfo, template: ChatFormat | None, max_in_flight: int | None
) -> Capabilities:
    """What a server offers to planner and dispatcher."""
    notes = [f"SGLang {info.version}", f"policy {info.policy}"]
    if info.priorities:
        notes.append("priorities")
    if info.gauged_priorities:
        notes.append("no priorities are sent (start without --enable-metrics)")
    if info.host_cache:
        notes.append("host cache")
    if not info.seeded:
        notes.append("seeds are not honoured (start with --enable-deterministic-inference)")
    return Capabilities(
        max_in_flight=max_in_flight or info.max_running,
        context_tokens=info.context_tokens,
        prefix_cache=info.prefix_cache,
        prime_prefix=info.prefix_cache,
        prefix_block_tokens=info.page_tokens,
        reports_cached_tokens=True,
        json_schema=info.grammars,
        choice=info.grammars,
        tool_calls=template is None or template.offers_tools,
        deterministic=False,  # batch shapes change the last bits of a bf16 product
        cache_tokens=info.cache_tokens,
        prime_tokens=PRIME_TOKENS,
        bytes_per_token=BYTES_PER_TOKEN if template is None else template.bytes_per_token,
        seeded=info.seeded,
        warms=info.prefix_cache,
        machine=machine_of(info.url),
        notes=tuple(notes),
    )


def machine_of(url: str) -> str:
    """The host of a server, the same for all names of this one.

    Example:
        >>> machine_of("http://localhost:30000") == machine_of("http://127.0.0.1:30001")
        True
    """
    host = urlsplit(url).hostname or ""
    return "127.0.0.1" if host in ("localhost", "::1") else host


class SglangBackend(Backend):
    """The server at `info.url`.

    Args:
        template: how its model wants conversations.
        max_in_flight: at most this many calls at once, whatever the server could take.
        steer: whether the number of calls in the server follows its load. Without, it is
            `max_in_flight`.
        timeout_s: of a call, waiting included.
    """

    def __init__(
        self,
        info: ServerInfo,
        template: ChatFormat,
        clock: Clock,
        *,
        api_key: str = "",
        options: WireOptions | None = None,
        max_in_flight: int | None = None,
        steer: bool = True,
        timeout_s: float = 1800.0,
        stall_s: float = STALL_S,
    ) -> None:
        self.name = NAME
        self.info = info
        self.requests_seen = 0
        self.load: Load | None = None
        self._template = template
        self._clock = clock
        self._options = options or WireOptions()
        self._capabilities = capabilities_of(info, template, max_in_flight)
        self._http = HttpClient(info.url, clock, backend=NAME, api_key=api_key, timeout_s=timeout_s)
        self._admission = Admission(
            most=self._capabilities.max_in_flight,
            chunk_tokens=info.chunk_tokens,
            keeps_order=info.priorities,
        )
        self._load_routes = LOAD_ROUTES
        self._client = secrets.token_hex(4)
        self._steer = steer
        self._stall_s = stall_s
        self._limit_changed: list[Callable[[], None]] = []
        self._calls: set[asyncio.Task[Any]] = set()
        self._given_up: set[asyncio.Task[Any]] = set()
        self._watcher: asyncio.Task[None] | None = None
        self._aborts: set[asyncio.Task[None]] = set()

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    @property
    def in_flight_limit(self) -> int:
        return self._admission.limit if self._steer else self._capabilities.max_in_flight

    def on_limit_change(self, changed: Callable[[], None]) -> None:
        self._limit_changed.append(changed)

    def count_tokens(self, text: str) -> int:
        if not text:
            return 0
        count = self._template.count_tokens(text)
        return super().count_tokens(text) if count is None else count

    # --- answers ---------------------------------------------------------------------------------

    async def generate(
        self, request: Request, on_prefilled: Callable[[], None] | None = None
    ) -> Completion:
        start_s = self._clock.now_s()
        answer, first_token_s = await self._ask(
            request, self._template.prompt(request), on_prefilled, None
        )
        end_s = self._clock.now_s()
        if first_token_s is None and answer.decode_s is not None:
            first_token_s = max(start_s, end_s - answer.decode_s)
        text = answer.text
        calls: tuple[ToolCall, ...] = ()
        if request.tools:
            text, calls = read_tool_calls(text, request.tools, request.key[:12] or "call")
            text = self._template.without_control(text)
        return Completion(
            text,
            "tool_calls" if calls else answer.finish_reason,
            answer.usage,
            calls,
            start_s,
            first_token_s,
            end_s,
        )

    async def warm(self, request: Request) -> int:
        """Put the prompt of `request`, up to the end of its last message's content, into the radix
        cache. Returns the tokens that had to be computed. Raises `BackendError`."""
        prompt = self._template.prompt(request, open_end=True)
        answer, _ = await self._ask(request, prompt, None, 0)
        return answer.usage.input_tokens - (answer.usage.cached_tokens or 0)

    async def _ask(
        self,
        request: Request,
        prompt: str | list[int],
        on_prefilled: Callable[[], None] | None,
        max_tokens: int | None,
    ) -> tuple[Answer, float | None]:
        self.requests_seen += 1
        rid = self._request_id(request)
        payload = generate_payload(
            request,
            prompt,
            rid,
            self.info,
            self._options,
            stream=on_prefilled is not None,
            max_tokens=max_tokens,
        )
        task = asyncio.current_task()
        assert task is not None
        self._calls.add(task)
        self._watch()
        try:
            if on_prefilled is None:
                return await self._whole(payload), None
            return await self._streamed(payload, on_prefilled)
        except asyncio.CancelledError:
            if task in self._given_up and not task.cancelling() - 1:
                task.uncancel()
                raise EngineUnreachableError(
                    f"{self.info.url} has not reacted for {self._stall_s:g} s; its calls are given "
                    "up",
                    backend=NAME,
                    retryable=True,
                ) from None
            self._abort(rid)
            raise
        except TruncatedAnswerError:
            self._abort(rid)
            raise
        finally:
            self._calls.discard(task)
            self._given_up.discard(task)

    def _request_id(self, request: Request) -> str:
        """An id that nothing else on the server has, and that no other id begins with: aborting
        one aborts all that begin with it, and the server itself aborts a stream's id two seconds
        after the stream has ended. Two runs ask for the same keys in the same order."""
        return f"{request.key[:32]}-{self.requests_seen}-{self._client}"

    async def _whole(self, payload: dict[str, Any]) -> Answer:
        document = await self._http.post("/generate", payload)
        url = f"{self.info.url}/generate"
        answer = read_answer(document, url)
        if answer is None:
            raise TruncatedAnswerError(
                f"{url} answered without a reason to stop", backend=NAME, retryable=True
            )
        return answer

    async def _streamed(
        self, payload: dict[str, Any], on_prefilled: Callable[[], None]
    ) -> tuple[Answer, float | None]:
        url = f"{self.info.url}/generate"
        first_token_s: float | None = None
        answer: Answer | None = None
        events = self._http.stream("/generate", payload)
        try:
            async for event in events:
                if event is None:
                    break
                answer = read_answer(event, url)
                if first_token_s is None:
                    first_token_s = self._clock.now_s()
                    on_prefilled()
                if answer is not None:
                    break
        finally:
            await events.aclose()
        if answer is None:
            raise TruncatedAnswerError(
                f"the stream of {url} ended before the answer did", backend=NAME, retryable=True
            )
        return answer, first_token_s

    def _abort(self, rid: str) -> None:
        """Tell the server that nobody waits for `rid` any more, without waiting for it."""
        task = asyncio.ensure_future(self._send_abort(rid))
        self._aborts.add(task)
        task.add_done_callback(self._aborts.discard)

    async def _send_abort(self, rid: str) -> None:
        with suppress(BackendError):
            await self._http.post("/abort_request", {"rid": rid}, timeout_s=5.0)

    # --- load ------------------------------------------------------------------------------------

    async def read_load(self) -> Load:
        """What the server is doing. Raises `BackendError`."""
        first, other = self._load_routes
        try:
            document = await self._http.get(first, timeout_s=self._stall_s)
        except BackendError as error:
            if error.status != 404:
                raise
            document = await self._http.get(other, timeout_s=self._stall_s)
            self._load_routes = (other, first)
        self.load = read_load(document, self.info.url)
        return self.load

    def _watch(self) -> None:
        if self._watcher is None or self._watcher.done():
            self._watcher = asyncio.ensure_future(self._follow_load())

    async def _follow_load(self) -> None:
        """While there are calls: steer their number by the server's load, and give them up when
        the server hangs."""
        while self._calls:
            await self._clock.sleep_s(POLL_S)
            if not self._calls:
                return
            try:
                load = await self.read_load()
            except EngineUnreachableError as error:
                _log.warning("no load from %s: %s", self.info.url, error)
                self._given_up |= self._calls
                for call in self._calls:
                    call.cancel()
                return
            except BackendError:
                return  # it does not tell its load; broken connections are seen by the calls
            before = self._admission.limit
            if self._steer and self._admission.observe(load, len(self._calls)) != before:
                for changed in self._limit_changed:
                    changed()

    # --- control ---------------------------------------------------------------------------------

    async def health(self) -> bool:
        """Whether the server answers."""
        try:
            await self._http.get("/health", timeout_s=5.0)
        except BackendError:
            return False
        return True

    async def flush_cache(self) -> None:
        """Empty the radix cache. Refused by the server while requests run: raises
        `BackendError`."""
        give_up_s = self._clock.now_s() + SETTLE_S
        while True:
            try:
                await self._http.post_text("/flush_cache", {}, timeout_s=CONTROL_TIMEOUT_S)
            except BackendError as error:
                if error.status != 400 or self._calls or self._clock.now_s() >= give_up_s:
                    raise
            else:
                return
            await self._clock.sleep_s(POLL_S)

    async def release_memory(self, tags: Sequence[str] = ("kv_cache", "weights")) -> None:
        """Give GPU memory back until `resume_memory`; the contents of what is released are lost
        unless the server keeps a copy in host memory (`--enable-weights-cpu-backup`)."""
        if not self.info.memory_saver:
            raise BackendError(
                f"{self.info.url} cannot release memory: start it with --enable-memory-saver",
                backend=NAME,
            )
        await self._control("/release_memory_occupation", {"tags": list(tags)})

    async def resume_memory(self, tags: Sequence[str] = ("kv_cache", "weights")) -> None:
        """Take released memory again."""
        await self._control("/resume_memory_occupation", {"tags": list(tags)})

    async def reload_weights(self, model_path: str, *, load_format: str | None = None) -> None:
        """Put other weights of the same architecture into the running server; empties its cache.
        Raises `BackendError` while requests run: a server that then cannot empty its cache ends."""
        await self.flush_cache()
        body: dict[str, Any] = {"model_path": model_path, "flush_cache": True}
        if load_format is not None:
            body["load_format"] = load_format
        await self._control("/update_weights_from_disk", body)
        self.info = await asyncio.to_thread(probe, self.info.url)

    async def load_adapter(self, name: str, path: str) -> None:
        """Load a LoRA adapter; requests use it by naming it as their model."""
        await self._control("/load_lora_adapter", {"lora_name": name, "lora_path": path})
        adapters = tuple(dict.fromkeys((*self.info.adapters, name)))
        self.info = replace(self.info, adapters=adapters)

    async def unload_adapter(self, name: str) -> None:
        await self._control("/unload_lora_adapter", {"lora_name": name})
        self.info = replace(self.info, adapters=tuple(a for a in self.info.adapters if a != name))

    async def _control(self, route: str, body: dict[str, Any]) -> None:
        # To release or load a second time is an error.
        answer = await self._http.post(route, body, timeout_s=CONTROL_TIMEOUT_S, once=True)
        told = cast("dict[str, Any]", answer) if isinstance(answer, dict) else {}
        if told.get("success") is False:
            raise BackendError(
                f"{self.info.url}{route} failed: {told.get('message') or told}", backend=NAME
            )

    async def close(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
            with suppress(asyncio.CancelledError):
                await self._watcher
            self._watcher = None
        if self._aborts:
            await asyncio.wait(self._aborts, timeout=5.0)
        await self._http.close()
