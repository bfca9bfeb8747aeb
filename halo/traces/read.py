"""Trace files of any known format, recognised by their content."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from halo.errors import InputError, TraceFormatError
from halo.traces import (
    anthropic_messages,
    claude_code,
    gemini_cli,
    halo_run,
    inspect_log,
    mini_swe_agent,
    openai_chat,
    otlp,
    swe_agent,
    tau_bench,
)
from halo.traces.build import check_pairs, settle_cached_tokens
from halo.traces.record import Problems, Trace
from halo.traces.source import Head, Source, count_lines, read_head, split_lines


@dataclass(frozen=True, slots=True)
class Reader:
    """A format.

    Attributes:
        mismatch: why a file is not of this format; empty when it is.
        is_splittable: whether lines of the file can be read apart from each other.
        read: the traces of a file, or of a range of its lines.
    """

    name: str
    mismatch: Callable[[Head], str]
    is_splittable: Callable[[Head], bool]
    read: Callable[[Source, Head], Iterator[Trace]]


READERS = tuple(
    Reader(module.NAME, module.mismatch, module.is_splittable, module.read)
    for module in (
        halo_run,
        otlp,
        claude_code,
        gemini_cli,
        inspect_log,
        tau_bench,
        swe_agent,
        mini_swe_agent,
        anthropic_messages,  # before openai_chat, whose conversations also have messages
        openai_chat,
    )
)


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of the work: a file, or a range of its lines.

    Attributes:
        lines_before: lines of the file before the range; None when nobody counted them.
    """

    path: Path
    reader: str
    start: int = 0
    end: int | None = None
    lines_before: int | None = None


def recognise(path: Path, head: Head | None = None) -> Reader:
    """The reader of a file. Raises `TraceFormatError` with what was tried, and `InputError` when
    the file cannot be read."""
    head = head or read_head(path)
    tried: list[tuple[str, str]] = []
    for reader in READERS:
        mismatch = reader.mismatch(head)
        if not mismatch:
            return reader
        tried.append((reader.name, mismatch))
    raise TraceFormatError(str(path), tried)


def find_files(patterns: Iterable[str]) -> list[Path]:
    """Files and run directories of paths and globs; a plain folder gives the files within it.
    Raises `InputError` when a pattern matches nothing."""
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern)
        matches = (
            [path]
            if path.exists()
            else [Path(p) for p in sorted(glob.glob(pattern, recursive=True))]  # noqa: PTH207 absolute too
        )
        if not matches:
            raise InputError(f"no file matches {pattern!r}")
        for match in matches:
            if match.is_dir() and not (match / "events.sqlite").is_file():
                inside = [each for each in sorted(match.rglob("*")) if each.is_file()]
                if not inside:
                    raise InputError(f"{match} has no files")
                found.update(dict.fromkeys(inside))
            else:
                found[match] = None
    return list(found)


def split(path: Path, chunk_bytes: int) -> list[Piece]:
    """The parts in which a file can be read side by side."""
    head = read_head(path)
    reader = recognise(path, head)
    if head.is_gzip or not reader.is_splittable(head):
        return [Piece(path, reader.name)]
    return [Piece(path, reader.name, start, end) for start, end in split_lines(path, chunk_bytes)]


def number_lines(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """The pieces with their `lines_before`, each counted when it is asked for. Pieces of a file
    come in its order, so every byte is counted once and not again by each later piece."""
    before = Piece(Path(), "")
    for piece in pieces:
        if piece.start:
            known = before.lines_before if before.path == piece.path else None
            begin = 0 if known is None else before.start
            try:
                with piece.path.open("rb") as stream:
                    stream.seek(begin)
                    lines = (known or 0) + count_lines(stream, piece.start - begin)
            except OSError:
                yield piece  # whoever reads it meets the error, and reports it
                continue
            piece = replace(piece, lines_before=lines)
        before = piece
        yield piece


def read_piece(piece: Piece, problems: Problems) -> Iterator[Trace]:
    """The traces of a piece, ready but for tokens that it does not count."""
    reader = next(each for each in READERS if each.name == piece.reader)
    source = Source(piece.path, problems, piece.start, piece.end, piece.lines_before)
    for trace in reader.read(source, read_head(piece.path)):
        if not trace.turns:
            problems.add(trace.place, "no model call")
            continue
        settle_cached_tokens(trace)
        check_pairs(trace)
        yield trace


def read_traces(path: Path, problems: Problems | None = None) -> Iterator[Trace]:
    """The traces of a file or run directory. Raises `TraceFormatError` and `InputError`."""
    for piece in split(path, 1 << 62):
        yield from read_piece(piece, problems if problems is not None else Problems())
