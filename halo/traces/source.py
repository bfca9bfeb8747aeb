"""Files of traces: their beginning, by which formats are recognised, and their lines."""

from __future__ import annotations

import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

from halo.errors import InputError
from halo.traces.json_shapes import as_dict, as_list
from halo.traces.record import Problems

HEAD_BYTES = 256 * 1024
LONGEST_LINE_BYTES = 256 * 1024 * 1024
_STRUCTURE = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],]')


@dataclass(slots=True)
class Head:
    """The beginning of a file, parsed as far as it goes.

    Attributes:
        lines: JSON objects of the first lines, when the file is JSON Lines.
        document: what is known of a single JSON document; its end may be missing.
        first_broken: why the first line that is not JSON is not.
    """

    is_run_directory: bool = False
    is_zip: bool = False
    is_gzip: bool = False
    lines: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    document: Any = None
    first_broken: str = ""

    @property
    def objects(self) -> list[dict[str, Any]]:
        """The first objects, of lines or of a document (or the items of its list)."""
        if self.lines:
            return self.lines
        document: object = self.document
        if isinstance(document, dict):
            return [cast("dict[str, Any]", document)]
        return [as_dict(each) for each in as_list(document) if isinstance(each, dict)]

    def describe(self) -> str:
        """What the file looks like, for messages."""
        if self.is_zip:
            return "a ZIP archive"
        if self.lines:
            return f"JSON Lines with the keys {_keys(self.lines[0])}"
        document: object = self.document
        if isinstance(document, dict):
            return f"a JSON object with the keys {_keys(cast('dict[str, Any]', document))}"
        if isinstance(document, list):
            return "a JSON list" + (f" of {_keys(self.objects[0])}" if self.objects else "")
        return f"not JSON ({self.first_broken or 'empty'})"


def _keys(value: dict[str, Any]) -> str:
    names = ", ".join(str(key)[:40] for key in list(value)[:8])
    return f"[{names}{', ...' if len(value) > 8 else ''}]"


def read_head(path: Path) -> Head:
    """Look at the beginning of `path`. Raises `InputError` when it cannot be read."""
    if path.is_dir():
        if (path / "events.sqlite").is_file():
            return Head(is_run_directory=True)
        raise InputError(f"{path} is a folder without a run's journal; give files or a glob")
    try:
        with path.open("rb") as stream:
            magic = stream.read(4)
        if magic == b"PK\x03\x04":
            return Head(is_zip=True)
        head = Head(is_gzip=magic[:2] == b"\x1f\x8b")
        with path.open("rb") as stream:
            data = stream.read(HEAD_BYTES)
        if head.is_gzip:  # what can be unpacked of it, also when its end is missing
            data = zlib.decompressobj(31).decompress(data, HEAD_BYTES)
        complete = len(data) < HEAD_BYTES
    except (OSError, zlib.error) as error:
        raise InputError(f"{path}: cannot read it: {error}") from error
    text = data.decode("utf-8-sig", "replace")
    if not text.strip():
        head.first_broken = "empty"
        return head
    lines = text.split("\n")
    whole = lines if complete else lines[:-1]
    parsed = [_object(line, head) for line in whole[:40] if line.strip()]
    objects = [each for each in parsed if each is not None]
    content_lines = sum(1 for line in lines if line.strip())
    if objects and (content_lines > 1 or not complete) and parsed[0] is not None:
        head.lines = objects
        return head
    head.document = partial_json(text)
    if content_lines == 1 and objects:
        head.lines = objects  # one line is a document, and JSON Lines as well
    if head.objects:
        return head
    head.lines = objects  # the first line is broken, others are not
    return head


def _object(line: str, head: Head) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        head.first_broken = head.first_broken or str(error)
        return None
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None


def partial_json(text: str) -> Any:
    """The beginning of a JSON document as a value: cut after the last complete part, with what is
    open closed. None when even that is not JSON.

    Example:
        >>> partial_json('{"a": [1, 2, {"b": "unfini')
        {'a': [1, 2, {}]}
    """
    try:
        return json.loads(text)
    except RecursionError:
        return None
    except ValueError:
        pass
    closers: list[str] = []
    cut, closing = 0, ""
    end = 0
    for match in _STRUCTURE.finditer(text):
        token = match.group()
        gap = text[end : match.start()]
        end = match.end()
        if '"' in gap:
            break  # a string that does not end
        if token in "{[":
            closers.append("}" if token == "{" else "]")
            if len(closers) > 64:
                break
            cut, closing = match.end(), "".join(reversed(closers))
        elif token in "}]":
            if not closers or closers.pop() != token:
                return None
            cut, closing = match.end(), "".join(reversed(closers))
            if not closers:
                break
        elif token == ",":
            cut, closing = match.start(), "".join(reversed(closers))
    try:
        return json.loads(text[:cut] + closing)
    except (ValueError, RecursionError):
        return None


def open_bytes(path: Path) -> BinaryIO:
    """A file for reading, uncompressed on the way when it is gzip."""
    with path.open("rb") as stream:
        packed = stream.read(2) == b"\x1f\x8b"
    if packed:
        return cast("BinaryIO", gzip.open(path, "rb"))
    return cast("BinaryIO", io.BufferedReader(io.FileIO(path), 1 << 20))


@dataclass(slots=True)
class Source:
    """A file, or the lines that begin within a range of its bytes.

    Attributes:
        start, end: first byte, and the byte before which a line must begin; None is the file's end.
        lines_before: lines that end before `start`; None counts them.
        problems: what could not be used.
    """

    path: Path
    problems: Problems
    start: int = 0
    end: int | None = None
    lines_before: int | None = None

    @property
    def name(self) -> str:
        return str(self.path)

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """(number from 1, line) of every line that is not empty, one in memory at a time."""
        number = 0
        with open_bytes(self.path) as stream:
            if self.start and self.lines_before is None:
                number = count_lines(stream, self.start)
            elif self.start:
                stream.seek(self.start)
                number = self.lines_before or 0
            offset = self.start
            while self.end is None or offset < self.end:
                try:
                    line = stream.readline(LONGEST_LINE_BYTES)
                except (OSError, EOFError, zlib.error) as error:
                    self.problems.add(f"{self.name}:{number + 1}", f"the file ends here: {error}")
                    return
                if not line:
                    return
                number += 1
                offset += len(line)
                if len(line) == LONGEST_LINE_BYTES and not line.endswith(b"\n"):
                    self.problems.add(
                        f"{self.name}:{number}", f"longer than {LONGEST_LINE_BYTES:,} bytes"
                    )
                    while line and not line.endswith(b"\n"):
                        line = stream.readline(LONGEST_LINE_BYTES)
                        offset += len(line)
                    continue
                if number == 1 and line.startswith(b"\xef\xbb\xbf"):
                    line = line[3:]
                if not line.isspace():
                    yield number, line

    def objects(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """(number, object) of every line that is a JSON object; others are problems."""
        for number, line in self.lines():
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                self.problems.add(f"{self.name}:{number}", f"not JSON: {error}")
                continue
            if isinstance(value, dict):
                yield number, cast("dict[str, Any]", value)
            else:
                self.problems.add(
                    f"{self.name}:{number}", f"a JSON {type(value).__name__}, not an object"
                )


def count_lines(stream: BinaryIO, size: int) -> int:
    """Lines that end within the next `size` bytes; leaves the stream after them."""
    count, left = 0, size
    while left:
        block = stream.read(min(left, 1 << 20))
        if not block:
            break
        count += _count_newlines(block)
        left -= len(block)
    return count


_MOST_FINDS = 1000


def _count_newlines(block: bytes) -> int:
    """Newlines of a block. Looking for the next one is faster than `bytes.count`, which looks at
    every byte, as long as lines are long."""
    found, place = 0, block.find(b"\n")
    while place >= 0 and found < _MOST_FINDS:
        found += 1
        place = block.find(b"\n", place + 1)
    return found + block.count(b"\n", place) if place >= 0 else found


def split_lines(path: Path, chunk_bytes: int) -> list[tuple[int, int | None]]:
    """Ranges of about `chunk_bytes` that begin at the beginning of a line."""
    size = path.stat().st_size
    if size <= chunk_bytes:
        return [(0, None)]
    starts = [0]
    with path.open("rb") as stream:
        for offset in range(chunk_bytes, size, chunk_bytes):
            if offset <= starts[-1]:
                continue
            stream.seek(offset)
            line = stream.readline(LONGEST_LINE_BYTES)
            start = offset + len(line)
            if start < size and line.endswith(b"\n"):
                starts.append(start)
    return list(zip(starts, [*starts[1:], None], strict=True))
