"""Workflow documents as logical plans.

Numbering of sampled calls, the order of writes and the captures of bodies are those of the Python
DSL (`halo.dsl.trace`, `halo.dsl.body`), so the same workflow is the same plan in both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from halo.dsl.body import TracedBody, share_captures
from halo.dsl.trace import Tracer
from halo.errors import PlanError
from halo.flow import Traced, kept_rows
from halo.spec.calls import Calls
from halo.spec.document import Document, Path_
from halo.spec.names import Known, Names, Place, StepScope, roots
from halo.spec.schema import Spec
from halo.spec.steps import (
    AgentStep,
    AnyStep,
    Block,
    Body,
    ChooseStep,
    ConditionStep,
    GenerateStep,
    LoopStep,
    MapStep,
    QueryStep,
    ReduceStep,
    SqlStep,
    Test,
    TextStep,
    ToolStep,
    ValueStep,
    WhenStep,
)
from halo.spec.value_type import Schema
from planner.logical import (
    Compare,
    Const,
    Effect,
    LogicalPlan,
    Loop,
    Map,
    Op,
    Param,
    Reduce,
    Relation,
    Result,
    Scan,
    When,
    close_body,
)
from planner.surgery import row_cone
from runtime.tools import ToolSpec


def lower(
    spec: Spec,
    document: Document,
    name: str,
    tools: Mapping[str, ToolSpec],
    databases: Mapping[str, str],
    source: str,
    columns: Sequence[str] | None,
) -> Traced:
    """The plan of a document over rows named `source` that have `columns`.

    `columns` None checks the document before its rows are known: names that are no steps are taken
    for columns, unless the document declares its columns; the plan is not for running.
    """
    return _Lowering(spec, document, name, tools, databases, source, columns).run()


class _Lowering:
    def __init__(
        self,
        spec: Spec,
        document: Document,
        name: str,
        tools: Mapping[str, ToolSpec],
        databases: Mapping[str, str],
        source: str,
        columns: Sequence[str] | None,
    ) -> None:
        self._spec = spec
        self._document = document
        self._tracer = Tracer(name)
        self._row_scope = StepScope(self._tracer)
        known: Mapping[str, Schema | None] | None = None
        if spec.columns is not None:
            known = {column: schema or None for column, schema in spec.columns.items()}
        elif columns is not None:
            known = dict.fromkeys(columns)
        self._scan = Scan((), source, tuple(columns if columns is not None else known or ()))
        self._names = Names(document, self._scan, self._row_scope, known, databases)
        self._calls = Calls(document, self._names, self._tracer, tools, spec.model or "")

    def run(self) -> Traced:
        for name in self._spec.columns or ():
            if name in self._spec.steps:
                raise self._document.error(
                    ("steps", name), f"a column is named {name!r} as well; rename the step"
                )
        inside = self._steps(self._spec, Place(self._row_scope, {}), ())
        value = self._result(self._spec, inside, (), "")
        name = self._tracer.name
        result = Result((self._row_scope.finish(value.op), self._rows(inside)), label=name)
        used = dict(sorted(self._calls.used.items()))
        return Traced(LogicalPlan(((name, result),)), used)

    def _rows(self, inside: Place) -> Relation:
        """The rows that the document keeps. `inside`: what its steps are called."""
        predicates: list[Op] = []
        for number, condition in enumerate(self._spec.where):
            several = isinstance(self._document.value.get("where"), list)
            where: Path_ = ("where", number) if several else ("where",)
            op = self._names.condition(condition, inside, where)
            if any(each.effect is Effect.WRITE for each in row_cone([op])):
                raise self._document.error(
                    where, "a condition on rows must not write; it is asked for rows that go too"
                )
            predicates.append(op)
        return kept_rows(self._scan, predicates, self._spec.limit, self._spec.offset)

    # --- blocks ----------------------------------------------------------------------------------

    def _block(self, given: Body, place: Place, path: Path_, label: str) -> Known:
        if not isinstance(given, Block):
            return self._step(given, place, path, label)
        return self._result(given, self._steps(given, place, path), path, label)

    def _steps(self, given: Block, place: Place, path: Path_) -> Place:
        """What the steps of a block are called, each lowered after those that it refers to,
        otherwise in the order of the document."""
        visible = dict(place.names)
        inside = Place(place.scope, visible)
        for name in self._ordered(given.steps, path):
            where = (*path, "steps", name)
            self._check_new(name, place, where)
            visible[name] = self._step(given.steps[name], inside, where, name)
        return inside

    def _result(self, given: Block, inside: Place, path: Path_, label: str) -> Known:
        if given.result is None:
            return inside.names[list(given.steps)[-1]]
        return self._names.value(given.result, inside, (*path, "return"), label)

    def _ordered(self, steps: Mapping[str, AnyStep], path: Path_) -> list[str]:
        position = {name: i for i, name in enumerate(steps)}
        # In the order of the document, whatever the order of the references is.
        needs = {
            name: sorted({root for root in roots(step) if root in steps}, key=position.__getitem__)
            for name, step in steps.items()
        }
        ordered: dict[str, None] = {}
        for first in steps:
            way: dict[str, None] = {}
            stack = [(first, False)]
            while stack:
                name, expanded = stack.pop()
                if expanded:
                    way.pop(name)
                    ordered[name] = None
                elif name in way:
                    circle = [*list(way)[list(way).index(name) :], name]
                    raise self._document.error(
                        (*path, "steps", name),
                        f"the steps form a cycle: {' → '.join(circle)}; to repeat something, use "
                        "`loop:`",
                    )
                elif name not in ordered:
                    way[name] = None
                    stack.append((name, True))
                    missing = [n for n in needs[name] if n not in ordered]
                    stack.extend((n, False) for n in reversed(missing))
        return list(ordered)

    def _check_new(self, name: str, place: Place, path: Path_) -> None:
        if name in place.names:
            raise self._document.error(
                path, f"{name!r} is the name of something outside this block; rename one of them"
            )

    # --- steps -----------------------------------------------------------------------------------

    def _step(self, step: AnyStep, place: Place, path: Path_, label: str) -> Known:
        try:
            return self._lowered(step, place, path, label)
        except PlanError as error:
            raise self._document.error(path, str(error)) from None

    def _lowered(self, step: AnyStep, place: Place, path: Path_, label: str) -> Known:
        match step:
            case GenerateStep():
                return self._calls.generate(step, place, path, label)
            case ChooseStep():
                return self._calls.choose(step, place, path, label)
            case AgentStep():
                return self._calls.agent(step.agent, place, (*path, "agent"), label)
            case ToolStep():
                return self._calls.tool(step, place, path, label)
            case SqlStep():
                return self._calls.sql(step, place, path, label)
            case QueryStep():
                return self._calls.query(step, place, path, label)
            case MapStep():
                return self._map(step, place, path, label)
            case ReduceStep():
                return self._reduce(step, place, path, label)
            case WhenStep():
                return self._when(step, place, path, label)
            case LoopStep():
                return self._loop(step, place, (*path, "loop"), label)
            case ValueStep():
                return self._names.value(step.value, place, (*path, "value"), label)
            case TextStep():
                return self._names.text(step.text, place, (*path, "text"), label)
            case ConditionStep():
                op = self._names.condition(step.condition, place, (*path, "condition"), label)
                return Known(op, {"type": "boolean"} if isinstance(op, Compare) else None)

    def _map(self, step: MapStep, place: Place, path: Path_, label: str) -> Known:
        source, element = self._source(step.foreach, place, (*path, "foreach"))
        traced, schema = self._body(step.do, place, (*path, "do"), label, [(step.item, element)])
        op = Map((source, *traced.captures), body=traced.body, label=label)
        return Known(place.scope.add(op), {"type": "array", "items": schema or {}})

    def _reduce(self, step: ReduceStep, place: Place, path: Path_, label: str) -> Known:
        source, element = self._source(step.reduce, place, (*path, "reduce"))
        group: Schema = {"type": "array", "items": element or {}}
        traced, schema = self._body(step.do, place, (*path, "do"), label, [(step.items, group)])
        inputs = (source, *traced.captures)
        op = Reduce(inputs, body=traced.body, fan_in=step.fan_in, label=label)
        return Known(place.scope.add(op), schema)

    def _source(self, reference: Any, place: Place, path: Path_) -> tuple[Op, Schema | None]:
        known = self._names.resolve(reference, place, path)
        kind = known.schema.get("type") if known.schema else None
        if kind is None:
            return known.op, None
        if kind != "array" and isinstance(kind, str):
            raise self._document.error(path, f"expected a list; {reference} is of type {kind}")
        items = known.schema.get("items") if known.schema else None
        return known.op, items or None

    def _when(self, step: WhenStep, place: Place, path: Path_, label: str) -> Known:
        tested = self._names.condition(step.when, place, (*path, "when"))
        otherwise = step.otherwise if step.otherwise is not None else ValueStep(value=None)
        branches = [(step.then, (*path, "then")), (otherwise, (*path, "else"))]
        if isinstance(tested, Const):
            body, where = branches[0 if tested.value else 1]
            return self._block(body, place, where, label)
        (then, then_type), (other, other_type) = (
            self._body(body, place, where, label, []) for body, where in branches
        )
        bodies, captures = share_captures([then, other], own=0)
        op = When((tested, *captures), then=bodies[0], otherwise=bodies[1], label=label)
        schema = then_type if then_type == other_type or step.otherwise is None else None
        return Known(place.scope.add(op), schema)

    def _loop(self, step: LoopStep, place: Place, path: Path_, label: str) -> Known:
        fields = step.loop
        initial = self._names.value(fields.state, place, (*path, "state"))
        own = [(fields.name, initial.schema)]
        if fields.until is not None:
            test, negated, where = fields.until, True, (*path, "until")
        else:
            assert fields.goes_on is not None
            test, negated, where = fields.goes_on, False, (*path, "while")
        condition, _ = self._body(test, place, where, label, own, negated=negated)
        traced, schema = self._body(fields.do, place, (*path, "do"), label, own)
        bodies, captures = share_captures([condition, traced], own=1)
        op = Loop(
            (initial.op, *captures),
            condition=bodies[0],
            step=bodies[1],
            max_rounds=fields.max_rounds,
            label=label,
        )
        return Known(place.scope.add(op), schema if schema == initial.schema else None)

    def _body(
        self,
        given: Body | Test,
        place: Place,
        path: Path_,
        label: str,
        params: Sequence[tuple[str, Schema | None]],
        negated: bool = False,
    ) -> tuple[TracedBody, Schema | None]:
        """A body (or the condition of a loop) over its parameters, with what it captures."""
        inner = StepScope(self._tracer, place.scope)
        own = [Param((), i, inner.id, label=name) for i, (name, _) in enumerate(params)]
        names = dict(place.names)
        for param, (name, schema) in zip(own, params, strict=True):
            self._check_new(name, place, (*path[:-1], "as"))
            names[name] = Known(param, schema)
        inside = Place(inner, names)
        if isinstance(given, Block | AnyStep):
            known = self._block(given, inside, path, label)
        else:
            known = Known(self._names.condition(given, inside, path))
        result = inner.add(Compare((known.op,), "not")) if negated else known.op
        body, captures = close_body(inner.finish(result), own, inner.is_local)
        return TracedBody(body, captures, None), known.schema
