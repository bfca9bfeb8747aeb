"""The report over many files, read and analysed side by side in several processes."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from costmodel.pte import Mode
from costmodel.pte_exact import ExactTerms
from costmodel.pte_profiles import PeakKind, Pricing
from halo.errors import HaloError, InputError, RunDirectoryError, TraceFormatError
from halo.trace_report.analyze import Analyzer
from halo.trace_report.document import document
from halo.trace_report.finding import Thresholds
from halo.trace_report.rates_book import RatesBook
from halo.trace_report.tally import Tally
from halo.trace_report.what_if import Scenarios
from halo.traces.counting import BYTES, load_tokenizer
from halo.traces.read import Piece, number_lines, read_piece, split
from halo.traces.record import Problem, Problems

CHUNK_BYTES = 16 * 1024 * 1024
SMALL_BYTES = 24 * 1024 * 1024
"""Below this many bytes more processes take longer to start than they save."""


@dataclass(frozen=True)
class ReportOptions:
    """What a report is made with.

    Attributes:
        model: prices every trace as this model; None prices each as its own.
        hardware: name or file; None is the mode's default device.
        batch: sequences that share a decode step; None leaves weight reads out.
        top: worst traces that are kept and shown.
        jobs: processes; None takes what the machine has.
    """

    model: str | None = None
    hardware: str | None = None
    mode: Mode = "exact"
    peak: PeakKind = "dense"
    terms: ExactTerms = field(default_factory=ExactTerms)
    tokenizer: Path | None = None
    thresholds: Thresholds = field(default_factory=Thresholds)
    scenarios: Scenarios = field(default_factory=Scenarios)
    top: int = 20
    with_texts: bool = False
    jobs: int | None = None

    @property
    def pricing(self) -> Pricing:
        return Pricing(self.mode, self.hardware, self.peak, self.terms)

    def analyzer(self) -> Analyzer:
        """The analyzer of these options. Raises `ProfileError` for names that are not known."""
        book = RatesBook(self.pricing, self.model)
        book.check()
        hardware = model = None
        if self.scenarios.hardware is not None:
            other = Pricing(self.mode, self.scenarios.hardware, self.peak, self.terms)
            hardware = RatesBook(other, self.model)
            hardware.check()
        if self.scenarios.model is not None:
            model = RatesBook(self.pricing, self.scenarios.model)
            model.check()
        counter = load_tokenizer(self.tokenizer) if self.tokenizer is not None else BYTES
        return Analyzer(book, counter, self.thresholds, self.scenarios, hardware, model)


RowsTaker = Callable[[list[dict[str, Any]]], None]


def build_report(
    files: Sequence[Path], options: ReportOptions, take_rows: RowsTaker | None = None
) -> dict[str, Any]:
    """The report of `files` as a JSON-able object (docs/pte.md lists its entries). `take_rows`
    gets a line of every trace as it is analysed, in the order of files and lines.

    Files that cannot be read, or are of an unknown format, are problems as long as another can be.
    Raises `InputError` when none has a trace, `ProfileError` for an unknown model or device.
    """
    analyzer = options.analyzer()
    problems = Problems()
    pieces: list[Piece] = []
    unusable: list[InputError] = []
    for path in files:
        try:
            pieces += split(path, CHUNK_BYTES)
        except InputError as error:
            unusable.append(error)
            is_unknown = isinstance(error, TraceFormatError)
            text = "no reader knows this format" if is_unknown else str(error)
            problems.add(str(path), text)
    if not pieces:
        if unusable:
            raise unusable[0]
        raise InputError("no trace files are given")
    whole = Tally(options.top, options.with_texts, with_rows=take_rows is not None)
    stand_ins: dict[str, str] = {}
    for found in _results(pieces, options, analyzer, whole):
        tally = Tally.from_json(found["tally"])
        whole.merge(tally)
        problems.count += found["problems"]["count"]
        kept = [Problem(**each) for each in found["problems"]["kept"]]
        problems.kept += kept[: problems.limit - len(problems.kept)]
        stand_ins.update(found["stand_ins"])
        if take_rows is not None:
            take_rows(whole.take_rows())
    if not whole.traces:
        first = problems.kept[0] if problems.kept else None
        where = f"; the first problem: {first.place}: {first.text}" if first else ""
        raise InputError(f"no trace in {len(files)} files{where}")
    models = [options.model] if options.model else list(whole.models)
    prices = [analyzer.book.rates("" if m == "(no model named)" else m) for m in models[:10]]
    return document(whole, problems, options, prices, stand_ins, len(files), analyzer.counter.name)


def _results(
    pieces: Sequence[Piece], options: ReportOptions, analyzer: Analyzer, whole: Tally
) -> Iterator[dict[str, Any]]:
    """Results of the pieces in their order; a few more than there are processes are under way.
    `whole` is the tally of the results that were taken: it says what is still needed of others."""
    jobs = options.jobs or multiprocessing.cpu_count()
    size = sum(_bytes_of(piece) for piece in pieces)
    numbered = number_lines(pieces)
    if jobs < 2 or len(pieces) < 2 or size < SMALL_BYTES:
        for piece in numbered:
            yield analyze_piece(piece, analyzer, _empty_like(whole))
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(jobs, len(pieces)), mp_context=context) as pool:
        running: dict[Future[str], int] = {}
        ready: dict[int, str] = {}
        sent = given = 0
        while given < len(pieces):
            while sent < len(pieces) and len(running) + len(ready) < jobs + 2:
                piece, tally = next(numbered), _empty_like(whole)
                running[pool.submit(analyze_piece_as_text, piece, options, tally)] = sent
                sent += 1
            if given in ready:
                yield json.loads(ready.pop(given))
                given += 1
                continue
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                try:
                    ready[running.pop(future)] = future.result()
                except BrokenProcessPool:
                    raise HaloError(
                        "a process that reads traces was killed, perhaps for want of memory; "
                        "--jobs 1 needs the least"
                    ) from None


def _empty_like(whole: Tally) -> Tally:
    return Tally(whole.keep, whole.with_texts, whole.with_rows, whole.least_of_worst)


def _bytes_of(piece: Piece) -> int:
    if piece.path.is_dir():
        return 0
    return (piece.end or piece.path.stat().st_size) - piece.start


def analyze_piece(piece: Piece, analyzer: Analyzer, tally: Tally) -> dict[str, Any]:
    """The tally of a piece, which begins as the empty `tally`, its problems, and the models that
    got a stand-in, as plain values."""
    problems = Problems()
    try:
        for trace in read_piece(piece, problems):
            tally.add(analyzer.analyze(trace))
    except (OSError, RunDirectoryError) as error:  # what was read before counts
        problems.add(str(piece.path), f"cannot read on: {error}")
    return {
        "tally": tally.to_json(),
        "problems": {
            "count": problems.count,
            "kept": [{"place": each.place, "text": each.text} for each in problems.kept],
        },
        "stand_ins": dict(analyzer.book.stand_ins),
    }


def analyze_piece_as_text(piece: Piece, options: ReportOptions, tally: Tally) -> str:
    """`analyze_piece` in a process of its own: JSON goes back."""
    return json.dumps(analyze_piece(piece, options.analyzer(), tally))
