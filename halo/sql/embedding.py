"""Embeddings for AI_EMBED and AI_SIMILARITY: a tool over the embedding model of the configuration.

The simulated engine has a simulated embedding: made of the hashes of a text's words, so that texts
with words in common are near each other, and nothing is loaded.
"""

from __future__ import annotations

import hashlib
import math
import re
from typing import TYPE_CHECKING, Any

from halo.config import Config
from planner.logical import Effect
from runtime.tools import ToolSpec

if TYPE_CHECKING:
    from runtime.backends.embedding import Embedder

TOOL = "halo_embed"
SIMULATED_DIMENSIONS = 32


def embed_tool(config: Config) -> ToolSpec:
    """The tool that embeds one text."""
    simulated = config.engine == "simulated"
    loaded: list[Embedder] = []

    async def embed(text: str, model: str = "") -> list[float]:
        if simulated:
            return simulated_embedding(text)
        if not loaded:
            from runtime.backends.embedding import Embedder

            loaded.append(Embedder(config.models_dir, config.threads))
        return await loaded[0].embed(text, model)

    kind: dict[str, Any] = {"type": "string"}
    return ToolSpec(
        TOOL,
        embed,
        "Embeds a text.",
        {"type": "object", "properties": {"text": kind, "model": kind}, "required": ["text"]},
        effect=Effect.PURE,
        timeout_s=120.0,
        max_concurrency=64,
        version="simulated" if simulated else "1",
    )


def simulated_embedding(text: str) -> list[float]:
    """A made-up embedding of length one: a sum of pseudo-random vectors of the text's words."""
    total = [0.0] * SIMULATED_DIMENSIONS
    for word in re.findall(r"\w+", text.lower()) or [text]:
        digest = hashlib.sha256(word.encode(errors="surrogatepass")).digest()
        for index in range(SIMULATED_DIMENSIONS):
            total[index] += digest[index] / 127.5 - 1.0
    norm = math.sqrt(math.fsum(x * x for x in total)) or 1.0
    return [round(x / norm, 7) for x in total]
