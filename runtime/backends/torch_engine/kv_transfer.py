"""Prefixes saved and loaded: keys and values of tokens, as safetensors bytes.

Another engine with the same weights continues from them as from its own cache, so a plan can move a
prefix instead of computing it again. The bytes go through a file or a socket on this machine; they
say which model they are of, and a different one refuses them.
"""

from __future__ import annotations

import hashlib
import json
import socket
import struct
from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from runtime.backends.torch_engine.arrays import to_tensor
from runtime.backends.torch_engine.engine import Engine
from runtime.backends.torch_engine.errors import ENGINE
from runtime.backends.torch_engine.model import Model
from runtime.errors import BackendError

FORMAT = 1
_LENGTH = struct.Struct("!Q")


class KVTransferError(BackendError):
    """Saved keys and values are damaged, or of another model."""

    def __init__(self, message: str) -> None:
        super().__init__(message, backend=ENGINE)


def fingerprint(model: Model, namespace: str = "") -> str:
    """Which keys and values a model makes: its shape, precision, approximation, and a sample of
    its weights."""
    digest = hashlib.sha256(model.shape.digest().encode())
    digest.update(f"{model.precision} {namespace}".encode())
    rows = torch.linspace(0, model.shape.vocab_size - 1, 64, device=model.device).long()
    samples = [
        model.embedding[rows],
        model.norm.weight,
        *(m.input_norm.weight for m in model.layers),
    ]
    for tensor in samples:
        digest.update(tensor.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def export_prefix(engine: Engine, ids: Sequence[int]) -> bytes:
    """What the engine's cache holds of the prefix `ids`, from its start; perhaps nothing."""
    scheduler, pool = engine.scheduler, engine.pool
    if scheduler.cohort is not None:
        raise KVTransferError("prompts are between two layer groups: export when they are done")
    node, hit = engine.tree.descend(scheduler.root, np.asarray(ids, np.int64))
    runs = [n.slots for n in node.path()]
    slots = to_tensor(np.concatenate(runs) if runs else np.empty(0, np.int64))
    at = slots.to(pool.k.device)
    header = {"format": FORMAT, "model": fingerprint(engine.model, scheduler.namespace)}
    return save(
        {
            "ids": to_tensor(np.asarray(ids[:hit], np.int64)),
            "k": pool.k.index_select(1, at).cpu().contiguous(),
            "v": pool.v.index_select(1, at).cpu().contiguous(),
        },
        metadata={"halo": json.dumps(header)},
    )


def import_prefix(engine: Engine, data: bytes) -> int:
    """Put a saved prefix into the engine's cache, evicting older entries for it. Returns how many
    tokens are new. Raises `KVTransferError`."""
    scheduler, pool, tree = engine.scheduler, engine.pool, engine.tree
    tensors = _read(engine, data)
    ids, k, v = tensors["ids"].numpy(), tensors["k"], tensors["v"]
    node, hit = tree.descend(scheduler.root, ids)
    missing = len(ids) - hit
    if not missing:
        return 0
    tree.lock(node)
    try:
        if not scheduler.make_room_for_cache(missing):
            raise KVTransferError(
                f"{missing} tokens do not fit beside the running requests: {pool.free_slots} slots "
                "are free"
            )
        slots = pool.take(missing)
        at = to_tensor(slots, pool.k.device)
        pool.k.index_copy_(1, at, k[:, hit:].to(pool.k.device))
        pool.v.index_copy_(1, at, v[:, hit:].to(pool.v.device))
        tree.insert(node, ids[hit:].copy(), slots)
    finally:
        tree.unlock(node)
    return missing


def _read(engine: Engine, data: bytes) -> dict[str, torch.Tensor]:
    """The tensors of `data`, checked."""
    try:
        (size,) = struct.unpack_from("<Q", data)
        document = json.loads(data[8 : 8 + size])
        header = json.loads(document["__metadata__"]["halo"])
        tensors = load(data)
        n = len(tensors["ids"])
        shapes = {tuple(tensors[name].shape) for name in ("k", "v")}
        dtypes = {tensors[name].dtype for name in ("k", "v")}
    except (struct.error, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise KVTransferError(f"not a whole saved prefix: {error}") from error
    pool = engine.pool
    wanted = fingerprint(engine.model, engine.scheduler.namespace)
    if header.get("format") != FORMAT or header.get("model") != wanted:
        raise KVTransferError(
            f"the prefix is of model {header.get('model')} (format {header.get('format')}); this "
            f"engine has {wanted} (format {FORMAT}): weights, precision or approximation differ"
        )
    if shapes != {(pool.k.shape[0], n, *pool.k.shape[2:])} or dtypes != {pool.k.dtype}:
        raise KVTransferError(f"keys and values of {n} tokens have shapes {shapes}, {dtypes}")
    if n and not 0 <= int(tensors["ids"].min()) <= int(tensors["ids"].max()) < (
        engine.model.shape.vocab_size
    ):
        raise KVTransferError("token ids outside of the vocabulary")
    return tensors


def send(connection: socket.socket, data: bytes) -> None:
    """One message: its length, then its bytes."""
    connection.sendall(_LENGTH.pack(len(data)))
    connection.sendall(data)


def receive(connection: socket.socket, limit_bytes: int = 1 << 34) -> bytes:
    """One message of `send`. Raises `KVTransferError` when the other side ends early."""
    (size,) = _LENGTH.unpack(_receive(connection, _LENGTH.size))
    if size > limit_bytes:
        raise KVTransferError(f"a message of {size} bytes; at most {limit_bytes} are taken")
    return _receive(connection, cast("int", size))


def _receive(connection: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = connection.recv(min(1 << 20, size - len(parts)))
        if not part:
            raise KVTransferError(f"the connection ended after {len(parts)} of {size} bytes")
        parts += part
    return bytes(parts)
