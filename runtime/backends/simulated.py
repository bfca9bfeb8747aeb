"""The simulated engine: needs nothing, answers deterministically, and takes simulated time.

Its answers define what operators mean where a model's words do not matter: a schema gives a valid
value, options give one of them, tools are called once and then answered. Its time follows a simple
engine: prompts are prefilled one after the other, minus what the prefix cache holds, and answers
are decoded side by side, at a fixed time a step. A token is four bytes (`costmodel.tokens`).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable
from typing import Literal

from costmodel.prefix_cache import PrefixCache, block_chain
from costmodel.tokens import BYTES_PER_TOKEN, estimate_tokens, tokens_of_bytes
from costmodel.usage import Usage
from planner.logical import canonical_json
from runtime.backends.base import Backend, Capabilities, Completion, Request, ToolCall
from runtime.backends.instance import InstanceMaker
from runtime.backends.schemas import NOUNS, Draw
from runtime.clock import Clock
from runtime.errors import BackendError, ContextOverflowError

NAME = "simulated"

_VERBS = ("follows", "crosses", "mirrors", "outlasts", "names", "feeds", "guards", "recalls")


def describe(
    max_in_flight: int = 64,
    *,
    context_tokens: int = 131_072,
    prefix_cache: bool = True,
    prefix_block_tokens: int = 16,
    prime_prefix: bool = False,
) -> Capabilities:
    """What a simulated engine of these settings offers."""
    return Capabilities(
        max_in_flight=max_in_flight,
        context_tokens=context_tokens,
        prefix_cache=prefix_cache,
        prime_prefix=prefix_cache and prime_prefix,
        prefix_block_tokens=prefix_block_tokens,
        reports_cached_tokens=prefix_cache,
        notes=("answers are made up; tokens are groups of four bytes",),
    )


DEFAULT_CAPABILITIES = describe()


class SimulatedBackend(Backend):
    """An engine without a model. Equal requests (and seeds, when sampled) give equal answers.

    Args:
        model: what `Request.model` has to name; any name is served.
        seed: another seed is another model: all answers change.
        capabilities: from `describe`.
        latency: whether answers take time on `clock`; without, they come at once.
        prefill_s_per_token, decode_s_per_step: of the simulated machine.
        cache_tokens: size of the prefix cache.
        answer_tokens: length of a free answer before `max_tokens` cuts it, give or take a half.
        fail: asked before each request; the error that it returns is raised. For tests.

    Attributes:
        requests_seen: how often the engine was asked, failed attempts included.
    """

    def __init__(
        self,
        model: str,
        clock: Clock,
        *,
        seed: int = 0,
        capabilities: Capabilities = DEFAULT_CAPABILITIES,
        latency: bool = True,
        prefill_s_per_token: float = 2e-4,
        decode_s_per_step: float = 0.02,
        cache_tokens: int = 1_000_000,
        answer_tokens: int = 24,
        fail: Callable[[Request], BackendError | None] | None = None,
    ) -> None:
        self.name = NAME
        self.model = model
        self.requests_seen = 0
        self._clock = clock
        self._seed = seed
        self._capabilities = capabilities
        self._latency = latency
        self._prefill_s_per_token = prefill_s_per_token
        self._decode_s_per_step = decode_s_per_step
        self._answer_tokens = max(1, answer_tokens)
        self._fail = fail
        self._slots = asyncio.Semaphore(capabilities.max_in_flight)
        self._prefill_free_s = 0.0
        self._cache = PrefixCache(cache_tokens, capabilities.prefix_block_tokens)
        self._makers: dict[str, InstanceMaker] = {}

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    def count_tokens(self, text: str) -> int:
        return estimate_tokens(text)

    async def generate(
        self, request: Request, on_prefilled: Callable[[], None] | None = None
    ) -> Completion:
        self.requests_seen += 1
        prompt = render_prompt(request)
        input_tokens = tokens_of_bytes(len(prompt))
        self._check_context(request, input_tokens)
        async with self._slots:
            start_s = self._clock.now_s()
            error = self._fail(request) if self._fail is not None else None
            if error is not None:
                await self._clock.sleep_s(0)
                raise error
            cached_tokens, left_s = await self._prefill(
                prompt, input_tokens, wait=on_prefilled is not None
            )
            first_token_s = self._clock.now_s() + left_s
            if on_prefilled is not None:
                on_prefilled()
            text, finish, calls = self._answer(request, prompt)
            output_tokens = max(
                1, estimate_tokens(text) + sum(estimate_tokens(c.arguments_json) for c in calls)
            )
            if self._latency:
                await self._clock.sleep_s(left_s + self._decode_s_per_step * output_tokens)
            return Completion(
                text,
                finish,
                Usage(input_tokens, output_tokens, cached_tokens),
                calls,
                start_s,
                first_token_s,
                self._clock.now_s(),
            )

    def _check_context(self, request: Request, input_tokens: int) -> None:
        context_tokens = self._capabilities.context_tokens
        if context_tokens is not None and input_tokens + request.max_tokens > context_tokens:
            raise ContextOverflowError(
                f"the prompt has {input_tokens} tokens and may be answered with "
                f"{request.max_tokens}: more than the {context_tokens} of model {self.model!r}; "
                "shorten the prompt, lower max_tokens or split the document",
                backend=NAME,
            )

    async def _prefill(
        self, prompt: bytes, input_tokens: int, *, wait: bool
    ) -> tuple[int | None, float]:
        """Prefill; returns the tokens that the cache had (None when there is no cache), and the
        seconds until it is done. Unless somebody has to know the moment, its time and that of the
        answer are one wait: simulations have little else to do."""
        capabilities = self._capabilities
        chain: list[int] = []
        hits, left_s = 0, 0.0
        if capabilities.prefix_cache:
            chain = block_chain(prompt, capabilities.prefix_block_tokens * BYTES_PER_TOKEN)
            if capabilities.prime_prefix:
                # What other requests of this moment are about to prefill does not help.
                hits = self._cache.match(chain)
        if not self._latency:
            await self._clock.sleep_s(0)
        if capabilities.prefix_cache and not capabilities.prime_prefix:
            # Prefills are done one after the other, so this one finds all that were put in before.
            hits = self._cache.match(chain)
            self._cache.insert(chain)
        # The last token is always computed: its logits start the answer.
        cached = min(hits * capabilities.prefix_block_tokens, max(0, input_tokens - 1))
        if self._latency:
            now_s = self._clock.now_s()
            work_s = (input_tokens - cached) * self._prefill_s_per_token
            self._prefill_free_s = max(now_s, self._prefill_free_s) + work_s
            left_s = self._prefill_free_s - now_s
            if wait or capabilities.prime_prefix:
                await self._clock.sleep_s(left_s)
                left_s = 0.0
        if capabilities.prime_prefix:
            self._cache.insert(chain)
        return cached if capabilities.prefix_cache else None, left_s

    def _answer(
        self, request: Request, prompt: bytes
    ) -> tuple[str, Literal["stop", "length", "tool_calls"], tuple[ToolCall, ...]]:
        digest = hashlib.sha256(prompt)
        seed = request.seed if request.temperature > 0 else None
        digest.update(
            repr((self._seed, seed, request.model, request.schema_json, request.options)).encode()
        )
        word = digest.hexdigest()[:16]
        number = int(word, 16)
        if request.options:
            return request.options[number % len(request.options)], "stop", ()
        if request.tools and not any(m.role == "tool" for m in request.messages):
            tool = request.tools[number % len(request.tools)]
            arguments = canonical_json(self._maker(tool.parameters_json).make(number))
            return "", "tool_calls", (ToolCall(f"call_{word[:8]}", tool.name, arguments),)
        max_chars = request.max_tokens * BYTES_PER_TOKEN
        if request.schema_json is not None:
            maker = self._maker(request.schema_json)
            text = json.dumps(maker.make(number), ensure_ascii=False)
            if len(text.encode()) > max_chars:
                text = canonical_json(maker.make(number, small=True))
        else:
            text = _sentence(word, number, self._answer_tokens * BYTES_PER_TOKEN)
            for stop in request.stop:
                text = text.partition(stop)[0] if stop else text
        data = text.encode()
        if len(data) <= max_chars:
            return text, "stop", ()
        return data[:max_chars].decode(errors="ignore"), "length", ()

    def _maker(self, schema_json: str) -> InstanceMaker:
        maker = self._makers.get(schema_json)
        if maker is None:
            maker = self._makers[schema_json] = InstanceMaker(schema_json)
        return maker


def render_prompt(request: Request) -> bytes:
    """The conversation as the simulated model reads it: tools, then turns, as UTF-8.

    Every text carries its length, so no content can look like a turn of its own.
    """
    parts: list[str] = []
    for tool in request.tools:
        parts.append(f"[tool {len(tool.name)} {len(tool.description)}]")
        parts.extend((tool.name, tool.description, tool.parameters_json, "\n"))
    for message in request.messages:
        parts.append(f"[{message.role}]")
        if message.tool_call_id or message.name:
            parts.append(f"[{message.tool_call_id!r} {message.name!r}]")
        parts.append(message.content)
        for call in message.tool_calls:
            parts.append(f"[call {call.id!r} {call.name!r}]{call.arguments_json}")
        parts.append(f"[end {len(message.content)}]\n")
    return "".join(parts).encode(errors="surrogatepass")


def _sentence(word: str, number: int, mean_chars: int) -> str:
    """A readable text that starts with the call's hash word."""
    draw = Draw(number)
    n_chars = mean_chars // 2 + draw.below(mean_chars + 1)
    parts = [word[:8], ":"]
    size = 9
    while size < n_chars:
        clause = (
            f" the {NOUNS[draw.below(len(NOUNS))]} {_VERBS[draw.below(len(_VERBS))]}"
            f" the {NOUNS[draw.below(len(NOUNS))]};"
        )
        parts.append(clause)
        size += len(clause)
    return "".join(parts)[:-1] + "."
