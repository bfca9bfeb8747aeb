"""The logical plan: operators over the values of rows, and the rows themselves.

A value operator stands for one value per row. Its inputs are other operators; a prompt refers to
them by position, so two workflows that name the same work differently still build equal operators.
Relations (`planner.relations`) stand for rows.

Scopes: a value belongs to the rows of one relation, or to the body of a `Map`, `Reduce`, `When` or
`Loop`. A body sees the outside only through its parameters (`Param`), which the enclosing
operator's inputs bind.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from planner.errors import PlanError
from planner.op import (
    ADDED,
    LABEL,
    NO_TEXT,
    NO_TOOL,
    Body,
    Effect,
    Json,
    Op,
    Prompt,
    Ref,
    Segment,
    ToolRef,
    canonical_json,
    render_value,
    strongest,
    walk,
)
from planner.relations import (
    Collect,
    Filter,
    Flatten,
    Group,
    Limit,
    Pairs,
    Relation,
    Scan,
    Sort,
    SqlRows,
    Subset,
)

__all__ = [
    "CALLS",
    "LABEL",
    "OPS",
    "Agent",
    "Body",
    "Choose",
    "Collect",
    "Column",
    "Compare",
    "Const",
    "Effect",
    "Field",
    "Filter",
    "Flatten",
    "Format",
    "Generate",
    "Group",
    "Json",
    "Limit",
    "LogicalPlan",
    "Loop",
    "Map",
    "ModelOp",
    "Op",
    "Ordered",
    "Pairs",
    "Param",
    "Project",
    "Prompt",
    "Recover",
    "Reduce",
    "Ref",
    "Relation",
    "Result",
    "Scan",
    "Segment",
    "Sort",
    "Sql",
    "SqlRows",
    "Subset",
    "Tool",
    "ToolRef",
    "When",
    "canonical_json",
    "close_body",
    "render_value",
    "strongest",
    "transform",
    "walk",
]


@dataclass(frozen=True, eq=False, repr=False)
class Column(Op):
    """One column of a row. Inputs: the relation whose rows have it.

    The relation is never a `Filter` or `Limit`: those keep rows as they are, so a value of one of
    their rows is a value of the row of their `base`, and queries with different filters over the
    same rows share it.
    """

    name: str = ""

    def check(self) -> None:
        rows = self.inputs[0] if self.inputs else None
        if isinstance(rows, Subset):
            raise PlanError(
                f"column {self.name!r} is taken from {rows!r}, which keeps rows as they are; take "
                "it from its `base`"
            )
        if isinstance(rows, Relation) and self.name not in rows.column_names:
            have = ", ".join(rows.column_names) or "none"
            raise PlanError(f"unknown column {self.name!r}; the input has: {have}")


@dataclass(frozen=True, eq=False, repr=False)
class Const(Op):
    """A literal value, kept as canonical JSON."""

    value_json: str = "null"

    @classmethod
    def of(cls, value: Json, label: str = "") -> Const:
        return cls((), canonical_json(value), label=label)

    @cached_property
    def value(self) -> Json:
        value: Json = json.loads(self.value_json)
        return value


@dataclass(frozen=True, eq=False, repr=False)
class Param(Op):
    """Parameter number `index` of the enclosing body. `scope` is empty except while tracing."""

    index: int = 0
    scope: str = ""


@dataclass(frozen=True, eq=False, repr=False)
class Field(Op):
    """A member of an object (string key) or of a list (integer). Inputs: the object."""

    key: str | int = ""


@dataclass(frozen=True, eq=False, repr=False)
class Format(Op):
    """A text built from values, used where no model call needs it (a tool argument, a result)."""

    prompt: Prompt = NO_TEXT


@dataclass(frozen=True, eq=False, repr=False)
class Project(Op):
    """An object of named values. Inputs: one value a name."""

    names: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False, repr=False)
class Compare(Op):
    """`left <operator> right` as a boolean. Operators: == != < <= > >= in and or not truthy
    is_null.

    Truth is Python's on JSON values: null, false, 0, "", [] and {} are false. With `nulls`, null
    means unknown, as in SQL: a comparison with null is null, `in` is null when nothing matches and
    the list holds a null, `not` of null is null, `and` and `or` are Kleene's (`false and null` is
    false, `true or null` is true, otherwise null). `is_null` and `truthy` are never null.
    """

    operator: str = "=="
    nulls: bool = False


@dataclass(frozen=True, eq=False, repr=False)
class Ordered(Op):
    """The value of its input, once `after` has happened: keeps writes that nobody reads."""


@dataclass(frozen=True, eq=False, repr=False)
class Recover(Op):
    """The value of its input, or null when that has failed: the row goes on, and the run records
    the error beside its results. With `detail`, an object `{"value": ..., "error": ...}` of the
    value or null, and the message or null."""

    detail: bool = False


@dataclass(frozen=True, eq=False, repr=False)
class ModelOp(Op):
    """What every model call has. Prompts refer to `inputs` by position.

    `call_id` is the identity of a written call: empty for greedy calls (equal calls are one call),
    set for sampled ones (equal calls stay apart). A `fresh` call is answered in this run: its
    answer neither comes from the answer cache of earlier runs nor goes there.
    """

    model: str = ""
    prompt: Prompt = NO_TEXT
    system: Prompt | None = None
    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    call_id: str = ""
    fresh: bool = field(default=False, kw_only=True, metadata=ADDED)

    @property
    def own_effect(self) -> Effect:
        return Effect.SAMPLED if self.temperature > 0 else Effect.PURE

    def check(self) -> None:
        prompts = [self.prompt, *([self.system] if self.system else [])]
        if any(index >= len(self.inputs) for p in prompts for index in p.references):
            raise PlanError(f"prompt of {self!r} refers to an input that it does not have")
        if self.max_tokens < 1:
            raise PlanError(f"max_tokens of {self!r} is {self.max_tokens}; it must be at least 1")
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise PlanError(f"{self!r}: temperature must be >= 0 and top_p in (0, 1]")
        if self.temperature > 0 and not self.call_id:
            raise PlanError(f"sampled call {self!r} has no call_id; every written call needs one")


@dataclass(frozen=True, eq=False, repr=False)
class Generate(ModelOp):
    """A model's answer: text, or a value of `schema_json` (JSON Schema) enforced while decoding."""

    schema_json: str | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False, repr=False)
class Choose(ModelOp):
    """One of `options`, enforced while decoding."""

    options: tuple[str, ...] = ()

    def check(self) -> None:
        super().check()
        if len(self.options) < 2 or len(set(self.options)) != len(self.options):
            raise PlanError(f"{self!r} needs at least two different options, got {self.options}")


@dataclass(frozen=True, eq=False, repr=False)
class Agent(ModelOp):
    """A bounded tool-calling loop over the chat protocol; a single node with a dynamic inside."""

    tools: tuple[ToolRef, ...] = ()
    max_turns: int = 8
    schema_json: str | None = None

    @property
    def own_effect(self) -> Effect:
        return strongest([super().own_effect, *(t.effect for t in self.tools)])

    def check(self) -> None:
        super().check()
        if self.max_turns < 1:
            raise PlanError(f"max_turns of {self!r} is {self.max_turns}; it must be at least 1")


@dataclass(frozen=True, eq=False, repr=False)
class Tool(Op):
    """A call of a registered tool. Inputs: one value per name in `params`. `fresh` as of models."""

    tool: ToolRef = NO_TOOL
    params: tuple[str, ...] = ()
    call_id: str = ""
    fresh: bool = field(default=False, kw_only=True, metadata=ADDED)

    @property
    def own_effect(self) -> Effect:
        return self.tool.effect


@dataclass(frozen=True, eq=False, repr=False)
class Sql(Op):
    """A query on a DuckDB database; the value is a list of row objects.

    With `text`, inputs are the values of `params` (named parameters `$name`). Without, the first
    input is the query text (model-written SQL: read-only, capped) and the rest are `params`.
    A `volatile` query may answer differently each time it is asked (`random()`, `now()`): it is
    SAMPLED, so two written ones are never merged. Queries of a `batched` operator that are asked at
    about the same time go to the database as one (`planner.sql_batch`). Those of a `derived` one
    are equal when what the text makes of the parameters is (`planner.sql_parameters`).
    """

    database: str = ""
    text: str | None = None
    params: tuple[str, ...] = ()
    max_rows: int = 1000
    read_only: bool = True
    volatile: bool = False
    batched: bool = False
    derived: bool = field(default=False, metadata=ADDED)
    call_id: str = ""

    @property
    def own_effect(self) -> Effect:
        if not self.read_only:
            return Effect.WRITE
        return Effect.SAMPLED if self.volatile else Effect.PURE


@dataclass(frozen=True, eq=False, repr=False)
class Map(Op):
    """`body` for each element of the first input, in order. Parameters: element, then captures."""

    body: Body = field(default_factory=lambda: Body(1, Param((), 0)))

    @property
    def bodies(self) -> tuple[Body, ...]:
        return (self.body,)


@dataclass(frozen=True, eq=False, repr=False)
class Reduce(Op):
    """Tree reduction of the list in the first input: `body` merges groups of at most `fan_in`
    elements until one value is left. Parameters: the group (a list), then captures.

    With `group_tokens`, a group also ends before its elements have more estimated tokens than that
    together (an element that is longer alone is a group of its own): elements are packed in order,
    so equal lists have equal groups."""

    body: Body = field(default_factory=lambda: Body(1, Param((), 0)))
    fan_in: int = 16
    group_tokens: int = 0

    @property
    def bodies(self) -> tuple[Body, ...]:
        return (self.body,)

    def check(self) -> None:
        if self.fan_in < 2:
            raise PlanError(f"fan_in of {self!r} is {self.fan_in}; it must be at least 2")


@dataclass(frozen=True, eq=False, repr=False)
class When(Op):
    """`then` or `otherwise`, by the truth of the first input; the other branch does not run.
    Both bodies take the same parameters: the inputs after the first."""

    then: Body = field(default_factory=lambda: Body(0, Const()))
    otherwise: Body = field(default_factory=lambda: Body(0, Const()))

    @property
    def bodies(self) -> tuple[Body, ...]:
        return (self.then, self.otherwise)


@dataclass(frozen=True, eq=False, repr=False)
class Loop(Op):
    """`state = step(state)` while `condition(state)` holds, at most `max_rounds` times. The first
    input is the initial state. Parameters of both bodies: the state, then captures.

    With `stop_when_stable`, it ends when a step returns the state that it was given: a step that is
    a function of its state would go on returning it."""

    condition: Body = field(default_factory=lambda: Body(1, Param((), 0)))
    step: Body = field(default_factory=lambda: Body(1, Param((), 0)))
    max_rounds: int = 8
    stop_when_stable: bool = False

    @property
    def bodies(self) -> tuple[Body, ...]:
        return (self.condition, self.step)

    def check(self) -> None:
        if self.max_rounds < 1:
            raise PlanError(f"max_rounds of {self!r} is {self.max_rounds}; it must be at least 1")
        if self.stop_when_stable and self.effect is not Effect.PURE:
            raise PlanError(f"{self!r} cannot stop when stable: its bodies are not pure")


@dataclass(frozen=True, eq=False, repr=False)
class Result(Op):
    """What a query returns: the value of its first input for every row of the relation in its
    second (so that a workflow that ignores its row still knows how many there are). The value is
    computed for the rows of the relation alone: rows that a `Filter` or `Limit` drops cost nothing
    beyond what dropped them."""

    @property
    def value(self) -> Op:
        return self.inputs[0]

    @property
    def rows(self) -> Relation:
        rows = self.inputs[1]
        assert isinstance(rows, Relation)
        return rows

    @property
    def scan(self) -> Scan:
        """The scan of a query that reads scanned rows as they are, filters and limits apart."""
        base = self.rows.base
        assert isinstance(base, Scan), f"{self!r} reads the rows of {base!r}, not of a scan"
        return base

    def check(self) -> None:
        if len(self.inputs) != 2 or not isinstance(self.inputs[1], Relation):
            raise PlanError("a Result takes a value and the relation whose rows it is for")


OPS: tuple[type[Op], ...] = (
    Scan, SqlRows, Filter, Limit, Collect, Flatten, Pairs, Group, Sort,
    Column, Const, Param, Field, Format, Project, Compare, Ordered, Recover,
    Generate, Choose, Agent, Tool, Sql, Map, Reduce, When, Loop, Result,
)  # fmt: skip
"""Every operator that a plan may hold: the set is closed; "my own operator" is a tool."""


CALLS: tuple[type[Op], ...] = (ModelOp, Tool, Sql, SqlRows)
"""The operators that call an engine, a tool or a database, and have a `call_id` unless pure."""


# --- plans ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, repr=False)
class LogicalPlan:
    """Named outputs over one DAG: one query or a whole batch, the same type. Every output is a
    `Result`, named after its query."""

    outputs: tuple[tuple[str, Result], ...]

    @cached_property
    def fingerprint(self) -> str:
        text = canonical_json([[name, op.fingerprint] for name, op in self.outputs])
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LogicalPlan) and other.fingerprint == self.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        return f"LogicalPlan({', '.join(name for name, _ in self.outputs)})"

    def walk(self) -> Iterator[Op]:
        """Operators of the row scope, inputs before users, each once, in a stable order."""
        return walk(tuple(op for _, op in self.outputs))

    def walk_all(self) -> Iterator[Op]:
        """Operators of every scope: `walk`, and after each operator those of its bodies."""
        for op in self.walk():
            yield op
            pending = list(op.bodies)
            while pending:
                for inner in pending.pop(0).walk():
                    yield inner
                    pending.extend(inner.bodies)

    @cached_property
    def kinds(self) -> frozenset[type[Op]]:
        """The kinds of operators that the plan has, in any scope."""
        return frozenset(type(op) for op in self.walk_all())

    @cached_property
    def users(self) -> dict[Op, tuple[str, ...]]:
        """Which outputs (queries) need each operator of the row scope: the plan's provenance."""
        users: dict[Op, dict[str, None]] = {}
        for name, root in self.outputs:
            for op in walk((root,)):
                users.setdefault(op, {})[name] = None
        return {op: tuple(names) for op, names in users.items()}


def transform(roots: Sequence[Op], rewrite: Callable[[Op], Op]) -> list[Op]:
    """Rebuild `roots` bottom-up with `rewrite` applied to each operator of their scope, after its
    dependencies. Equal results become one object. Bodies are left as they are. Iterative."""
    rebuilt: dict[Op, Op] = {}
    interned: dict[str, Op] = {}
    for op in walk(tuple(roots)):
        inputs = tuple(rebuilt[i] for i in op.inputs)
        after = tuple(rebuilt[i] for i in op.after)
        same = all(a is b for a, b in zip(inputs + after, op.dependencies, strict=True))
        new = rewrite(op if same else replace(op, inputs=inputs, after=after))
        rebuilt[op] = interned.setdefault(new.fingerprint, new)
    return [rebuilt[root] for root in roots]


def close_body(
    result: Op, params: Sequence[Param], is_local: Callable[[Op], bool]
) -> tuple[Body, tuple[Op, ...]]:
    """Turn the graph of a traced body into a `Body` and the outer values that it captures.

    `params` are the body's own parameters (with their tracing scope). Operators for which
    `is_local` is false were made outside: they become parameters after the own ones, and are
    returned in that order, to be passed as further inputs of the enclosing operator.
    """
    own = {p: Param((), i) for i, p in enumerate(params)}
    captures: list[Op] = []
    rebuilt: dict[Op, Op] = {}
    stack: list[tuple[Op, bool]] = [(result, False)]
    while stack:
        op, expanded = stack.pop()
        if op in rebuilt:
            continue
        if isinstance(op, Param) and op in own:
            rebuilt[op] = own[op]
        elif isinstance(op, Const):
            rebuilt[op] = op
        elif not is_local(op):
            captures.append(op)
            rebuilt[op] = Param((), len(own) + len(captures) - 1, label=op.label)
        elif expanded:
            rebuilt[op] = replace(
                op,
                inputs=tuple(rebuilt[i] for i in op.inputs),
                after=tuple(rebuilt[i] for i in op.after),
            )
        else:
            stack.append((op, True))
            stack.extend((d, False) for d in reversed(op.dependencies) if d not in rebuilt)
    return Body(len(own) + len(captures), rebuilt[result]), tuple(captures)
