"""Reading safetensors: a header of JSON, then the tensors' bytes. Nothing in it is executed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from runtime.errors import ModelFileError

_MAX_HEADER_BYTES = 100_000_000


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a Hugging Face folder. Raises `ModelFileError` when one is missing."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        try:
            names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelFileError(f"{index} is not an index of weights: {error!r}") from error
    else:
        names = ["model.safetensors"]
    missing = [name for name in names if not (folder / str(name)).is_file()]
    if missing:
        raise ModelFileError(
            f"{folder} has no {', '.join(map(str, missing))}; a Hugging Face folder has "
            "config.json, tokenizer.json and weights as safetensors"
        )
    return [folder / str(name) for name in names]


def read_tensors(path: Path) -> Iterator[tuple[str, Any]]:
    """(name, numpy array) of each tensor; bfloat16 comes as float32, without loss. Raises
    `ModelFileError`."""
    import numpy as np

    types = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= min(_MAX_HEADER_BYTES, size_bytes - 8):
            raise ModelFileError(f"{path} is no whole safetensors file; fetch it again")
        try:
            header = cast("dict[str, Any]", json.loads(file.read(length)))
        except ValueError as error:
            raise ModelFileError(f"{path} is damaged: {error}; fetch it again") from error
    header.pop("__metadata__", None)
    start = 8 + length
    ends = [int(entry["data_offsets"][1]) for entry in header.values()]
    if size_bytes < start + max(ends, default=0):
        raise ModelFileError(
            f"{path} is truncated: it has {size_bytes:,} bytes and its tensors need "
            f"{start + max(ends):,}; fetch it again"
        )
    for name, entry in header.items():
        if entry["dtype"] not in types:
            raise ModelFileError(
                f"{path}: tensor {name!r} has type {entry['dtype']}; F32, F16 and BF16 are read"
            )
        raw = np.memmap(
            path,
            dtype=types[entry["dtype"]],
            mode="r",
            offset=start + int(entry["data_offsets"][0]),
            shape=tuple(entry["shape"]),
        )
        if entry["dtype"] == "BF16":
            # A bfloat16 is the upper half of a float32.
            yield name, (np.asarray(raw).astype(np.uint32) << 16).view(np.float32)
        else:
            yield name, np.asarray(raw)
