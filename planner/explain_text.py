"""EXPLAIN as text: the canonical format, and that of golden tests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from costmodel.usage import OpMetrics, Usage
from planner.describe import describe, effect_of, shown_name
from planner.explain_view import Reuse, View
from planner.listing import BodyListing, Node
from planner.logical import CALLS, ModelOp, Relation, Scan
from planner.merge import MergeReport
from planner.numbers import compact, deviation, percent, whole
from planner.physical import PhysicalPlan, is_input_order
from planner.rewrite import Rewritten, Saving
from planner.stats import OpStats, PlanStats, Provenance

WIDTH = 120
LISTED = 6
_MARKS: dict[Provenance, str] = {
    "exact": "",
    "sampled": "°",
    "learnt": "*",
    "declared": "^",
    "assumed": "~",
}


def render_text(view: View) -> str:
    """The plan as lines of at most 120 characters (of any length with `verbose`)."""
    lines = [_header(view)]
    if view.actual_total is not None:
        lines.append(_actual_header(view, view.actual_total))
    lines += _workers(view)
    lines += _scope(view, view.listing.nodes, "")
    lines += _outputs(view)
    lines += _footer(view)
    text = "\n".join(lines if view.verbose else [_cut(line) for line in lines])
    if view.rewritten is not None and view.verbose:
        text = f"{text}\n\n{render_steps(view.rewritten)}"
    return text


# --- header and footer ---------------------------------------------------------------------------


def _header(view: View) -> str:
    names = [name for name, _ in view.plan.outputs]
    what = f"Query {shown_name(names[0])}" if len(names) == 1 else f"Batch of {len(names)} queries"
    if view.stats is None:
        return what
    total = view.stats.total
    calls = f"est. {whole(total.calls)} calls"
    if round(total.calls_alone) != round(total.calls):
        calls += f" ({whole(total.calls_alone)} alone)"
    parts = [what, calls]
    if any(isinstance(op, ModelOp) for op in view.calling):
        cached = percent(view.cached_total, total.input_tokens)
        parts.append(f"{compact(total.input_tokens)} in ({cached} prefix-cached, predicted)")
        parts.append(f"{compact(total.output_tokens)} out")
    return "  ".join(parts)


def _actual_header(view: View, total: OpMetrics) -> str:
    tokens = _volatile_tokens(view, total.usage.input_tokens)
    answered = _volatile_tokens(view, total.usage.output_tokens)
    return (
        f"actual {whole(total.made)} calls  {tokens} in  {answered} out  "
        f"busy {_seconds(view, total.busy_s)}  retries {whole(total.retries)}  "
        f"errors {whole(total.errors)}"
    )


def _workers(view: View) -> Iterator[str]:
    if view.physical is None:
        return
    for worker in view.physical.workers:
        facts = [f"model={shown_name(worker.model)}", f"{worker.max_in_flight} in flight"]
        if worker.context_tokens is not None:
            facts.append(f"{whole(worker.context_tokens)} tokens of context")
        facts.append("prefix cache" if worker.prefix_cache else "no prefix cache")
        if worker.attention:
            facts.append(f"attention {shown_name(worker.attention)}")
        if worker.prime_prefix:
            facts.append("prefixes primed")
        yield f"worker {shown_name(worker.name)}: {', '.join(facts)}"


def _outputs(view: View) -> Iterator[str]:
    for output in view.listing.outputs:
        yield f"{shown_name(output.name)} = {output.value} for each row of {output.rows}"


def _footer(view: View) -> Iterator[str]:
    if len(view.plan.outputs) > 1:
        merged = MergeReport.of(view.plan)
        saved = merged.ops_before - merged.ops_after
        yield (
            f"merged: {whole(merged.ops_before)} operators of {len(view.plan.outputs)} queries are "
            f"{whole(merged.ops_after)} ({whole(saved)} shared)"
        )
    if view.rewritten is not None:
        yield from _rewrites(view.rewritten)
    if view.physical is not None:
        orders = [
            f"{shown_name(source)} in {'input' if is_input_order(order) else 'prefix'} order"
            for source, order in view.physical.row_order.items()
        ]
        orders += _stage_orders(view, view.physical)
        in_flight = f"{view.physical.rows_in_flight} rows in flight"
        yield f"rows: {', '.join([*orders, in_flight])}"
    if view.stats is not None:
        yield _legend(view.stats)
    if view.actual_total is not None and view.reuse is not None:
        yield calls_saved(view.actual_total, view.merged_calls)
        yield f"prefix reuse: {prefix_reuse(view.reuse, view.volatile, view.counted)}"


def _stage_orders(view: View, physical: PhysicalPlan) -> Iterator[str]:
    """By which columns rows that are made while running start together."""
    for node in view.listing.walk():
        paths = physical.stage_order.get(node.op.fingerprint)
        if paths and isinstance(node.op, Relation) and not node.depth:
            columns = ", ".join(".".join(map(str, path)) for path in paths)
            yield f"{node.reference} grouped by {shown_name(columns)}"


def _rewrites(rewritten: Rewritten) -> Iterator[str]:
    """The rules that changed the plan, each with what it saves by estimate."""
    fired = [f"{rule}({_saving(saving)})" for rule, saving in rewritten.savings().items()]
    yield f"rewrites: {', '.join(fired)}   off with --no-<name>" if fired else "rewrites: none"
    off = [name for name in rewritten.off if not name.startswith("unsafe_")]
    on = [rule for rule in rewritten.changed if rule.startswith("unsafe_")]
    if off:
        yield f"switched off: {', '.join(off)}"
    if on:
        yield f"changes what models see: {', '.join(on)}"


def _saving(saving: Saving) -> str:
    """`-20 calls, -1.2 k in`; `same calls` where only the shape of the plan changed."""
    parts: list[str] = []
    for value, unit, text in (
        (saving.calls, "calls", whole(abs(saving.calls))),
        (saving.input_tokens, "in", compact(abs(saving.input_tokens))),
        (saving.output_tokens, "out", compact(abs(saving.output_tokens))),
    ):
        if round(value):
            parts.append(f"{'-' if value > 0 else '+'}{text} {unit}")
    return ", ".join(parts) or "same calls"


def render_steps(rewritten: Rewritten) -> str:
    """The plan after each rule, in full where it changed."""
    parts: list[str] = []
    for step in rewritten.steps:
        head = f"--- after {step.rule} (pass {step.number})"
        if not step.changed:
            parts.append(f"{head}: same as above")
            continue
        view = View(step.after, verbose=True)
        parts.append("\n".join([head, *_scope(view, view.listing.nodes, ""), *_outputs(view)]))
    return "\n".join(parts)


def _legend(stats: PlanStats) -> str:
    used = {s.output_from for s in stats.ops.values()}
    used |= {found.pass_from for found in stats.relations.values()}
    marks = ["~ assumed", "^ declared"]
    marks += ["* learnt from earlier runs"] if "learnt" in used else []
    marks += ["° measured on a sample of the rows"] if "sampled" in used else []
    return "   ".join([*marks, "no mark: counted on the rows"])


def calls_saved(total: OpMetrics, merged: int = 0) -> str:
    """What sharing and resuming saved, and, before calls were requested, merging.

    Example:
        >>> calls_saved(OpMetrics(requested=300, made=180, shared=90, replayed=30))
        'calls requested 300, made 180: 90 saved by sharing equal calls, 30 replayed'
        >>> calls_saved(OpMetrics(requested=5, made=5), merged=2)[:43]
        'calls 2 saved by merging queries; requested'
    """
    before = f"{whole(merged)} saved by merging queries; " if merged else ""
    return (
        f"calls {before}requested {whole(total.requested)}, made {whole(total.made)}: "
        f"{whole(total.shared)} saved by sharing equal calls, {whole(total.replayed)} replayed"
    )


def prefix_reuse(reuse: Reuse, volatile: bool = True, counted: str = "measured") -> str:
    """Cached input tokens of a run; what the engine `counted` (measured, or simulated where the
    engine is) never mixes with what is predicted.

    Example:
        >>> prefix_reuse(Reuse(measured=12345, measured_of=40000))
        '12,345 of 40,000 input tokens (measured)'
        >>> prefix_reuse(Reuse(unknown_of=7))
        'unknown for 7 input tokens'
    """
    found: list[str] = []
    for cached, of, how in (
        (reuse.measured, reuse.measured_of, counted),
        (reuse.predicted, reuse.predicted_of, "predicted"),
    ):
        if of:
            numbers = f"{whole(cached)} of {whole(of)}" if volatile else "<tokens> of <tokens>"
            found.append(f"{numbers} input tokens ({how})")
    if reuse.unknown_of:
        unknown = whole(reuse.unknown_of) if volatile else "<tokens>"
        found.append(f"unknown for {unknown} input tokens")
    return ", ".join(found) or "no model call was made"


# --- operators -----------------------------------------------------------------------------------


def _scope(view: View, nodes: Sequence[Node], indent: str) -> Iterator[str]:
    for node in nodes:
        yield _node_line(view, node, indent)
        deeper = indent + "     "
        if view.place_of_estimate(node):
            for line in _numbers(view, node):
                yield deeper + line
        elif view.estimate(node.op) is not None or view.actual(node.op) is not None:
            yield f"{deeper}counted at #{node.first_number}"
        for body in node.bodies:
            yield deeper + _body_title(body)
            yield from _scope(view, body.nodes, deeper + "  ")
            yield f"{deeper}  => {body.result}"


def _body_title(body: BodyListing) -> str:
    return f"{body.title}({', '.join(body.bindings)}):"


def _node_line(view: View, node: Node, indent: str) -> str:
    tail = _tail(view, node)
    room = None if view.verbose else WIDTH - len(indent) - len(node.reference) - 1 - len(tail)
    return f"{indent}{node.reference} {describe(node, room)}{tail}"


def _tail(view: View, node: Node) -> str:
    limit = None if view.verbose else LISTED
    tail = ""
    if node.inputs:
        tail += f" <- {_few(tuple(dict.fromkeys(node.inputs)), limit)}"
    if node.after:
        tail += f" after {_few(node.after, limit)}"
    if effect_of(node):
        tail += f"  {effect_of(node)}"
    if len(node.queries) > 1 and not node.depth:
        tail += f"  shared by {_few([shown_name(q) for q in node.queries], limit)}"
    if isinstance(node.op, Relation) and view.stats is not None:
        tail += f"  {_rows(view.stats, node.op)}"
    return tail


def _rows(stats: PlanStats, relation: Relation) -> str:
    """The rows of a relation, and of a filter its pass rate.

    A rate is printed with half the width of its 95 % interval: `pass 0.31 ±0.06`."""
    if isinstance(relation, Scan):
        return f"{whole(stats.rows.get(relation.source, 0))} rows"
    found = stats.relations.get(relation.fingerprint)
    if found is None:
        return ""
    rows = f"{_marked(found.rows, found.rows_from)} rows"
    if found.pass_rate is None:
        return rows
    spread = (found.pass_high - found.pass_low) / 2
    measured = found.pass_from not in ("assumed", "declared")
    interval = f" ±{spread:.2f}" if measured else ""
    return f"{rows}  pass {_MARKS[found.pass_from]}{found.pass_rate:.2f}{interval}"


def _few(names: Sequence[str], limit: int | None) -> str:
    if limit is None or len(names) <= limit:
        return ",".join(names)
    return f"{','.join(names[: limit - 1])},… {len(names) - limit + 1} more"


def estimate_line(view: View, node: Node) -> str:
    """The estimate of a calling operator in one line, and what happened; empty for others."""
    stats, actual = view.estimate(node.op), view.actual(node.op)
    if not view.place_of_estimate(node) or (stats is None and actual is None):
        return ""
    line = "" if stats is None else f"est. {_marked(stats.calls, stats.calls_from)} calls"
    if actual is None:
        return line
    return f"{line}  actual {whole(actual.made + actual.replayed)}".strip()


def _numbers(view: View, node: Node) -> Iterator[str]:
    stats = view.estimate(node.op)
    actual = view.actual(node.op)
    is_model = isinstance(node.op, ModelOp)
    if actual is None and stats is not None:
        yield _estimate(view, node, stats, is_model)
    elif actual is not None:
        yield from _analyzed(view, stats, actual, is_model)
    if view.physical is not None and isinstance(node.op, CALLS):
        worker = view.worker(node.op)
        where = f"on {shown_name(worker.name)}  " if worker else ""
        shares = view.physical.rows_by_worker(node.op)
        if shares:
            split = ", ".join(f"{shown_name(name)} {n} rows" for name, n in shares.items())
            where = f"on {split}  "
        yield f"{where}priority {view.physical.priority.get(node.op.fingerprint, 0)}"


def _estimate(view: View, node: Node, stats: OpStats, is_model: bool) -> str:
    line = f"est. {_marked(stats.calls, stats.calls_from)} calls for {whole(stats.uses)} uses"
    if not is_model:
        return line
    cached = view.cached(node.op)
    share = f" ({percent(cached, stats.input_tokens)} prefix-cached, predicted)" if cached else ""
    return (
        f"{line}  {_marked_tokens(stats.input_tokens, stats.input_from)} in{share}  "
        f"{_marked_tokens(stats.output_tokens, stats.output_from)} out"
    )


def _analyzed(
    view: View, stats: OpStats | None, actual: OpMetrics, is_model: bool
) -> Iterator[str]:
    answered = actual.made + actual.replayed
    calls = f"calls  actual {whole(answered)}"
    if stats is not None:
        calls += f"  est. {_marked(stats.calls, stats.calls_from)}"
        calls += f" ({deviation(stats.calls, answered)})"
    yield (
        f"{calls}  of {whole(actual.requested)} uses: {whole(actual.made)} made, "
        f"{whole(actual.shared)} shared, {whole(actual.replayed)} replayed"
    )
    if is_model:
        used = actual.usage
        tokens_in = f"in  actual {_volatile_tokens(view, used.input_tokens)}"
        tokens_out = f"out  actual {_volatile_tokens(view, used.output_tokens)}"
        if stats is not None:
            tokens_in += _estimated_tokens(view, stats.input_tokens, stats.input_from, used, True)
            tokens_out += _estimated_tokens(
                view, stats.output_tokens, stats.output_from, used, False
            )
        yield f"{tokens_in}{_cached(view, used)}   {tokens_out}"
    yield (
        f"busy {_seconds(view, actual.busy_s)}  retries {whole(actual.retries)}  "
        f"errors {whole(actual.errors)}"
    )


def _estimated_tokens(
    view: View, estimated: float, source: Provenance, used: Usage, is_input: bool
) -> str:
    actual = used.input_tokens if is_input else used.output_tokens
    off = deviation(estimated, actual) if view.volatile else "<tokens>"
    return f"  est. {_marked_tokens(estimated, source)} ({off})"


def _cached(view: View, used: Usage) -> str:
    for cached, how in (
        (used.cached_tokens, view.counted),
        (used.predicted_cached_tokens, "predicted"),
    ):
        if cached is not None:
            return f"  {_volatile_tokens(view, cached)} cached ({how})"
    return ""


# --- numbers -------------------------------------------------------------------------------------


def _marked(value: float, source: Provenance) -> str:
    return _MARKS[source] + whole(value)


def _marked_tokens(value: float, source: Provenance) -> str:
    return _MARKS[source] + compact(value)


def _volatile_tokens(view: View, tokens: int) -> str:
    return compact(tokens) if view.volatile else "<tokens>"


def _seconds(view: View, seconds: float) -> str:
    return f"{seconds:,.2f} s" if view.volatile else "<time>"


def _cut(line: str) -> str:
    return line if len(line) <= WIDTH else line[: WIDTH - 1] + "…"
