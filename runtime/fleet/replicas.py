"""Several servers of one model as one engine.

A call goes to the replica that has its prefix (`routing`). A replica that fails is left alone
(`breaker`) and looked at again; its calls fail with a retryable error, and the retry, which is the
dispatcher's decision, goes to another one. While no replica answers, calls wait.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from runtime.backends.base import Backend, Capabilities, Completion, Request
from runtime.clock import Clock
from runtime.errors import BackendError, EngineUnreachableError
from runtime.fleet.breaker import CircuitBreaker
from runtime.fleet.routing import PrefixRouter
from runtime.priming import prompt_chain, prompt_text

CHECK_S = 0.25
RECOVERY_S = 300.0
"""How long calls wait for any replica to come back. A restart loads weights: minutes, not seconds.
"""

_log = logging.getLogger("halo.fleet")


@dataclass(slots=True, eq=False)
class Replica:
    """One server, what is known of its health, and the calls it works on."""

    backend: Backend
    health: Callable[[], Awaitable[bool]]
    breaker: CircuitBreaker = field(default_factory=CircuitBreaker)
    calls: int = 0
    answered: int = 0


class FleetBackend(Backend):
    """The replicas as one engine.

    Args:
        replicas: backends of the same model, each with `health`.
        recovery_s: how long a call waits when no replica answers.
    """

    def __init__(
        self, backends: Sequence[Backend], clock: Clock, *, recovery_s: float = RECOVERY_S
    ) -> None:
        self.name = backends[0].name
        self.replicas = [Replica(b, _health_of(b)) for b in backends]
        self._clock = clock
        self._recovery_s = recovery_s
        self._offered = [b.capabilities for b in backends]
        self._capabilities = together(self._offered)
        self._router = PrefixRouter([b.capabilities.cache_tokens for b in backends])
        self._changed: list[Callable[[], None]] = []
        self._checker: asyncio.Task[None] | None = None
        self._recovered = asyncio.Event()
        for backend in backends:
            backend.on_limit_change(self._limit_changed)

    @property
    def requests_seen(self) -> int:  # type: ignore[override]
        return sum(r.backend.requests_seen for r in self.replicas)

    @property
    def capabilities(self) -> Capabilities:
        # A replica may have learned what it can do; the records themselves never change.
        offered = [r.backend.capabilities for r in self.replicas]
        if any(now is not before for now, before in zip(offered, self._offered, strict=True)):
            self._offered = offered
            self._capabilities = together(offered)
        return self._capabilities

    @property
    def in_flight_limit(self) -> int:
        usable = [r for r in self.replicas if r.breaker.closed]
        # With nobody there, calls wait inside for a recovery: they keep the slots they have.
        return sum(r.backend.in_flight_limit for r in usable or self.replicas)

    def on_limit_change(self, changed: Callable[[], None]) -> None:
        self._changed.append(changed)

    def count_tokens(self, text: str) -> int:
        return self.replicas[0].backend.count_tokens(text)

    async def generate(
        self, request: Request, on_prefilled: Callable[[], None] | None = None
    ) -> Completion:
        replica = await self._choose(request)
        replica.calls += 1
        try:
            completion = await replica.backend.generate(request, on_prefilled)
        except BackendError as error:
            self._note_failure(replica, error)
            raise
        finally:
            replica.calls -= 1
        self._note_success(replica)
        replica.answered += 1
        return completion

    async def warm(self, request: Request) -> int:
        """On every replica: which one will need it is not known."""
        usable = [r for r in self.replicas if r.breaker.closed]
        return sum(await asyncio.gather(*(r.backend.warm(request) for r in usable)))

    async def close(self) -> None:
        if self._checker is not None:
            self._checker.cancel()
            with suppress(asyncio.CancelledError):
                await self._checker
            self._checker = None
        for replica in self.replicas:
            await replica.backend.close()

    # --- choosing --------------------------------------------------------------------------------

    async def _choose(self, request: Request) -> Replica:
        await self._wait_for_recovery()
        if len(self.replicas) == 1:
            return self.replicas[0]
        chosen = self._router.choose(
            prompt_chain(prompt_text(request)),
            [r.calls for r in self.replicas],
            [r.breaker.closed for r in self.replicas],
        )
        return self.replicas[chosen]

    async def _wait_for_recovery(self) -> None:
        """Until a replica may be asked; at once if one may."""
        until_s = self._clock.now_s() + self._recovery_s
        # Again and again: a server that is back may be gone before those who wait have noticed.
        while not any(r.breaker.closed for r in self.replicas):
            if any(r.breaker.refuses_all for r in self.replicas):
                raise BackendError(
                    f"every call is refused, and this one was not sent: {self._reasons()}",
                    backend=self.name,
                )
            left_s = until_s - self._clock.now_s()
            if left_s <= 0:
                raise EngineUnreachableError(
                    f"no server has answered for {self._recovery_s:g} s: {self._reasons()}",
                    backend=self.name,
                )
            self._recovered.clear()
            self._look_after()
            deadline = asyncio.ensure_future(self._clock.sleep_s(left_s))
            recovered = asyncio.ensure_future(self._recovered.wait())
            try:
                await asyncio.wait((deadline, recovered), return_when=asyncio.FIRST_COMPLETED)
            finally:
                deadline.cancel()
                recovered.cancel()

    def _reasons(self) -> str:
        return "; ".join(r.breaker.reason for r in self.replicas if r.breaker.reason)

    # --- health ----------------------------------------------------------------------------------

    def _note_failure(self, replica: Replica, error: BackendError) -> None:
        was_closed = replica.breaker.closed
        replica.breaker.failed(error, self._clock.now_s())
        if was_closed and not replica.breaker.closed:
            _log.warning("replica left alone: %s", error)
            self._look_after()
            self._limit_changed()

    def _note_success(self, replica: Replica) -> None:
        """A call or a check was answered: whoever waits for a server may go."""
        was_closed = replica.breaker.closed
        replica.breaker.succeeded()
        if not was_closed:
            _log.warning("replica is back")
            self._recovered.set()
            self._limit_changed()

    def _look_after(self) -> None:
        if self._checker is None or self._checker.done():
            self._checker = asyncio.ensure_future(self._check())

    async def _check(self) -> None:
        """Until every replica answers again: check those that are due."""
        while any(not r.breaker.closed for r in self.replicas):
            now_s = self._clock.now_s()
            due = [r for r in self.replicas if r.breaker.check_due(now_s)]
            answers = await asyncio.gather(*(r.health() for r in due))
            for replica, answered in zip(due, answers, strict=True):
                if answered:
                    # What it had cached is gone if it restarted; if not, little is lost.
                    index = self.replicas.index(replica)
                    self._router.forget(index, replica.backend.capabilities.cache_tokens)
                    self._note_success(replica)
                else:
                    replica.breaker.check_failed(self._clock.now_s())
            await self._clock.sleep_s(CHECK_S)

    def _limit_changed(self) -> None:
        for changed in self._changed:
            changed()


def _health_of(backend: Backend) -> Callable[[], Awaitable[bool]]:
    health: Callable[[], Awaitable[bool]] | None = getattr(backend, "health", None)
    if health is None:
        raise TypeError(f"{type(backend).__name__} cannot be asked for its health")
    return health


def together(each: Sequence[Capabilities]) -> Capabilities:
    """What the replicas offer between them: slots add up, everything else as the weakest has it."""
    contexts = [c.context_tokens for c in each if c.context_tokens is not None]
    caches = [c.cache_tokens for c in each if c.cache_tokens is not None]
    return replace(
        each[0],
        max_in_flight=sum(c.max_in_flight for c in each),
        context_tokens=min(contexts, default=None),
        cache_tokens=sum(caches) if caches else None,
        prefix_cache=all(c.prefix_cache for c in each),
        prime_prefix=any(c.prime_prefix for c in each),
        json_schema=all(c.json_schema for c in each),
        choice=all(c.choice for c in each),
        tool_calls=all(c.tool_calls for c in each),
        seeded=all(c.seeded for c in each),
        machine=each[0].machine if len({c.machine for c in each}) == 1 else "",
        open_prompts=False,  # which replica a prompt goes to is decided when it is whole
    )
