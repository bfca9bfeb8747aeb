"""How busy a card is during a run."""

from __future__ import annotations

import contextlib
import statistics
import subprocess
from types import TracebackType

PERIOD_MS = 100


class CardWatch:
    """Asks the driver in what share of the time a kernel ran on the card, from entry to exit.

    The driver's figure is one of time, not of occupancy: a card that runs one small kernel after
    the other counts as busy. Servers' own counts cannot tell: with mixed chunks they report no
    running request during a prefill step.

    Args:
        card: its number; None watches nothing.
    """

    def __init__(self, card: int | None) -> None:
        self._card = card
        self._process: subprocess.Popen[str] | None = None
        self._output = ""

    def __enter__(self) -> CardWatch:
        if self._card is not None:
            command = [
                "nvidia-smi", "-i", str(self._card), "-lms", str(PERIOD_MS),
                "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits",
            ]  # fmt: skip
            with contextlib.suppress(OSError):
                self._process = subprocess.Popen(
                    command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
                )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        if self._process is not None:
            self._process.terminate()
            self._output = self._process.communicate()[0]
            self._process = None

    @property
    def idle_share(self) -> float | None:
        """Share of the time in which no kernel ran; None where nothing was seen."""
        busy = [int(line) for line in self._output.split("\n") if line.strip().isdigit()]
        return round(1 - statistics.fmean(busy) / 100, 3) if busy else None
