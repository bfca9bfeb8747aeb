"""The seam between Halo and its engines: `Request` in, `Completion` out, `Capabilities` to plan on.

An engine answers one request at a time from the caller's view and batches inside: requests arrive
when their inputs are ready, and a call for a whole batch would be a barrier.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

from costmodel.tokens import BYTES_PER_TOKEN
from costmodel.usage import Usage
from runtime.errors import BackendError

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that a model asks for. `arguments_json` is the model's own text, not yet validated."""

    id: str
    name: str
    arguments_json: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. `content` is text alone: an engine never lets it become control
    tokens of the chat template (promise P6)."""

    role: Role
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class ToolSchema:
    """A tool as a model sees it: name, description, JSON Schema of the arguments."""

    name: str
    description: str
    parameters_json: str


@dataclass(frozen=True, slots=True)
class Request:
    """One model call.

    Attributes:
        key: content key, unique per distinct call; for logs and engine request ids.
        model: the engine's model name.
        seed: None for greedy calls.
        schema_json: JSON Schema enforced while decoding, or None.
        options: the allowed answers of a choice, enforced while decoding; empty for none.
        tools: what the model may call; an answer then has text, tool calls or both.
        priority: smaller goes first among waiting requests.
    """

    key: str
    model: str
    messages: tuple[Message, ...]
    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    schema_json: str | None = None
    options: tuple[str, ...] = ()
    tools: tuple[ToolSchema, ...] = ()
    priority: int = 0

    def keyed(self, key: str, seed: int | None, priority: int) -> Request:
        """This request as it is made. Written out, since every call needs it and
        `dataclasses.replace` takes several times as long."""
        return Request(
            key,
            self.model,
            self.messages,
            self.max_tokens,
            self.temperature,
            self.top_p,
            seed,
            self.stop,
            self.schema_json,
            self.options,
            self.tools,
            priority,
        )


@dataclass(frozen=True, slots=True)
class Completion:
    """An engine's answer. Times are seconds on the run's clock; `first_token_s` may be unknown."""

    text: str
    finish_reason: Literal["stop", "length", "tool_calls"]
    usage: Usage
    tool_calls: tuple[ToolCall, ...] = ()
    start_s: float = 0.0
    first_token_s: float | None = None
    end_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What the planner and the dispatcher may count on.

    Attributes:
        max_in_flight: requests that are worth having in the engine at once.
        context_tokens: the model's context, prompt and answer together; None when unknown.
        prefix_cache: whether the engine reuses the KV cache of equal prompt prefixes.
        prime_prefix: whether a prefix must be finished by one request before others reuse it, so
            that the dispatcher should send one request first and then fan out.
        prefix_block_tokens: granularity of reuse.
        reports_cached_tokens: whether `Usage.cached_tokens` is measured by the engine.
        json_schema, choice: whether the engine enforces them while decoding.
        tool_calls: whether `Request.tools` is understood.
        deterministic: whether equal greedy requests always give equal text.
        cache_tokens: prompt tokens that the prefix cache can hold; None when unknown.
        prime_tokens: shared tokens from which it pays to hold others back for the first.
        bytes_per_token: UTF-8 bytes of prose in a token of this model.
        warms: whether `Backend.warm` does anything.
        seeded: whether a seed decides what a sampled request draws.
        techniques: names of the attention techniques that may be asked for
            (`costmodel.techniques.named`).
        open_prompts: whether `Backend.open_prompt` takes prompts that grow.
        machine: where an engine computes that decodes calls together which come together; empty
            for others. Engines of one machine may share a card (`runtime.gathering`).
    """

    max_in_flight: int
    context_tokens: int | None = None
    prefix_cache: bool = False
    prime_prefix: bool = False
    prefix_block_tokens: int = 1
    reports_cached_tokens: bool = False
    json_schema: bool = True
    choice: bool = True
    tool_calls: bool = True
    deterministic: bool = True
    cache_tokens: int | None = None
    prime_tokens: int = 64
    bytes_per_token: float = BYTES_PER_TOKEN
    seeded: bool = True
    warms: bool = False
    open_prompts: bool = False
    machine: str = ""
    notes: tuple[str, ...] = field(default=())
    techniques: tuple[str, ...] = ()

    @property
    def cache_estimated_tokens(self) -> int | None:
        """`cache_tokens` in tokens as estimates have them (`costmodel.tokens`)."""
        if self.cache_tokens is None:
            return None
        return round(self.cache_tokens * self.bytes_per_token / BYTES_PER_TOKEN)


class OpenPrompt(Protocol):
    """A prompt whose last message is still coming in: see `Backend.open_prompt`. An error gives the
    prompt up, and so does cancelling what waits for one of these methods."""

    async def replace(self, text: str) -> None:
        """`text` is the last message as far as it has come: longer than before, or another one.
        Raises `BackendError` when that cannot be."""
        ...

    async def close(self, request: Request) -> Completion:
        """The message is whole: answer `request`, the one that was opened but for its last message.
        Raises only `BackendError`."""
        ...

    async def abandon(self) -> None:
        """Give the prompt up: it holds no slot of the engine any more."""
        ...


class Backend(ABC):
    """One engine with its models loaded.

    Attributes:
        name: of the engine.
        requests_seen: how often the engine was asked, failed attempts included: the engine's own
            count, beside the runtime's.
    """

    name: str
    requests_seen: int = 0

    @property
    @abstractmethod
    def capabilities(self) -> Capabilities: ...

    @abstractmethod
    async def generate(
        self, request: Request, on_prefilled: Callable[[], None] | None = None
    ) -> Completion:
        """Answer `request`; call `on_prefilled` once its prompt is in the KV cache, if the engine
        can tell. Cancelling the awaiting task frees the engine's slot. Raises only `BackendError`.
        """

    @property
    def in_flight_limit(self) -> int:
        """How many requests are worth having in the engine now: at most
        `capabilities.max_in_flight`, less while the engine has more than it can work on."""
        return self.capabilities.max_in_flight

    def on_limit_change(self, changed: Callable[[], None]) -> None:
        """Call `changed` in the loop's thread whenever `in_flight_limit` has changed. Engines whose
        limit is fixed never do."""

    async def warm(self, request: Request) -> int:
        """Bring a prompt prefix into the KV cache: the conversation of `request` up to the end of
        its last message's content. Returns the tokens computed for it; engines that cannot do this
        do nothing and return 0. Raises `BackendError`."""
        return 0

    async def open_prompt(self, request: Request) -> OpenPrompt:
        """Take a prompt whose last message is not whole, and prefill what there is of it until it
        is closed. It gives way to requests that can answer. Raises `BackendError`, also on engines
        whose `Capabilities.open_prompts` is false."""
        raise BackendError(f"{self.name} takes no open prompts", backend=self.name)

    def count_tokens(self, text: str) -> int:
        """Tokens of `text` for this model; an estimate unless the engine has a tokenizer."""
        return max(1, len(text.encode()) // 4) if text else 0

    async def close(self) -> None:
        """Release what the backend holds. Safe to call twice."""
