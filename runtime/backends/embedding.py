"""Text embeddings on this machine: an ONNX sentence encoder, run by OpenVINO.

Texts that are asked for at the same moment are embedded as one batch. Embeddings are the mean of
the token vectors, scaled to length one, as the model's authors use it.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from runtime.errors import BackendError
from runtime.models.embedding_files import CONTEXT_TOKENS, NAME, embedding_folder

MAX_BATCH = 64


class Embedder:
    """One embedding model, loaded on first use. Belongs to one event loop."""

    def __init__(self, models_dir: Path | None = None, threads: int | None = None) -> None:
        self._models_dir = models_dir
        self._threads = threads
        self._loading: asyncio.Task[None] | None = None
        self._request: Any = None
        self._tokenizer: Any = None
        self._waiting: list[tuple[str, asyncio.Future[list[float]]]] = []
        self._running = False

    async def embed(self, text: str, model: str = "") -> list[float]:
        """The embedding of one text: 384 numbers, their squares summing to one."""
        if model not in ("", NAME):
            raise BackendError(
                f"no embedding model {model!r}; there is {NAME!r}", backend="embedding"
            )
        if self._loading is None:
            self._loading = asyncio.ensure_future(asyncio.to_thread(self._load))
        await asyncio.shield(self._loading)
        future: asyncio.Future[list[float]] = asyncio.get_running_loop().create_future()
        self._waiting.append((text, future))
        if not self._running:
            self._running = True
            try:
                while self._waiting:
                    await self._next_batch()
            finally:
                self._running = False
        return await future

    async def _next_batch(self) -> None:
        await asyncio.sleep(0)  # let those who ask at this moment join
        batch = self._waiting[:MAX_BATCH]
        del self._waiting[:MAX_BATCH]
        try:
            vectors = await asyncio.to_thread(self.embed_now, [text for text, _ in batch])
        except Exception as error:
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), vector in zip(batch, vectors, strict=True):
            if not future.done():
                future.set_result(vector)

    def _load(self) -> None:
        try:
            import openvino
            from tokenizers import Tokenizer
        except ImportError as error:
            raise BackendError(
                f"embeddings need the package {error.name}: pip install 'halo-flow[local]'",
                backend="embedding",
            ) from error
        folder = embedding_folder(self._models_dir)
        core = openvino.Core()
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        if self._threads:
            settings["INFERENCE_NUM_THREADS"] = self._threads
        compiled = core.compile_model(str(folder / "model.onnx"), "CPU", settings)
        tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.enable_truncation(CONTEXT_TOKENS)
        tokenizer.enable_padding()
        self._request = compiled.create_infer_request()
        self._tokenizer = tokenizer

    def load(self) -> None:
        """Load now, in this thread."""
        if self._request is None:
            self._load()

    def embed_now(self, texts: list[str]) -> list[list[float]]:
        """The embeddings of several texts, in this thread."""
        import numpy as np

        # Pairs of surrogates and the like are no text for a tokenizer.
        clean = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
        encoded = self._tokenizer.encode_batch(clean)
        ids = np.array([each.ids for each in encoded], dtype=np.int64)
        mask = np.array([each.attention_mask for each in encoded], dtype=np.int64)
        self._request.infer(
            {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        )
        hidden = self._request.get_output_tensor(0).data
        weights = mask[:, :, None].astype(np.float32)
        pooled = (hidden * weights).sum(axis=1) / np.maximum(weights.sum(axis=1), 1.0)
        norms = np.maximum(np.linalg.norm(pooled, axis=1, keepdims=True), 1e-12)
        return [[round(float(x), 6) for x in row] for row in pooled / norms]
