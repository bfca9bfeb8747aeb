"""A local HTTP service for the workloads' HTTP tools: answers that depend on the query alone, after
a latency drawn from a Gamma distribution of shape 2, the same for the same query."""

from __future__ import annotations

import asyncio
import random
import threading
from typing import Any

from aiohttp import web

from workloads.text import words

ANSWER_CHARS = 240


class MockApi:
    """Serves `GET /<route>?q=...` on a thread of its own until it is closed.

    Args:
        mean_s: mean latency.
        seed: of the latencies.

    Attributes:
        url: where it listens.
        requests: how many it has answered.
    """

    def __init__(self, *, mean_s: float = 0.06, seed: int = 0) -> None:
        self.requests = 0
        self.url = ""
        self._mean_s = mean_s
        self._seed = seed
        self._loop = asyncio.new_event_loop()
        ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(ready,), daemon=True)
        self._thread.start()
        ready.wait()

    def close(self) -> None:
        """Stop serving."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def __enter__(self) -> MockApi:
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
        app = web.Application()
        app.router.add_get("/{route}", self._answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        server: Any = site._server  # pyright: ignore[reportPrivateUsage]
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        return runner

    async def _answer(self, request: web.Request) -> web.Response:
        route, query = request.match_info["route"], request.query.get("q", "")
        draw = random.Random(f"{self._seed}/{route}/{query}")
        # Gamma with shape 2 and scale mean / 2: never negative, with a tail.
        await asyncio.get_running_loop().create_task(_pause(draw.gammavariate(2, self._mean_s / 2)))
        self.requests += 1
        return web.json_response(words(f"{route}/{query}", ANSWER_CHARS))


async def _pause(seconds: float) -> None:
    done = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, done.set)
    await done.wait()
