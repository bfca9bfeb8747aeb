"""What a GGUF file says of itself: metadata and tensors, read from its header alone.

The layout is that of the GGUF specification, versions 2 and 3: a magic, counts, key-value pairs,
tensor descriptions, then the aligned tensor data. Reading stops before the data, and checks that
the file is long enough to hold all of it, so that a truncated download is found here.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from runtime.errors import ModelFileError

_SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q",
    12: "<d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_MAX_STRING_BYTES = 1 << 28
_MAX_DIMENSIONS = 8

TENSOR_TYPES = {
    # number: (name, values a block, bytes a block), as in ggml's type table
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210), 16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136), 24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4),
    27: ("I64", 1, 8), 28: ("F64", 1, 8), 29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor's description. `shape` is innermost first, as the file has it; `offset` counts from
    `GgufHeader.data_start`."""

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    size_bytes: int


@dataclass(frozen=True)
class GgufHeader:
    """A GGUF file's metadata and tensors, and where in the file the data of the tensors begins."""

    path: Path
    metadata: dict[str, Any]
    tensors: tuple[GgufTensor, ...]
    data_start: int

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", ""))

    def number(self, key: str) -> int | None:
        """A whole number of the architecture's own keys, such as "context_length"."""
        value = self.metadata.get(f"{self.architecture}.{key}")
        return value if isinstance(value, int) else None

    @property
    def context_tokens(self) -> int | None:
        return self.number("context_length")

    @property
    def kv_values_per_token(self) -> int | None:
        """Values that the KV cache holds for each token; None when the file does not say."""
        layers, heads = self.number("block_count"), self.number("attention.head_count")
        width = self.number("embedding_length")
        if layers is None or heads is None or width is None:
            return None
        kv_heads = self.number("attention.head_count_kv") or heads
        key = self.number("attention.key_length") or width // heads
        value = self.number("attention.value_length") or width // heads
        return layers * kv_heads * (key + value)

    @property
    def chat_template(self) -> str | None:
        value = self.metadata.get("tokenizer.chat_template")
        return value if isinstance(value, str) else None

    @property
    def tokens(self) -> list[str]:
        """The vocabulary, as the file writes it (byte-level BPE keeps its byte letters)."""
        return cast("list[str]", self.metadata.get("tokenizer.ggml.tokens") or [])

    @property
    def token_types(self) -> list[int]:
        """Of each token: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte."""
        return cast("list[int]", self.metadata.get("tokenizer.ggml.token_type") or [])

    @property
    def special_tokens(self) -> dict[str, int]:
        """Texts that a tokenizer takes as one token wherever they stand: control tokens and
        user-defined ones."""
        tokens = self.tokens
        return {tokens[i]: i for i, kind in enumerate(self.token_types) if kind in (3, 4)}


def read_gguf(path: Path) -> GgufHeader:
    """The header of a GGUF file. Raises `ModelFileError` when it is no whole GGUF file."""
    try:
        size_bytes = path.stat().st_size
        with path.open("rb") as file:
            return _Reader(file, path, size_bytes).header()
    except OSError as error:
        raise ModelFileError(f"cannot read {path}: {error.strerror or error}") from error
    except (UnicodeDecodeError, MemoryError) as error:
        raise ModelFileError(f"{path} is damaged: {error}; fetch it again") from error


class _Reader:
    def __init__(self, file: BinaryIO, path: Path, size_bytes: int) -> None:
        self._file = file
        self._path = path
        self._size_bytes = size_bytes

    def header(self) -> GgufHeader:
        magic = self._file.read(4)
        if magic != b"GGUF":
            raise ModelFileError(
                f"{self._path} is not a GGUF file: it begins with {magic!r}, not b'GGUF'"
            )
        version = self._scalar(4)
        if version not in (2, 3):
            raise ModelFileError(
                f"{self._path} is GGUF version {version}; versions 2 and 3 (little-endian) are read"
            )
        n_tensors, n_pairs = self._scalar(10), self._scalar(10)
        if n_tensors > self._size_bytes or n_pairs > self._size_bytes:
            raise self._damaged(f"it announces {n_tensors} tensors and {n_pairs} metadata entries")
        metadata: dict[str, Any] = {}
        for _ in range(n_pairs):
            key = self._string()
            metadata[key] = self._value(self._scalar(4))
        tensors = [self._tensor() for _ in range(n_tensors)]
        alignment = metadata.get("general.alignment", 32)
        start = -(-self._file.tell() // alignment) * alignment
        needed = start + max((t.offset + t.size_bytes for t in tensors), default=0)
        if self._size_bytes < needed:
            raise ModelFileError(
                f"{self._path} is truncated: it has {self._size_bytes:,} bytes and its tensors "
                f"need {needed:,}; fetch it again"
            )
        return GgufHeader(self._path, metadata, tuple(tensors), start)

    def _tensor(self) -> GgufTensor:
        name = self._string()
        n_dimensions = self._scalar(4)
        if n_dimensions > _MAX_DIMENSIONS:
            raise self._damaged(f"tensor {name!r} has {n_dimensions} dimensions")
        shape = tuple(self._scalar(10) for _ in range(n_dimensions))
        number, offset = self._scalar(4), self._scalar(10)
        if number not in TENSOR_TYPES:
            raise ModelFileError(
                f"{self._path}: tensor {name!r} has type number {number}, which is not known here"
            )
        type_name, block_values, block_bytes = TENSOR_TYPES[number]
        n_values = 1
        for length in shape:
            n_values *= length
        size_bytes = n_values // block_values * block_bytes
        return GgufTensor(name, shape, type_name, offset, size_bytes)

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._scalar(kind)
        of, count = self._scalar(4), self._scalar(10)
        if count > self._size_bytes:
            raise self._damaged(f"an array has {count} elements")
        if of in (_STRING, _ARRAY):
            return [self._value(of) for _ in range(count)]
        if of not in _SCALARS:
            raise self._damaged(f"a metadata array has element type {of}")
        layout = f"<{count}{_SCALARS[of][1]}"
        return list(struct.unpack(layout, self._read(struct.calcsize(layout))))

    def _scalar(self, kind: int) -> Any:
        layout = _SCALARS.get(kind)
        if layout is None:
            raise self._damaged(f"a metadata value has type {kind}")
        return struct.unpack(layout, self._read(struct.calcsize(layout)))[0]

    def _string(self) -> str:
        length = self._scalar(10)
        if length > min(self._size_bytes, _MAX_STRING_BYTES):
            raise self._damaged(f"a text of {length} bytes")
        return self._read(length).decode("utf-8", errors="replace")

    def _read(self, n_bytes: int) -> bytes:
        data = self._file.read(n_bytes)
        if len(data) < n_bytes:
            raise ModelFileError(
                f"{self._path} is truncated: it ends within its header, after "
                f"{self._size_bytes:,} bytes; fetch it again"
            )
        return data

    def _damaged(self, what: str) -> ModelFileError:
        return ModelFileError(f"{self._path} is damaged: {what}; fetch it again")
