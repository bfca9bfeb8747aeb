"""How fast threads hand the interpreter to each other.

A thread that comes back from outside Python (a query that has ended, say) waits for the interpreter
until whoever has it lets go: up to `sys.getswitchinterval()`, 5 ms by default. A query comes back
several times, so beside a busy event loop one of 2 ms takes 20.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Generator

HAND_OVER_S = 0.0005
"""Short against a query, and long against the switch itself, which costs microseconds."""

_lock = threading.Lock()
_users = 0
_usual_s = 0.0


@contextlib.contextmanager
def quick_hand_overs() -> Generator[None, None, None]:
    """Around work in a thread that goes in and out of Python: hand-overs take `HAND_OVER_S` at most
    while any such block is open. The interval is the whole interpreter's; it is set back after the
    last block, unless somebody else has changed it meanwhile."""
    global _users, _usual_s
    with _lock:
        _users += 1
        if _users == 1:
            _usual_s = sys.getswitchinterval()
            sys.setswitchinterval(min(_usual_s, HAND_OVER_S))
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users and _is_ours(sys.getswitchinterval()):
                sys.setswitchinterval(_usual_s)


def _is_ours(interval_s: float) -> bool:
    # The interpreter keeps whole microseconds.
    return abs(interval_s - min(_usual_s, HAND_OVER_S)) < 2e-6
