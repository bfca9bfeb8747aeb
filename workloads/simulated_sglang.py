"""A simulated SGLang server, in virtual time: its scheduler, radix cache and KV pool without a GPU.

It does what decides how many prompt tokens are computed and how full the batches are: steps that
prefill, at most a chunk of tokens each, and with mixed chunks decode what is under way as well;
steps that decode, when nothing is to be prefilled; a radix cache that drops the least recently used
leaves; one pool for the cache and the running requests; a front end that takes requests one after
the other; the next step prepared while one runs. How long steps take is fitted (`Machine`).

A token is a character of the prompt and each chat marker one, as for the byte-level tokenizer of
`workloads.gpu.models`. Answers are words chosen by the prompt's hash, always of full length.
"""

from __future__ import annotations

import asyncio
import hashlib
import heapq
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache

from workloads.text import words

FITTED_TO = (
    "fitted to one H200, SGLang 0.5.17 with mixed chunks, the 8B shape; on the workloads with one "
    "model at their published rows, seed 1"
)
REMAINING_SHARE = 0.7
"""How much of their remaining answers running requests are expected to need, when another one asks
to be let in: SGLang's `new_token_ratio` as it starts."""


@dataclass(frozen=True)
class Machine:
    """A server on its card. Seconds are those of `FITTED_TO`; counts are SGLang's own settings.

    Attributes:
        pool_tokens: tokens whose keys and values fit the card.
        chunk_tokens: of one step with prompts at most.
        mixed_chunks: whether such a step decodes a token of every answer under way as well; if not,
            answers wait while prompts are computed.
        block_tokens: hits are rounded down to this; SGLang's own are exact, a simulation is faster.
        graph_requests: the largest batch whose decode steps are captured CUDA graphs; the kernels
            of larger ones are launched one by one.
        prefill_s_per_cached_pair: for each pair of a computed token and a cached one.
        schedule_*: the server's own processor time for a step.
        receive_s, send_s: the front end's for a request and its answer; streaming costs it
            `streaming_factor` as much.
        jitter_s: mean delay between the front end and the scheduler, by which requests overtake
            each other.
    """

    pool_tokens: int = 250_000
    chunk_tokens: int = 4_096
    mixed_chunks: bool = True
    max_running_requests: int = 2_048
    block_tokens: int = 4
    graph_requests: int = 1_024
    prefill_step_s: float = 0.004
    prefill_s_per_token: float = 23.5e-6
    prefill_s_per_request: float = 3e-5
    prefill_s_per_cached_pair: float = 1.2e-10
    decode_step_s: float = 0.0068
    decode_s_per_request: float = 8e-6
    decode_s_per_context_token: float = 131_072 / 4.1e12
    no_graph_step_s: float = 0.006
    no_graph_s_per_request: float = 20e-6
    schedule_step_s: float = 0.002
    schedule_s_per_new_request: float = 0.0004
    schedule_s_per_running_request: float = 30e-6
    receive_s: float = 0.0012
    send_s: float = 0.0004
    streaming_factor: float = 1.6
    jitter_s: float = 0.006

    def prefill_s(self, tokens: int, requests: int, cached_pairs: int) -> float:
        """A step that computes `tokens` prompt tokens and completes the prompts of `requests`."""
        return (
            self.prefill_step_s
            + tokens * self.prefill_s_per_token
            + requests * self.prefill_s_per_request
            + cached_pairs * self.prefill_s_per_cached_pair
        )

    def decode_s(self, requests: int, context_tokens: int) -> float:
        """A step that adds a token to the answers of `requests`."""
        seconds = (
            self.decode_step_s
            + requests * self.decode_s_per_request
            + context_tokens * self.decode_s_per_context_token
        )
        if requests > self.graph_requests:
            seconds += self.no_graph_step_s + requests * self.no_graph_s_per_request
        return seconds


H200_8B = Machine()


@dataclass(slots=True)
class ServerCounters:
    """What a server has done so far. Requests without an answer (warm-ups) are no calls, but their
    tokens count."""

    calls: int = 0
    prompt_tokens: int = 0
    prefilled_tokens: int = 0
    prefill_steps: int = 0
    decode_steps: int = 0
    decoded_tokens: int = 0

    @property
    def cached_share(self) -> float:
        """Of the prompt tokens, those that were not computed."""
        return 1 - self.prefilled_tokens / self.prompt_tokens if self.prompt_tokens else 0.0

    @property
    def mean_decode_batch(self) -> float:
        """Requests of a decode step."""
        return self.decoded_tokens / self.decode_steps if self.decode_steps else 0.0


@dataclass(frozen=True, slots=True)
class Served:
    """An answer. Times are the loop's; a request without an answer has no first token, and
    `first_token_s` is the end of its prompt."""

    text: str
    prompt_tokens: int
    cached_tokens: int
    start_s: float
    first_token_s: float
    end_s: float


@dataclass(eq=False, slots=True)
class Block:
    """A node of the radix cache: `text` after what its parents hold.

    Attributes:
        depth: blocks from the root, this one included.
        locks: requests that use it, and children that are locked.
        last_used: of this block or of a child that is gone; children that are there may be later.
    """

    text: str = ""
    parent: Block | None = None
    depth: int = 0
    locks: int = 0
    last_used: int = 0
    children: dict[str, Block] = field(default_factory=dict[str, "Block"])


class KvPool:
    """The KV pool: a radix cache of blocks, and the tokens that running requests have outside it.

    Unlike `costmodel.radix_cache`, it tells what is locked, which decides who may run, and it holds
    what running requests have computed so far.

    Attributes:
        outside_tokens: of prompts under way and of answers; set by the server.
    """

    def __init__(self, capacity_tokens: int, block_tokens: int) -> None:
        self.capacity_tokens = capacity_tokens
        self.block_tokens = block_tokens
        self.outside_tokens = 0
        self._root = Block()
        self._blocks = 0
        self._locked_blocks = 0
        self._uses = 0
        self._offers = 0
        self._leaves: list[tuple[int, int, Block]] = []

    @property
    def cached_tokens(self) -> int:
        """Tokens in the cache, locked or not."""
        return self._blocks * self.block_tokens

    @property
    def used_tokens(self) -> int:
        """Tokens that cannot be evicted."""
        return self._locked_blocks * self.block_tokens + self.outside_tokens

    def match(self, tokens: str) -> Block:
        """The end of the longest cached prefix of `tokens`, which becomes the most recently used.
        The last token is never part of it: it must be computed to have logits."""
        block, size = self._root, self.block_tokens
        for begin in range(0, (len(tokens) - 1) // size * size, size):
            child = block.children.get(tokens[begin : begin + size])
            if child is None:
                break
            block = child
        self._touch(block)
        return block

    def insert(self, tokens: str, held: Block | None = None) -> Block:
        """Hold the whole blocks of `tokens`; the last of them. `held`, where it is known, is a
        locked prefix of theirs."""
        block, size = held or self._root, self.block_tokens
        for begin in range(block.depth * size, len(tokens) // size * size, size):
            text = tokens[begin : begin + size]
            child = block.children.get(text)
            if child is None:
                child = block.children[text] = Block(text, block, block.depth + 1)
                self._blocks += 1
            block = child
        self._touch(block)
        return block

    def lock(self, block: Block) -> None:
        """Keep a prefix until it is unlocked as often."""
        current = block
        while current.parent is not None:
            current.locks += 1
            if current.locks > 1:
                return
            self._locked_blocks += 1
            current = current.parent

    def unlock(self, block: Block) -> None:
        """Undo one `lock`."""
        current = block
        while current.parent is not None:
            current.locks -= 1
            if current.locks:
                return
            self._locked_blocks -= 1
            self._offer(current)
            current = current.parent

    def evict(self) -> None:
        """Drop leaves that nobody uses, the least recently used first, until all fits. What running
        requests have stays, even if it does not: the real server takes requests back then."""
        while self.cached_tokens + self.outside_tokens > self.capacity_tokens and self._leaves:
            last_used, _, leaf = heapq.heappop(self._leaves)
            parent = leaf.parent
            if parent is None or leaf.children or leaf.locks or leaf.last_used != last_used:
                continue  # used since, or dropped
            del parent.children[leaf.text]
            leaf.parent = None
            self._blocks -= 1
            parent.last_used = max(parent.last_used, last_used)
            self._offer(parent)

    def _touch(self, block: Block) -> None:
        self._uses += 1
        block.last_used = self._uses
        self._offer(block)

    def _offer(self, block: Block) -> None:
        if block.parent is not None and not block.children and not block.locks:
            self._offers += 1
            heapq.heappush(self._leaves, (block.last_used, self._offers, block))


@dataclass(eq=False, slots=True)
class _Request:
    """A request. `prefix` is locked in the pool; `to_compute` and `to_decode` are what is left."""

    text: str
    tokens: str
    answer_tokens: int
    on_prefilled: Callable[[], None] | None
    done: asyncio.Future[None]
    to_decode: int = field(init=False)
    prefix: Block = field(default_factory=Block)
    cached_tokens: int = 0
    to_compute: int = 0
    first_token_s: float = 0.0

    def __post_init__(self) -> None:
        self.to_decode = self.answer_tokens

    @property
    def context_tokens(self) -> int:
        """Prompt, and answer so far."""
        return len(self.tokens) + self.answer_tokens - self.to_decode

    @property
    def new_tokens(self) -> int:
        return len(self.tokens) - self.cached_tokens


class SimulatedServer:
    """One server. Time is that of the running loop, which is meant to be a virtual one."""

    def __init__(self, machine: Machine = H200_8B, *, seed: int = 0) -> None:
        self.machine = machine
        self.counters = ServerCounters()
        self.pool = KvPool(self.machine.pool_tokens, self.machine.block_tokens)
        self._jitter = random.Random(seed)
        self._front_end_free_s = 0.0
        self._launched_s = 0.0
        self._arrivals = 0
        self._waiting: list[tuple[int, int, _Request]] = []
        self._unfinished: _Request | None = None
        self._running: list[_Request] = []
        self._arrived = asyncio.Event()
        self._steps: asyncio.Task[None] | None = None

    async def answer(
        self,
        prompt: str,
        answer_tokens: int,
        *,
        priority: int = 0,
        on_prefilled: Callable[[], None] | None = None,
    ) -> Served:
        """Answer with exactly `answer_tokens`, none for a warm-up. Smaller priorities go first.
        `on_prefilled` is called when the first token has reached the caller. Raises `ValueError`
        for what does not fit the pool at all."""
        tokens = tokens_of(prompt)
        if len(tokens) + answer_tokens > self.machine.pool_tokens:
            raise ValueError(
                f"a prompt of {len(tokens)} tokens and an answer of {answer_tokens} do not fit a "
                f"pool of {self.machine.pool_tokens}"
            )
        loop = asyncio.get_running_loop()
        start_s = loop.time()
        request = _Request(prompt, tokens, answer_tokens, on_prefilled, loop.create_future())
        self._arrivals += 1
        arrival = self._arrivals
        factor = self.machine.streaming_factor if on_prefilled is not None else 1.0
        await self._front_end(self.machine.receive_s * factor)
        if self.machine.jitter_s:
            await asyncio.sleep(self._jitter.expovariate(1 / self.machine.jitter_s))
        heapq.heappush(self._waiting, (priority, arrival, request))
        self._arrived.set()
        if self._steps is None:
            self._steps = loop.create_task(self._run())
        await request.done
        await self._front_end(self.machine.send_s * factor)
        return Served(
            answer_of(prompt, answer_tokens),
            len(tokens),
            request.cached_tokens,
            start_s,
            request.first_token_s,
            loop.time(),
        )

    async def close(self) -> None:
        """End the server. Safe to call twice."""
        if self._steps is not None:
            self._steps.cancel()
            with suppress(asyncio.CancelledError):
                await self._steps
            self._steps = None

    # --- steps -----------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            if not await self._prefill() and not await self._decode():
                self._arrived.clear()
                await self._arrived.wait()

    async def _prefill(self) -> bool:
        """One step over the prompts that fit it; whether there was any."""
        parts = self._take_prompts()
        if not parts:
            return False
        machine, counters = self.machine, self.counters
        whole = [request for request, _ in parts if not request.to_compute]
        tokens = sum(taken for _, taken in parts)
        counters.prefill_steps += 1
        counters.prefilled_tokens += tokens
        mixed = self._running if machine.mixed_chunks else []
        counters.decoded_tokens += len(mixed)
        counters.decode_steps += bool(mixed)
        self.pool.outside_tokens += len(mixed)
        seconds = machine.prefill_s(
            tokens + len(mixed), len(whole), sum(n * r.cached_tokens for r, n in parts)
        )
        seconds += sum(r.context_tokens for r in mixed) * machine.decode_s_per_context_token
        await self._step(seconds, machine.schedule_s_per_new_request * len(whole))
        for request in mixed:
            request.to_decode -= 1
        now_s = asyncio.get_running_loop().time()
        for request in whole:
            self._hold(request, request.tokens)
            request.first_token_s = now_s
            self.pool.outside_tokens -= request.new_tokens
            if request.to_decode:
                request.to_decode -= 1
                self.pool.outside_tokens += 1
            if request.on_prefilled is not None:
                told_s = self._front_end_takes(machine.send_s)
                asyncio.get_running_loop().call_at(told_s, request.on_prefilled)
        self._running += whole
        self._end_answers()
        return True

    async def _decode(self) -> bool:
        """One step over the answers under way; whether there was any."""
        running, machine, counters = self._running, self.machine, self.counters
        if not running:
            return False
        counters.decode_steps += 1
        counters.decoded_tokens += len(running)
        self.pool.outside_tokens += len(running)
        self.pool.evict()
        await self._step(machine.decode_s(len(running), sum(r.context_tokens for r in running)))
        for request in running:
            request.to_decode -= 1
        self._end_answers()
        return True

    def _take_prompts(self) -> list[tuple[_Request, int]]:
        """The requests of a prefill step and how many tokens it computes of each: what is left of
        the last one, then those that wait, in order. The first that does not fit ends it."""
        parts: list[tuple[_Request, int]] = []
        left = self.machine.chunk_tokens
        if self.machine.mixed_chunks:
            left = max(1, left - len(self._running))
        expected = sum(request.to_decode for request in self._running)
        request = self._unfinished or self._admit(expected, len(self._running))
        while request is not None:
            taken = min(left, request.to_compute)
            request.to_compute -= taken
            left -= taken
            parts.append((request, taken))
            if not left:
                break
            expected += request.to_decode
            request = self._admit(expected, len(self._running) + len(parts))
        self._unfinished = parts[-1][0] if parts and parts[-1][0].to_compute else None
        self.pool.evict()
        return parts

    def _admit(self, expected_tokens: int, running: int) -> _Request | None:
        """The next request, if the pool has room for it beside `running` others whose answers will
        have `expected_tokens` more at most. Its prefix is locked."""
        if not self._waiting:
            return None
        request = self._waiting[0][2]
        prefix = self.pool.match(request.tokens)
        cached = prefix.depth * self.machine.block_tokens
        new = len(request.tokens) - cached
        needed = self.pool.used_tokens + REMAINING_SHARE * expected_tokens
        full = needed + new + request.answer_tokens > self.machine.pool_tokens
        if running and (full or running >= self.machine.max_running_requests):
            return None
        heapq.heappop(self._waiting)
        self.pool.lock(prefix)
        self.pool.outside_tokens += new
        request.prefix, request.cached_tokens, request.to_compute = prefix, cached, new
        return request

    def _end_answers(self) -> None:
        ended = [request for request in self._running if not request.to_decode]
        if not ended:
            return
        self._running = [request for request in self._running if request.to_decode]
        for request in ended:
            self.pool.outside_tokens -= request.answer_tokens
            # The keys and values of the last token were never computed.
            answer = answer_of(request.text, request.answer_tokens)[:-1]
            self._hold(request, request.tokens + answer)
            self.pool.unlock(request.prefix)
            self.counters.calls += request.answer_tokens > 0
            self.counters.prompt_tokens += len(request.tokens)
            request.done.set_result(None)
        self.pool.evict()

    def _hold(self, request: _Request, tokens: str) -> None:
        """Cache `tokens`, locked for `request` in place of the prefix that it had."""
        before, request.prefix = request.prefix, self.pool.insert(tokens, request.prefix)
        self.pool.lock(request.prefix)
        self.pool.unlock(before)

    async def _step(self, gpu_s: float, new_requests_s: float = 0.0) -> None:
        """Run a step. It was prepared since the one before it was launched."""
        loop, machine = asyncio.get_running_loop(), self.machine
        prepared_s = (
            machine.schedule_step_s
            + new_requests_s
            + machine.schedule_s_per_running_request * len(self._running)
        )
        now_s = loop.time()
        self._launched_s = max(now_s, self._launched_s + prepared_s)
        await asyncio.sleep(self._launched_s + gpu_s - now_s)

    # --- front end -------------------------------------------------------------------------------

    async def _front_end(self, seconds: float) -> None:
        ended_s = self._front_end_takes(seconds)
        await asyncio.sleep(ended_s - asyncio.get_running_loop().time())

    def _front_end_takes(self, seconds: float) -> float:
        """When the front end, which does one thing after the other, has done one more."""
        now_s = asyncio.get_running_loop().time()
        self._front_end_free_s = max(self._front_end_free_s, now_s) + seconds
        return self._front_end_free_s


def tokens_of(prompt: str) -> str:
    """The tokens of a prompt, a character each.

    Example:
        >>> len(tokens_of("<|im_start|>user"))
        5
    """
    return prompt.replace("<|im_start|>", "\x01").replace("<|im_end|>", "\x02")


@lru_cache(maxsize=100_000)
def answer_of(prompt: str, tokens: int) -> str:
    """The answer to a prompt: as many characters as it may have tokens."""
    return words(hashlib.sha256(prompt.encode()).hexdigest(), tokens)
