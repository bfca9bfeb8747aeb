r"""The scheduler's benchmark results as one page.

    python -m workloads.schedule_report docs/benchmarks/scheduler-*.json \
        -o docs/benchmarks/scheduler.md

Reads what `python -m workloads.schedule_bench NAME --out FILE` and the measurement on servers
wrote, and writes Markdown; the anytime curves become an SVG beside it. Nothing is computed here
that is not in the files.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

WIDTH, HEIGHT, LEFT, TOP = 720, 360, 60, 20


def gap(result: dict[str, Any], _: Path) -> list[str]:
    """Small instances against the proven optimum."""
    lines = [
        "## Small instances against the proven optimum (simulated)",
        "",
        f"{result['instances']} seeded instances ({_counts(result['rows'])}), of which the solver "
        f"proved {result['proven']}; the scheduler was given {result['steps']} search steps a "
        "start.",
        "",
        f"- mean gap to the proven optimum: **{_percent(result['mean_gap'])}** (goal 1 %)",
        f"- worst gap to the proven optimum: **{_percent(result['worst_gap'])}** (goal 5 %)",
        "- not proven: mean gap to the solver's lower bound "
        f"{_percent(result['not_proven_mean_gap_to_bound'])}, largest makespan over the best that "
        f"the solver found {result['not_proven_worst_over_solver_best']}",
        "- largest difference between the solver's makespan and the simulator's for the same "
        f"schedule: {result['largest_difference_simulated']} s",
        "",
        "| seed | operators | groups | workers | models | tools | scheduler s | optimum s "
        "| bound s | gap | solver s |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        optimum = f"{row['optimum_s']:.4f}" if row["proven"] else "not proven"
        lines.append(
            f"| {row['seed']} | {row['operators']} | {row['groups']} | {row['workers']} | "
            f"{row['models']} | {'yes' if row['tools'] else 'no'} | {row['scheduler_s']:.4f} | "
            f"{optimum} | {row['bound_s']:.4f} | {_percent(row['gap'])} | {row['solver_s']} |"
        )
    return lines


def shapes(result: dict[str, Any], _: Path) -> list[str]:
    """W1 to W6 against each baseline."""
    baselines = list(result["geometric_mean_speedup"])
    side = result["geometric_mean_speedup_over_baselines_with_side_by_side"]
    lines = [
        "## W1 to W6 against each baseline (simulated)",
        "",
        f"Hardware: {result['hardware']}. {result['pairs']} pairs of workload and scale. Planning "
        "was limited to 1 s of processor time up to 1,024 queries and to 10 s beyond. Makespan of "
        "the baseline over the scheduler's, geometric mean; the second row gives baselines models "
        "side by side, where they fit.",
        "",
        "| | " + " | ".join(baselines) + " |",
        "|---|" + "---|" * len(baselines),
        "| as published | "
        + " | ".join(f"{result['geometric_mean_speedup'][b]:.2f}" for b in baselines)
        + " |",
        "| with models side by side | " + " | ".join(f"{side[b]:.2f}" for b in baselines) + " |",
        "",
        f"- smallest of the first row: **{min(result['geometric_mean_speedup'].values()):.2f}** "
        "(goal 1.3)",
        "- over the published planner's choices: "
        f"{result['geometric_mean_speedup_over_published_dp']:.2f}",
        "- worst pair: the scheduler's makespan is "
        f"**{result['worst_over_best_baseline']:.3f}** of the best baseline's (goal 1.01)",
        "",
        "On one GPU with many queries every schedule that keeps the GPU busy takes as long: there "
        "is nothing to place, and the shapes' prompts share little. What is gained is at small "
        "batches, where loading models counts, and on several GPUs.",
        "",
        "| scale | " + " | ".join(baselines) + " |",
        "|---|" + "---|" * len(baselines),
    ]
    for scale, speedups in result["by_scale"].items():
        lines.append(f"| {scale} | " + " | ".join(f"{speedups[b]:.2f}" for b in baselines) + " |")
    lines += [
        "",
        "| workload | queries | GPUs | scheduler s | best baseline s | ratio | published planner s "
        "| planning s | picked |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        best = min(row["baselines_s"].values())
        lines.append(
            f"| {row['workload']} | {row['queries']} | {row['gpus']} | {row['scheduler_s']:.1f} | "
            f"{best:.1f} | {row['over_best_baseline']:.3f} | {row['published_dp_s']:.1f} | "
            f"{row['planning_s']} | {row['method'].removeprefix('auto: ')} |"
        )
    return lines


def planning(result: dict[str, Any], _: Path) -> list[str]:
    """Planning time, wall clock."""
    lines = [
        "## Planning time (wall clock, measured)",
        "",
        f"The longest of {result['repeat']} and, beside it, the processor time; the makespans are "
        "simulated.",
        "",
        "| case | budget s | planning s | processor s | limit s | kept | scheduler s "
        "| best baseline s | scored |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, case in result["cases"].items():
        lines.append(
            f"| {name} | {case['budget_s']:g} | {case['planning_s']} | {case['processor_s']} | "
            f"{case['limit_s']:g} | {'yes' if case['planning_s'] < case['limit_s'] else 'no'} | "
            f"{case['scheduler_s']} | {case['best_baseline_s']} | {case['scored']} |"
        )
    return lines


def anytime(result: dict[str, Any], page: Path) -> list[str]:
    """Quality against planning time, with the plot."""
    picture = page.with_name(page.stem + "-anytime.svg")
    picture.write_text(curves_svg(result["curves"]) + "\n")
    lines = [
        "## Quality against planning time (makespans simulated, processor time measured)",
        "",
        f"![makespan over the best found, by planning time]({picture.name})",
        "",
        "| case | budget s | planning s | makespan s | over the best |",
        "|---|---|---|---|---|",
    ]
    for name, points in result["curves"].items():
        for p in points:
            lines.append(
                f"| {name} | {p['budget_s']:g} | {p['planning_s']} | {p['makespan_s']} | "
                f"{p['over_best']:.3f} |"
            )
    return lines


def simulator(result: dict[str, Any], _: Path) -> list[str]:
    """Speed of the simulator itself."""
    return [
        "## The simulator's own speed (measured)",
        "",
        f"{result['calls']:,} calls of 10,000 queries on 8 workers, each row by itself, lengths "
        f"that differ: {result['wall_s']} s ({result['events']:,} events). The same in 64 row "
        f"groups: {result['grouped_wall_s']} s, a makespan of {result['grouped_over_rows']} of it.",
    ]


def reality(result: dict[str, Any], _: Path) -> list[str]:
    """Measured on servers beside simulated."""
    lines = [
        "## Against reality (measured on servers)",
        "",
        f"{result['measured_on']}. {result['pairs']} pairs of workload and schedule in "
        f"{result['runs']} runs. Rank correlation of simulated and measured makespans: "
        f"**{result['rank_correlation']}** (goal 0.9). Median absolute error "
        f"{_percent(result['median_absolute_error'])}. The chosen schedule over the measured best, "
        f"worst workload: **{result['chosen_over_best_worst']}** (goal 1.05). Repeats of one pair "
        f"differ by {_percent(result['median_spread_of_repeats'])} (median).",
        "",
        "| workload | schedule | predicted s | measured s |",
        "|---|---|---|---|",
    ]
    for name, workload in result["workloads"].items():
        for scheduler, run in workload["schedulers"].items():
            lines.append(f"| {name} | {scheduler} | {run['predicted_s']} | {run['measured_s']} |")
    return lines


def cpu(result: dict[str, Any], _: Path) -> list[str]:
    """Two engines on one machine without an accelerator."""
    lines = [
        "## Two engines on one processor (measured)",
        "",
        f"{result['rows']} rows of five calls, model {result['model']}, engine {result['engine']}, "
        "each engine a process of its own; medians of the runs beside them.",
        "",
        "| schedule | seconds | over auto | calls of each engine | runs |",
        "|---|---|---|---|---|",
    ]
    for way, times in result["seconds"].items():
        calls = " and ".join(map(str, result["requests"][way]))
        lines.append(
            f"| {way} | {result['median_s'][way]} | {result['over_auto'][way]} | {calls} | "
            f"{', '.join(map(str, times))} |"
        )
    return lines


SECTIONS: dict[str, Callable[[dict[str, Any], Path], list[str]]] = {
    "schedule-gap": gap,
    "schedule-shapes": shapes,
    "schedule-planning": planning,
    "schedule-anytime": anytime,
    "simulator": simulator,
    "schedule-reality": reality,
    "schedule-cpu": cpu,
}


def curves_svg(curves: dict[str, list[dict[str, float]]]) -> str:
    """Makespan over the best found against planning time; time is logarithmic."""
    times = [p["planning_s"] for points in curves.values() for p in points]
    worst = max((p["over_best"] for points in curves.values() for p in points), default=1.0)
    low, high = math.log10(min(times, default=0.1)), math.log10(max(times, default=1.0))
    span = (high - low) or 1.0
    top = max(worst, 1.05)

    def place(seconds: float, ratio: float) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - 20) * (math.log10(seconds) - low) / span
        return x, TOP + (HEIGHT - TOP - 60) * (top - ratio) / (top - 1.0)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
        f'viewBox="0 0 {WIDTH} {HEIGHT}" role="img" font-family="system-ui, sans-serif" '
        f'font-size="11"><rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>'
    ]
    for i in range(5):
        ratio = 1 + (top - 1) * i / 4
        y = place(10**low, ratio)[1]
        parts.append(
            f'<path d="M{LEFT} {y:.1f}H{WIDTH - 20}" stroke="#d5d9df"/>'
            f'<text x="8" y="{y + 4:.1f}">{ratio:.3f}</text>'
        )
    marks = [m * 10.0**e for e in range(-3, 4) for m in (1, 2, 5)]
    for seconds in marks:
        if 10**low <= seconds <= 10**high * 1.02:
            x = place(seconds, 1.0)[0]
            parts.append(
                f'<path d="M{x:.1f} {HEIGHT - 60}v4" stroke="#8a97a8"/>'
                f'<text x="{x:.1f}" y="{HEIGHT - 44}" text-anchor="middle">{seconds:g}</text>'
            )
    parts.append(
        f'<text x="8" y="{TOP - 8}">makespan over the best found</text>'
        f'<text x="{WIDTH - 20}" y="{HEIGHT - 66}" text-anchor="end">planning time, s</text>'
    )
    for i, (name, points) in enumerate(curves.items()):
        color = f"hsl({i * 360 / max(1, len(curves)):.0f} 60% 42%)"
        path = " ".join(
            f"{x:.1f},{y:.1f}" for x, y in (place(p["planning_s"], p["over_best"]) for p in points)
        )
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
        parts += [f'<circle cx="{at.split(",")[0]}" cy="{at.split(",")[1]}" r="3" fill="{color}"/>'
                  for at in path.split()]  # fmt: skip
        x = LEFT + i % 2 * 320
        y = HEIGHT - 26 + i // 2 * 14
        parts.append(
            f'<rect x="{x}" y="{y - 8}" width="10" height="10" fill="{color}"/>'
            f'<text x="{x + 15}" y="{y}">{escape(name)}</text>'
        )
    return "".join(parts) + "</svg>"


def _counts(rows: list[dict[str, Any]]) -> str:
    """How many instances have what."""
    kinds = {
        "with tools": [row["tools"] for row in rows],
        "with models that are switched": [row["models"] > 1 for row in rows],
        "with a worker that a model does not fit": [row["limited"] for row in rows],
    }
    return ", ".join(f"{sum(which)} {kind}" for kind, which in kinds.items())


def page(files: list[Path], output: Path) -> str:
    """The page; files of other kinds are refused by name."""
    lines = [
        "# The scheduler: figures",
        "",
        "Written by `python -m workloads.schedule_report`. Makespans are simulated unless a "
        "section says measured. Commands are in [scheduling](../scheduling.md#benchmarks).",
    ]
    for file in files:
        result = json.loads(file.read_text())
        kind = result.get("workload", "schedule-reality" if "rank_correlation" in result else "")
        section = SECTIONS.get(kind)
        if section is None:
            sys.exit(f"error: {file} is no result of the scheduler's benchmarks ({kind!r})")
        lines += ["", *section(result, output), "", f"Raw: [{file.name}]({file.name})."]
    return "\n".join(lines) + "\n"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{max(0.0, value):.2%}"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.output.write_text(page(arguments.files, arguments.output))


if __name__ == "__main__":
    main()
