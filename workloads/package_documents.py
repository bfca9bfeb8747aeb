"""Real documents that every Python environment has: what installed packages say of themselves.

`package_rows` reads names, summaries and READMEs from the metadata of the installed distributions;
`write_database` puts their facts (licence, files, size, who depends on whom) into DuckDB tables.
Two workflows over them share their first two steps: what a package is for, and an SQL query.
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
DOCUMENT_CHARS = 180
"""What a row carries: enough to say what the package does, short enough for a CPU."""
OPENING_CHARS = 1_500
"""Further down, READMEs tell how to contribute and whom to ask."""
OPENING_PARAGRAPHS = 2
PROSE_CHARS = 60
NEW_WORDS = 3
"""A sentence with fewer words that the summary lacks says the same again."""
WHEN_CHARS = 100
"""A bound that the engine enforces while decoding, well beyond what is asked for: where a bound
ends a sentence, the model takes whatever token still fits."""

FACTS_SQL = """
SELECT concat_ws(', ', p.licence, round(p.size_bytes / 1e6, 1) || ' MB',
                 'needs ' || p.n_dependencies || ' packages',
                 'needed by ' || (SELECT count(*) FROM dependencies d WHERE d.requires = p.name)
                ) AS facts
FROM packages p WHERE p.name = $name
"""

CATEGORIES = (
    "testing", "static analysis", "data and files", "science and maths", "web and networks",
    "concurrency", "command line", "packaging", "machine learning", "security", "language tools",
    "other",
)  # fmt: skip

MODULES = (
    "abc", "argparse", "array", "ast", "asyncio", "base64", "collections", "collections.abc",
    "concurrent.futures", "configparser", "contextlib", "copy", "csv", "ctypes", "dataclasses",
    "datetime", "decimal", "difflib", "doctest", "email", "enum", "fnmatch", "fractions",
    "functools", "getpass", "gettext", "glob", "graphlib", "hashlib", "heapq", "hmac",
    "html.parser", "http.client", "http.cookies", "http.server", "importlib", "importlib.metadata",
    "inspect", "ipaddress", "itertools", "json", "locale", "logging", "math", "mimetypes",
    "multiprocessing", "operator", "os", "pathlib", "pickle", "platform", "pprint", "queue",
    "random", "re", "sched", "secrets", "select", "shelve", "shlex", "shutil", "signal", "smtplib",
    "socket", "socketserver", "sqlite3", "ssl", "statistics", "string", "struct", "subprocess",
    "sys", "sysconfig", "tarfile", "tempfile", "textwrap", "threading", "time", "tkinter",
    "tokenize", "tomllib", "traceback", "types", "typing", "unicodedata", "unittest",
    "unittest.mock", "urllib.parse", "urllib.request", "uuid", "venv", "warnings", "weakref",
    "xml.etree.ElementTree", "zipfile", "zlib", "zoneinfo",
)  # fmt: skip
"""Modules of the standard library that might do instead. The engine enforces that the answer is
one of them (and one of `CATEGORIES`), so no prompt has to list them."""

ADVISER = "You advise a team on Python packages. Answer in at most 8 words, concretely."
"""What every call is told first."""


class Verdict(BaseModel):
    """The judge's decision over the three opinions."""

    decision: Literal["adopt", "try", "avoid"]
    needed_when: str = Field(max_length=WHEN_CHARS)


lm = halo.Model(max_tokens=24)


def use_of(name: str, text: str) -> str:
    """The step that both workflows begin with."""
    return lm.gen(f"Package {name}: {text}\n\nWhat is it for?", system=ADVISER, name="use")


def facts_of(name: str) -> str:
    """The second step of both: what the database knows."""
    facts: str = halo.sql(FACTS_SQL, name=name)[0]["facts"]
    return facts


def case_of(name: str, text: str) -> str:
    """What every later call is told first, in the same words, and the question last: the calls
    about one package share the prefix, and a small model follows what it read last."""
    return f"Package {name}: {text}\nUse: {use_of(name, text)}\nFacts: {facts_of(name)}\n"


@halo.workflow
def card(name: str, text: str) -> dict[str, str]:
    """A catalogue card: the use, facts from the database, a category."""
    category = lm.choose(
        f"{case_of(name, text)}\nWhich category fits it best?",
        CATEGORIES,
        system=ADVISER,
        name="category",
    )
    return {"use": use_of(name, text), "facts": facts_of(name), "category": category}


@halo.workflow
def panel(name: str, text: str) -> dict[str, Any]:
    """Three agents that disagree about adding the package, and a judge."""
    case = case_of(name, text)
    enthusiast = lm.gen(
        f"{case}\nEnthusiast, what would we gain from it?",
        system=ADVISER,
        name="enthusiast",
    )
    sceptic = lm.gen(
        f"{case}\nSceptic, the worst risk of adding it?",
        system=ADVISER,
        name="sceptic",
    )
    minimalist = lm.choose(
        f"{case}\nMinimalist, the standard library module to use instead?",
        MODULES,
        system=ADVISER,
        name="minimalist",
    )
    verdict = lm.gen(
        f"{case}Enthusiast: {enthusiast}\nSceptic: {sceptic}\nMinimalist: use {minimalist}\n\n"
        "Judge, adopt, try or avoid it? When is it needed?",
        out=Verdict,
        system=ADVISER,
        max_tokens=64,
        name="judge",
    )
    return {
        "enthusiast": enthusiast,
        "sceptic": sceptic,
        "minimalist": minimalist,
        "verdict": verdict,
    }


def package_rows(limit: int | None = None) -> list[dict[str, str]]:
    """One row for each installed distribution with a README worth reading, by name."""
    rows = [
        {"name": normalized(dist), "text": opening(dist.metadata["Summary"] or "", readme)}
        for dist in _installed()
        if len(readme := _description(dist)) >= MIN_README_CHARS
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


def opening(summary: str, readme: str) -> str:
    """What a package says of itself first: its summary, and the README's first sentences that say
    more, at most `DOCUMENT_CHARS` characters of whole sentences."""
    text = summary.strip().rstrip(".")[:DOCUMENT_CHARS] + "."
    known = _words(text)
    for sentence in re.split(
        r"(?<=[.!?])\s+(?=[A-Z])", " ".join(prose(readme[:OPENING_CHARS])[:OPENING_PARAGRAPHS])
    ):
        if len(text) + 1 + len(sentence) > DOCUMENT_CHARS:
            break
        if len(_words(sentence) - known) >= NEW_WORDS:
            text += f" {sentence}"
            known |= _words(sentence)
    return text


def prose(readme: str) -> list[str]:
    """The paragraphs of a README that are prose: no headings, badges, code, lists, tables or HTML.
    Both markups that packages use are read, Markdown and reStructuredText."""
    text = re.sub(r"<!--.*?-->|^(```|~~~).*?^\1", "", readme, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"!\[[^\]]*\](\([^)]*\)|\[[^\]]*\])?", "", text)  # images
    text = re.sub(r"\[([^\]]*)\](\([^)]*\)|\[[^\]]*\])?", r"\1", text)  # links
    text = re.sub(r"`([^`<]+?)\s*<[^>`]*>`__?", r"\1", text)
    text = re.sub(r":\w+:(?=`)|<[^>]+>", "", text)
    text = re.sub(r"[`*]|(?<=\w)__?(?=[\s.,;)]|$)|\B_(?=\w)", "", text)  # emphasis, references
    paragraphs = [" ".join(p.split()) for p in re.split(r"\n\s*\n", text) if p[:1].strip()]
    return [p for p in paragraphs if len(p) >= PROSE_CHARS and re.match(r"[A-Za-z\"].*[.!]$", p)]


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w{4,}", text.lower()))


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
