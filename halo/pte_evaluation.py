"""How well PTE follows measured model time: the raw measurements of workloads/gpu/pte_sglang.py
against exact PTE, paper PTE and token counts.

Two measured times: `model_time` is a call's latency without its wait in the engine's queue; it
includes what other calls of the batch cost meanwhile. `device_share` divides each moment among the
calls that are in the engine: what a call used of the device. PTE is a measure of work, so the
second is what it should follow; the first holds the work of neighbours as well.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from costmodel.hardware import load_hardware
from costmodel.models import ModelProfile, load_model
from costmodel.pte import PteRates
from costmodel.pte_correlation import pearson, spearman
from costmodel.pte_exact import DEFAULT_BATCH, ExactTerms, exact_rates
from costmodel.pte_profiles import Pricing, device_peak, geometry_of
from halo.errors import InputError

Metric = Callable[["Level", "list[Call]"], "list[float]"]
"""Values of calls of a level."""

FORMAT = "halo-pte-raw-1"
_DEVICES = (
    ("H200", "h200"),
    ("H100 PCIe", "h100-pcie"),
    ("H100", "h100-sxm"),
    ("A100", "a100-80gb"),
    ("B200", "b200"),
    ("4090", "rtx-4090"),
    ("L40S", "l40s"),
    ("V100", "v100"),
)


@dataclass(slots=True)
class Call:
    """One measured call: tokens, and seconds since its level began."""

    context: int
    cached: int
    decoded: int
    end_s: float
    model_time_s: float
    prefill_s: float | None = None
    retractions: int = 0
    device_share_s: float = 0.0
    neighbours_s: float = 0.0  # call seconds of the engine during this call, its own included

    @property
    def running(self) -> float:
        """Calls in the engine during this one, on average, itself included."""
        return max(1.0, self.neighbours_s / self.model_time_s)


@dataclass(slots=True)
class Level:
    """The conversations held at one concurrency on one server."""

    pool: str
    concurrency: int
    conversations: list[list[Call]]
    mean_running: float = 0.0
    mean_context: float = 0.0  # of the decoded tokens

    @property
    def calls(self) -> list[Call]:
        return [call for conversation in self.conversations for call in conversation]


def evaluate(path: Path, hardware: str | None = None, model: str | None = None) -> dict[str, Any]:
    """Correlations of a raw file, as a JSON-able object. `hardware` and `model` override what the
    file says. Raises `InputError` for another kind of file."""
    try:
        raw = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot read the measurements: {error}") from error
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:  # pyright: ignore
        raise InputError(f"{path}: expected measurements with format {FORMAT!r}")
    document = cast("dict[str, Any]", raw)
    device = hardware or _device(str(document.get("device")))
    levels = [_level(pool["pool"], level) for pool in document["pools"] for level in pool["levels"]]
    with tempfile.TemporaryDirectory() as scratch:
        name: str | Path = model or "llama-3.1-8b"
        if model is None and document.get("model_config"):
            name = Path(scratch) / "config.json"
            name.write_text(json.dumps(document["model_config"]), "utf-8")
        shape = load_model(name)
        book = _Book(device, shape)
    paper = Pricing("paper", _paper_device(device)).rates("llama-3.1-8b")
    metrics: dict[str, Metric] = {
        "exact": lambda level, calls: [book.value(call, call.running) for call in calls],
        "exact, batch of the level": lambda level, calls: [
            book.value(call, level.mean_running) for call in calls
        ],
        "exact, batch 32": lambda level, calls: [book.value(call, DEFAULT_BATCH) for call in calls],
        "exact, no weight reads": lambda level, calls: [book.value(call, None) for call in calls],
        "exact, reached peaks": lambda level, calls: [
            book.value(call, call.running, reached=True) for call in calls
        ],
        # A call waits for whole steps, whoever's context they read, and for prefills in between.
        "exact, time of whole steps": lambda level, calls: _whole(book, level, calls),
        "paper": lambda level, calls: [paper.turn(call.context, call.decoded) for call in calls],
        "total tokens": lambda level, calls: [float(c.context + c.decoded) for c in calls],
        "uncached and output tokens": lambda level, calls: [
            float(c.context - c.cached + c.decoded) for c in calls
        ],
        "output tokens": lambda level, calls: [float(c.decoded) for c in calls],
    }
    groups: dict[str, list[Level]] = {
        f"{level.pool}, concurrency {level.concurrency}": [level] for level in levels
    }
    for pool in dict.fromkeys(level.pool for level in levels):
        groups[f"{pool}, all levels"] = [level for level in levels if level.pool == pool]
    groups["everything"] = levels
    return {
        "file": path.name,
        "device": document.get("device"),
        "hardware": device,
        "conversations": sum(len(level.conversations) for level in levels),
        "calls": sum(len(level.calls) for level in levels),
        "levels": [_describe(level) for level in levels],
        "correlations": [
            row for name, members in groups.items() for row in _rows(name, members, metrics)
        ],
        "fits": [_fit(name, members) for name, members in groups.items()],
    }


def _device(name: str) -> str:
    for part, known in _DEVICES:
        if part in name:
            return known
    raise InputError(f"the file's device is {name!r}; give --hardware")


def _paper_device(device: str) -> str:
    for part, name in (("h200", "H200"), ("a100", "A100"), ("4090", "RTX-4090"), ("v100", "V100")):
        if part in device:
            return name
    return "H100-PCIe"


class _Book:
    """Exact prices of one model on one device, by the calls that share a step."""

    def __init__(self, device: str, model: ModelProfile) -> None:
        self._hardware = load_hardware(device)
        self._model = model
        self._geometry = geometry_of(model)
        self._rates: dict[tuple[float | None, bool], PteRates] = {}

    def rates(self, batch: float | None, *, reached: bool = False) -> PteRates:
        """Prices at a batch, rounded to a tenth."""
        batch = None if batch is None else max(1.0, round(batch, 1))
        key = (batch, reached)
        if key not in self._rates:
            peak = device_peak(self._hardware, self._model.dtype, "reached" if reached else "dense")
            self._rates[key] = exact_rates(self._geometry, peak, ExactTerms(batch=batch))
        return self._rates[key]

    def value(self, call: Call, batch: float | None, *, reached: bool = False) -> float:
        """Exact PTE of a call."""
        return self.rates(batch, reached=reached).turn(call.context, call.decoded, call.cached)


def _level(pool: str, raw: dict[str, Any]) -> Level:
    conversations: list[list[Call]] = []
    for conversation in raw["conversations"]:
        calls: list[Call] = []
        for call in conversation["calls"]:
            meta = call["meta"]
            latency = float(meta.get("e2e_latency") or (call["done_s"] - call["sent_s"]))
            queued = float(meta.get("queue_time") or 0.0)
            queued = queued if 0 <= queued < latency else 0.0
            context = int(meta.get("prompt_tokens") or call["context_tokens"])
            calls.append(
                Call(
                    context,
                    min(context, int(meta.get("cached_tokens") or 0)),
                    int(meta["completion_tokens"]),
                    float(call["done_s"]),
                    max(1e-6, latency - queued),
                    _prefill_s(meta, latency),
                    int(meta.get("num_retractions") or 0),
                )
            )
        if calls:
            conversations.append(calls)
    level = Level(pool, int(raw["concurrency"]), conversations)
    _share_device(level)
    return level


def _prefill_s(meta: dict[str, Any], latency: float) -> float | None:
    """Seconds from a call's entry into the engine to its first token, where the server tells."""
    entered, finished = meta.get("forward_entry_time"), meta.get("prefill_finished_time")
    if not isinstance(entered, int | float) or not isinstance(finished, int | float):
        return None
    spent = float(finished) - float(entered)
    return spent if 0 <= spent <= latency + 1e-3 else None


def _share_device(level: Level) -> None:
    """Divide every moment among the calls in the engine then. A server that prefills stops
    decoding: the moment belongs to the calls in prefill, by their uncached tokens; otherwise a step
    decodes one token of each, and the moment is divided evenly."""
    calls = level.calls
    events: list[tuple[float, int, int]] = []  # moment, 0 ends and 1 decodes and 2 prefills, call
    for number, call in enumerate(calls):
        begins = call.end_s - call.model_time_s
        events.append((begins, 2, number))
        if call.prefill_s is not None:
            events.append((min(call.end_s, begins + call.prefill_s), 1, number))
        events.append((call.end_s, 0, number))
    events.sort(key=lambda event: (event[0], -event[1]))
    prefilling: set[int] = set()
    running: set[int] = set()
    before = busy = weighted = 0.0
    for moment, kind, number in events:
        passed = moment - before
        if running and passed > 0:
            sharing = prefilling or running
            weights = {
                each: float(max(1, calls[each].context - calls[each].cached)) if prefilling else 1.0
                for each in sharing
            }
            whole = sum(weights.values())
            for each, weight in weights.items():
                calls[each].device_share_s += passed * weight / whole
            for each in running:
                calls[each].neighbours_s += passed * len(running)
            busy += passed
            weighted += passed * len(running)
        before = moment
        if kind == 2:
            running.add(number)
            if calls[number].prefill_s is not None:
                prefilling.add(number)
        elif kind == 1:
            prefilling.discard(number)
        else:
            prefilling.discard(number)
            running.discard(number)
    level.mean_running = weighted / busy if busy else 1.0
    decoded = sum(call.decoded for call in calls)
    level.mean_context = (
        sum(call.context * call.decoded for call in calls) / decoded if decoded else 0.0
    )


def _describe(level: Level) -> dict[str, Any]:
    calls = level.calls
    prompt = sum(call.context for call in calls)
    return {
        "pool": level.pool,
        "concurrency": level.concurrency,
        "conversations": len(level.conversations),
        "calls": len(calls),
        "mean_running": level.mean_running,
        "prompt_tokens": prompt,
        "cached_share": sum(call.cached for call in calls) / prompt if prompt else 0.0,
        "output_tokens": sum(call.decoded for call in calls),
        "retractions": sum(call.retractions for call in calls),
        "calls_with_prefill_time": sum(call.prefill_s is not None for call in calls),
        "model_time_s": sum(call.model_time_s for call in calls),
        "device_time_s": sum(call.device_share_s for call in calls),
    }


def _whole(book: _Book, level: Level, calls: Sequence[Call]) -> list[float]:
    """Exact PTE of all that happens while a call runs: its prefill, and for each decoded token a
    whole step at the level's mean context, with the prefills that come between steps."""
    everyone = level.calls
    rates = book.rates(None)
    decoded = max(1, sum(call.decoded for call in everyone))
    between = sum(rates.prefill(call.context, call.cached) for call in everyone) / decoded
    read = rates.kv_reads(round(level.mean_context), 1)
    return [
        rates.prefill(call.context, call.cached)
        + (book.rates(call.running).decode_token + read + between) * call.running * call.decoded
        for call in calls
    ]


def _rows(
    group: str,
    levels: Sequence[Level],
    metrics: dict[str, Metric],
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for metric, values_of in metrics.items():
        by_call: list[float] = []
        by_trajectory: list[float] = []
        for level in levels:
            for conversation in level.conversations:
                values = values_of(level, conversation)
                by_call += values
                by_trajectory.append(sum(values))
        for measured in ("model_time", "device_share"):
            times = [
                [float(getattr(call, f"{measured}_s")) for call in conversation]
                for level in levels
                for conversation in level.conversations
            ]
            whole = [sum(each) for each in times]
            single = [value for each in times for value in each]
            for unit, predicted, actual in (
                ("call", by_call, single),
                ("trajectory", by_trajectory, whole),
            ):
                rows.append(
                    {
                        "group": group,
                        "metric": metric,
                        "measured": measured,
                        "unit": unit,
                        "n": len(predicted),
                        "pearson": pearson(predicted, actual),
                        "spearman": spearman(predicted, actual),
                    }
                )
    return rows


_TERMS = ("uncached_tokens", "decoded_tokens", "context_reads", "calls")


def _fit(group: str, levels: Sequence[Level]) -> dict[str, Any]:
    """Least squares of measured time on the terms of the metric and a constant a call: which of
    them carries the time, and what the best weights would reach."""
    rows: list[list[float]] = []
    found: dict[str, Any] = {"group": group}
    trajectories = [each for level in levels for each in level.conversations]
    for conversation in trajectories:
        rows.append(
            [
                float(sum(call.context - call.cached for call in conversation)),
                float(sum(call.decoded for call in conversation)),
                sum(
                    call.context * call.decoded + call.decoded * (call.decoded - 1) / 2
                    for call in conversation
                ),
                float(len(conversation)),
            ]
        )
    for measured in ("model_time", "device_share"):
        actual = [
            sum(float(getattr(call, f"{measured}_s")) for call in conversation)
            for conversation in trajectories
        ]
        weights = least_squares(rows, actual)
        if weights is None:
            continue
        fitted = [
            sum(weight * value for weight, value in zip(weights, row, strict=True)) for row in rows
        ]
        means = [sum(column) / len(column) for column in zip(*rows, strict=True)]
        found[measured] = {
            "seconds_per": dict(zip(_TERMS, weights, strict=True)),
            "mean_seconds": {
                name: weight * mean
                for name, weight, mean in zip(_TERMS, weights, means, strict=True)
            },
            "pearson": pearson(fitted, actual),
        }
    return found


def least_squares(rows: Sequence[Sequence[float]], targets: Sequence[float]) -> list[float] | None:
    """Weights that fit `targets` best as sums over the columns of `rows`; None when the columns do
    not tell them apart.

    Example:
        >>> weights = least_squares([[1, 0], [0, 2], [1, 2]], [3, 4, 7])
        >>> [round(weight, 9) for weight in weights or ()]
        [3.0, 2.0]
    """
    if not rows:
        return None
    size = len(rows[0])
    scales = [max(abs(row[i]) for row in rows) or 1.0 for i in range(size)]
    system = [
        [sum(row[i] * row[j] for row in rows) / scales[i] / scales[j] for j in range(size)]
        + [sum(row[i] * target for row, target in zip(rows, targets, strict=True)) / scales[i]]
        for i in range(size)
    ]
    for column in range(size):
        pivot = max(range(column, size), key=lambda i: abs(system[i][column]))
        if abs(system[pivot][column]) < 1e-12:
            return None
        system[column], system[pivot] = system[pivot], system[column]
        for other in range(size):
            if other == column:
                continue
            factor = system[other][column] / system[column][column]
            for k in range(column, size + 1):
                system[other][k] -= factor * system[column][k]
    return [system[i][size] / system[i][i] / scales[i] for i in range(size)]


def render_evaluation(found: dict[str, Any]) -> str:
    """The correlations as Markdown tables, trajectories first."""
    lines = [
        f"{found['conversations']} conversations, {found['calls']} calls on {found['device']}.",
        "",
        "| pool | concurrency | in the engine, mean | conversations | calls | cached | retracted | "
        "prefill timed | device s |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for level in found["levels"]:
        lines.append(
            f"| {level['pool']} | {level['concurrency']} | {level['mean_running']:.1f} | "
            f"{level['conversations']} | {level['calls']} | {level['cached_share']:.0%} | "
            f"{level['retractions']} | {level['calls_with_prefill_time']} | "
            f"{level['device_time_s']:.1f} |"
        )
    for unit in ("trajectory", "call"):
        for measured in ("model_time", "device_share"):
            rows = [
                row
                for row in found["correlations"]
                if row["unit"] == unit and row["measured"] == measured
            ]
            groups = list(dict.fromkeys(row["group"] for row in rows))
            metrics = list(dict.fromkeys(row["metric"] for row in rows))
            by_key = {(row["group"], row["metric"]): row for row in rows}
            title = measured.replace("_", " ")
            lines += ["", f"Per {unit}, against {title}: Pearson (Spearman).", ""]
            lines.append("| metric | " + " | ".join(groups) + " |")
            lines.append("|---|" + "---:|" * len(groups))
            for metric in metrics:
                cells = [
                    f"{_figure(by_key[(group, metric)]['pearson'])} "
                    f"({_figure(by_key[(group, metric)]['spearman'])})"
                    for group in groups
                ]
                lines.append(f"| {metric} | " + " | ".join(cells) + " |")
    lines += ["", "Best weights of the terms, per trajectory (mean seconds of each term):", ""]
    header = ["group", "measured", *(_TERMS), "Pearson of the fit"]
    lines.append("| " + " | ".join(name.replace("_", " ") for name in header) + " |")
    lines.append("|---|---|" + "---:|" * (len(_TERMS) + 1))
    for fit in found["fits"]:
        for measured in ("model_time", "device_share"):
            if measured in fit:
                each = fit[measured]
                seconds = [f"{each['mean_seconds'][name]:.3f}" for name in _TERMS]
                lines.append(
                    f"| {fit['group']} | {measured.replace('_', ' ')} | "
                    + " | ".join(seconds)
                    + f" | {_figure(each['pearson'])} |"
                )
    return "\n".join(lines)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
