"""EXPLAIN as one JSON object: everything, nothing shortened."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from costmodel.usage import OpMetrics
from planner.describe import field_values
from planner.explain_view import View
from planner.listing import Node
from planner.logical import Op
from planner.physical import is_input_order
from planner.stats import OpStats


def document(view: View) -> dict[str, Any]:
    """The plan as a JSON-able object.

    `operators` are in the order of their numbers, each with its `body` (the number of the operator
    whose body it is in and the body's title) or null; `estimate` and `actual` are there when known.
    """
    found: dict[str, Any] = {
        "queries": [
            {"name": o.name, "value": o.value, "rows": o.rows, "source": o.source}
            for o in view.listing.outputs
        ],
        "operators": [],
    }
    inside: dict[int, tuple[int, str]] = {}
    for node in view.listing.walk():
        for body in node.bodies:
            inside.update({inner.number: (node.number, body.title) for inner in body.nodes})
        found["operators"].append(_operator(view, node, inside.get(node.number)))
    if view.stats is not None:
        total = view.stats.total
        found["rows"] = dict(view.stats.rows)
        found["estimate"] = _estimate(total, view.cached_total)
    if view.rewritten is not None:
        found["rewrites"] = [
            {"rule": rule, "saved": asdict(saving)}
            for rule, saving in view.rewritten.savings().items()
        ]
        found["rules_off"] = list(view.rewritten.off)
    if view.actual_total is not None:
        found["actual"] = _actual(view.actual_total)
    if view.physical is not None:
        found["workers"] = [asdict(worker) for worker in view.physical.workers]
        found["rows_in_flight"] = view.physical.rows_in_flight
        found["row_order"] = {
            source: "input" if is_input_order(order) else "prefix"
            for source, order in view.physical.row_order.items()
        }
        found["stage_order"] = {
            op: [list(path) for path in paths] for op, paths in view.physical.stage_order.items()
        }
    return found


def _operator(view: View, node: Node, inside: tuple[int, str] | None) -> dict[str, Any]:
    op: Op = node.op
    entry: dict[str, Any] = {
        "number": node.number,
        "kind": op.kind,
        "label": op.label,
        "fingerprint": op.fingerprint,
        "effect": op.effect.value,
        "inputs": list(node.inputs),
        "after": list(node.after),
        "queries": list(node.queries),
        "fields": field_values(node),
        "body": None if inside is None else {"operator": inside[0], "title": inside[1]},
        "bodies": [
            {"title": b.title, "parameters": list(b.bindings), "result": b.result}
            for b in node.bodies
        ],
    }
    stats, actual = view.estimate(op), view.actual(op)
    if stats is not None:
        entry["estimate"] = _estimate(stats, view.cached(op))
    if actual is not None:
        entry["actual"] = _actual(actual)
    worker = view.worker(op)
    if worker is not None:
        entry["worker"] = worker.name
    if view.physical is not None:
        shares = view.physical.rows_by_worker(op)
        if shares:
            entry["rows_by_worker"] = shares
        entry["priority"] = view.physical.priority.get(op.fingerprint)
    return entry


def _estimate(stats: OpStats, cached: float) -> dict[str, Any]:
    return {
        "uses": stats.uses,
        "distinct": stats.distinct,
        "calls": stats.calls,
        "calls_alone": stats.calls_alone,
        "input_tokens": stats.input_tokens,
        "predicted_cached_tokens": cached,
        "output_tokens": stats.output_tokens,
        "calls_from": stats.calls_from,
        "input_from": stats.input_from,
        "output_from": stats.output_from,
    }


def _actual(metrics: OpMetrics) -> dict[str, Any]:
    return asdict(metrics)
