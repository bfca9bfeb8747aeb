"""A local HTTP service for the workloads' HTTP tools: answers that depend on the query alone, after
a latency drawn from a Gamma distribution of shape 2, the same for the same query.

    python -m workloads.mock_api --mean-s 0.06

It is a process of its own, as a service is: in the client's process it would take the interpreter
from what is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import subprocess
import sys
from pathlib import Path
from typing import Self

from aiohttp import web

from workloads.text import words

ANSWER_CHARS = 240
CHECKOUT = Path(__file__).parent.parent


class MockApi:
    """The service in a process of its own, on a free port, until it is closed. A context manager.

    Args:
        mean_s: mean latency.
        seed: of the latencies.

    Attributes:
        url: where it listens.
    """

    def __init__(self, *, mean_s: float = 0.06, seed: int = 0) -> None:
        command = [sys.executable, "-m", __spec__.name, f"--mean-s={mean_s}", f"--seed={seed}"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=CHECKOUT
        )
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()
        if not self.url:
            raise RuntimeError(f"the HTTP service ended with {self._process.wait()}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop serving."""
        self._process.terminate()
        self._process.communicate()


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


async def serve(mean_s: float, seed: int) -> None:
    """Tell where it listens, and serve until the parent closes the input, or ends."""
    runner = web.AppRunner(service(mean_s, seed), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, backlog=4096)
    await site.start()
    print("http://{}:{}".format(*runner.addresses[0]), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await runner.cleanup()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--mean-s", type=float, default=0.06)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    asyncio.run(serve(given.mean_s, given.seed))
