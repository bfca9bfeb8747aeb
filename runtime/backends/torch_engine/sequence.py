"""One request on its way through the engine."""

from __future__ import annotations

import enum
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from runtime.backends.torch_engine.radix import Ids, Node

FinishReason = Literal["stop", "length", "scored", "prefilled"]


class Constraint(Protocol):
    """What a grammar allows next. One object a request."""

    def allowed(self) -> Flags:
        """Which token ids may come next, one flag for each of the vocabulary."""
        ...

    def accept(self, token: int) -> None: ...

    @property
    def finished(self) -> bool:
        """Whether nothing more may follow."""
        ...


Flags = np.ndarray[tuple[int], np.dtype[np.bool_]]


@dataclass(frozen=True, slots=True)
class TokenSelection:
    """FastKV (token-selective propagation, KV retention): an approximation, for one prompt alone.

    Attributes:
        layer: the last layer that sees all prompt tokens, from 0.
        rate: share of the tokens that go on behind it.
        retain: share of the prompt whose keys and values each layer keeps for decoding.
        window: last tokens of the prompt, whose attention does the choosing; always kept.
    """

    layer: int
    rate: float = 0.2
    retain: float = 0.1
    window: int = 8


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """What to generate, in tokens.

    Attributes:
        max_tokens: 0 only puts the prompt into the cache.
        temperature: 0 is greedy.
        top_k: 0 for no limit.
        seed: of the request's own random numbers: equal seeds give equal answers in any batch.
        stop: texts before which the answer ends. Needs an engine with a tokenizer.
        stop_ids: tokens that end the answer and are no part of it.
        logprobs: whether `Result.logprobs` is filled.
        priority: smaller goes first.
        constraint: a grammar's state, made for this request.
        score_from: when set, nothing is generated: `Result.logprobs` are those of the prompt's own
            tokens from this index on.
        selection: prefill with this approximation; its KV is shared with nobody.
        on_prefilled: called when the prompt is in the KV cache.
        on_text: called with each new piece of the answer's text.
    """

    ids: Sequence[int]
    max_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    stop: tuple[str, ...] = ()
    stop_ids: frozenset[int] = frozenset()
    logprobs: bool = False
    priority: int = 0
    constraint: Constraint | None = None
    score_from: int | None = None
    selection: TokenSelection | None = None
    on_prefilled: Callable[[], None] | None = None
    on_text: Callable[[str], None] | None = None


@dataclass(slots=True)
class Result:
    """What came of a request. Times are the engine clock's; `cached_tokens` are prompt tokens found
    in the radix tree when the request was first let in, at most all but the last."""

    ids: list[int]
    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    cached_tokens: int
    logprobs: list[float] = field(default_factory=list[float])
    start_s: float = 0.0
    first_token_s: float | None = None
    end_s: float = 0.0
    preemptions: int = 0


class Stage(enum.Enum):
    WAITING = "waiting"
    PREFILLING = "prefilling"
    DECODING = "decoding"
    DONE = "done"


class TextStream(Protocol):
    """Tokens in, text out, as soon as it is whole."""

    def push(self, token: int) -> str: ...

    def rest(self) -> str: ...


class SequenceState:
    """A request and where its tokens are.

    Its KV is a path of the radix tree, locked, followed by slots of its own: what it generates, and
    the last prompt token when another request had the same prompt.
    """

    def __init__(self, uid: int, request: GenerationRequest, *, is_open: bool = False) -> None:
        self.uid = uid
        self.request = request
        self.prompt: Ids = np.asarray(request.ids, np.int64)
        self.is_open = is_open
        self.stage = Stage.WAITING
        self.cancelled = False
        self.node: Node | None = None
        self.tree_tokens = 0
        self.private: list[int] = []
        self.reserved: list[int] = []  # slots set aside for the answer (TokenSelection)
        self.output: list[int] = []
        self.logprobs: list[float] = []
        self.cached_tokens: int | None = None
        self.computed_tokens = 0
        self.passed_over = 0
        self.preemptions = 0
        self.random = random.Random(request.seed)
        self.text = ""
        self.told = 0  # characters of `text` that `on_text` has had
        self.stream: TextStream | None = None
        self.start_s: float | None = None
        self.first_token_s: float | None = None
        self.prefilled = False
        self.result: Result | None = None
        self.error: Exception | None = None
        self.on_done: Callable[[SequenceState], None] | None = None

    @property
    def rank(self) -> tuple[bool, int, int]:
        """Order of service: complete prompts before open ones (they cannot answer yet), then by
        priority, then by arrival. The last is preempted first."""
        return (self.is_open, self.request.priority, self.uid)

    @property
    def n_kv(self) -> int:
        """Tokens whose keys and values are in the pool."""
        return self.tree_tokens + len(self.private)

    @property
    def n_tokens(self) -> int:
        return len(self.prompt) + len(self.output)

    @property
    def target(self) -> int:
        """How many tokens must be computed before something can be sampled. While the prompt is
        open its last token is held back: it gives the logits, and the close must find it undone.
        Scores need no row for the last token."""
        return self.n_tokens - (self.is_open or self.request.score_from is not None)

    @property
    def match_limit(self) -> int:
        """How many tokens may come from the cache: the row that gives the first logits may not."""
        score_from = self.request.score_from
        return (self.n_tokens if score_from is None else min(score_from, self.n_tokens)) - 1

    def tokens(self, start: int, end: int) -> Ids:
        """Token ids of the prompt and the answer so far."""
        n = len(self.prompt)
        if end <= n:
            return self.prompt[start:end]
        return np.concatenate((self.prompt, np.asarray(self.output, np.int64)))[start:end]


@dataclass(slots=True)
class Chunk:
    """Tokens `start` to `end` of a sequence, to be computed in one step, and their slots."""

    sequence: SequenceState
    start: int
    end: int
    slots: Ids
    parent: Node
    before: Ids
    """Slots of the sequence's own between its path and the chunk."""

    @property
    def is_last(self) -> bool:
        return self.end >= self.sequence.target and not self.sequence.is_open

    def context(self) -> list[tuple[int, Ids]]:
        """What is before the chunk, as named runs of slots. Asked after all chunks of the step are
        made, when no node will be split any more."""
        runs = [(node.uid, node.slots) for node in self.parent.path()]
        if len(self.before):
            runs.append((-self.sequence.uid, self.before))
        return runs
