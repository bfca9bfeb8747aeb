"""The logical plan: immutable, content-addressed operators over the values of one row.

An operator stands for one value per row. Its inputs are other operators; a prompt refers to them by
position, so two workflows that name the same work differently still build equal operators. Equality
and hashing use the fingerprint, which is computed once, at construction, from the fingerprints of
the inputs: no walk here recurses, so a chain of thousands of operators is fine.

Scopes: an operator belongs to the row, or to the body of a `Map`, `Reduce`, `When` or `Loop`. A
body sees the outside only through its parameters (`Param`), which the enclosing operator's inputs
bind.
"""

from __future__ import annotations

import enum
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, ClassVar, TypeAlias, cast

from planner.errors import PlanError

Json: TypeAlias = "None | bool | int | float | str | list[Json] | dict[str, Json]"

LABEL = {"identity": False}
"""Field metadata of what is shown to people and does not take part in the fingerprint."""


class Effect(enum.Enum):
    """What may be merged, reordered and cached. Merging and sharing read nothing else."""

    PURE = "pure"
    SAMPLED = "sampled"
    WRITE = "write"

    @property
    def rank(self) -> int:
        return ("pure", "sampled", "write").index(self.value)


def strongest(effects: Iterable[Effect]) -> Effect:
    """The most restrictive of `effects`; PURE when there are none."""
    return max(effects, key=lambda e: e.rank, default=Effect.PURE)


def canonical_json(value: Json) -> str:
    """One text per value: sorted keys, no spaces, non-ASCII kept."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def render_value(value: Json) -> str:
    """How a value reads inside a prompt: a string as it is, anything else as JSON text."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


# --- prompts -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ref:
    """A reference segment: the value of the operator's input number `index`."""

    index: int


Segment: TypeAlias = "str | Ref"


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text of literal and reference segments, never a rendered string before run time.

    Literals are the author's words (and what rows share as a prefix); references are data, which is
    substituted at run time and never scanned for markers, templates or format fields again.
    """

    segments: tuple[Segment, ...]

    @property
    def references(self) -> tuple[int, ...]:
        """Input positions in order of first use."""
        return tuple(dict.fromkeys(s.index for s in self.segments if isinstance(s, Ref)))

    @property
    def literal_prefix(self) -> str:
        """The text before the first reference: equal for every row."""
        parts: list[str] = []
        for segment in self.segments:
            if isinstance(segment, Ref):
                break
            parts.append(segment)
        return "".join(parts)

    def render(self, values: Sequence[Json]) -> str:
        """The text with `values[i]` in place of each reference to input i."""
        return "".join(
            s if isinstance(s, str) else render_value(values[s.index]) for s in self.segments
        )

    def reindex(self, mapping: Mapping[int, int]) -> Prompt:
        """The same prompt over renumbered inputs."""
        return Prompt(
            tuple(Ref(mapping[s.index]) if isinstance(s, Ref) else s for s in self.segments)
        )


# --- operators -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, repr=False)
class Op:
    """One operator: a value per row, computed from `inputs`, not before `after` has happened.

    `after` carries order alone (a write waits for the write before it); its values are not read.
    `label` is a name for people and takes no part in equality.
    """

    inputs: tuple[Op, ...] = ()
    after: tuple[Op, ...] = field(default=(), kw_only=True)
    label: str = field(default="", kw_only=True, metadata=LABEL)
    fingerprint: str = field(init=False, default="", metadata=LABEL)

    kind: ClassVar[str] = "op"

    def __post_init__(self) -> None:
        digest = hashlib.sha256(canonical_json([self.kind, *_identity(self)]).encode())
        object.__setattr__(self, "fingerprint", digest.hexdigest()[:32])
        self.check()

    def __init_subclass__(cls) -> None:
        cls.kind = cls.__name__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Op) and other.fingerprint == self.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        return f"{self.kind}({self.label or self.fingerprint[:8]})"

    def check(self) -> None:
        """Raise `PlanError` when the fields cannot mean anything."""

    @property
    def dependencies(self) -> tuple[Op, ...]:
        """Everything that must have happened before: `inputs`, then `after`."""
        return self.inputs + self.after

    @property
    def own_effect(self) -> Effect:
        """The effect of running this operator once, bodies included."""
        return strongest(op.own_effect for body in self.bodies for op in body.walk())

    @cached_property
    def effect(self) -> Effect:
        return self.own_effect

    @property
    def bodies(self) -> tuple[Body, ...]:
        """The nested scopes of this operator."""
        return ()


@dataclass(frozen=True, eq=False, repr=False)
class Body:
    """A nested scope: `result` computed from `n_params` parameters (`Param` leaves)."""

    n_params: int
    result: Op
    fingerprint: str = field(init=False, default="")

    def __post_init__(self) -> None:
        digest = hashlib.sha256(f"Body {self.n_params} {self.result.fingerprint}".encode())
        object.__setattr__(self, "fingerprint", digest.hexdigest()[:32])

    def walk(self) -> Iterator[Op]:
        """Operators of this scope (not of scopes inside it), inputs before users."""
        return walk((self.result,))


@dataclass(frozen=True, eq=False, repr=False)
class Scan(Op):
    """The rows of one input. `source` names them: the session binds it to real rows, and gives the
    same name to equal rows, so that equal scans of different workflows become one."""

    source: str = "rows"
    columns: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False, repr=False)
class Column(Op):
    """One column of a scanned row. Inputs: the `Scan`."""

    name: str = ""

    def check(self) -> None:
        scan = self.inputs[0] if self.inputs else None
        if isinstance(scan, Scan) and self.name not in scan.columns:
            have = ", ".join(scan.columns) or "none"
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

    prompt: Prompt = Prompt(())


@dataclass(frozen=True, eq=False, repr=False)
class Project(Op):
    """An object of named values. Inputs: one value a name."""

    names: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False, repr=False)
class Compare(Op):
    """`left <operator> right` as a boolean. Operators: == != < <= > >= in and or not truthy."""

    operator: str = "=="


@dataclass(frozen=True, eq=False, repr=False)
class Ordered(Op):
    """The value of its input, once `after` has happened: keeps writes that nobody reads."""


@dataclass(frozen=True, eq=False, repr=False)
class ModelOp(Op):
    """What every model call has. Prompts refer to `inputs` by position.

    `call_id` is the identity of a written call: empty for greedy calls (equal calls are one call),
    set for sampled ones (equal calls stay apart).
    """

    model: str = ""
    prompt: Prompt = Prompt(())
    system: Prompt | None = None
    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    call_id: str = ""

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


@dataclass(frozen=True, slots=True)
class ToolRef:
    """A tool as plans know it: its name, a digest of its definition, its declared effect."""

    name: str
    digest: str = ""
    effect: Effect = Effect.WRITE


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
    """A call of a registered tool. Inputs: one value per name in `params`."""

    tool: ToolRef = ToolRef("")
    params: tuple[str, ...] = ()
    call_id: str = ""

    @property
    def own_effect(self) -> Effect:
        return self.tool.effect


@dataclass(frozen=True, eq=False, repr=False)
class Sql(Op):
    """A query on a DuckDB database; the value is a list of row objects.

    With `text`, inputs are the values of `params` (named parameters `$name`). Without, the first
    input is the query text (model-written SQL: read-only, capped) and the rest are `params`.
    """

    database: str = ""
    text: str | None = None
    params: tuple[str, ...] = ()
    max_rows: int = 1000
    read_only: bool = True
    call_id: str = ""

    @property
    def own_effect(self) -> Effect:
        return Effect.PURE if self.read_only else Effect.WRITE


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
    elements until one value is left. Parameters: the group (a list), then captures."""

    body: Body = field(default_factory=lambda: Body(1, Param((), 0)))
    fan_in: int = 16

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
    input is the initial state. Parameters of both bodies: the state, then captures."""

    condition: Body = field(default_factory=lambda: Body(1, Param((), 0)))
    step: Body = field(default_factory=lambda: Body(1, Param((), 0)))
    max_rounds: int = 8

    @property
    def bodies(self) -> tuple[Body, ...]:
        return (self.condition, self.step)

    def check(self) -> None:
        if self.max_rounds < 1:
            raise PlanError(f"max_rounds of {self!r} is {self.max_rounds}; it must be at least 1")


@dataclass(frozen=True, eq=False, repr=False)
class Result(Op):
    """What a query returns: the value of its first input for every row of the `Scan` in its second
    (so that a workflow that ignores its row still knows how many there are)."""

    @property
    def value(self) -> Op:
        return self.inputs[0]

    @property
    def scan(self) -> Scan:
        scan = self.inputs[1]
        assert isinstance(scan, Scan)
        return scan

    def check(self) -> None:
        if len(self.inputs) != 2 or not isinstance(self.inputs[1], Scan):
            raise PlanError("a Result takes a value and the Scan whose rows it is for")


OPS: tuple[type[Op], ...] = (
    Scan, Column, Const, Param, Field, Format, Project, Compare, Ordered,
    Generate, Choose, Agent, Tool, Sql, Map, Reduce, When, Loop, Result,
)  # fmt: skip
"""Every operator that a plan may hold: the set is closed; "my own operator" is a tool."""


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
    def users(self) -> dict[Op, tuple[str, ...]]:
        """Which outputs (queries) need each operator of the row scope: the plan's provenance."""
        users: dict[Op, dict[str, None]] = {}
        for name, root in self.outputs:
            for op in walk((root,)):
                users.setdefault(op, {})[name] = None
        return {op: tuple(names) for op, names in users.items()}


def walk(roots: tuple[Op, ...]) -> Iterator[Op]:
    """Operators reachable from `roots` in one scope, dependencies first, each once. Iterative."""
    done: set[Op] = set()
    stack: list[tuple[Op, bool]] = [(root, False) for root in reversed(roots)]
    while stack:
        op, expanded = stack.pop()
        if op in done:
            continue
        if expanded:
            done.add(op)
            yield op
            continue
        stack.append((op, True))
        stack.extend((d, False) for d in reversed(op.dependencies) if d not in done)


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


def _identity(op: Op) -> list[Any]:
    return [
        [f.name, _encode(getattr(op, f.name))]
        for f in fields(op)
        if f.metadata.get("identity", True)
    ]


def _encode(value: object) -> Any:
    if isinstance(value, Op | Body):
        return value.fingerprint
    if isinstance(value, Prompt):
        return [s if isinstance(s, str) else [s.index] for s in value.segments]
    if isinstance(value, ToolRef):
        return [value.name, value.digest, value.effect.value]
    if isinstance(value, Effect):
        return value.value
    if isinstance(value, tuple):
        return [_encode(v) for v in cast(tuple[object, ...], value)]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError(f"a plan operator cannot hold {type(value).__name__}")
