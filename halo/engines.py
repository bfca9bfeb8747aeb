"""The engines of a session: what they offer the planner, and the open ones, kept between runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from halo.config import Config
from halo.errors import HaloError
from planner.physical import PhysicalPlan, Worker
from runtime.backends.base import Backend
from runtime.backends.create import EngineOptions, create_backend, default_model, describe_backend
from runtime.clock import Clock
from runtime.errors import BackendError

Announce = Callable[[str], None]
"""Told one line for people: what was chosen, fetched, started, given up."""


class Engines:
    """Engines by worker. Settings come with each question: they may change between runs, and what
    is open stays open.

    Attributes:
        opened: the open engines, by the worker and the technique that it serves with.
    """

    def __init__(self) -> None:
        self.opened: dict[str, Backend] = {}
        self._default_model = ""
        self._choice_warning = ""

    def model(self, config: Config, name: str = "") -> str:
        """The model that `name` means: the session's default for "". A chosen default stays."""
        name = name or config.model or self._default_model
        if not name and config.engine == "local":
            from runtime.models.choice import choose_default

            name, self._choice_warning = choose_default()
        elif not name:
            name = default_model(config.engine, engine_options(config))
        self._default_model = self._default_model or name
        return name

    def workers(self, config: Config, model: str) -> list[Worker]:
        """The workers of a model: one for each engine that the session has."""
        workers: list[Worker] = []
        names: set[str] = set()
        for engine in config.workers or (config.engine,):
            worker = self._worker(config, model, engine)
            name, n = worker.name, 2
            while worker.name in names:
                worker, n = replace(worker, name=f"{name}#{n}"), n + 1
            names.add(worker.name)
            workers.append(worker)
        return workers

    def why_not_model(self, config: Config, name: str) -> str:
        """Why no engine can serve a model of this name; empty when one can."""
        try:
            self.workers(config, name)
        except HaloError as error:
            return str(error)
        return ""

    def context_tokens(self, config: Config, model: str) -> int | None:
        """The context of a model, "" for the default one: the smallest where engines differ."""
        known = [worker.context_tokens for worker in self.workers(config, model)]
        return min((each for each in known if each is not None), default=None)

    async def open(
        self, config: Config, plan: PhysicalPlan, clock: Clock, announce: Announce
    ) -> tuple[PhysicalPlan, dict[str, Backend]]:
        """The engines of a plan's workers, by worker, and the plan of those that started: the same
        one when all did. Raises `BackendError` or `PlanError` when none is left for a model."""
        engines: dict[str, Backend] = {}
        if self._choice_warning:
            announce(self._choice_warning)
            self._choice_warning = ""
        for worker in plan.workers:
            # An engine serves with one technique: another one is another engine.
            key = f"{worker.name} {worker.attention}".rstrip()
            if key not in self.opened:
                options = replace(engine_options(config, announce), attention=worker.attention)
                try:
                    self.opened[key] = await create_backend(
                        worker.engine, worker.model, clock, options
                    )
                except BackendError as error:
                    if not plan.shares:
                        raise
                    plan = _without(plan, worker, error, announce)
                    continue
            engines[worker.name] = self.opened[key]
        return plan, engines

    async def close(self) -> None:
        """Close the engines. Safe to call twice."""
        for engine in self.opened.values():
            await engine.close()
        self.opened.clear()

    def _worker(self, config: Config, model: str, engine: str) -> Worker:
        name = self.model(config, model)
        worker = f"{engine}:{name}"
        opened = self.opened.get(worker)
        offered = (
            describe_backend(engine, name, engine_options(config))
            if opened is None
            else opened.capabilities
        )
        return Worker(
            name=worker,
            engine=engine,
            model=name,
            max_in_flight=offered.max_in_flight,
            context_tokens=offered.context_tokens,
            prefix_cache=offered.prefix_cache,
            prime_prefix=offered.prime_prefix,
            choice=offered.choice,
            cache_tokens=offered.cache_estimated_tokens,
            techniques=offered.techniques,
        )


def engine_options(config: Config, announce: Announce | None = None) -> EngineOptions:
    """What an engine is told, out of the settings."""
    return EngineOptions(
        seed=config.seed,
        models_dir=config.models_dir,
        threads=config.threads,
        max_in_flight=config.max_in_flight,
        exact=config.exact,
        announce=announce,
        api_key=config.api_key.get_secret_value(),
        tokenizer=config.tokenizer,
        tenant=config.tenant,
        steer=config.steer,
        requests_per_minute=config.requests_per_minute,
        tokens_per_minute=config.tokens_per_minute,
    )


def _without(
    plan: PhysicalPlan, worker: Worker, error: BackendError, announce: Announce
) -> PhysicalPlan:
    """The plan of the workers that are left. Raises `PlanError` when that is none."""
    from planner.schedule.to_plan import without_worker

    plan, given_up = without_worker(plan, worker.name, str(error))
    announce(given_up)
    return plan
