"""What every plan promises, checked: the executable specification of the logical operators.

A broken promise that a workflow's author can cause is a `PlanError`; one that only Halo can cause
is an `InvariantError`, a defect.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from planner.errors import InvariantError, PlanError
from planner.logical import (
    OPS,
    Agent,
    Body,
    Choose,
    Column,
    Compare,
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
    Param,
    Project,
    Recover,
    Reduce,
    Relation,
    Result,
    Scan,
    Sort,
    Sql,
    SqlRows,
    Tool,
    ToolRef,
    When,
)
from planner.relations import row_values


def verify(plan: LogicalPlan) -> None:
    """Raise `PlanError` or `InvariantError` unless the plan is legal; the message names the
    operator. Iterative: a plan may be thousands of operators deep.

    - Outputs are `Result`s with unique, non-empty names; each depends on the rows of one relation,
      and so does every value: those of its own relation alone.
    - Columns belong to a base relation; relations, columns and results are in the row scope,
      parameters in bodies, within the body's number of parameters, and no tracing scope is left on
      them. A relation is an input of relations, columns and results alone.
    - Inputs fit the operator: bodies, prompts, tools, queries and objects have one for each name.
    - Sampled and writing calls have a `call_id` that no other operator has; pure ones have none.
    - Tools of one name are one tool.
    """
    _verify_outputs(plan)
    _verify_rows(plan)
    calls: dict[str, Op] = {}
    tools: dict[str, ToolRef] = {}
    for op, n_params in _scoped(plan):
        _verify_place(op, n_params)
        _verify_inputs(op)
        _verify_call_id(op, calls)
        for tool in _tools(op):
            known = tools.setdefault(tool.name, tool)
            if known != tool:
                raise PlanError(
                    f"two different tools are named {tool.name!r} (the second at {op!r}); rename "
                    "one of them"
                )


def _scoped(plan: LogicalPlan) -> Iterator[tuple[Op, int | None]]:
    """Every operator with the number of parameters of its body; None in the row scope. Equal bodies
    are the same promise: each is visited once."""
    seen: set[str] = set()
    pending: list[Body] = []
    for op in plan.walk():
        yield op, None
        pending.extend(op.bodies)
        while pending:
            body = pending.pop()
            if body.fingerprint in seen:
                continue
            seen.add(body.fingerprint)
            for inner in body.walk():
                yield inner, body.n_params
                pending.extend(inner.bodies)


def _verify_outputs(plan: LogicalPlan) -> None:
    if not plan.outputs:
        raise PlanError("the plan has no output")
    names: set[str] = set()
    for name, result in plan.outputs:
        if not name or name in names:
            raise PlanError(
                f"output name {name!r} is empty or used twice; every query needs its own"
            )
        names.add(name)
        if result.kind != "Result":
            raise InvariantError(f"output {name!r} is {result!r}, which is no Result")


def _verify_rows(plan: LogicalPlan) -> None:
    """Values are of the rows that those who read them mean."""
    of: dict[Op, frozenset[Relation]] = {}
    for op in plan.walk():
        if isinstance(op, Relation | Column | Result):
            _verify_row_inputs(op, of, plan)
            base = op.inputs[0] if isinstance(op, Column) else None
            of[op] = frozenset([base]) if isinstance(base, Relation) else frozenset()
            continue
        bases: frozenset[Relation] = frozenset()
        for dependency in op.dependencies:
            _expect(op, not isinstance(dependency, Relation), "reads a relation as a value")
            found = of[dependency]
            bases = bases if found <= bases else bases | found
        if len(bases) > 1:
            raise PlanError(
                f"query {plan.users[op][0]!r}: {op!r} reads the rows of {len(bases)} inputs "
                f"({_named(bases)}); a query reads one row of one input"
            )
        of[op] = bases


def _verify_row_inputs(op: Op, of: dict[Op, frozenset[Relation]], plan: LogicalPlan) -> None:
    """The values that a relation or result reads are over the relation that it says."""
    for value, relation in _read(op):
        _expect(op, not isinstance(value, Relation), "reads a relation as a value")
        wanted = frozenset[Relation]() if relation is None else frozenset([relation.base])
        if not of[value] <= wanted:
            raise PlanError(
                f"query {plan.users[op][0]!r}: {op!r} is for the rows of "
                f"{_named(wanted) or 'no input'} and reads a value of the rows of "
                f"{_named(of[value])}; a query reads the rows of one input"
            )


def _read(op: Op) -> Iterable[tuple[Op, Relation | None]]:
    if isinstance(op, Result):
        return [(op.value, op.rows)]
    return row_values(op) if isinstance(op, Relation) else ()


def _named(relations: frozenset[Relation]) -> str:
    names = (repr(r.source) if isinstance(r, Scan) else repr(r) for r in relations)
    return ", ".join(sorted(names))


def _verify_place(op: Op, n_params: int | None) -> None:
    if not isinstance(op, OPS):
        raise InvariantError(f"{op!r} is no operator of a plan")
    if isinstance(op, Param):
        if op.scope:
            raise InvariantError(f"parameter {op.index} still has the tracing scope {op.scope!r}")
        if n_params is None:
            raise InvariantError(f"parameter {op.index} is outside any body")
        if not 0 <= op.index < n_params:
            raise InvariantError(f"parameter {op.index} of a body that has {n_params} parameters")
    elif n_params is not None and isinstance(op, Relation | Column | Result):
        raise InvariantError(
            f"{op!r} is inside a body, which sees the row through parameters alone"
        )


def _verify_inputs(op: Op) -> None:
    n = len(op.inputs)
    match op:
        case Column():
            of_base = n == 1 and isinstance(op.inputs[0], Relation)
            _expect(op, of_base, "takes the relation of its rows")
        case Filter() | Limit() | Flatten() | Group() | Sort():
            _expect(op, n >= 1 and isinstance(op.inputs[0], Relation), "takes a relation first")
        case Field() | Ordered() | Recover():
            _expect(op, n == 1, f"takes 1 input, has {n}")
        case Compare(operator=operator):
            wanted = 1 if operator in ("not", "truthy", "is_null") else 2
            known = operator in _COMPARISONS
            _expect(op, known, f"has the unknown operator {operator!r}")
            _expect(op, n == wanted, f"({operator}) takes {wanted} inputs, has {n}")
        case Format(prompt=prompt):
            _expect(op, all(0 <= i < n for i in prompt.references), "refers to a missing input")
        case Project(names=names):
            _expect(op, len(set(names)) == len(names), f"has a name twice: {', '.join(names)}")
            _expect(op, n == len(names), f"has {len(names)} names and {n} inputs")
        case Generate() | Choose() | Agent():
            indices = [i for p in (op.prompt, op.system) if p is not None for i in p.references]
            _expect(op, all(0 <= i < n for i in indices), "refers to a missing input")
        case Tool(params=params):
            _expect(op, n == len(params), f"has {len(params)} parameters and {n} inputs")
        case Sql(params=params, text=text):
            wanted = len(params) + (1 if text is None else 0)
            _expect(op, n == wanted, f"takes {wanted} inputs (query text and parameters), has {n}")
        case SqlRows():
            constant = all(isinstance(each, Const) for each in op.param_inputs)
            _expect(op, constant, "has a parameter that is no constant")
        case Map() | Reduce() | Loop():
            for body in op.bodies:
                _expect(op, n >= 1 and n == body.n_params, _body_message(body, n))
        case When():
            for body in op.bodies:
                _expect(op, n - 1 == body.n_params, _body_message(body, n - 1))
        case _:
            pass


_COMPARISONS = frozenset(
    ("==", "!=", "<", "<=", ">", ">=", "in", "and", "or", "not", "truthy", "is_null")
)


def _expect(op: Op, holds: bool, message: str) -> None:
    if not holds:
        raise InvariantError(f"{op!r} {message}")


def _body_message(body: Body, bound: int) -> str:
    return f"has a body of {body.n_params} parameters and binds {bound}"


def _verify_call_id(op: Op, calls: dict[str, Op]) -> None:
    if not isinstance(op, ModelOp | Tool | Sql | SqlRows):
        return
    if op.effect is Effect.PURE:
        _expect(op, not op.call_id, f"is pure and has call_id {op.call_id!r}, so it cannot merge")
        return
    _expect(op, bool(op.call_id), f"is {op.effect.value} and has no call_id")
    other = calls.setdefault(op.call_id, op)
    _expect(op, other == op, f"and {other!r} are different calls with call_id {op.call_id!r}")


def _tools(op: Op) -> tuple[ToolRef, ...]:
    if isinstance(op, Tool):
        return (op.tool,)
    return op.tools if isinstance(op, Agent) else ()
