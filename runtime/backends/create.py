"""Engines by name: one branch an engine, its import inside, so that nothing heavy loads unasked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from runtime.backends.base import Backend, Capabilities
from runtime.clock import Clock
from runtime.errors import BackendError

BACKENDS = ("local", "torch", "simulated", "sglang=URL", "openai=URL")


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What an engine may be told. None leaves the engine's own choice.

    Attributes:
        announce: is told, from any thread, what takes long when the engine is opened, such as a
            model being fetched.
        api_key, tokenizer, tenant, steer, requests_per_minute, tokens_per_minute: for servers.
        precision: of the torch engine: float32, bfloat16 or int8.
        attention: the attention technique, one that the engine offers; empty for none.
    """

    seed: int = 0
    models_dir: Path | None = None
    threads: int | None = None
    max_in_flight: int | None = None
    exact: bool = False
    precision: str | None = None
    attention: str = ""
    announce: Callable[[str], None] | None = None
    api_key: str = field(default="", repr=False)
    tokenizer: Path | None = None
    tenant: str = ""
    steer: bool = True
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None


def describe_backend(engine: str, model: str, options: EngineOptions) -> Capabilities:
    """What `engine` will offer, without loading the model: enough to plan and explain."""
    if engine == "local":
        from runtime.backends.openvino import describe

        return describe(model, options.models_dir, max_in_flight=options.max_in_flight)
    if engine == "simulated":
        from runtime.backends.simulated import DEFAULT_CAPABILITIES
        from runtime.backends.simulated import describe as simulated

        return simulated(options.max_in_flight or DEFAULT_CAPABILITIES.max_in_flight)
    if engine == "torch":
        from runtime.backends.torch_engine.backend import describe as torch_engine

        return torch_engine(
            model, options.models_dir, max_in_flight=options.max_in_flight, exact=options.exact
        )
    kind, _, address = engine.partition("=")
    if kind == "sglang":
        from runtime.backends import sglang_open

        return sglang_open.describe(
            address,
            model,
            api_key=options.api_key,
            tokenizer=options.tokenizer,
            max_in_flight=options.max_in_flight,
        )
    if kind == "openai":
        from runtime.backends import openai
        from runtime.fleet.replicas import together

        served = openai.find_models(address, model, options.api_key)
        return together([openai.capabilities_of(s, options.max_in_flight) for s in served])
    raise unknown_engine(engine)


async def create_backend(engine: str, model: str, clock: Clock, options: EngineOptions) -> Backend:
    """The engine with `model` loaded. Raises `BackendError`."""
    if engine == "local":
        from runtime.backends.openvino import open_backend

        return await open_backend(model, clock, options)
    if engine == "simulated":
        from runtime.backends.simulated import SimulatedBackend

        offered = describe_backend(engine, model, options)
        return SimulatedBackend(model, clock, seed=options.seed, capabilities=offered)
    if engine == "torch":
        from runtime.backends.torch_engine.backend import open_backend as open_torch

        return await open_torch(model, clock, options)
    kind, _, address = engine.partition("=")
    if kind == "sglang":
        from runtime.backends import sglang_open

        return await sglang_open.open_backend(
            address,
            model,
            clock,
            api_key=options.api_key,
            tokenizer=options.tokenizer,
            tenant=options.tenant,
            max_in_flight=options.max_in_flight,
            steer=options.steer,
        )
    if kind == "openai":
        from runtime.backends import openai

        return await openai.open_backend(
            address,
            model,
            clock,
            api_key=options.api_key,
            max_in_flight=options.max_in_flight,
            requests_per_minute=options.requests_per_minute,
            tokens_per_minute=options.tokens_per_minute,
        )
    raise unknown_engine(engine)


def default_model(engine: str, options: EngineOptions) -> str:
    """The model of an engine that was given none: what its server serves. Raises `BackendError`."""
    kind, _, address = engine.partition("=")
    if kind == "sglang":
        from runtime.backends import sglang_open

        return sglang_open.find_servers(address, "", options.api_key)[0].models[0]
    if kind == "openai":
        from runtime.backends import openai

        return openai.find_models(address, "", options.api_key)[0].model
    return "simulated"


def unknown_engine(engine: str) -> BackendError:
    return BackendError(
        f"no engine {engine!r}; this version has: {', '.join(BACKENDS)}", backend=engine
    )
