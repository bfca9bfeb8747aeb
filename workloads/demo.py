"""The demonstration: two workflows as one merged batch over the READMEs of installed packages."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any, cast

import halo
from halo.progress import Reporter
from workloads.package_documents import card, package_rows, panel, write_database

DOCUMENTS = 40


def demo(out: Path, *, model: str | None, engine: str | None) -> int:
    """Run both workflows over 40 documents and print answers, EXPLAIN ANALYZE and where the run
    directory lies. Returns the exit code."""
    rows = package_rows(DOCUMENTS)
    if out.exists():
        shutil.rmtree(out)
    database = out.parent / "packages.duckdb"
    packages = write_database(database)
    print(f"{len(rows)} READMEs of installed packages; {database} describes {packages} packages")
    settings: dict[str, Any] = {"model": model, "engine": engine}
    given = {name: value for name, value in settings.items() if value}
    with halo.Session(db=database, **given) as session, Reporter(sys.stderr) as reporter:
        result = session.run(
            [(card, rows), (panel, rows)],
            out=out,
            announce=reporter.say,
            on_progress=reporter.show,
        )
    cards, verdicts = result.outcomes["card"], result.outcomes["panel"]
    for a_card, verdict in zip(cards, verdicts, strict=True):
        print(f"\n{rows[a_card.row_index]['name']}")
        for outcome in (a_card, verdict):
            if outcome.error is not None:
                print(f"  {outcome.query}: {outcome.error.type}: {outcome.error.message}")
            elif isinstance(outcome.value, dict):
                for name, value in outcome.value.items():
                    print(f"  {name}: {_line(value)}")
    print("\nEXPLAIN ANALYZE\n")
    print(result.explain())
    print(f"\nelapsed {result.elapsed_s:.0f} s; run directory: {out}")
    return 3 if result.errors else 0


def _line(value: Any) -> str:
    if not isinstance(value, dict):
        return " ".join(str(value).split())
    members = cast("dict[str, Any]", value)
    return "; ".join(f"{name.replace('_', ' ')}: {_line(each)}" for name, each in members.items())
