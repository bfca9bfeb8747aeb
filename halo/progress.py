"""Live progress: one updating line on a terminal, one plain line every 10 s elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TextIO

from runtime.executor import Progress

if TYPE_CHECKING:
    from rich.live import Live

POLLS_PER_LINE = 50
"""`Session` reports progress five times a second, so this many polls are 10 s."""


class Reporter:
    """Shows progress on a stream. A context manager: leaving it clears the live line."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._live: Live | None = None
        self._polls = 0

    def __enter__(self) -> Reporter:
        if self._stream.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(file=self._stream), transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, message: str) -> None:
        """A line of its own, such as a model being fetched."""
        if self._live is not None:
            self._live.console.print(message, highlight=False, markup=False)
        else:
            print(message, file=self._stream, flush=True)

    def download(self, name: str, done_bytes: int, total_bytes: int) -> None:
        """Progress of fetching a model."""
        text = f"fetching {name}: {done_bytes / 1e6:,.0f} of {total_bytes / 1e6:,.0f} MB"
        if self._live is not None:
            self._live.update(text)
        else:
            self._polls += 1
            if self._polls % 10 == 1:
                print(text, file=self._stream, flush=True)

    def show(self, progress: Progress) -> None:
        """The state of the run; called five times a second."""
        self._polls += 1
        if self._live is not None:
            self._live.update(self._bar(progress))
        elif self._polls % POLLS_PER_LINE == 0:
            print(progress_line(progress), file=self._stream, flush=True)

    def _bar(self, progress: Progress) -> Any:
        from rich.columns import Columns
        from rich.progress_bar import ProgressBar
        from rich.text import Text

        bar = ProgressBar(total=max(1, progress.rows_total), completed=progress.rows_done, width=24)
        return Columns([bar, Text(progress_line(progress))])


def progress_line(progress: Progress) -> str:
    """One line of counts."""
    failed = f", {progress.rows_failed} failed" if progress.rows_failed else ""
    of_all = ""
    if progress.calls_expected is not None and progress.calls_expected > progress.made:
        of_all = f" of about {progress.calls_expected:,.0f}"
    return (
        f"rows {progress.rows_done}/{progress.rows_total}{failed} · "
        f"calls {progress.made}{of_all} made, "
        f"{progress.shared} shared, {progress.replayed} replayed"
    )
