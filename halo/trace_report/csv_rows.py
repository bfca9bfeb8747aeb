"""One line a trace as CSV, safe to open in a spreadsheet."""

from __future__ import annotations

import csv
from typing import IO, Any

COLUMNS = (
    "id",
    "place",
    "format",
    "model",
    "priced_as",
    "passed",
    "score",
    "turns",
    "tool_calls",
    "prompt_tokens",
    "completion_tokens",
    "cached_tokens",
    "peak_context_tokens",
    "pte",
    "pte_full",
    "pte_measured",
    "pte_ideal",
    "pte_prompt",
    "pte_tool_answers",
    "pte_re_prefill",
    "pte_reasoning",
    "pte_context_reads",
    "wasted_pte",
    "patterns",
)
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


class CsvRows:
    """Writes rows as they come. Unknown values are empty, never 0."""

    def __init__(self, stream: IO[str]) -> None:
        self._writer = csv.writer(stream)
        self._writer.writerow(COLUMNS)

    def write(self, rows: list[dict[str, Any]]) -> None:
        """Write a line of each trace."""
        for row in rows:
            self._writer.writerow([_cell(row[name]) for name in COLUMNS])


def _cell(value: Any) -> str | int | float:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, int):
        return value
    text = " ".join(value) if isinstance(value, list) else str(value)  # pyright: ignore
    # A spreadsheet runs a cell that begins like a formula; a quote in front makes it text.
    return f"'{text}" if text.startswith(_FORMULA) else text
