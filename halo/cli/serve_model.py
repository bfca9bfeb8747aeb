"""`halo models serve`: one model under the OpenAI API, on this machine alone."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import sys

from runtime.backends.create import EngineOptions, create_backend
from runtime.clock import LoopClock

HOST = "127.0.0.1"


def serve_model(
    model: str,
    *,
    engine: str,
    port: int,
    threads: int | None,
    max_in_flight: int | None,
    exact: bool,
    precision: str | None,
    seed: int,
) -> int:
    """Load `model` and answer until interrupted. Prints the address to standard output."""
    options = EngineOptions(
        seed=seed,
        threads=threads,
        max_in_flight=max_in_flight,
        exact=exact,
        precision=precision,
        announce=lambda text: print(text, file=sys.stderr),
    )
    asyncio.run(_serve(model, engine, port, options))
    return 0


async def _serve(model: str, engine: str, port: int, options: EngineOptions) -> None:
    from aiohttp import web

    from halo.openai_front import openai_app

    clock = LoopClock()
    backend = await create_backend(engine, model, clock, options)
    try:
        app = openai_app(backend, model, random.Random(options.seed))
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
        await runner.setup()
        try:
            site = web.TCPSite(runner, HOST, port, shutdown_timeout=1.0)
            await site.start()
            actual = runner.addresses[0][1]
            print(f"serving {model} at http://{HOST}:{actual}/v1", flush=True)
            await _interrupted()
        finally:
            await runner.cleanup()
    finally:
        await backend.close()


async def _interrupted() -> None:
    """Wait for Ctrl-C or a request to end."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):  # Windows: Ctrl-C cancels the task instead
            loop.add_signal_handler(number, stop.set)
    await stop.wait()
