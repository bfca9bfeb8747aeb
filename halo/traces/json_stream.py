"""A large JSON document item by item: the elements of its list, or of one list within its object.

The standard parser decodes one item at a time out of a buffer that holds little more than that
item; a document that breaks off gives the items before the break.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal

from halo.traces.record import Problems
from halo.traces.source import open_bytes

_BLOCK = 1 << 20
_SPACE = re.compile(r"[ \t\r\n]*")
LARGEST_ITEM_CHARACTERS = 512 * 1024 * 1024


class BrokenDocumentError(ValueError):
    """The document is not JSON from here on."""


class _Buffer:
    """Text of a stream, from the current place on."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._decoder = json.JSONDecoder()
        self._pending = b""
        self.text = ""
        self.place = 0
        self.done = False

    def fill(self, least: int | None = None) -> bool:
        """Read on; False at the end of the stream."""
        if self.done:
            return False
        data = self._stream.read(least or _BLOCK)
        if not data:
            self.done = True
            if self._pending:
                self.text = self.text[self.place :] + self._pending.decode("utf-8", "replace")
                self.place, self._pending = 0, b""
            return False
        data = self._pending + data
        cut = len(data)  # not within a character
        while cut and cut > len(data) - 4 and data[cut - 1] & 0xC0 == 0x80:
            cut -= 1
        if cut and data[cut - 1] & 0x80:
            cut -= 1
        elif cut != len(data):
            cut = len(data)
        if cut == 0:
            cut = len(data)
        self._pending = data[cut:]
        self.text = self.text[self.place :] + data[:cut].decode("utf-8", "replace")
        self.place = 0
        return True

    def peek(self) -> str:
        """The next character that is not space; empty at the end."""
        while True:
            match = _SPACE.match(self.text, self.place)
            self.place = match.end() if match else self.place
            if self.place < len(self.text):
                return self.text[self.place]
            if not self.fill():
                if self.place < len(self.text):
                    continue
                return ""

    def take(self, expected: str) -> None:
        found = self.peek()
        if found != expected:
            raise BrokenDocumentError(f"expected {expected!r}, found {found or 'the end'!r}")
        self.place += 1

    def value(self) -> Any:
        """The value at this place."""
        self.peek()
        block = _BLOCK
        while True:
            try:
                value, end = self._decoder.raw_decode(self.text, self.place)
            except RecursionError:
                raise BrokenDocumentError("nested too deeply") from None
            except ValueError as error:
                if len(self.text) - self.place > LARGEST_ITEM_CHARACTERS:
                    raise BrokenDocumentError(
                        f"an item is longer than {LARGEST_ITEM_CHARACTERS:,} characters"
                    ) from None
                if not self.fill(block):
                    raise BrokenDocumentError(str(error)) from None
                block = min(block * 2, 64 * _BLOCK)  # so that a long item is not parsed too often
                continue
            if end == len(self.text) and not self.done and self.fill(block):
                continue  # a number may go on
            self.place = end
            return value


def stream_items(
    path: Path, problems: Problems, list_key: str | None = None
) -> Iterator[tuple[Literal["item", "field"], str | int, Any]]:
    """("item", index, value) of each element of the document's list, or of the list under
    `list_key` of the document's object; the object's other values come as ("field", key, value).
    What breaks off is a problem."""
    with open_bytes(path) as stream:
        buffer = _Buffer(stream)
        try:
            first = buffer.peek()
            if first == "\ufeff":
                buffer.place += 1
                first = buffer.peek()
            if first == "[" and list_key is None:
                yield from _items(buffer)
            elif first == "{":
                buffer.take("{")
                while buffer.peek() != "}":
                    key = buffer.value()
                    buffer.take(":")
                    if key == list_key and buffer.peek() == "[":
                        yield from _items(buffer)
                    else:
                        yield "field", str(key), buffer.value()
                    if buffer.peek() == ",":
                        buffer.place += 1
                    elif buffer.peek() != "}":
                        raise BrokenDocumentError(f"expected ',', found {buffer.peek()!r}")
            else:
                raise BrokenDocumentError(f"expected an object or a list, found {first!r}")
        except (BrokenDocumentError, EOFError, OSError, zlib.error) as error:
            problems.add(str(path), f"the document breaks off: {error}")


def _items(buffer: _Buffer) -> Iterator[tuple[Literal["item"], int, Any]]:
    buffer.take("[")
    index = 0
    while buffer.peek() != "]":
        yield "item", index, buffer.value()
        index += 1
        if buffer.peek() == ",":
            buffer.place += 1
        elif buffer.peek() != "]":
            raise BrokenDocumentError(
                f"expected ',' after item {index - 1}, found {buffer.peek() or 'the end'!r}"
            )
    buffer.place += 1
