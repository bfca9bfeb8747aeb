"""Operators as steps of a workflow document."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

from halo.errors import WorkflowError
from halo.spec.condition import Condition, Literal, Operation, condition_text, is_literal
from halo.spec.fields import RESERVED
from halo.spec.template import Reference, escaped, is_name, template_text
from halo.spec.value_type import parse_answer_type, written_type
from planner.logical import (
    Agent,
    Body,
    Choose,
    Column,
    Compare,
    Const,
    Field,
    Format,
    Generate,
    Json,
    Loop,
    Map,
    ModelOp,
    Op,
    Ordered,
    Param,
    Project,
    Prompt,
    Reduce,
    Sql,
    Tool,
    When,
    walk,
)

Refs = dict[Op, Reference]
Step = dict[str, Any]

_GENERIC_LABELS = frozenset(
    ("", "gen", "choose", "agent", "sql", "map", "reduce", "when", "loop", "value", "text", "test")
)
_INLINE_CONDITION_CHARS = 120


class StepWriter:
    """Writes blocks in the order in which reading numbers the calls, so that a call's `id` is
    written only where it is not the one that reading gives."""

    def __init__(
        self, name: str, model: str, databases: Mapping[str, str], columns: Iterable[str]
    ) -> None:
        self._workflow = name
        self._model = model
        self._databases = databases
        self._taken = {*RESERVED, *columns}
        self._calls = 0

    def block(
        self, result: Op, refs: Mapping[Op, Reference], predicates: Sequence[Op] = ()
    ) -> Step:
        """`steps` and `return` for the scope of `result`; `refs`: how parameters are written. With
        `predicates`, `where` too."""
        return _Block(self, dict(refs)).written(result, predicates)

    def body(self, body: Body, params: list[Reference]) -> Step:
        """A body, as one step where it is one, otherwise as a block."""
        refs: Refs = {Param((), i): reference for i, reference in enumerate(params)}
        block = self.block(body.result, refs)
        steps = cast("dict[str, Step]", block["steps"])
        if len(steps) == 1:
            (only,) = steps
            if block["return"] == only and _is_generic(only):
                return steps[only]
        return block

    def new_name(self, wanted: str) -> str:
        """A name that nothing else in the document has."""
        base = re.sub(r"[^\w-]+", "_", wanted).strip("_-")
        base = base if is_name(base) else f"step_{base}".rstrip("_")
        name, n = base, 2
        while name in self._taken:
            name, n = f"{base}_{n}", n + 1
        self._taken.add(name)
        return name

    def call_id(self, written: str) -> Step:
        """The `id` field of a call; none for a pure call and for the id that reading gives."""
        if not written:
            return {}
        if written == f"{self._workflow}/{self._calls + 1}":
            self._calls += 1
            return {}
        return {"id": written}

    def model_fields(self, op: ModelOp, max_tokens: int) -> Step:
        """The fields of model calls that differ from what is read without them."""
        fields: Step = {}
        if op.model != self._model:
            fields["model"] = op.model
        if op.max_tokens != max_tokens:
            fields["max_tokens"] = op.max_tokens
        if op.temperature:
            fields["temperature"] = op.temperature
        if op.top_p != 1:
            fields["top_p"] = op.top_p
        return {**fields, **self.call_id(op.call_id)}

    def database(self, op: Sql) -> Step:
        return {"database": self._databases[op.database]} if op.database else {}


class _Block:
    """One scope under way: the steps so far, and how each operator is referred to."""

    def __init__(self, writer: StepWriter, refs: Refs) -> None:
        self._writer = writer
        self._refs = refs
        self._steps: dict[str, Step] = {}
        self._conditions: dict[Op, Condition] = {}

    def written(self, result: Op, predicates: Sequence[Op] = ()) -> Step:
        returned = result.inputs[0] if isinstance(result, Ordered) else result
        for op in walk((result, *predicates)):
            write = self._WRITERS.get(type(op))
            if write is not None:
                step = write(self, op)
                self._add(op, step)
        reference = self.ref(returned)
        if not self._steps:
            # A block has a step: the body of one that hands a value on.
            self._add_alias(returned, "value")
            reference = self.ref(returned)
        where = [self.condition(each) for each in predicates]
        kept: Step = {"where": where if len(where) > 1 else where[0]} if where else {}
        return {"steps": self._steps, "return": str(reference), **kept}

    def _add(self, op: Op, step: Step) -> None:
        name = self._writer.new_name(op.label or _kind(step))
        self._steps[name] = step
        self._refs[op] = Reference(name)

    def _add_alias(self, op: Op, name: str) -> None:
        """A step that is another name of a value."""
        before = self.ref(op)
        name = self._writer.new_name(name)
        self._steps[name] = {"value": template_text((before,))}
        self._refs[op] = Reference(name)

    # --- references ------------------------------------------------------------------------------

    def ref(self, op: Op) -> Reference:
        """How a value is referred to; makes a step for a constant or a condition."""
        if op not in self._refs:
            match op:
                case Column(name=name):
                    bare = is_name(name) and name not in RESERVED
                    self._refs[op] = Reference(name) if bare else Reference("row", (name,))
                case Field(key=key):
                    owner = self.ref(op.inputs[0])
                    self._refs[op] = Reference(owner.root, (*owner.keys, key))
                case Const():
                    self._add(op, {"value": _value(op.value)})
                case Compare():
                    self._add(op, {"condition": self._condition_text(op)})
                case _:
                    raise WorkflowError(f"{op!r} has no form in YAML")
        return self._refs[op]

    def name_of(self, op: Op) -> Reference:
        """A reference without members: what a body captures is the value of a name."""
        reference = self.ref(op)
        if isinstance(op, Column) or not reference.keys:
            return reference
        self._add_alias(op, op.label)
        return self._refs[op]

    def value(self, op: Op) -> Any:
        """A value as it is written in `args` and `value`."""
        if isinstance(op, Const):
            return _value(op.value)
        return template_text((self.ref(op),))

    def prompt(self, prompt: Prompt, op: Op) -> str:
        return template_text(
            tuple(
                s if isinstance(s, str) else self.ref(op.inputs[s.index]) for s in prompt.segments
            )
        )

    # --- conditions ------------------------------------------------------------------------------

    def condition(self, op: Op) -> str:
        """A condition for `when`; a Compare is written out."""
        return self._condition_text(op) if isinstance(op, Compare) else str(self.ref(op))

    def _condition_text(self, op: Compare) -> str:
        return condition_text(self._operation(op))

    def _operation(self, op: Compare) -> Operation:
        return Operation(op.operator, tuple(self._operand(each) for each in op.inputs))

    def _operand(self, op: Op) -> Condition:
        if isinstance(op, Const) and is_literal(op.value):
            return Literal(op.value)
        if not isinstance(op, Compare) or op in self._refs:
            return self.ref(op)
        known = self._conditions.get(op)
        if known is None:
            known = self._operation(op)
            if len(condition_text(known)) > _INLINE_CONDITION_CHARS:
                known = self.ref(op)
            self._conditions[op] = known
        return known

    # --- steps -----------------------------------------------------------------------------------

    def _generate(self, op: Generate) -> Step:
        stops = list(op.stop)
        return {
            **self._prompts(op),
            **_answer(op.schema_json),
            **self._writer.model_fields(op, 256),
            **({"stop": stops} if stops else {}),
        }

    def _choose(self, op: Choose) -> Step:
        prompts, fields = self._prompts(op), self._writer.model_fields(op, 256)
        return {"choose": list(op.options), **prompts, **fields}

    def _agent(self, op: Agent) -> Step:
        turns = {"max_turns": op.max_turns} if op.max_turns != 8 else {}
        return {
            "agent": {
                **self._prompts(op),
                "tools": [tool.name for tool in op.tools],
                **turns,
                **_answer(op.schema_json),
                **self._writer.model_fields(op, 512),
            }
        }

    def _prompts(self, op: ModelOp) -> Step:
        prompts = {"prompt": self.prompt(op.prompt, op)}
        if op.system is not None:
            prompts["system"] = self.prompt(op.system, op)
        return prompts

    def _tool(self, op: Tool) -> Step:
        args = {name: self.value(i) for name, i in zip(op.params, op.inputs, strict=True)}
        step: Step = {"tool": op.tool.name}
        return {**step, **({"args": args} if args else {}), **self._writer.call_id(op.call_id)}

    def _sql(self, op: Sql) -> Step:
        inputs = list(op.inputs)
        step: Step = (
            {"query": str(self.ref(inputs.pop(0)))} if op.text is None else {"sql": op.text}
        )
        params = {name: self._parameter(i) for name, i in zip(op.params, inputs, strict=True)}
        rows = {"max_rows": op.max_rows} if op.max_rows != 1000 else {}
        writes = {} if op.read_only else {"writes": True}
        return {
            **step,
            **({"params": params} if params else {}),
            **self._writer.database(op),
            **rows,
            **writes,
            **self._writer.call_id(op.call_id),
        }

    def _parameter(self, op: Op) -> Any:
        if isinstance(op, Const) and (op.value is None or isinstance(op.value, int | float)):
            return op.value
        return str(self.ref(op))

    def _map(self, op: Map) -> Step:
        source, captures = self._sources(op)
        item = Reference(self._writer.new_name("item"))
        return {
            "foreach": source,
            "as": item.root,
            "do": self._writer.body(op.body, [item, *captures]),
        }

    def _reduce(self, op: Reduce) -> Step:
        source, captures = self._sources(op)
        items = Reference(self._writer.new_name("items"))
        return {
            "reduce": source,
            "as": items.root,
            "fan_in": op.fan_in,
            "do": self._writer.body(op.body, [items, *captures]),
        }

    def _sources(self, op: Op) -> tuple[str, list[Reference]]:
        captures = [self.name_of(each) for each in op.inputs[1:]]
        return str(self.ref(op.inputs[0])), captures

    def _when(self, op: When) -> Step:
        captures = [self.name_of(each) for each in op.inputs[1:]]
        step: Step = {
            "when": self.condition(op.inputs[0]),
            "then": self._writer.body(op.then, captures),
        }
        if op.otherwise.result != Const.of(None):
            step["else"] = self._writer.body(op.otherwise, captures)
        return step

    def _loop(self, op: Loop) -> Step:
        captures = [self.name_of(each) for each in op.inputs[1:]]
        initial = self.value(op.inputs[0])
        state = Reference(self._writer.new_name("state"))
        params = [state, *captures]
        word, test = self._loop_test(op.condition, params)
        return {
            "loop": {
                "state": initial,
                "as": state.root,
                word: test,
                "max_rounds": op.max_rounds,
                "do": self._writer.body(op.step, params),
            }
        }

    def _loop_test(self, body: Body, params: list[Reference]) -> tuple[str, Any]:
        """The condition of a loop: a text where references and comparisons are all it has."""
        refs: Refs = {Param((), i): reference for i, reference in enumerate(params)}
        result, word = body.result, "while"
        if isinstance(result, Compare) and result.operator == "not":
            result, word = result.inputs[0], "until"
        inside = _Block(self._writer, refs)
        if all(isinstance(op, Compare | Field | Param | Const) for op in walk((result,))):
            text = inside.condition(result) if not isinstance(result, Const) else None
            if text is not None and not inside._steps:
                return word, text
        block = self._writer.block(result, {Param((), i): r for i, r in enumerate(params)})
        return word, block

    def _format(self, op: Format) -> Step:
        return {"text": self.prompt(op.prompt, op)}

    def _project(self, op: Project) -> Step:
        fields = {name: self.value(i) for name, i in zip(op.names, op.inputs, strict=True)}
        return {"value": fields}

    _WRITERS: Mapping[type[Op], Callable[..., Step]] = {
        Generate: _generate,
        Choose: _choose,
        Agent: _agent,
        Tool: _tool,
        Sql: _sql,
        Map: _map,
        Reduce: _reduce,
        When: _when,
        Loop: _loop,
        Format: _format,
        Project: _project,
    }


def _kind(step: Step) -> str:
    first = next(iter(step))
    return {"prompt": "gen", "foreach": "map", "condition": "test"}.get(first, first)


def _is_generic(name: str) -> bool:
    """Whether a name was given for want of a label."""
    return re.sub(r"_\d+$", "", name) in _GENERIC_LABELS


def _value(value: Json) -> Any:
    """A constant as it is written where texts are templates."""
    if isinstance(value, str):
        return escaped(value)
    if isinstance(value, list):
        return [_value(each) for each in value]
    if isinstance(value, dict):
        return {name: _value(each) for name, each in value.items()}
    return value


def _answer(schema_json: str | None) -> Step:
    if schema_json is None:
        return {}
    schema = cast("dict[str, Any]", json.loads(schema_json))
    written = written_type(schema)
    # `out: text` is a free text, not the JSON string that this schema asks for.
    return {"out": written if parse_answer_type(written).schema is not None else schema}
