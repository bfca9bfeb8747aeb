"""Server-sent events, as far as engines use them: `data:` lines between blank lines.

The reader takes bytes as they come, cut anywhere: inside a line, an event or a character.
"""

from __future__ import annotations

DONE = "[DONE]"
MAX_EVENT_BYTES = 64 * 1024 * 1024


class EventReader:
    """Bytes in, the data of whole events out.

    An event is whole at its blank line: what a broken connection cut off is never handed out.
    Comments (keep-alives) and fields other than `data` are skipped.

    Example:
        >>> reader = EventReader()
        >>> reader.feed(b'data: {"a": 1}\\n\\n: ping\\n\\nda')
        ['{"a": 1}']
        >>> reader.feed(b"ta: [DONE]\\r\\n\\r\\n")
        ['[DONE]']
    """

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> list[str]:
        """The data of the events that `chunk` completes. Raises `ValueError` on an event without
        an end."""
        buffer = self._rest + chunk if self._rest else chunk
        lines = buffer.split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) > MAX_EVENT_BYTES:
            raise ValueError(f"an event of more than {MAX_EVENT_BYTES} bytes")
        events: list[str] = []
        for line in lines:
            line = line.rstrip(b"\r")
            if not line:
                if self._data:
                    events.append("\n".join(self._data))
                    self._data.clear()
            elif line.startswith(b"data:"):
                value = line[6:] if line[5:6] == b" " else line[5:]
                self._data.append(value.decode("utf-8", errors="replace"))
        return events
