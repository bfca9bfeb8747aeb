"""Prefixes saved in one engine and loaded in another: answers stay, damage is kept out."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import tiny_models
from test_exactness import engine_of
from tiny_models import ANSWER_TOKENS, Tiny

from runtime.backends.torch_engine.kv_transfer import (
    KVTransferError,
    export_prefix,
    import_prefix,
    receive,
    send,
)
from runtime.backends.torch_engine.sequence import GenerationRequest

PROMPT = [int(i) for i in np.random.default_rng(3).integers(0, tiny_models.VOCAB, 80)]


def saved(tiny: Tiny) -> bytes:
    engine = engine_of(tiny)
    engine.generate([GenerationRequest(PROMPT, 1)])
    return export_prefix(engine, PROMPT)


def test_an_imported_prefix_gives_identical_answers(tiny: Tiny) -> None:
    request = GenerationRequest([*PROMPT, 9, 4], ANSWER_TOKENS)
    (fresh,) = engine_of(tiny).generate([request])
    other = engine_of(tiny)
    assert import_prefix(other, saved(tiny)) == len(PROMPT)
    assert import_prefix(other, saved(tiny)) == 0  # it is there already
    (moved,) = other.generate([request])
    assert moved.ids == fresh.ids
    assert (fresh.cached_tokens, moved.cached_tokens) == (0, len(PROMPT))
    other.check()


def test_what_a_cache_has_in_part_is_completed(tiny: Tiny) -> None:
    other = engine_of(tiny)
    other.generate([GenerationRequest(PROMPT[:30], 1)])
    assert import_prefix(other, saved(tiny)) == len(PROMPT) - 30
    other.check()


def test_an_import_evicts_but_never_takes_from_running_requests(tiny: Tiny) -> None:
    data, other = saved(tiny), engine_of(tiny, 110)
    other.generate([GenerationRequest(list(range(90)), 1)])
    assert import_prefix(other, data) == len(PROMPT)
    busy = engine_of(tiny, 110)
    busy.submit(GenerationRequest(list(range(90)), 10))
    busy.step()
    with pytest.raises(KVTransferError, match="do not fit"):
        import_prefix(busy, data)
    busy.check()


def test_a_prefix_moves_between_processes(tiny: Tiny, tmp_path: Path) -> None:
    """The other engine is another interpreter, which loads the same checkpoint and gets the bytes
    over a socket."""
    script = f"""
import socket, sys
sys.path.insert(0, {str(Path(tiny_models.__file__).parent)!r})
import pathlib, tiny_models
from runtime.backends.torch_engine.engine import Engine, EngineConfig
from runtime.backends.torch_engine.kv_transfer import import_prefix, receive
from runtime.backends.torch_engine.sequence import GenerationRequest
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as connection:
    data = receive(connection)
engine = Engine(tiny_models.load(pathlib.Path(sys.argv[2])), lambda: 0.0, EngineConfig(500))
import_prefix(engine, data)
result, = engine.generate([GenerationRequest({[*PROMPT, 9, 4]!r}, {ANSWER_TOKENS})])
print(result.ids, result.cached_tokens)
"""
    data = saved(tiny)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(120)

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                send(connection, data)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        port = str(server.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "-c", script, port, str(tiny.directory)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        thread.join()
    (fresh,) = engine_of(tiny).generate([GenerationRequest([*PROMPT, 9, 4], ANSWER_TOKENS)])
    assert done.stdout.split() == f"{fresh.ids} {len(PROMPT)}".split()


def test_damaged_and_foreign_bytes_are_refused(tiny: Tiny, tiny_of: object) -> None:
    data, engine = saved(tiny), engine_of(tiny)
    for bad in (b"", b"\0" * 40, data[:100], data[:-10]):
        with pytest.raises(KVTransferError, match="not a whole"):
            import_prefix(engine, bad)
    other = engine_of(tiny_of("llama"))  # type: ignore[operator]
    with pytest.raises(KVTransferError, match="weights, precision or approximation"):
        import_prefix(other, data)
    (size,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"]["halo"] = header["__metadata__"]["halo"].replace("1,", "2,", 1)
    text = json.dumps(header).encode()
    with pytest.raises(KVTransferError, match="format 2"):
        import_prefix(engine, struct.pack("<Q", len(text)) + text + data[8 + size :])
    assert engine.pool.free_slots == engine.pool.n_slots


def test_a_connection_that_ends_early_is_an_error() -> None:
    left, right = socket.socketpair()
    with left, right:
        left.sendall(struct.pack("!Q", 100) + b"abc")
        left.close()
        with pytest.raises(KVTransferError, match="3 of 100 bytes"):
            receive(right)
