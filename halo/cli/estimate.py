"""`halo estimate`: what a batch would take, before it runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from costmodel.interval import Interval
from costmodel.tokens import estimate_tokens
from halo.cli.run import prepare
from halo.config import Config, load_config
from halo.estimate import Estimate, estimate_batch
from halo.planning import Prepared
from halo.profiles import engine_profile
from halo.progress import Reporter
from halo.session import Session
from planner.estimator import Estimator
from planner.learnt import Learnt
from planner.refine import refined
from planner.row_profile import RowProfile
from planner.stats import PlanStats


def estimate(
    flows: list[str],
    rows: str,
    *,
    sample: int,
    hardware: str,
    shape: str,
    config_file: Path | None,
    flags: dict[str, Any],
    json_out: bool,
) -> int:
    """Print the estimate; returns the exit code."""
    config, _ = load_config(flags, file=config_file)
    with Session(config) as session:
        prepared = prepare(session, flows, rows)
        stats = _learned(session, prepared, sample) if sample else prepared.stats
    profiles = {
        worker.name: engine_profile(
            worker.engine,
            worker.model,
            hardware=hardware,
            shape=shape,
            models_dir=config.models_dir,
        )
        for worker in prepared.plan.workers
    }
    limits = config.limits
    found = estimate_batch(prepared.plan, stats, profiles, prices=limits.prices)
    if json_out:
        document = {**found.to_json(), "budget": found.against(limits)}
        print(json.dumps(document, ensure_ascii=False, indent=2))
    else:
        print(text(found, config))
    return 0


def _learned(session: Session, prepared: Prepared, n_rows: int) -> PlanStats:
    """Statistics after a run over some of the rows; its answers are not kept."""
    with Reporter(sys.stderr) as reporter:
        some, result = session.run_sample(
            prepared, n_rows, on_progress=reporter.show, announce=reporter.say
        )
    logical = prepared.plan.logical
    learnt = Learnt.from_runs([(some.plan.logical, result.metrics)], "sampled")
    profile = RowProfile(prepared.rows_by_source, estimate_tokens)
    stats = Estimator(logical, profile, estimate_tokens, learnt).run()
    total = sum(prepared.stats.rows.values())
    share = sum(some.stats.rows.values()) / total if total else 0.0
    return refined(stats, result.metrics, share)


def text(found: Estimate, config: Config) -> str:
    """The estimate for people."""
    lines = [
        f"{found.rows:,} rows on {found.profile}",
        f"calls     {_span(found.calls)}   ({found.calls_alone:,.0f} without sharing)",
        f"input     {_span(found.input_tokens)} tokens",
        f"cached    {_span(found.cached_tokens)} of them",
        f"output    {_span(found.output_tokens)} tokens",
        f"time      {_time(found.seconds)}",
        f"energy    {_span(found.energy_j.scaled(1 / 3600))} Wh",
    ]
    if found.usd is not None:
        lines.append(f"money     {_span(found.usd)} USD")
    if found.tool_calls.high:
        lines.append(f"tools     {_span(found.tool_calls)} calls")
    if found.ops:
        width = max(len(op.name or op.kind) for op in found.ops)
        lines.append("")
        for op in sorted(found.ops, key=lambda op: -op.seconds.mid):
            lines.append(
                f"  {op.name or op.kind:{width}}  {_span(op.calls)} calls  "
                f"{_span(op.input_tokens)} in  {_span(op.output_tokens)} out  {_time(op.seconds)}"
            )
    budget = found.against(config.limits)
    lines += ["", *(f"budget: {line}" for line in budget)] if budget else []
    lines += [f"note: {note}" for note in found.notes]
    if not found.calibrated:
        lines.append("note: run `halo calibrate` for times that were measured on this engine")
    return "\n".join(lines)


def _span(interval: Interval) -> str:
    if interval.is_exact:
        return _number(interval.mid)
    low, mid, high = (_number(v) for v in (interval.low, interval.mid, interval.high))
    return f"{mid} ({low} to {high})"


def _number(value: float) -> str:
    if value >= 1e6:
        return f"{value / 1e6:.3g} M"
    if value >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _time(seconds: Interval) -> str:
    low, mid, high = (_duration(v) for v in (seconds.low, seconds.mid, seconds.high))
    return f"{mid} ({low} to {high})"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.3g} min"
    return f"{seconds / 3600:.3g} h"
