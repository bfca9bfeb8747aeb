"""Printed numbers beside computed ones: every record of fixtures/oracles.yaml, one check a number.

`pytest -s tests/costmodel/test_oracles.py` prints the table; `--golden` writes it into the docs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from oracle_gaps import DEVIATIONS, NOT_COMPUTED
from oracle_records import Bound
from oracle_values import COMPUTED

FIXTURE = Path(__file__).parent.parent / "fixtures" / "oracles.yaml"
DOCS = Path(__file__).parents[2] / "docs" / "cost-model.md"


@dataclass(frozen=True)
class Check:
    """One printed number and what is computed for it."""

    record: str
    path: str
    printed: tuple[str, ...]
    computed: float
    kind: str
    tolerance: str
    seed: str
    mark: str

    @property
    def id(self) -> str:
        return f"{self.record}/{self.path}"

    @property
    def holds(self) -> bool:
        values = [float(text) for text in self.printed]
        if self.kind == "in range":
            # The printed ends are rounded, and so is what lies between them.
            half = 0.5 * max(last_digit(text) for text in self.printed)
            return min(values) - half <= self.computed <= max(values) + half
        printed = values[0]
        if self.kind == "at most":
            return self.computed <= printed
        if self.kind == "at least":
            return self.computed >= printed
        if self.tolerance.startswith("rel"):
            return abs(self.computed - printed) <= float(self.tolerance.split()[1]) * abs(printed)
        if self.tolerance.startswith("abs"):
            return abs(self.computed - printed) <= float(self.tolerance.split()[1]) * (1 + 1e-9)
        if self.tolerance.startswith("points"):
            return abs(self.computed - printed) <= float(self.tolerance.split()[1]) / 100
        return abs(self.computed - printed) <= 0.5 * last_digit(self.printed[0]) * (1 + 1e-9)

    @property
    def gap(self) -> str:
        printed = float(self.printed[0])
        if self.kind == "in range" or printed == 0:
            return ""
        return f"{100 * (self.computed / printed - 1):+.1f} %"

    @property
    def expectation(self) -> str:
        if self.kind == "in range":
            return " to ".join(self.printed)
        return f"{self.kind} {self.printed[0]}" if self.kind else self.printed[0]


def last_digit(text: str) -> float:
    """The unit of the last printed digit: 0.01 for "1.33", 1 for "18"."""
    exponent = Decimal(text).as_tuple().exponent
    assert isinstance(exponent, int)
    return float(Decimal(1).scaleb(exponent))


def records() -> list[Mapping[str, Any]]:
    return yaml.safe_load(FIXTURE.read_text("utf-8"))["oracles"]


@lru_cache(maxsize=1)
def checks() -> tuple[Check, ...]:
    """Every number that is computed. Printed numbers are read as text, to know their digits."""
    # Numbers as they are printed: BaseLoader leaves every scalar a text.
    as_text = yaml.load(FIXTURE.read_text("utf-8"), yaml.BaseLoader)["oracles"]
    found: list[Check] = []
    for record, text in zip(records(), as_text, strict=True):
        compute = COMPUTED.get(record["id"])
        if compute is not None:
            found += _compare(record, text["expect"], compute(record["given"]), ())
    return tuple(found)


def _compare(
    record: Mapping[str, Any], printed: Any, computed: Any, path: tuple[str, ...]
) -> Iterator[Check]:
    if isinstance(computed, Mapping):
        for key, value in computed.items():
            assert key in printed, f"{record['id']}: {key} is computed and not in the record"
            yield from _compare(record, printed[key], value, (*path, key))
        return
    if isinstance(computed, list):
        assert len(computed) == len(printed), f"{record['id']}: {path}"
        for i, (text, value) in enumerate(zip(printed, computed, strict=True)):
            yield from _compare(record, text, value, (*path, str(i)))
        return
    kind = computed.kind if isinstance(computed, Bound) else ""
    value = computed.value if isinstance(computed, Bound) else float(computed)
    texts = tuple(printed) if isinstance(printed, list) else (printed,)
    yield Check(
        record["id"], ".".join(path), texts, value, kind, _tolerance(record, path), record["seed"],
        record["mark"],
    )  # fmt: skip


def _tolerance(record: Mapping[str, Any], path: tuple[str, ...]) -> str:
    stated: Mapping[str, Any] = record.get("tol", {})
    named = stated.get(path[0], stated)
    for kind in ("rel", "abs", "points"):
        if kind in named:
            return f"{kind} {named[kind]:g}"
    return "digits"


def number_paths(value: Any, path: tuple[str, ...] = ()) -> Iterator[str]:
    """Paths of all numbers in a record's `expect`."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from number_paths(inner, (*path, str(key)))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from number_paths(inner, (*path, str(i)))
    else:
        yield ".".join(path)


@pytest.mark.parametrize("check", checks(), ids=lambda check: check.id)
def test_computed_beside_printed(check: Check, request: pytest.FixtureRequest) -> None:
    reason = DEVIATIONS.get(check.id)
    if reason is not None:
        request.applymarker(pytest.mark.xfail(reason=reason, strict=True))
    line = f"{check.id}: computed {check.computed:.6g}, printed {check.expectation} {check.gap}"
    print(line)
    assert math.isfinite(check.computed)
    assert check.holds, f"{line} (tolerance: {check.tolerance})"


def test_every_printed_number_is_computed_or_explained() -> None:
    computed = [(check.record, check.path) for check in checks()]
    missing: list[str] = []
    for record in records():
        name = record["id"]
        if name in NOT_COMPUTED:
            assert name not in COMPUTED
            continue
        for path in number_paths(record["expect"]):
            reasons = [key for key in NOT_COMPUTED if f"{name}/{path}".startswith(key)]
            # A range is one check of two printed numbers.
            done = any(name == n and (path == p or path.startswith(p + ".")) for n, p in computed)
            if not done and not reasons:
                missing.append(f"{name}/{path}")
            assert not (done and reasons), f"{name}/{path} is computed; drop its reason"
    assert not missing


def test_reasons_name_what_exists() -> None:
    names = {record["id"] for record in records()}
    for key in NOT_COMPUTED:
        assert key.split("/")[0] in names, key
    assert set(DEVIATIONS) <= {check.id for check in checks()}
    assert set(COMPUTED) <= names


def test_the_table_in_the_docs_is_current(request: pytest.FixtureRequest) -> None:
    begin, end = "<!-- oracles: begin -->\n", "<!-- oracles: end -->"
    page = DOCS.read_text("utf-8")
    head, rest = page.split(begin)
    _, tail = rest.split(end)
    current = head + begin + oracle_table() + end + tail
    if request.config.getoption("--golden"):
        DOCS.write_text(current, "utf-8")
    assert DOCS.read_text("utf-8") == current, "rewrite the table with: pytest --golden"


def oracle_table() -> str:
    """The checks as Markdown: what agrees, what does not and why, what is not computed and why."""
    rows = ["| number | printed | computed | gap | tolerance | |", "|---|---:|---:|---:|---|---|"]
    for check in checks():
        verdict = "" if check.holds else "**missed**"
        rows.append(
            f"| {check.id} ({check.mark}) | {check.expectation} | {check.computed:.4g} | "
            f"{check.gap} | {check.tolerance} | {verdict} |"
        )
    missed = [f"- `{key}`: {reason}." for key, reason in DEVIATIONS.items()]
    outside = [f"- `{key}`: {reason}." for key, reason in NOT_COMPUTED.items()]
    held = sum(check.holds for check in checks())
    return "\n".join(
        [
            "",
            f"{held} of {len(checks())} printed numbers are met within their tolerance.",
            "",
            *rows,
            "",
            "Missed, and why:",
            "",
            *missed,
            "",
            "Not computed, and why:",
            "",
            *outside,
            "",
        ]
    )


def test_last_digit() -> None:
    assert (last_digit("1.33"), last_digit("18"), last_digit("0.60")) == (0.01, 1.0, 0.01)
    with pytest.raises(InvalidOperation):
        last_digit("about 3")
