"""The engine's process: reads requests from standard input, steps the engine, writes events.

OpenVINO holds Python's global lock while it computes a step, which takes up to a second; in the
process of the run, the journal, the tools and the progress display would stand still meanwhile. A
process of its own also means that a crash of native code fails the calls in it, not the run.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
from typing import BinaryIO

from runtime.backends.openvino_engine import Engine, open_engine
from runtime.backends.openvino_protocol import Event, decode, encode, request_from
from runtime.backends.openvino_settings import EngineSettings
from runtime.errors import BackendError


def main() -> None:
    """Serve until standard input ends."""
    out = _private_output()
    settings = EngineSettings.from_json(sys.argv[1])
    try:
        engine = open_engine(settings)
    except (BackendError, ImportError) as error:
        _write(out, {"event": "failed", "message": str(error)})
        return
    _write(out, {"event": "ready"})
    inbox: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
    threading.Thread(target=_read_all, args=(inbox,), daemon=True).start()
    serve(engine, inbox, out)
    out.flush()
    # Native threads and a gigabyte of weights need no orderly end.
    os._exit(0)


def serve(engine: Engine, inbox: queue.SimpleQueue[Event | None], out: BinaryIO) -> None:
    """Step the engine while it has work, taking messages between steps; None ends it."""
    while True:
        message = inbox.get() if not engine.busy else _next(inbox)
        while message is not _NOTHING:
            if message is None:
                return
            event = _handle(engine, message)
            if event is not None:
                _write(out, event)
            message = _next(inbox)
        if not engine.busy:
            continue
        for event in engine.step() or [{"event": "alive"}]:
            _write(out, event)


def _handle(engine: Engine, message: Event) -> Event | None:
    if message["op"] == "cancel":
        engine.cancel(message["id"])
        return None
    return engine.add(message["id"], request_from(message["request"]))


_NOTHING: Event = {}


def _next(inbox: queue.SimpleQueue[Event | None]) -> Event | None:
    try:
        return inbox.get_nowait()
    except queue.Empty:
        return _NOTHING


def _read_all(inbox: queue.SimpleQueue[Event | None]) -> None:
    for line in sys.stdin.buffer:
        inbox.put(decode(line))
    inbox.put(None)


def _private_output() -> BinaryIO:
    """Standard output, kept for events: what native code prints there goes to standard error."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return out


def _write(out: BinaryIO, event: Event) -> None:
    out.write(encode(event))
    out.flush()


if __name__ == "__main__":
    main()
