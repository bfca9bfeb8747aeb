"""A local HTTP service for the workloads' HTTP tools: answers that depend on the query alone, after
a latency drawn from a Gamma distribution of shape 2, the same for the same query.

    python -m workloads.mock_api MEAN_S SEED
"""

from __future__ import annotations

import asyncio
import random
import sys

from aiohttp import web

from workloads.child_service import ChildService, serve_until_closed
from workloads.text import words
from workloads.threaded_app import ThreadedApp

ANSWER_CHARS = 240


class MockApi(ChildService):
    """The service in a process of its own, on a free port, until it is closed.

    Args:
        mean_s: mean latency.
        seed: of the latencies.
    """

    def __init__(self, *, mean_s: float = 0.06, seed: int = 0) -> None:
        super().__init__("workloads.mock_api", str(mean_s), str(seed))


def service(mean_s: float, seed: int) -> web.Application:
    """Serves `GET /<route>?q=...`."""

    async def answer(request: web.Request) -> web.Response:
        route, query = request.match_info["route"], request.query.get("q", "")
        draw = random.Random(f"{seed}/{route}/{query}")
        # Gamma with shape 2 and scale mean / 2: never negative, with a tail.
        await asyncio.sleep(draw.gammavariate(2, mean_s / 2))
        return web.json_response(words(f"{route}/{query}", ANSWER_CHARS))

    app = web.Application()
    app.router.add_get("/{route}", answer)
    return app


if __name__ == "__main__":
    with ThreadedApp(service(float(sys.argv[1]), int(sys.argv[2])), backlog=4096) as served:
        serve_until_closed(served.url)
