"""The walk behind `planner.stats.estimate`: every scope, with what its parameters are bound to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from planner.learnt import NOTHING_LEARNT, Learnt, Measured, pass_key
from planner.logical import (
    Agent,
    Body,
    Choose,
    Collect,
    Column,
    Const,
    Effect,
    Field,
    Filter,
    Flatten,
    Format,
    Generate,
    Group,
    Limit,
    LogicalPlan,
    Loop,
    Map,
    ModelOp,
    Op,
    Ordered,
    Pairs,
    Param,
    Project,
    Recover,
    Reduce,
    Relation,
    Result,
    Scan,
    Segment,
    Sort,
    Sql,
    SqlRows,
    Tool,
    When,
    render_value,
    walk,
)
from planner.prefix_tree import TURN, Reference, Template, Turn
from planner.row_demand import RowDemand, Size
from planner.row_order import best_order
from planner.row_profile import Path, RowProfile
from planner.shape import shapes
from planner.stats import CountTokens, OpStats, PlanStats, Provenance, RelationStats, weakest
from planner.value_estimate import (
    ListShape,
    Value,
    caused_by,
    element,
    joined,
    parse_schema,
    schema_member,
    schema_shape,
    with_causes,
)

ANSWER_SHARE = 0.5
"""Assumed share of `max_tokens` that an answer takes, of an agent's turns and of a loop's rounds
that are used, and of rows that take a branch."""
TOOL_ANSWER_TOKENS = 64.0
"""Assumed tokens of a tool's answer."""
ASSUMED_PASS_RATE = 0.5
"""Assumed share of rows that a filter keeps."""
ASSUMED_QUERY_ROWS = 100.0
ASSUMED_COLUMN_TOKENS = 16.0
"""Assumed rows of a query that is not run yet, and tokens of a value in one of its columns."""


@dataclass(frozen=True, slots=True)
class _Scope:
    """How often the operators of a scope run.

    Attributes:
        rows: uses in the batch, each row of a source once; `rows_alone`: summed over queries.
        branch: share of distinct work that reaches this scope at all (the branches around it).
        source: where those numbers come from.
    """

    rows: float
    rows_alone: float
    branch: float = 1.0
    source: Provenance = "exact"

    def repeated(self, times: float, source: Provenance) -> _Scope:
        return replace(
            self,
            rows=self.rows * times,
            rows_alone=self.rows_alone * times,
            source=weakest((self.source, source)),
        )

    def branched(self, share: float) -> _Scope:
        return replace(self.repeated(share, "assumed"), branch=self.branch * share)


class Estimator:
    """Estimates one plan. Iterative over operators; recursive over the nesting of bodies."""

    def __init__(
        self,
        plan: LogicalPlan,
        profile: RowProfile,
        count_tokens: CountTokens,
        learnt: Learnt = NOTHING_LEARNT,
    ) -> None:
        self._plan = plan
        self._profile = profile
        self._count_tokens = count_tokens
        self._learnt = learnt
        self._shapes = shapes(plan) if learnt.ops else {}
        self._relations: dict[str, RelationStats] = {}
        self._literals: dict[str, int] = {}
        self._fans: list[float] = []
        self._ops: dict[str, OpStats] = {}
        self._templates: dict[str, Template] = {}

    def run(self, *, orders: bool = True) -> PlanStats:
        """The statistics; `orders` looks for an order of the rows too."""
        demand = RowDemand(self._plan)
        relations = [op for op in self._plan.users if isinstance(op, Relation)]
        scans = [op for op in relations if isinstance(op, Scan)]
        for scan in scans:
            demand.size(scan, Size(float(self._profile.n_rows(scan.source))))
        if len(scans) < len(relations):
            # A constant may be needed for the rows of a relation that is made with it: the sizes of
            # all relations come first, from a pass whose counts are thrown away.
            self._pass(demand, counting=False)
            self._fans, self._ops, self._templates = [], {}, {}
        self._pass(demand, counting=True)
        sizes = {scan.source: self._profile.n_rows(scan.source) for scan in scans}
        templates = tuple(self._templates.values())
        prefix_order = {
            source: best_order(templates, source, self._profile) for source in sizes if orders
        }
        return PlanStats(self._ops, sizes, self._relations, prefix_order, templates)

    def _measured(self, op: Op) -> Measured | None:
        """What runs have taught about an operator."""
        return self._learnt.of(self._shapes[op.fingerprint]) if self._shapes else None

    def _pass(self, demand: RowDemand, counting: bool) -> None:
        values: dict[Op, Value] = {}
        scope = _Scope(1.0, 1.0)
        for op in self._plan.users:
            if isinstance(op, Relation):
                demand.size(op, self._relation(op, values, demand))
                values[op] = Value()
                continue
            if counting:
                needed = demand.of(op)
                scope = _Scope(needed.rows, needed.rows_alone, needed.share, needed.source)
            values[op] = self._evaluate(op, values, (), scope)

    # --- relations -------------------------------------------------------------------------------

    def _relation(self, op: Relation, values: dict[Op, Value], demand: RowDemand) -> Size:
        """The expected rows of a relation."""
        if isinstance(op, Filter):
            stats = self._filter(op, demand.rows_of(op.rows))
        else:
            size = self._relation_size(op, values, demand)
            stats = RelationStats(size.rows, size.source)
        self._relations[op.fingerprint] = stats
        if isinstance(op, SqlRows):
            self._add(op, OpStats(1.0, 1.0, 1.0, float(len(self._plan.users[op]))))
        return Size(stats.rows, stats.rows_from)

    def _filter(self, op: Filter, rows: Size) -> RelationStats:
        measured = None
        if self._shapes:
            measured = self._learnt.of(pass_key(self._shapes[op.predicate.fingerprint]))
        rate = measured.pass_rate if measured is not None else None
        if measured is None or rate is None:
            kept = rows.times(ASSUMED_PASS_RATE, "assumed")
            return RelationStats(kept.rows, kept.source, ASSUMED_PASS_RATE)
        low, high = measured.pass_interval
        kept = rows.times(rate, self._learnt.source)
        return RelationStats(kept.rows, kept.source, rate, low, high, self._learnt.source)

    def _relation_size(self, op: Relation, values: dict[Op, Value], demand: RowDemand) -> Size:
        rows = [demand.rows_of(each) for each in op.inputs if isinstance(each, Relation)]
        match op:
            case Scan(source=source):
                return Size(float(self._profile.n_rows(source)))
            case SqlRows(into=into):
                counted = 1 if into else self._profile.query_rows.get(op.fingerprint)
                if counted is not None:
                    return Size(float(counted))
                return Size(ASSUMED_QUERY_ROWS, "assumed")
            case Limit(count=count, offset=offset):
                left = max(0.0, rows[0].rows - offset)
                return Size(min(left, float(count)), rows[0].source)
            case Flatten():
                shape = values[op.inputs[1]].shape or ListShape()
                return rows[0].times(shape.items, shape.source)
            case Pairs(on=on):
                share = 1.0
                for name, _ in on:
                    key = values[op.inputs[2 + op.columns.index(name)]]
                    share /= max(1.0, self._distinct_of(key, rows[0].rows))
                both = rows[0].times(rows[1].rows, rows[1].source)
                return both.times(share, "assumed") if on else both
            case Group():
                keys = caused_by([values[key] for key in op.keys])
                known: Provenance = "assumed" if keys.answered else "exact"
                groups = self._distinct_of(keys, rows[0].rows)
                return Size(groups, weakest((rows[0].source, known)))
            case _:
                return rows[0]

    def _distinct_of(self, causes: Value, rows: float) -> float:
        return self._distinct(causes, _Scope(rows, rows))

    def _row_column(self, op: Column, values: Mapping[Op, Value], demand_rows: float) -> Value:
        """What a column of a relation other than a scan is."""
        relation = op.inputs[0]
        match relation:
            case Collect() | Sort():
                return values[relation.inputs[1 + relation.columns.index(op.name)]]
            case Pairs():
                return values[relation.inputs[2 + relation.columns.index(op.name)]]
            case Flatten():
                at = relation.columns.index(op.name)
                if op.name == relation.position:
                    return replace(caused_by([values[relation.inputs[1]]]), fixed_tokens=1.0)
                if at:
                    return values[relation.inputs[1 + at]]
                listed = values[relation.inputs[1]]
                shape = listed.shape or ListShape()
                item = element(listed, shape)
                return replace(item, fans=item.fans | {self._fan(shape.items)})
            case Group():
                at = relation.columns.index(op.name)
                value = values[relation.inputs[1 + at]]
                if at < relation.n_keys:
                    return value
                rows = self._relations[relation.inputs[0].fingerprint].rows
                shape = ListShape(rows / max(1.0, demand_rows), "assumed")
                whole = joined([value], weights=[shape.items])
                keys = caused_by([values[key] for key in relation.keys])
                fans = keys.fans if relation.n_keys else frozenset[int]()
                return replace(
                    with_causes(whole, keys), fans=fans, shape=shape, tokens_from="assumed"
                )
            case _:
                fan = self._fan(demand_rows)
                tokens = ASSUMED_COLUMN_TOKENS
                return Value(fans=frozenset({fan}), fixed_tokens=tokens, tokens_from="assumed")

    # --- values ----------------------------------------------------------------------------------

    def _evaluate(
        self, op: Op, values: Mapping[Op, Value], params: Sequence[Value], scope: _Scope
    ) -> Value:
        inputs = [values[i] for i in op.inputs]
        match op:
            case Generate() | Choose() | Agent():
                return self._model_call(op, inputs, scope)
            case Tool() | Sql():
                return self._tool_call(op, inputs, scope)
            case Map() | Reduce() | When() | Loop():
                self._note(op, caused_by(inputs), scope)
                return self._nested(op, inputs, scope)
            case Column() if not isinstance(op.inputs[0], Scan):
                relation = op.inputs[0]
                value = self._row_column(op, values, self._relations[relation.fingerprint].rows)
                self._note(op, value, scope)
                return value
            case _:
                value = self._plain(op, inputs, params)
                self._note(op, value, scope)
                return value

    def _plain(self, op: Op, inputs: Sequence[Value], params: Sequence[Value]) -> Value:
        match op:
            case Column(name=name):
                scan = op.inputs[0]
                source = scan.source if isinstance(scan, Scan) else ""
                return self._column(Value(), source, (name,))
            case Const():
                items = ListShape(len(op.value), "exact") if isinstance(op.value, list) else None
                tokens = self._count_tokens(render_value(op.value))
                return Value(fixed_tokens=float(tokens), shape=items)
            case Param(index=index):
                return params[index]
            case Field(key=key):
                return self._member(inputs[0], key)
            case Format(prompt=prompt):
                return self._text(prompt.segments, inputs)
            case Project(names=names):
                return joined(inputs, sum(float(self._tokens(name)) for name in names))
            case Result() | Ordered() | Recover():
                return inputs[0]
            case _:
                return replace(caused_by(inputs), fixed_tokens=1.0)

    def _column(self, value: Value, source: str, path: Path) -> Value:
        key = (source, path)
        length = self._profile.mean_length(key)
        return replace(
            value,
            columns=frozenset({key}),
            token_paths={key: 1.0},
            path=key,
            shape=None if length is None else ListShape(length, "exact"),
        )

    def _member(self, value: Value, key: str | int) -> Value:
        if value.path is not None:
            source, path = value.path
            return self._column(value, source, (*path, key))
        schema = schema_member(value.schema, key) if value.schema else None
        shape = schema_shape(schema) if schema else None
        parts = value.shape.items if value.shape and isinstance(key, int) else 2.0
        part = joined([value], weights=[1 / max(parts, 1.0)])
        return replace(part, tokens_from="assumed", schema=schema, shape=shape)

    def _text(self, segments: Iterable[Segment], inputs: Sequence[Value]) -> Value:
        literals = 0.0
        read: list[Value] = []
        for segment in segments:
            if isinstance(segment, str):
                literals += self._tokens(segment)
            else:
                read.append(inputs[segment.index])
        return joined(read, literals)

    def _tokens(self, literal: str) -> int:
        if literal not in self._literals:
            self._literals[literal] = self._count_tokens(literal)
        return self._literals[literal]

    # --- calls -----------------------------------------------------------------------------------

    def _model_call(self, op: ModelOp, inputs: Sequence[Value], scope: _Scope) -> Value:
        causes = caused_by(inputs)
        uses, distinct, calls_from = self._counts(op, causes, scope)
        answer_tokens = op.max_tokens * ANSWER_SHARE
        answer_from: Provenance = "assumed"
        if isinstance(op, Choose):
            options = [self._count_tokens(option) for option in op.options]
            answer_tokens, answer_from = sum(options) / len(options), "declared"
        measured = self._measured(op)
        if measured is not None and measured.mean_output_tokens is not None:
            answer_tokens, answer_from = measured.mean_output_tokens, self._learnt.source
        segments = [*(op.system.segments if op.system else ()), *op.prompt.segments]
        prompt = self._text(segments, inputs)
        per_call = self._length(prompt, causes)
        turns = 1.0
        if isinstance(op, Agent):
            turns = max(1.0, op.max_turns * ANSWER_SHARE)
        # Each later turn of an agent reads the answers and tool results before it again.
        history = (turns - 1) / 2 * (answer_tokens + TOOL_ANSWER_TOKENS)
        calls = distinct * turns
        self._template(op, inputs, causes, calls)
        prefixes = self._prefixes(segments, inputs, causes, distinct, scope)
        if turns > 1:
            prefixes.append((per_call, distinct * (turns - 1)))
        guessed: Provenance = "assumed" if turns > 1 else "exact"
        self._add(
            op,
            OpStats(
                uses=uses,
                distinct=distinct,
                calls=calls,
                calls_alone=scope.rows_alone * turns,
                input_tokens=calls * (per_call + history),
                output_tokens=calls * answer_tokens,
                prefixes=tuple(prefixes),
                calls_from=weakest((calls_from, guessed)),
                input_from=weakest((prompt.tokens_from, calls_from, guessed)),
                output_from=weakest((calls_from, answer_from)),
            ),
        )
        schema = parse_schema(op.schema_json) if isinstance(op, Generate | Agent) else None
        return replace(
            causes,
            per_row=causes.per_row or op.effect is not Effect.PURE,
            answered=True,
            fixed_tokens=answer_tokens,
            tokens_from=answer_from,
            schema=schema,
            shape=schema_shape(schema) if schema else None,
        )

    def _tool_call(self, op: Tool | Sql, inputs: Sequence[Value], scope: _Scope) -> Value:
        causes = caused_by(inputs)
        uses, distinct, calls_from = self._counts(op, causes, scope)
        self._add(
            op,
            OpStats(
                uses=uses,
                distinct=distinct,
                calls=distinct,
                calls_alone=scope.rows_alone,
                calls_from=calls_from,
            ),
        )
        return replace(
            causes,
            per_row=causes.per_row or op.effect is not Effect.PURE,
            answered=True,
            fixed_tokens=TOOL_ANSWER_TOKENS,
            tokens_from="assumed",
        )

    def _note(self, op: Op, causes: Value, scope: _Scope) -> None:
        """Record uses of an operator that makes no call itself."""
        uses, distinct, source = self._counts(op, causes, scope)
        self._add(op, OpStats(uses=uses, distinct=distinct, calls_from=source))

    def _counts(self, op: Op, causes: Value, scope: _Scope) -> tuple[float, float, Provenance]:
        """Uses, distinct uses and where the latter comes from."""
        if op.effect is not Effect.PURE:
            return scope.rows, scope.rows, scope.source
        source = weakest((scope.source, "assumed" if causes.answered else "exact"))
        return scope.rows, self._distinct(causes, scope), source

    def _distinct(self, causes: Value, scope: _Scope) -> float:
        if causes.per_row or not scope.rows:
            return scope.rows
        varied = math.prod(self._fans[fan] for fan in causes.fans)
        return min(scope.rows, self._profile.distinct(causes.columns) * varied * scope.branch)

    def _length(self, text: Value, over: Value) -> float:
        """Mean tokens of `text` over the distinct causes `over`."""
        return text.fixed_tokens + sum(
            count * self._profile.mean_tokens(path, over.columns)
            for path, count in text.token_paths.items()
        )

    # --- prefixes --------------------------------------------------------------------------------

    def _template(self, op: ModelOp, inputs: Sequence[Value], causes: Value, calls: float) -> None:
        """Note what the prompts of an operator are made of."""
        segments: list[str | Reference | Turn] = []
        for prompt in (op.system, op.prompt):
            if prompt is None:
                continue
            for segment in prompt.segments:
                if isinstance(segment, str):
                    segments.append(segment)
                else:
                    read, value = op.inputs[segment.index], inputs[segment.index]
                    segments.append(self._reference(read, value))
            segments.append(TURN)
        known = self._templates.get(op.fingerprint)
        if known is not None:
            calls += known.calls
        self._templates[op.fingerprint] = Template(op.fingerprint, op.model, tuple(segments), calls)

    def _reference(self, op: Op, value: Value) -> Reference:
        paths = tuple(sorted(value.columns, key=repr))
        producer = repr(value.path) if value.path is not None else op.fingerprint
        is_column = value.path is not None
        return Reference(
            producer,
            (value.path,) if value.path is not None else paths,
            is_column,
            value.per_row or bool(value.fans),
            self._length(value, value),
        )

    def _prefixes(
        self,
        segments: Sequence[Segment],
        inputs: Sequence[Value],
        causes: Value,
        calls: float,
        scope: _Scope,
    ) -> list[tuple[float, float]]:
        """(tokens, reuses) for each depth at which the prompts of an operator part."""
        levels: list[tuple[float, float]] = []
        seen: list[Value] = []
        tokens = 0.0
        for segment in segments:
            if isinstance(segment, str):
                tokens += self._tokens(segment)
            else:
                value = inputs[segment.index]
                seen.append(value)
                tokens += self._length(value, causes)
            so_far = caused_by(seen)
            reuses = 0.0 if so_far.per_row else calls - self._distinct(so_far, scope)
            if reuses <= 0:
                break
            if levels and levels[-1][1] == reuses:
                levels.pop()
            levels.append((tokens, reuses))
        found: list[tuple[float, float]] = []
        deeper = 0.0
        for length, reuses in reversed(levels):
            if reuses > deeper:
                found.append((length, reuses - deeper))
                deeper = reuses
        return found[::-1]

    # --- bodies ----------------------------------------------------------------------------------

    def _nested(self, op: Op, inputs: Sequence[Value], scope: _Scope) -> Value:
        match op:
            case Map(body=body):
                return self._map(body, inputs, scope)
            case Reduce(body=body, fan_in=fan_in):
                return self._reduce(body, fan_in, inputs, scope)
            case When(then=then, otherwise=otherwise):
                share = scope.branched(ANSWER_SHARE)
                branches = [self._body(body, inputs[1:], share) for body in (then, otherwise)]
                either = joined(branches, weights=[ANSWER_SHARE, ANSWER_SHARE])
                either = with_causes(either, caused_by([*branches, inputs[0]]))
                return replace(either, tokens_from="assumed")
            case Loop(condition=condition, step=step, max_rounds=max_rounds):
                rounds = max(1.0, max_rounds * ANSWER_SHARE)
                fan = self._fan(rounds)
                state = with_causes(inputs[0], caused_by(inputs))
                state = replace(state, fans=state.fans | {fan}, tokens_from="assumed")
                # What a sampled call of one round adds reaches the state of the next.
                state = replace(state, per_row=state.per_row or op.effect is not Effect.PURE)
                inside = scope.repeated(rounds, "assumed")
                self._body(condition, [state, *inputs[1:]], inside)
                final = self._body(step, [state, *inputs[1:]], inside)
                return replace(with_causes(final, final, fan), tokens_from="assumed")
            case _:
                raise TypeError(f"{op.kind} has no bodies")

    def _map(self, body: Body, inputs: Sequence[Value], scope: _Scope) -> Value:
        shape = inputs[0].shape or ListShape()
        fan = self._fan(shape.items)
        item = element(inputs[0], shape)
        item = replace(item, fans=item.fans | {fan})
        one = self._body(body, [item, *inputs[1:]], scope.repeated(shape.items, shape.source))
        return replace(
            with_causes(joined([one], weights=[shape.items]), caused_by([one, inputs[0]]), fan),
            tokens_from=weakest((one.tokens_from, shape.source)),
            shape=shape,
        )

    def _reduce(self, body: Body, fan_in: int, inputs: Sequence[Value], scope: _Scope) -> Value:
        shape = inputs[0].shape or ListShape()
        merges, left = 0.0, shape.items
        while left > 1:
            left = math.ceil(left / fan_in)
            merges += left
        fan = self._fan(merges)
        size = min(float(fan_in), shape.items)
        group = joined([element(inputs[0], shape)], weights=[size])
        group = replace(group, fans=group.fans | {fan}, shape=ListShape(size, shape.source))
        one = self._body(body, [group, *inputs[1:]], scope.repeated(merges, shape.source))
        return with_causes(one, caused_by([one, inputs[0]]), fan)

    def _body(self, body: Body, params: Sequence[Value], scope: _Scope) -> Value:
        values: dict[Op, Value] = {}
        for op in walk((body.result,)):
            values[op] = self._evaluate(op, values, params, scope)
        return values[body.result]

    def _fan(self, times: float) -> int:
        self._fans.append(times)
        return len(self._fans) - 1

    def _add(self, op: Op, stats: OpStats) -> None:
        known = self._ops.get(op.fingerprint)
        self._ops[op.fingerprint] = stats if known is None else known + stats
