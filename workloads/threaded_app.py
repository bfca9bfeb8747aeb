"""A web application on a thread of its own, for what the benchmarks talk to."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, Self

from aiohttp import web


class ThreadedApp:
    """Serves an application on a free port of this machine until it is closed. A context manager.

    Args:
        shutdown_s: how long requests may take to end when it is closed.

    Attributes:
        url: where it listens.
    """

    def __init__(
        self, app: web.Application, *, backlog: int = 128, shutdown_s: float = 60.0
    ) -> None:
        self.url = ""
        self._app = app
        self._backlog = backlog
        self._shutdown_s = shutdown_s
        self._loop = asyncio.new_event_loop()
        ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(ready,), daemon=True)
        self._thread.start()
        ready.wait()

    def close(self) -> None:
        """Stop serving. Safe to call twice."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _serve(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        runner = self._loop.run_until_complete(self._start())
        ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.close()

    async def _start(self) -> web.AppRunner:
        runner = web.AppRunner(self._app, access_log=None, shutdown_timeout=self._shutdown_s)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, backlog=self._backlog)
        await site.start()
        server: Any = site._server  # pyright: ignore[reportPrivateUsage]
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        return runner
