"""What references stand for: steps, elements, columns and their members, as operators."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import NoReturn, cast

from pydantic import BaseModel

from halo.dsl.trace import Scope
from halo.errors import HaloError
from halo.spec.condition import Condition, Literal, Operation
from halo.spec.document import Document, Path_
from halo.spec.template import Reference, Template
from halo.spec.value_type import Schema, member_type
from planner.logical import (
    Column,
    Compare,
    Const,
    Field,
    Format,
    Json,
    Op,
    Project,
    Prompt,
    Ref,
    Scan,
    Segment,
    render_value,
)

TEXT: Schema = {"type": "string"}


@dataclass(frozen=True, slots=True)
class Known:
    """An operator and the type of its value; None when the type is not known."""

    op: Op
    schema: Schema | None = None


class StepScope(Scope):
    """A scope in which an operator belongs to the block that it is written in, also when an equal
    one exists outside: what a body captures does not depend on the order of steps."""

    def add(self, op: Op) -> Op:
        added = super().add(op)
        self._made.add(added)
        return added


@dataclass(frozen=True, slots=True)
class Place:
    """Where steps are lowered: the scope, and what names mean there."""

    scope: StepScope
    names: Mapping[str, Known]


class Names:
    """Resolves references and builds what is made of them.

    `columns` are those that references may name, with their types; None while the rows are not
    known yet: then any name that is no step is taken for a column.
    """

    def __init__(
        self,
        document: Document,
        scan: Scan,
        row_scope: StepScope,
        columns: Mapping[str, Schema | None] | None,
        databases: Mapping[str, str],
    ) -> None:
        self._document = document
        self._scan = scan
        self._row_scope = row_scope
        self._columns = columns
        self._databases = databases

    # --- references ------------------------------------------------------------------------------

    def resolve(self, reference: Reference, place: Place, path: Path_) -> Known:
        """The value of a reference in `place`. Raises `WorkflowError` for an unknown name or
        member."""
        keys = list(reference.keys)
        known = place.names.get(reference.root)
        if known is None and reference.root == "databases":
            return Known(Const.of(self._schema_text(reference, path)), TEXT)
        if known is None:
            name = reference.root
            if name == "row":
                first = keys.pop(0) if keys else None
                if not isinstance(first, str):
                    self._fail(reference, path, "row needs a column: row.name or row['a name']")
                name = first
            known = self._column(name, reference, place, path)
        walked = Reference(reference.root, reference.keys[: len(reference.keys) - len(keys)])
        for key in keys:
            try:
                schema = member_type(known.schema, key)
            except LookupError as error:
                self._fail(reference, path, f"{walked} {error}")
            walked = Reference(walked.root, (*walked.keys, key))
            known = Known(place.scope.add(Field((known.op,), key, label=str(key))), schema)
        return known

    def _column(self, name: str, reference: Reference, place: Place, path: Path_) -> Known:
        if self._columns is None:
            return Known(Column((Scan((), self._scan.source, (name,)),), name, label=name))
        if name not in self._columns:
            known = [*place.names, *self._columns]
            near = get_close_matches(name, known, n=1)
            if near:
                hint = f"did you mean {near[0]!r}?"
            else:
                steps = ", ".join(place.names) or "none"
                columns = ", ".join(self._columns) or "none"
                hint = f"steps known here: {steps}; columns: {columns}"
            self._fail(reference, path, f"there is no step or column {name!r}; {hint}")
        op = self._row_scope.add(Column((self._scan,), name, label=name))
        return Known(op, self._columns[name])

    def database(self, name: str, path: Path_) -> str:
        """The file of a declared database."""
        if name not in self._databases:
            raise self._document.error(path, unknown("database", name, self._databases))
        return self._databases[name]

    def _schema_text(self, reference: Reference, path: Path_) -> str:
        keys = reference.keys
        if len(keys) != 2 or not isinstance(keys[0], str) or keys[1] != "schema":
            self._fail(reference, path, "write databases.NAME.schema for the tables of a database")
        file = self.database(keys[0], path)
        if self._columns is None:
            return ""
        from runtime.sql_tool import Databases

        try:
            return Databases.schema(file)
        except HaloError as error:
            self._fail(reference, path, str(error))

    def _fail(self, reference: Reference, path: Path_, problem: str) -> NoReturn:
        raise self._document.error(path, problem, reference.before)

    # --- what is made of them --------------------------------------------------------------------

    def prompt(
        self, template: Template, inputs: dict[Op, int], place: Place, path: Path_
    ) -> Prompt:
        """The segments of a template; references are numbered in `inputs`, which grows. Constants
        become part of the literals."""
        segments: list[Segment] = []
        for part in template.parts:
            piece: Segment
            if isinstance(part, str):
                piece = part
            else:
                op = self.resolve(part, place, path).op
                if isinstance(op, Const):
                    piece = render_value(op.value)
                else:
                    piece = Ref(inputs.setdefault(op, len(inputs)))
            if isinstance(piece, str) and segments and isinstance(segments[-1], str):
                segments[-1] += piece
            elif piece != "":
                segments.append(piece)
        return Prompt(tuple(segments))

    def text(self, template: Template, place: Place, path: Path_, label: str = "") -> Known:
        """A template as a text of its own."""
        inputs: dict[Op, int] = {}
        prompt = self.prompt(template, inputs, place, path)
        return Known(place.scope.add(Format(tuple(inputs), prompt, label=label)), TEXT)

    def value(self, given: object, place: Place, path: Path_, label: str = "") -> Known:
        """A value with templates in it: a template that is one reference is that value."""
        if isinstance(given, Reference):
            return self.resolve(given, place, path)
        if isinstance(given, Template):
            if len(given.parts) == 1 and isinstance(given.parts[0], Reference):
                return self.resolve(given.parts[0], place, path)
            if any(isinstance(part, Reference) for part in given.parts):
                return self.text(given, place, path, label)
            return Known(Const.of("".join(cast("tuple[str, ...]", given.parts)), label), TEXT)
        if isinstance(given, list):
            elements = [self.value(each, place, path).op for each in cast("list[object]", given)]
            constants = [op.value for op in elements if isinstance(op, Const)]
            if len(constants) != len(elements):
                raise self._document.error(
                    path, "a list holds references; name them in a mapping, or put them in a text"
                )
            return Known(Const.of(constants, label))
        if isinstance(given, dict):
            return self._object(cast("dict[str, object]", given), place, path, label)
        return Known(Const.of(cast("Json", given), label))

    def _object(self, given: dict[str, object], place: Place, path: Path_, label: str) -> Known:
        fields = {name: self.value(each, place, (*path, name)) for name, each in given.items()}
        constants = {n: k.op.value for n, k in fields.items() if isinstance(k.op, Const)}
        if len(constants) == len(fields):
            return Known(Const.of(constants, label))
        schema: Schema = {
            "type": "object",
            "properties": {name: known.schema or {} for name, known in fields.items()},
            "additionalProperties": False,
        }
        inputs = tuple(known.op for known in fields.values())
        return Known(place.scope.add(Project(inputs, tuple(fields), label=label)), schema)

    def condition(self, given: Condition, place: Place, path: Path_, label: str = "") -> Op:
        """A condition as an operator."""
        match given:
            case Reference():
                return self.resolve(given, place, path).op
            case Literal(value=value):
                return Const.of(value, label)
            case Operation(operator=operator, operands=operands):
                inputs = tuple(self.condition(each, place, path) for each in operands)
                return place.scope.add(Compare(inputs, operator, label=label))


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """`unknown WHAT NAME; did you mean ...?`"""
    have = list(known)
    near = get_close_matches(name, have, n=1)
    if near:
        return f"unknown {what} {name!r}; did you mean {near[0]!r}?"
    return f"unknown {what} {name!r}; there are: {', '.join(have) or 'none'}"


def roots(step: object) -> Iterator[str]:
    """The first names of all references inside a step."""
    pending: list[object] = [step]
    while pending:
        each = pending.pop()
        if isinstance(each, Reference):
            yield each.root
        elif isinstance(each, Template):
            pending.extend(each.parts)
        elif isinstance(each, Operation):
            pending.extend(each.operands)
        elif isinstance(each, BaseModel):
            pending.extend(each.__dict__.values())
        elif isinstance(each, dict):
            pending.extend(cast("dict[str, object]", each).values())
        elif isinstance(each, list | tuple):
            pending.extend(cast("Iterable[object]", each))
