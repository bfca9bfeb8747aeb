"""`halo trace report`: PTE over tool-using traces."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from costmodel.pte_exact import ExactTerms
from halo.errors import HaloError, InputError
from halo.trace_report.build import ReportOptions, build_report
from halo.trace_report.csv_rows import CsvRows
from halo.trace_report.text import render_text
from halo.trace_report.what_if import Scenarios
from halo.traces.read import find_files


def report(
    patterns: list[str],
    *,
    json_out: bool,
    csv_file: Path | None,
    html_file: Path | None,
    scenarios: Scenarios,
    batch: float,
    options: dict[str, Any],
) -> int:
    """Print the report, and write what else was asked for."""
    files = find_files(patterns)
    terms = ExactTerms(batch=batch or None)
    chosen = ReportOptions(
        **options, terms=terms, scenarios=scenarios, with_texts=json_out or html_file is not None
    )
    with ExitStack() as stack:
        take = None
        partial = None
        if csv_file is not None:
            partial = csv_file.with_name(f"{csv_file.name}.tmp")
            try:
                stream = stack.enter_context(
                    partial.open("w", encoding="utf-8", errors="replace", newline="")
                )
            except OSError as error:
                raise InputError(f"{csv_file}: cannot write it: {error.strerror}") from error
            take = CsvRows(stream).write
        found = build_report(files, chosen, take)
    if csv_file is not None and partial is not None:
        partial.replace(csv_file)
    if html_file is not None:
        from halo.trace_report.html import render_html

        write_text(html_file, render_html(found))
    if json_out:
        print(json.dumps(found))  # ASCII: half a surrogate pair has no encoding
    else:
        print(render_text(found, top=min(10, chosen.top)))
        for file in (csv_file, html_file):
            if file is not None:
                print(f"wrote {file}", file=sys.stderr)
    return 0


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all. Raises `HaloError` naming the file."""
    partial = path.with_name(f"{path.name}.tmp")
    try:
        partial.write_text(text, "utf-8")
        partial.replace(path)
    except OSError as error:
        raise HaloError(f"{path}: cannot write it: {error.strerror}") from error
