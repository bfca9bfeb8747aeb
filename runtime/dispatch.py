"""Dispatch: from a rendered model call to its record, each distinct call asked of an engine once.

The dispatcher names a call (its content key), lets the call table decide whether it has to be made,
and makes it: wait for a slot of the worker, ask the engine, try again when that can help, record.
A slot is free again when the record is durable: after `kill -9`, the calls that were answered and
have to be asked again are at most those in flight.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from asyncio import Future
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial

from costmodel.usage import Usage
from planner.errors import InvariantError
from planner.logical import Json
from runtime.backends.base import Backend, Completion, Request, ToolSchema
from runtime.budget import BudgetMeter
from runtime.clock import Clock
from runtime.errors import BackendError, DrainingError
from runtime.lane import Lane, Ticket
from runtime.placement import Load
from runtime.priming import PrimingStats
from runtime.records import CallRecord, CallSite, Store
from runtime.retry import RetryPolicy
from runtime.sharing import CallTable
from runtime.streaming import OpenCall


@dataclass(frozen=True, slots=True)
class _Answer:
    completion: Completion
    attempts: int
    start_s: float


class Dispatcher:
    """Model calls to `engines` by worker name. Make it inside the running loop: times in records
    are seconds since then.

    Args:
        tenant: answers are never shared between different tenants.
        max_attempts: attempts of a call whose errors are retryable.
        seed: of the run; sampled calls derive theirs from it and their identity.
        prime: whether shared prefixes are primed on engines that need it.
        gather: models by worker, of those whose calls may gather (`runtime.gathering`).
        share: whether equal calls are made once.
        meter: of the run's budget; `on_budget` is told once it is reached, and has to stop the run.
    """

    def __init__(
        self,
        engines: Mapping[str, Backend],
        table: CallTable,
        store: Store,
        clock: Clock,
        *,
        tenant: str = "",
        max_attempts: int = 4,
        seed: int = 0,
        prime: bool = True,
        gather: Mapping[str, str] | None = None,
        share: bool = True,
        meter: BudgetMeter | None = None,
        on_budget: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self._meter = meter
        self._on_budget = on_budget
        self._lanes = {worker: Lane(engine, prime=prime) for worker, engine in engines.items()}
        self._gather = [
            self._lanes[worker].gather(model, clock)
            for worker, model in (gather or {}).items()
            if engines[worker].capabilities.machine
        ]
        for gathering in self._gather:
            gathering.beside(self._gather)
        self._table = table
        self._store = store
        self._clock = clock
        self._tenant = tenant
        self._seed = seed
        self._share = share
        self._retry = RetryPolicy(max_attempts)
        self._origin_s = clock.now_s()
        self._stopped = False
        self._held_slots: dict[Future[None], dict[Lane, int]] = {}
        self._pauses: set[asyncio.Task[None]] = set()
        self._open: set[OpenCall] = set()

    @property
    def in_flight(self) -> int:
        """Calls that engines work on, pauses before another attempt included."""
        return sum(lane.in_flight for lane in self._lanes.values())

    @property
    def waiting(self) -> int:
        """Calls that wait for a slot or for a prefix to be primed."""
        return sum(lane.waiting for lane in self._lanes.values())

    def load(self, worker: str) -> Load:
        """How busy a worker is."""
        lane = self._lanes[worker]
        return Load(lane.waiting, lane.free)

    @property
    def priming_stats(self) -> dict[str, PrimingStats]:
        """What priming did, by worker."""
        return {worker: lane.priming_stats for worker, lane in self._lanes.items()}

    @property
    def opens_prompts(self) -> bool:
        """Whether any engine takes prompts before they are whole."""
        return any(lane.engine.capabilities.open_prompts for lane in self._lanes.values())

    def open(
        self, worker: str, request: Request, site: CallSite, *, priority: int = 0
    ) -> OpenCall | None:
        """Begin a call whose last message is not whole yet, where the worker takes open prompts and
        has a place that nobody waits for; otherwise None. It takes no slot: `complete` does."""
        lane = self._lanes[worker]
        spare = lane.free - sum(call.worker == worker for call in self._open)
        if self._stopped or lane.waiting or spare < 1:
            return None
        if not lane.engine.capabilities.open_prompts:
            return None
        request = request.keyed(request.key, self._seed_of(request, site), priority)
        call = OpenCall(worker, lane.engine, request, self._open.discard)
        self._open.add(call)
        return call

    def begin(
        self,
        worker: str,
        request: Request,
        site: CallSite,
        *,
        priority: int = 0,
        early: OpenCall | None = None,
    ) -> Future[CallRecord]:
        """The record of `request`, made now or shared or replayed. `request.key`, `seed` and
        `priority` are filled here. `early` is the call's prompt, if that is open already.

        The value is `{"text": str}`, and `{"text": str, "tool_calls": [{"id", "name",
        "arguments_json"}]}` when the request has tools. The future has a `BackendError`, or a
        `DrainingError` when `stop` was called before the call started. Cancel it to stop waiting.
        """
        lane = self._lanes.get(worker)
        if lane is None:
            have = ", ".join(self._lanes) or "none"
            raise InvariantError(f"the plan names worker {worker!r}; the run has: {have}")
        seed = self._seed_of(request, site)
        key = site.key(request_key(request, seed, site.identity, self._tenant))

        def make() -> Awaitable[CallRecord]:
            return self._make(lane, request.keyed(key, seed, priority), site, self._claim(early))

        call = self._table.begin(key, site, make, share=self._share)
        if early is not None:
            call.add_done_callback(lambda _: early.drop())
        return call

    async def complete(
        self,
        worker: str,
        request: Request,
        site: CallSite,
        *,
        priority: int = 0,
        early: OpenCall | None = None,
    ) -> CallRecord:
        """Wait for the record of `request`. As `begin`."""
        return await self.begin(worker, request, site, priority=priority, early=early)

    def _claim(self, early: OpenCall | None) -> OpenCall | None:
        """The open prompt, for the call that is made now, unless it was given up."""
        if early is None or not early.take():
            return None
        self._open.discard(early)
        return early

    def _seed_of(self, request: Request, site: CallSite) -> int | None:
        return derive_seed(self._seed, site.identity) if request.temperature > 0 else None

    async def warm(self, worker: str, request: Request) -> int:
        """Bring an open-ended prefix into a worker's cache, before all that waits. Calls that share
        it are held meanwhile, as by priming. Returns the tokens computed; 0 when it did not work:
        then the first call that needs the prefix computes it."""
        lane = self._lanes[worker]
        ticket = await lane.enter(request.keyed(f"warm-{id(request):x}", request.seed, -(2**31)))
        computed = 0
        try:
            computed = await lane.engine.warm(request)
        except BackendError:
            lane.failed(ticket)
        else:
            lane.prefilled(ticket)
        finally:
            lane.leave(ticket)
            lane.release()
        return computed

    def stop(self) -> None:
        """Drain: calls that have not started are refused with `DrainingError`, and so are new ones
        and further attempts of failed ones. Calls inside engines finish."""
        self._stopped = True
        for lane in self._lanes.values():
            lane.refuse(_draining)
        for pause in self._pauses:
            pause.cancel()

    async def close(self) -> None:
        """Give up the prompts that are open still, and what gathers."""
        for gathering in self._gather:
            await gathering.close()
        calls = tuple(self._open)
        for call in calls:
            call.abandon()
        for call in calls:
            await call.ended()

    async def _make(
        self, lane: Lane, request: Request, site: CallSite, early: OpenCall | None = None
    ) -> CallRecord:
        queued_s = self._clock.now_s()
        try:
            ticket = await lane.enter(request)
        except BaseException:
            if early is not None:
                early.abandon()
            raise
        try:
            self._check_budget()
            answer = await self._ask(lane, ticket, request, early)
            if self._meter is not None:
                self._meter.end(answer.completion.usage)
            record = self._record(request, site, answer, queued_s, lane, ticket)
            durable = self._store.record_call(record)
        except BaseException:
            if early is not None:
                early.abandon()
            lane.leave(ticket)
            lane.release()
            raise
        lane.leave(ticket)
        self._release_when(durable, lane)
        return record

    def _check_budget(self) -> None:
        reason = self._meter.start(self._clock.now_s()) if self._meter is not None else ""
        if reason:
            self._on_budget(reason)
            raise DrainingError(f"{reason}; this call had not started and was left for resume")

    async def _ask(
        self, lane: Lane, ticket: Ticket, request: Request, early: OpenCall | None
    ) -> _Answer:
        on_prefilled = partial(lane.prefilled, ticket) if lane.awaits_prefill(ticket) else None
        generate = lane.engine.generate if early is None else early.answer
        attempt = 1
        while True:
            start_s = self._clock.now_s()
            try:
                completion = await generate(request, on_prefilled)
            except BackendError as error:
                lane.failed(ticket)
                error.attempts = attempt
                if not self._retry.again(error, attempt):
                    raise
                # Never earlier than the engine asked for.
                delay_s = max(self._retry.delay_s(request.key, attempt), error.retry_after_s or 0.0)
                await self._pause(delay_s, error)
                lane.again(ticket)
                generate = lane.engine.generate
                attempt += 1
            else:
                lane.prefilled(ticket)
                if lane.gathering is not None:
                    seconds = self._clock.now_s() - start_s
                    lane.gathering.took(seconds, completion.usage.output_tokens)
                return _Answer(completion, attempt, max(start_s, completion.start_s))

    async def _pause(self, delay_s: float, error: BackendError) -> None:
        """Wait before another attempt, unless the run is draining."""
        if not self._stopped:
            pause = asyncio.ensure_future(self._clock.sleep_s(delay_s))
            self._pauses.add(pause)
            try:
                await asyncio.wait((pause,))
            finally:
                self._pauses.discard(pause)
                pause.cancel()
        if self._stopped:
            raise _draining() from error

    def _record(
        self,
        request: Request,
        site: CallSite,
        answer: _Answer,
        queued_s: float,
        lane: Lane,
        ticket: Ticket,
    ) -> CallRecord:
        completion = answer.completion
        value: dict[str, Json] = {"text": completion.text}
        if request.tools:
            value["tool_calls"] = [
                {"id": call.id, "name": call.name, "arguments_json": call.arguments_json}
                for call in completion.tool_calls
            ]
        usage = completion.usage
        predicted = lane.predict(ticket, usage)
        if predicted is not None:
            usage = Usage(usage.input_tokens, usage.output_tokens, usage.cached_tokens, predicted)
        first_token_s = completion.first_token_s
        return CallRecord(
            key=request.key,
            kind="model",
            name=request.model,
            op=site.op,
            query=site.query,
            row_key=site.row_key,
            value=value,
            effect=site.effect.value,
            path=site.path,
            turn=site.turn,
            usage=usage,
            finish_reason=completion.finish_reason,
            queued_s=queued_s - self._origin_s,
            start_s=answer.start_s - self._origin_s,
            first_token_s=None if first_token_s is None else first_token_s - self._origin_s,
            end_s=self._clock.now_s() - self._origin_s,
            attempts=answer.attempts,
        )

    def _release_when(self, durable: Future[None], lane: Lane) -> None:
        """Give a slot of `lane` back when `durable` is done. Records that are committed together
        have one future, and their slots come back together."""
        if durable.done():
            self._check_recorded(durable)
            lane.release()
            return
        slots = self._held_slots.get(durable)
        if slots is None:
            slots = self._held_slots[durable] = {}
            durable.add_done_callback(self._release)
        slots[lane] = slots.get(lane, 0) + 1

    def _release(self, durable: Future[None]) -> None:
        self._check_recorded(durable)
        for lane, slots in self._held_slots.pop(durable).items():
            lane.release(slots)

    def _check_recorded(self, durable: Future[None]) -> None:
        error = None if durable.cancelled() else durable.exception()
        if error is not None:
            # Nothing is recorded any more: to go on would spend calls that a resume repeats.
            reason = str(error)
            for lane in self._lanes.values():
                lane.refuse(lambda: _unrecorded(reason))


def derive_seed(run_seed: int, identity: str) -> int:
    """The seed of a sampled call: 31 bits, equal for equal run seeds and identities."""
    digest = hashlib.sha256(f"{run_seed}/{identity}".encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:4], "big") >> 1


_encode: Callable[[object], str] = json.JSONEncoder(separators=(",", ":")).encode


def request_key(request: Request, seed: int | None, identity: str, tenant: str) -> str:
    """The content key of a call: 64 hex digits of everything that its answer may depend on, with
    the identity that keeps a sampled or write call apart, and the tenant."""
    sampling, output = _settings_json(
        request.model,
        request.max_tokens,
        request.temperature,
        request.top_p,
        request.stop,
        request.schema_json,
        request.options,
        request.tools,
    )
    messages = [
        (
            m.role,
            m.content,
            m.tool_call_id,
            m.name,
            [(c.id, c.name, c.arguments_json) for c in m.tool_calls],
        )
        for m in request.messages
    ]
    asked = (
        f"[{_encode(tenant)},{_encode(identity)},{sampling},{'null' if seed is None else seed},"
        f"{output},{_encode(messages)}]"
    )
    return hashlib.sha256(asked.encode()).hexdigest()


# Typed, because 1 and 1.0 are equal and their JSON is not.
@lru_cache(maxsize=1024, typed=True)
def _settings_json(
    model: str,
    max_tokens: int,
    temperature: float,
    top_p: float,
    stop: tuple[str, ...],
    schema_json: str | None,
    options: tuple[str, ...],
    tools: tuple[ToolSchema, ...],
) -> tuple[str, str]:
    """What does not depend on the row: the members of a key's JSON before and after the seed.
    Remembered, since all calls of an operator have them in common."""
    schemas = [(t.name, t.description, t.parameters_json) for t in tools]
    before = _encode([model, max_tokens, temperature, top_p])
    after = _encode([stop, schema_json, options, schemas])
    return before[1:-1], after[1:-1]


def _draining() -> DrainingError:
    return DrainingError("the run is stopping; this call had not started and was left for resume")


def _unrecorded(reason: str) -> DrainingError:
    return DrainingError(f"calls can no longer be recorded, so none is started: {reason}")
