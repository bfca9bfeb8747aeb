"""A local HTTP service for the workloads' HTTP tools: answers that depend on the query alone, after
a latency drawn from a Gamma distribution of shape 2, the same for the same query."""

from __future__ import annotations

import asyncio
import random

from aiohttp import web

from workloads.text import words
from workloads.threaded_app import ThreadedApp

ANSWER_CHARS = 240


class MockApi(ThreadedApp):
    """Serves `GET /<route>?q=...` on a thread of its own until it is closed.

    Args:
        mean_s: mean latency.
        seed: of the latencies.

    Attributes:
        requests: how many it has answered.
    """

    def __init__(self, *, mean_s: float = 0.06, seed: int = 0) -> None:
        self.requests = 0
        self._mean_s = mean_s
        self._seed = seed
        app = web.Application()
        app.router.add_get("/{route}", self._answer)
        super().__init__(app)

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
