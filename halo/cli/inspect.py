"""`halo status` and `halo report`: read a run directory, also while it is written."""

from __future__ import annotations

import json
from pathlib import Path

from halo.report import render_text
from halo.report import report as read_report
from halo.status import render_status
from halo.status import status as read_status


def status(directory: Path, *, json_out: bool) -> int:
    """Print where the run stands."""
    found = read_status(directory)
    print(render_status(found, json_out=json_out))
    return 0


def report(
    directory: Path,
    *,
    output: Path | None,
    json_out: bool,
    model: str | None = None,
    hardware: str | None = None,
) -> int:
    """Print or write what the run did."""
    found = read_report(directory, model=model, hardware=hardware)
    text = json.dumps(found, ensure_ascii=False) if json_out else render_text(found)
    if output is None:
        print(text)
    else:
        output.write_text(text + "\n", "utf-8")
    return 0
