"""Any server of the OpenAI chat protocol as an engine: vLLM, llama.cpp, SGLang, hosted ones.

What a server understands is found out by asking and remembered (`Dialect`). Limits are kept
(`RateLimit`). Contents are defused: chat markup in a document cannot become a control token.
"""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

from costmodel.tokens import estimate_tokens
from runtime.backends.base import Backend, Capabilities, Completion, Request
from runtime.backends.http_client import HttpClient
from runtime.backends.http_errors import not_an_answer, status_error, unreachable
from runtime.backends.openai_wire import (
    NAME,
    Answer,
    Dialect,
    StreamedAnswer,
    chat_payload,
    read_completion,
)
from runtime.clock import Clock
from runtime.errors import BackendError, ModelNotFoundError
from runtime.fleet.rate_limit import RateLimit
from runtime.fleet.replicas import FleetBackend

DEFAULT_IN_FLIGHT = 64
PROBE_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Served:
    """A model of a server. `context_tokens` is None when the server does not say."""

    url: str
    model: str
    context_tokens: int | None


class OpenAIBackend(Backend):
    """One server.

    Args:
        served: from `find_models`.
        max_in_flight: calls at once at most; fewer while the server refuses.
    """

    def __init__(
        self,
        served: Served,
        clock: Clock,
        *,
        api_key: str = "",
        max_in_flight: int | None = None,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        timeout_s: float = 1800.0,
    ) -> None:
        self.name = NAME
        self.served = served
        self.requests_seen = 0
        self.dialect = Dialect()
        self._clock = clock
        self._capabilities = capabilities_of(served, max_in_flight)
        self._http = HttpClient(
            served.url, clock, backend=NAME, api_key=api_key, timeout_s=timeout_s
        )
        self._limit = RateLimit(
            clock,
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            most=self._capabilities.max_in_flight,
        )
        self._changed: list[Callable[[], None]] = []

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    @property
    def in_flight_limit(self) -> int:
        return self._limit.at_once

    def on_limit_change(self, changed: Callable[[], None]) -> None:
        self._changed.append(changed)

    def count_tokens(self, text: str) -> int:
        return estimate_tokens(text)

    async def health(self) -> bool:
        """Whether the server answers, with or without the right to list its models."""
        try:
            await self._http.get("/models", timeout_s=5.0)
        except BackendError as error:
            return not error.retryable
        return True

    async def generate(
        self, request: Request, on_prefilled: Callable[[], None] | None = None
    ) -> Completion:
        asked = replace(request, model=self.served.model)
        expected = sum(estimate_tokens(m.content) for m in asked.messages) + asked.max_tokens
        # A refused feature is learned once and asked for in another way; there are five to learn.
        for _ in range(6):
            await self._limit.wait(expected)
            start_s = self._clock.now_s()
            self.requests_seen += 1
            payload = chat_payload(asked, self.dialect, stream=on_prefilled is not None)
            try:
                answer, first_token_s = await self._ask(payload, asked, on_prefilled)
            except BackendError as error:
                if error.retryable:
                    self._note_refusal(error)
                elif self.dialect.learn(error, payload):
                    continue
                raise
            break
        else:
            raise BackendError(f"{self.served.url} refuses every way of asking", backend=NAME)
        used = answer.usage.input_tokens + answer.usage.output_tokens
        if self._limit.succeeded(self._http.last_headers, used - expected):
            self._tell()
        if answer.usage.cached_tokens is not None and not self._capabilities.reports_cached_tokens:
            self._capabilities = replace(
                self._capabilities, reports_cached_tokens=True, prefix_cache=True
            )
        return Completion(
            answer.text,
            answer.finish_reason,
            answer.usage,
            answer.tool_calls,
            start_s,
            first_token_s,
            self._clock.now_s(),
        )

    async def _ask(
        self,
        payload: dict[str, Any],
        request: Request,
        on_prefilled: Callable[[], None] | None,
    ) -> tuple[Answer, float | None]:
        route = "/chat/completions"
        url = self.served.url + route
        if on_prefilled is None:
            return read_completion(await self._http.post(route, payload), request, url), None
        streamed = StreamedAnswer(request, url)
        first_token_s: float | None = None
        events = self._http.stream(route, payload)
        try:
            async for event in events:
                if event is None:
                    break
                if "choices" in event and "message" in str(event["choices"])[:40]:
                    # A server that does not stream answers with a whole document.
                    return read_completion(event, request, url), first_token_s
                streamed.add(event)
                if first_token_s is None and streamed.started:
                    first_token_s = self._clock.now_s()
                    on_prefilled()
        finally:
            await events.aclose()
        return streamed.end(), first_token_s

    def _note_refusal(self, error: BackendError) -> None:
        if error.status in (429, 503, 529) and self._limit.refused(
            error.retry_after_s, self._http.last_headers
        ):
            self._tell()

    def _tell(self) -> None:
        for changed in self._changed:
            changed()

    async def close(self) -> None:
        await self._http.close()


def capabilities_of(served: Served, max_in_flight: int | None) -> Capabilities:
    """What can be counted on before anything was asked."""
    return Capabilities(
        max_in_flight=max_in_flight or DEFAULT_IN_FLIGHT,
        context_tokens=served.context_tokens,
        deterministic=False,
        seeded=False,  # servers promise their best at most
        notes=("OpenAI chat protocol",),
    )


def find_models(address: str, model: str, api_key: str = "") -> list[Served]:
    """The servers at `address` (`URL[,URL...]`) that have `model`; the empty name is the first one
    of the first server. Blocks. Raises `BackendError`."""
    found: list[Served] = []
    seen: list[str] = []
    for url in _split(address):
        cards = _list_models(url, api_key)
        if cards is None:
            # A server without a list takes any name.
            if not model:
                raise BackendError(
                    f"{url} does not list its models; name one with --model", backend=NAME
                )
            found.append(Served(url, model, None))
            continue
        names = [str(card.get("id")) for card in cards]
        seen += names
        model = model or (names[0] if names else "")
        for card in cards:
            name = str(card.get("id"))
            if model in (name, name.rpartition("/")[2]):
                meta = cast("dict[str, Any]", card.get("meta") or {})
                context = card.get("max_model_len") or meta.get("n_ctx")
                found.append(Served(url, name, int(context) if context else None))
                break
    if not found:
        raise ModelNotFoundError(
            f"no server has model {model!r}; they have: {', '.join(sorted(set(seen))) or 'none'}",
            backend=NAME,
        )
    return found


async def open_backend(
    address: str,
    model: str,
    clock: Clock,
    *,
    api_key: str = "",
    max_in_flight: int | None = None,
    requests_per_minute: float | None = None,
    tokens_per_minute: float | None = None,
) -> Backend:
    """The engine; several servers of the model are replicas. Raises `BackendError`."""
    served = await asyncio.to_thread(find_models, address, model, api_key)
    return FleetBackend(
        [
            OpenAIBackend(
                each,
                clock,
                api_key=api_key,
                max_in_flight=max_in_flight,
                requests_per_minute=requests_per_minute,
                tokens_per_minute=tokens_per_minute,
            )
            for each in served
        ],
        clock,
    )


def _split(address: str) -> list[str]:
    urls: list[str] = []
    for part in address.split(","):
        url = part.strip().rstrip("/")
        if not url.startswith(("http://", "https://")):
            raise BackendError(
                f"{url!r} is not the address of a server; write --engine "
                "openai=http://127.0.0.1:8000/v1",
                backend=NAME,
            )
        urls.append(url.removesuffix("/chat/completions"))
    return urls


def _list_models(url: str, api_key: str) -> list[dict[str, Any]] | None:
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    request = urllib.request.Request(f"{url}/models", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=PROBE_TIMEOUT_S) as answer:
            body = answer.read().decode("utf-8", errors="replace")
    except urllib.error.HTTPError as error:
        body = error.read().decode("utf-8", errors="replace")
        if error.code in (404, 405, 501):
            if not url.endswith("/v1") and "/v1/" not in url:
                raise BackendError(
                    f"{url}/models is not there; the address of an OpenAI-compatible server "
                    f"usually ends in /v1: try openai={url}/v1",
                    backend=NAME,
                ) from error
            return None
        raise status_error(
            error.code, dict(error.headers), body, backend=NAME, url=f"{url}/models"
        ) from error
    except (OSError, ValueError) as error:
        raise unreachable(f"{url}/models", error, backend=NAME) from error
    try:
        document: Any = json.loads(body)
        return cast("list[dict[str, Any]]", document["data"])
    except (ValueError, KeyError, TypeError) as error:
        raise not_an_answer(f"{url}/models", body, backend=NAME) from error
