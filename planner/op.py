"""What every operator of a plan is: immutable, content-addressed, with an effect and inputs.

Equality and hashing use the fingerprint, which is computed once, at construction, from the
fingerprints of the inputs: no walk here recurses, so a chain of thousands of operators is fine.
"""

from __future__ import annotations

import enum
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from functools import cached_property
from typing import Any, ClassVar, TypeAlias, cast

Json: TypeAlias = "None | bool | int | float | str | list[Json] | dict[str, Json]"

LABEL = {"identity": False}
"""Field metadata of what is shown to people and does not take part in the fingerprint."""

ADDED = {"added": True}
"""Field metadata of a field that plans written before it do not have. At its default it takes no
part in the fingerprint and is not written, so the journals of their runs still fit."""


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


NO_TEXT = Prompt(())


# --- operators -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ToolRef:
    """A tool as plans know it: its name, a digest of its definition, its declared effect."""

    name: str
    digest: str = ""
    effect: Effect = Effect.WRITE


NO_TOOL = ToolRef("")


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


def walk(roots: tuple[Op, ...], stop_at: Op | None = None) -> Iterator[Op]:
    """Operators reachable from `roots` in one scope, dependencies first, each once; those of
    `stop_at` only if something else reaches them. Iterative."""
    done: set[Op] = set()
    stack: list[tuple[Op, bool]] = [(root, False) for root in reversed(roots)]
    while stack:
        op, expanded = stack.pop()
        if op in done:
            continue
        if expanded or op == stop_at:
            done.add(op)
            yield op
            continue
        stack.append((op, True))
        stack.extend((d, False) for d in reversed(op.dependencies) if d not in done)


def _identity(op: Op) -> list[Any]:
    return [
        [f.name, encode_field(getattr(op, f.name))]
        for f in fields(op)
        if f.metadata.get("identity", True) and not is_left_out(op, f)
    ]


def is_added(field: Field[Any]) -> bool:
    """Whether older plans do not have a field."""
    return "added" in field.metadata


def is_left_out(op: Op, field: Field[Any]) -> bool:
    """Whether a field is one that was added, at its default."""
    return is_added(field) and getattr(op, field.name) == field.default


def encode_field(value: object) -> Any:
    """A field's value as JSON for fingerprints; operators and bodies by their own."""
    if isinstance(value, Op | Body):
        return value.fingerprint
    if isinstance(value, Prompt):
        return [s if isinstance(s, str) else [s.index] for s in value.segments]
    if isinstance(value, ToolRef):
        return [value.name, value.digest, value.effect.value]
    if isinstance(value, Effect):
        return value.value
    if isinstance(value, tuple):
        return [encode_field(v) for v in cast(tuple[object, ...], value)]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError(f"a plan operator cannot hold {type(value).__name__}")
