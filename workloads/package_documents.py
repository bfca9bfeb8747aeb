"""Real documents that every Python environment has: what installed packages say of themselves.

`package_rows` reads names, summaries and READMEs from the metadata of the installed distributions;
`write_database` puts their facts (licence, files, size, who depends on whom) into DuckDB tables.
Two workflows over them share their first two steps: a gist of the README, and an SQL query.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

import halo

MIN_README_CHARS = 400
README_CHARS = 300
"""What a row carries of a README: enough to say what the package does, short enough for a CPU."""
PITCH_CHARS = 150
REASON_CHARS = 120
"""Bounds that the engine enforces while decoding: a small model ends a sentence in time only when
it must, and an answer cut by its token limit is no JSON."""

FACTS_SQL = """
SELECT p.licence, round(p.size_bytes / 1e6, 2) AS megabytes, p.n_dependencies AS dependencies,
       (SELECT count(*) FROM dependencies d WHERE d.requires = p.name) AS used_by
FROM packages p WHERE p.name = $name
"""


class Card(BaseModel):
    """A catalogue entry."""

    category: Literal[
        "testing", "static analysis", "data", "networking", "command line", "packaging",
        "machine learning", "other",
    ]  # fmt: skip
    pitch: str = Field(max_length=PITCH_CHARS)


class Verdict(BaseModel):
    """The judge's decision over the three opinions."""

    decision: Literal["adopt", "try", "avoid"]
    strongest: Literal["enthusiast", "sceptic", "maintainer"]
    reason: str = Field(max_length=REASON_CHARS)


lm = halo.Model()


def gist_of(name: str, readme: str) -> str:
    """The step that both workflows begin with."""
    return lm.gen(
        "You write for a catalogue of Python packages. In one sentence of at most 15 words, say "
        "what the package does for its users. No praise.\n\n"
        f"Package: {name}\nREADME:\n{readme}\n\nOne sentence:",
        max_tokens=28,
        name="gist",
    )


def case_of(name: str, readme: str) -> str:
    """What every later call is told first, in the same words: instructions come last, so that the
    calls about one package share the prefix."""
    gist = gist_of(name, readme)
    facts = halo.sql(FACTS_SQL, name=name)
    return (
        "A team considers Python packages for its product and keeps a catalogue of them. Be brief "
        f"and concrete.\n\nPackage: {name}\nWhat it does: {gist}\nFacts: {facts}\n\n"
    )


@halo.workflow
def card(name: str, readme: str) -> Card:
    """A catalogue card: the gist, facts from the database, a category."""
    return lm.gen(
        f"{case_of(name, readme)}Fill in the catalogue card: the category that fits what it does, "
        "and a pitch of at most 12 words that says who needs it.",
        out=Card,
        max_tokens=96,
        name="card",
    )


@halo.workflow
def panel(name: str, readme: str) -> Verdict:
    """Three agents that disagree about adopting the package, and a judge."""
    case = case_of(name, readme)
    enthusiast = lm.gen(
        f"{case}You are the enthusiast. Argue FOR adding it, in at most 12 words.",
        max_tokens=24,
        name="enthusiast",
    )
    sceptic = lm.gen(
        f"{case}You are the sceptic. Argue AGAINST adding it, in at most 12 words.",
        max_tokens=24,
        name="sceptic",
    )
    maintainer = lm.gen(
        f"{case}You will maintain the product. Name the cost of adding it, in at most 12 words.",
        max_tokens=24,
        name="maintainer",
    )
    return lm.gen(
        f"{case}Enthusiast: {enthusiast}\nSceptic: {sceptic}\nMaintainer: {maintainer}\n\n"
        "You are the judge: adopt, try or avoid it? Say whose argument is strongest, and your "
        "reason in at most 10 words.",
        out=Verdict,
        max_tokens=96,
        name="judge",
    )


def package_rows(limit: int | None = None) -> list[dict[str, str]]:
    """One row for each installed distribution with a README worth reading, by name."""
    rows = [
        {"name": normalized(dist), "readme": readme[:README_CHARS]}
        for dist in _installed()
        if len(readme := plain_readme(_description(dist))) >= MIN_README_CHARS
    ]
    return rows[:limit]


def write_database(path: Path) -> int:
    """Write the tables `packages` and `dependencies`; returns the number of packages."""
    import duckdb

    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with duckdb.connect(str(path)) as db:
        db.execute(
            "CREATE TABLE packages (name VARCHAR PRIMARY KEY, version VARCHAR, summary VARCHAR, "
            "licence VARCHAR, n_files INTEGER, size_bytes BIGINT, n_dependencies INTEGER)"
        )
        db.execute("CREATE TABLE dependencies (package VARCHAR, requires VARCHAR)")
        packages = list(_installed())
        for dist in packages:
            requires = sorted(
                {_requirement_name(r) for r in dist.requires or [] if "extra" not in r}
            )
            files = dist.files or []
            size = sum(f.size or 0 for f in files)
            db.execute(
                "INSERT INTO packages VALUES (?, ?, ?, ?, ?, ?, ?)",
                [normalized(dist), dist.version, dist.metadata["Summary"] or "", _licence(dist),
                 len(files), size, len(requires)],
            )  # fmt: skip
            for name in requires:
                db.execute("INSERT INTO dependencies VALUES (?, ?)", [normalized(dist), name])
        return len(packages)


def plain_readme(text: str) -> str:
    """A README's prose: no badges, images, tables of links or HTML."""
    kept: list[str] = []
    for line in text.splitlines():
        line = re.sub(r"!\[[^\]]*\]\([^)]*\)|<[^>]+>", "", line)
        line = re.sub(r"\[([^\]]*)\](\([^)]*\)|\[[^\]]*\])", r"\1", line).strip()
        if not line or re.match(r"^(\.\. |:\w+:|\[.*\]:|[-=~*#|^]+$|https?://)", line):
            continue
        kept.append(line)
    return "\n".join(kept)


def normalized(dist: Distribution) -> str:
    """The distribution's name as the package index spells it."""
    return re.sub(r"[-_.]+", "-", dist.metadata["Name"]).lower()


def _installed() -> Iterator[Distribution]:
    found = {normalized(d): d for d in distributions() if d.metadata["Name"]}
    return iter([found[name] for name in sorted(found)])


def _description(dist: Distribution) -> str:
    metadata: Any = dist.metadata
    return metadata.get("Description") or metadata.get_payload() or ""


def _requirement_name(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[^A-Za-z0-9._-]", requirement.strip())[0]).lower()


def _licence(dist: Distribution) -> str:
    metadata: Any = dist.metadata
    text: str = metadata.get("License-Expression") or ""
    if not text:
        classifiers: list[str] = metadata.get_all("Classifier") or []
        text = next((c.rsplit("::", 1)[1] for c in classifiers if c.startswith("License")), "")
    whole: str = text or metadata.get("License") or "unknown"
    return whole.strip().splitlines()[0][:40]
