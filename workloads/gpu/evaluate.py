"""From the records of `workloads.gpu.run_sglang` to tables: `python -m workloads.gpu.evaluate DIR`.

Prints Markdown. A cell that no record covers says so; nothing is filled in.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from workloads.catalogue import WORKLOADS
from workloads.compare import with_count
from workloads.gpu.floor import Work, work_of

LETTERS = {"async": "a", "langgraph": "b", "operators": "c", "lpm": "d", "rows": "e"}


class Records:
    """The records of a stage."""

    def __init__(self, path: Path) -> None:
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        everything: list[dict[str, Any]] = [json.loads(line) for line in lines]
        self.notes = [r for r in everything if "note" in r]
        self.errors = [r for r in everything if "error" in r]
        self.runs = [r for r in everything if "makespan_s" in r]

    def of(self, workload: str, system: str) -> list[dict[str, Any]]:
        return [r for r in self.runs if r["workload"] == workload and r["system"] == system]

    def mean(self, workload: str, system: str, key: str = "makespan_s") -> float | None:
        values = [float(r[key]) for r in self.of(workload, system)]
        return statistics.fmean(values) if values else None


def ratio_rows(main: Records, lpm: Records) -> list[list[str]]:
    """Makespan of each baseline over Halo's, mean over the seeds that both have, with the range."""
    rows: list[list[str]] = []
    best: list[float] = []
    for workload in WORKLOADS:
        name = workload.name
        halo_s = main.mean(name, "halo")
        cells = [name, seconds(halo_s)]
        found: list[float] = []
        for system in ("async", "langgraph", "operators"):
            each = by_seed(main, name, system)
            cells.append(spread(each))
            found += [statistics.fmean(each)] if each else []
        # Earlier records have Halo's own run on those servers as well.
        each = by_seed(lpm if lpm.of(name, "halo") else main, name, "lpm", lpm)
        cells.append(spread(each))
        found += [statistics.fmean(each)] if each else []
        one = main.of(name, "rows")
        per_row_s = one[0]["makespan_s"] / one[0]["rows"] if one else None
        count = main.of(name, "halo")[0]["rows"] if main.of(name, "halo") else 0
        cells.append(f"~{per_row_s * count / halo_s:.1f}" if per_row_s and halo_s else "no record")
        if found:
            best.append(min(found))
            cells.append(f"**{ratio(min(found))}**")
        else:
            cells.append("no record")
        rows.append(cells)
    if best:
        rows.append(
            ["geometric mean", "", "", "", "", "", "", f"**{statistics.geometric_mean(best):.2f}**"]
        )
    return rows


def by_seed(
    records: Records, workload: str, system: str, others: Records | None = None
) -> list[float]:
    """Ratios of the system's makespan (in `others`, if given) to Halo's, for each seed that both
    have."""
    halo = {r["seed"]: r["makespan_s"] for r in records.of(workload, "halo")}
    theirs = {r["seed"]: r["makespan_s"] for r in (others or records).of(workload, system)}
    return [theirs[seed] / halo[seed] for seed in sorted(halo.keys() & theirs.keys())]


def detail_rows(main: Records) -> list[list[str]]:
    """Latency of rows, cache hits, tokens prefilled, idle time, for Halo and the baselines."""
    rows: list[list[str]] = []
    for workload in WORKLOADS:
        for system in ("halo", "async", "langgraph", "operators"):
            runs = main.of(workload.name, system)
            if not runs:
                continue
            latency = sorted(s for r in runs for s in r["latency_s"])
            asked = sum(r["input_tokens"] for r in runs)
            cached = sum(r["cached_tokens"] for r in runs)
            warmed = sum(r.get("warmed_tokens", 0) for r in runs)
            idle = [idle_share(r) for r in runs if r["servers"]]
            rows.append(
                [
                    workload.name,
                    system,
                    f"{percentile(latency, 50):.2f}",
                    f"{percentile(latency, 95):.2f}",
                    f"{statistics.fmean(r['calls'] for r in runs):.0f}",
                    f"{cached / max(1, asked):.0%}",
                    f"{(asked - cached + warmed) / len(runs) / 1000:.1f} k",
                    f"{statistics.fmean(idle):.0%}" if idle else "no record",
                    f"{statistics.fmean(r['plan_s'] for r in runs):.2f}",
                ]
            )
    return rows


def idle_share(run: dict[str, Any]) -> float:
    """Of the card, as the driver tells; of the busiest server in records that have no such
    figure."""
    told = run.get("card_idle_share")
    if told is None:
        told = min(s["idle_share"] for s in run["servers"].values())
    return float(told)


def floor_rows(main: Records, lpm: Records) -> list[list[str]]:
    """Halo's makespan over the floor of `workloads.gpu.floor`, seed by seed, and the best
    baseline's: what Halo would have in the first table if it were at the floor."""
    rates = best_rates(main.notes)
    rows: list[list[str]] = []
    bounds: list[float] = []
    for workload in WORKLOADS:
        runs = {run["seed"]: run for run in main.of(workload.name, "halo")}
        if not runs or not rates:
            continue
        work: dict[str, Work] = {}
        floor_s: dict[int, float] = {}
        # The first seed last: its tokens are shown.
        for seed, run in sorted(runs.items(), reverse=True):
            same = with_count(workload, run["rows"] / workload.count)
            work = work_of(same, same.rows(same.count, seed))
            floor_s[seed] = sum(w.seconds(rates[model]) for model, w in work.items())
        best = best_over(main, lpm, workload.name, floor_s)
        bounds += [best] if best is not None else []
        rows.append(
            [
                workload.name,
                f"{sum(w.prefill_tokens for w in work.values()) / 1000:.1f} k",
                f"{sum(w.decode_tokens for w in work.values()) / 1000:.1f} k",
                f"{statistics.fmean(floor_s.values()):.2f}",
                f"{statistics.fmean(run['makespan_s'] for run in runs.values()):.2f}",
                spread([runs[seed]["makespan_s"] / floor_s[seed] for seed in sorted(runs)]),
                "no record" if best is None else f"{best:.2f}",
            ]
        )
    if bounds:
        rows.append(
            ["geometric mean", "", "", "", "", "", f"{statistics.geometric_mean(bounds):.2f}"]
        )
    return rows


def best_rates(notes: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Of each model, the best rates that any of the servers had."""
    rates: dict[str, dict[str, float]] = {}
    for note in notes:
        if note["note"] == "peak":
            known = rates.setdefault(note["model"], {})
            for name, rate in note.items():
                if name.endswith("_per_s"):
                    known[name] = max(rate, known.get(name, 0.0))
    return rates


def best_over(
    main: Records, lpm: Records, workload: str, floor_s: dict[int, float]
) -> float | None:
    """The least of the baselines' makespans over the floor, of a to d; each one's is the mean over
    its seeds."""
    runs = [r for r in (*main.runs, *lpm.runs) if r["workload"] == workload]
    by_system: dict[str, list[float]] = {}
    for run in runs:
        if run["system"] in ("async", "langgraph", "operators", "lpm") and run["seed"] in floor_s:
            share = run["makespan_s"] / floor_s[run["seed"]]
            by_system.setdefault(run["system"], []).append(share)
    return min(map(statistics.fmean, by_system.values()), default=None)


def ablation_rows(records: Records) -> list[list[str]]:
    """What switching one thing off costs: makespan over Halo's with everything on."""
    systems = [s for s in dict.fromkeys(r["system"] for r in records.runs) if s != "halo"]
    rows: list[list[str]] = [["workload", *(s.removeprefix("halo-") for s in systems)]]
    for name in dict.fromkeys(r["workload"] for r in records.runs):
        rows.append([name, *(spread(by_seed(records, name, s)) for s in systems)])
    return rows


def unequal_answers(*stages: Records) -> list[str]:
    """Runs of the same rows whose answers differ between systems. Stages have rows of their own."""
    seen: dict[tuple[int, str, int, int], dict[str, set[str]]] = {}
    for number, stage in enumerate(stages):
        for r in stage.runs:
            key = (number, r["workload"], r["seed"], r["rows"])
            seen.setdefault(key, {}).setdefault(r["answers"], set()).add(r["system"])
    return [f"{key}: {found}" for key, found in seen.items() if len(found) > 1]


def percentile(ordered: list[float], q: int) -> float:
    """By nearest rank."""
    return ordered[min(len(ordered) - 1, len(ordered) * q // 100)] if ordered else float("nan")


def short_note(note: dict[str, Any]) -> str:
    """A note without what differs between the calls of one comparison."""
    if note["note"] != "machine":
        return json.dumps(note)
    flags = [a for a in note["arguments"] if a.startswith("--server-flags")]
    return json.dumps({**note, "arguments": flags})


def seconds(value: float | None) -> str:
    return "no record" if value is None else f"{value:.2f}"


def spread(values: list[float]) -> str:
    """The mean, and the range where there are several."""
    if not values:
        return "no record"
    mean = ratio(statistics.fmean(values))
    return mean if len(values) == 1 else f"{mean} ({ratio(min(values))} to {ratio(max(values))})"


def ratio(value: float) -> str:
    """Two digits, three next to 1: what is under it shall be seen."""
    return f"{value:.3f}" if abs(value - 1) < 0.01 else f"{value:.2f}"


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--no-floor", action="store_true", help="leave the floor out (it is slow)")
    arguments = parser.parse_args()
    stages = {
        name: Records(arguments.folder / f"{name}.jsonl")
        for name in ("main", "lpm", "ablation", "distinct")
    }
    for name, records in stages.items():
        for note in dict.fromkeys(map(short_note, records.notes)):
            print(f"<!-- {name}: {note} -->")
        for error in records.errors:
            print(f"**failed run**: {error}")
    unequal = unequal_answers(*stages.values())
    print(f"\nAnswers that differ between systems: {unequal or 'none'}\n")
    head = ["workload", "Halo, s", "a async", "b langgraph", "c operators", "d lpm", "e rows",
            "best of a to d"]  # fmt: skip
    print("## Makespan over Halo's\n")
    print(table(head, ratio_rows(stages["main"], stages["lpm"])))
    print("\n(e) is extrapolated from two rows.\n\n## Rows, tokens, servers\n")
    print(table(["workload", "system", "row p50, s", "row p95, s", "calls", "cached", "prefilled",
                 "idle", "planning, s"], detail_rows(stages["main"])))  # fmt: skip
    if not arguments.no_floor:
        print("\n## The floor\n")
        print(table(["workload", "unique prefill", "decode", "floor, s", "Halo, s",
                     "Halo over it", "best of a to d over it"],
                    floor_rows(stages["main"], stages["lpm"])))  # fmt: skip
    if stages["ablation"].runs:
        print("\n## Ablation: makespan without, over Halo's with everything\n")
        rows = ablation_rows(stages["ablation"])
        print(table(rows[0], rows[1:]))
    if stages["distinct"].runs:
        print("\n## Without repeated rows: makespan over Halo's\n")
        records = stages["distinct"]
        print(table(["workload", "Halo, s", "a async", "b langgraph"], (
            [w.name, seconds(records.mean(w.name, "halo")), spread(by_seed(records, w.name,
            "async")),
             spread(by_seed(records, w.name, "langgraph"))] for w in WORKLOADS)))  # fmt: skip


if __name__ == "__main__":
    main()
