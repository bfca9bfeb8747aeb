"""From the name of a model to its weights and its tokenizer.

A name is that of a model in the store, or the path of a GGUF file or of a Hugging Face checkpoint
(a directory with `config.json`, safetensors and `tokenizer.json`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from runtime.backends.torch_engine.errors import ENGINE, bad_file
from runtime.backends.torch_engine.linear import Precision
from runtime.backends.torch_engine.model import Model
from runtime.backends.torch_engine.tokenizer import Tokenizer, directory_tokenizer, gguf_tokenizer
from runtime.backends.torch_engine.weights import (
    SafetensorsSource,
    WeightSource,
    read_config,
    read_gguf_weights,
)
from runtime.errors import ModelNotFoundError
from runtime.models.gguf_file import read_gguf
from runtime.models.store import ModelStore


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """Weights on their device, and the tokenizer."""

    model: Model
    tokenizer: Tokenizer


def find_model(
    name: str, models_dir: Path | None = None, *, announce: Callable[[str], None] | None = None
) -> Path:
    """The file or directory of a model; one of the catalogue that is not there is fetched when
    `announce` is given. Raises `BackendError`."""
    path = Path(name).expanduser()
    if path.suffix == ".gguf" or (path / "config.json").is_file():
        if not path.exists():
            raise ModelNotFoundError(f"no file {path}", backend=ENGINE)
        return path
    if len(path.parts) > 1:
        raise bad_file(
            f"{path}: neither a GGUF file nor a directory with config.json (a Hugging Face "
            "checkpoint)"
        )
    store = ModelStore(models_dir, say=announce)
    stored = store.find(name)
    if stored is not None:
        return stored.weights
    entry = store.entry(name)
    if entry is None:
        raise store.unknown(name)
    if announce is None:
        raise ModelNotFoundError(
            f"model {name!r} has not been fetched: halo models pull {name}", backend=ENGINE
        )
    announce(f"fetching model {name}: {entry.download_bytes / 1e6:,.0f} MB")
    return store.pull(name).weights


def load_model(
    path: Path, precision: Precision, device: torch.device, *, keep_projections: bool = False
) -> LoadedModel:
    """Read a model. `keep_projections` is needed for SwiftKV. Raises `ModelFileError`."""
    if path.is_dir():
        shape = read_config(path)
        tokenizer = directory_tokenizer(path)
        source: WeightSource = SafetensorsSource(path)
    else:
        header = read_gguf(path)
        tokenizer = gguf_tokenizer(header)
        shape, source = read_gguf_weights(header)
    model = Model(shape, source, precision, device, keep_projections=keep_projections)
    return LoadedModel(model, tokenizer)
