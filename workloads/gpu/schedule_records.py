"""The raw file of a measurement of schedules, and what it says.

A raw file has one JSON object a line, each with its `kind`: `setup` (what was asked for),
`calibration`, `run` (a pair that was measured), `failed` (a pair whose run failed) and `end` (the
measurement came to its end). A line is on disk as soon as what it tells of has happened, so a
measurement that is cut off keeps all that it measured.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class RawFile:
    """Appends to a raw file; a file that is there is continued."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")

    def write(self, kind: str, **fields: Any) -> None:
        """Append one line, at once."""
        self._file.write(json.dumps({"kind": kind, **fields}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_raw(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """The lines of raw files, one file after the other. A last line that was cut off in the middle
    is left out; a broken line anywhere else raises `ValueError`, which names it."""
    records: list[dict[str, Any]] = []
    for path in paths:
        lines = path.read_text(encoding="utf-8").split("\n")
        for number, line in enumerate(lines, 1):
            if not line:
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                if number == len(lines):
                    continue
                raise ValueError(f"{path}:{number} is not JSON: {error}") from error
            records.append(record)
    return records


def evaluate(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Rank correlation over all pairs of workload and schedule, and the chosen schedule against the
    measured best. A pair that was measured more than once counts once, with its mean."""
    pairs = _pairs([r for r in records if r["kind"] == "run"])
    predicted = [pair["predicted_s"] for pair in pairs]
    measured = [pair["measured_s"] for pair in pairs]
    errors = sorted(abs(p / m - 1) for p, m in zip(predicted, measured, strict=True))
    spreads = sorted(pair["spread"] for pair in pairs if pair["runs"] > 1)
    workloads: dict[str, Any] = {}
    for name in dict.fromkeys(pair["workload"] for pair in pairs):
        mine = [pair for pair in pairs if pair["workload"] == name]
        best = min(mine, key=lambda pair: pair["measured_s"])
        chosen = [pair for pair in mine if pair["scheduler"] == "auto"]
        workloads[name] = {
            "schedulers": {
                pair["scheduler"]: {
                    "predicted_s": round(pair["predicted_s"], 3),
                    "measured_s": round(pair["measured_s"], 3),
                    "runs": pair["runs"],
                }
                for pair in sorted(mine, key=lambda pair: pair["measured_s"])
            },
            "best": best["scheduler"],
            "chosen_over_best": round(chosen[0]["measured_s"] / best["measured_s"], 4)
            if chosen
            else None,
            "rank_correlation": _rounded(
                spearman([p["predicted_s"] for p in mine], [p["measured_s"] for p in mine])
            ),
        }
    ratios = [w["chosen_over_best"] for w in workloads.values() if w["chosen_over_best"]]
    setups = [r for r in records if r["kind"] == "setup"]
    ends = [r for r in records if r["kind"] == "end"]
    return {
        "measured_on": "; ".join(dict.fromkeys(str(r.get("measured_on", "")) for r in setups)),
        "pairs": len(pairs),
        "runs": sum(pair["runs"] for pair in pairs),
        "failed": sum(r["kind"] == "failed" for r in records),
        "ended": len(ends) == len(setups),
        "rank_correlation": _rounded(spearman(predicted, measured)),
        "median_absolute_error": round(errors[len(errors) // 2], 4) if errors else None,
        "largest_absolute_error": round(errors[-1], 4) if errors else None,
        "median_spread_of_repeats": round(spreads[len(spreads) // 2], 4) if spreads else None,
        "chosen_over_best_worst": max(ratios, default=None),
        "workloads": workloads,
        "seconds": round(sum(r["seconds"] for r in ends), 1) if ends else None,
    }


def _pairs(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry for each pair: the mean of its runs, and their spread (largest over smallest,
    less 1)."""
    grouped: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for run in runs:
        grouped.setdefault((run["workload"], run["scheduler"]), []).append(run)
    pairs: list[dict[str, Any]] = []
    for (workload, scheduler), mine in grouped.items():
        times = [run["measured_s"] for run in mine]
        pairs.append(
            {
                "workload": workload,
                "scheduler": scheduler,
                "predicted_s": sum(run["predicted_s"] for run in mine) / len(mine),
                "measured_s": sum(times) / len(times),
                "spread": max(times) / min(times) - 1,
                "runs": len(mine),
            }
        )
    return pairs


def spearman(left: Sequence[float], right: Sequence[float]) -> float | None:
    """Rank correlation with mean ranks for ties; None when it is not defined.

    Example:
        >>> spearman([1, 2, 3], [10, 20, 30]), spearman([1, 2, 3], [3, 2, 1])
        (1.0, -1.0)
    """
    if len(left) < 2:
        return None
    a, b = _ranks(left), _ranks(right)
    mean = (len(a) + 1) / 2
    cross = sum((x - mean) * (y - mean) for x, y in zip(a, b, strict=True))
    size = (sum((x - mean) ** 2 for x in a) * sum((y - mean) ** 2 for y in b)) ** 0.5
    return cross / size if size else None


def _ranks(values: Sequence[float]) -> list[float]:
    order = sorted(range(len(values)), key=lambda i: values[i])
    ranks = [0.0] * len(values)
    i = 0
    while i < len(order):
        j = i
        while j + 1 < len(order) and values[order[j + 1]] == values[order[i]]:
            j += 1
        for k in range(i, j + 1):
            ranks[order[k]] = (i + j) / 2 + 1
        i = j + 1
    return ranks


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
