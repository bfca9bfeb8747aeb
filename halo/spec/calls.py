"""Steps that call something: models, tools, databases."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

from halo.dsl.trace import Tracer
from halo.spec.document import Document, Path_
from halo.spec.names import TEXT, Known, Names, Place, unknown
from halo.spec.steps import (
    AgentCall,
    ChooseStep,
    GenerateStep,
    ModelCall,
    QueryStep,
    SqlStep,
    ToolStep,
)
from halo.spec.value_type import ValueType, schema_text
from planner.logical import (
    Agent,
    Choose,
    Const,
    Effect,
    Generate,
    Op,
    Sql,
    Tool,
    strongest,
)
from runtime.json_schema import SchemaError, schema_validator
from runtime.tools import ToolSpec

ROWS = {"type": "array", "items": {"type": "object"}}

_SQL_TEXTS = re.compile(
    r"'(?:[^']|'')*'"
    r'|"(?:[^"]|"")*"'
    r"|--[^\n]*|/\*.*?\*/"
    r"|\$([A-Za-z_]\w*|)\$.*?\$\1\$",
    re.DOTALL,
)
_PARAMETER = re.compile(r"\$([A-Za-z_]\w*)")


class Calls:
    """Builds the operators of calls. `used` collects the tools that they name."""

    def __init__(
        self,
        document: Document,
        names: Names,
        tracer: Tracer,
        tools: Mapping[str, ToolSpec],
        default_model: str,
    ) -> None:
        self._document = document
        self._names = names
        self._tracer = tracer
        self._tools = tools
        self._model = default_model
        self._ids: dict[str, Path_] = {}
        self.used: dict[str, ToolSpec] = {}

    # --- models ----------------------------------------------------------------------------------

    def generate(self, step: GenerateStep, place: Place, path: Path_, label: str) -> Known:
        options = self._options(step, place, path, _sampling(step))
        op = Generate(**options, label=label, schema_json=_schema_json(step.out), stop=step.stop)
        return Known(place.scope.add(op), step.out.schema or TEXT)

    def choose(self, step: ChooseStep, place: Place, path: Path_, label: str) -> Known:
        options = self._options(step, place, path, _sampling(step))
        op = Choose(**options, label=label, options=tuple(step.choose))
        return Known(place.scope.add(op), TEXT)

    def agent(self, call: AgentCall, place: Place, path: Path_, label: str) -> Known:
        specs = [self._tool(name, (*path, "tools", i)) for i, name in enumerate(call.tools)]
        if len(set(call.tools)) != len(call.tools):
            raise self._document.error((*path, "tools"), "a tool is there twice")
        effect = strongest([_sampling(call), *(spec.effect for spec in specs)])
        op = Agent(
            **self._options(call, place, path, effect),
            label=label,
            tools=tuple(spec.ref for spec in specs),
            max_turns=call.max_turns,
            schema_json=_schema_json(call.out),
        )
        return Known(place.scope.add(op), call.out.schema or TEXT)

    def _options(
        self, call: GenerateStep | ChooseStep | AgentCall, place: Place, path: Path_, effect: Effect
    ) -> dict[str, Any]:
        inputs: dict[Op, int] = {}
        prompt = self._names.prompt(call.prompt, inputs, place, (*path, "prompt"))
        system = None
        if call.system is not None:
            system = self._names.prompt(call.system, inputs, place, (*path, "system"))
        return {
            "inputs": tuple(inputs),
            "prompt": prompt,
            "system": system,
            "model": self._model if call.model is None else call.model,
            "max_tokens": call.max_tokens,
            "temperature": float(call.temperature),
            "top_p": float(call.top_p),
            "call_id": self._call_id(call.id, effect, path),
        }

    def _call_id(self, written: str | None, effect: Effect, path: Path_) -> str:
        """The identity of a call that must stay apart from equal ones; empty for a pure one."""
        if effect is Effect.PURE:
            if written is not None:
                raise self._document.error(
                    (*path, "id"), "only calls that sample or write have an id; remove it"
                )
            return ""
        if written is None:
            return self._tracer.next_call_id()
        if not written:
            raise self._document.error((*path, "id"), "the id is empty")
        if self._ids.setdefault(written, path) != path:
            raise self._document.error((*path, "id"), f"another call has the id {written!r}")
        return written

    # --- tools -----------------------------------------------------------------------------------

    def tool(self, step: ToolStep, place: Place, path: Path_, label: str) -> Known:
        spec = self._tool(step.tool, (*path, "tool"))
        arguments = self._arguments(spec, step, place, (*path, "args"))
        op = Tool(
            tuple(arguments.values()),
            tool=spec.ref,
            params=tuple(arguments),
            call_id=self._call_id(step.id, spec.effect, path),
            label=label,
        )
        return Known(place.scope.add(op))

    def _tool(self, name: str, path: Path_) -> ToolSpec:
        if name not in self._tools:
            raise self._document.error(path, unknown("tool", name, self._tools))
        self.used[name] = self._tools[name]
        return self._tools[name]

    def _arguments(
        self, spec: ToolSpec, step: ToolStep, place: Place, path: Path_
    ) -> dict[str, Op]:
        """Arguments in the order of the tool's parameters, defaults filled in."""
        properties = cast("dict[str, dict[str, Any]]", spec.parameters.get("properties", {}))
        for name in step.args:
            if name not in properties:
                problem = unknown(f"argument of tool {spec.name!r}:", name, properties)
                raise self._document.error((*path, name), problem)
        missing = [n for n in spec.parameters.get("required", []) if n not in step.args]
        if missing:
            names = ", ".join(missing)
            raise self._document.error(path, f"tool {spec.name!r} needs the arguments {names}")
        arguments: dict[str, Op] = {}
        for name, schema in properties.items():
            if name in step.args:
                op = self._names.value(step.args[name], place, (*path, name)).op
                if isinstance(op, Const):
                    op = self._checked(op, schema, spec, (*path, name))
                arguments[name] = op
            elif "default" in schema:
                arguments[name] = Const.of(schema["default"])
        return arguments

    def _checked(self, op: Const, schema: dict[str, Any], spec: ToolSpec, path: Path_) -> Const:
        value = op.value
        if schema.get("type") == "number" and isinstance(value, int) and value is not True:
            op, value = Const.of(float(value), op.label), float(value)
        # References of a parameter's schema lead into the definitions of all parameters.
        whole = {"$defs": spec.parameters.get("$defs", {}), **schema}
        try:
            error = next(schema_validator(whole).iter_errors(value), None)
        except SchemaError as bad:
            problem = f"the parameters of tool {spec.name!r} are no JSON Schema: {bad}"
            raise self._document.error(path, problem) from bad
        if error is not None:
            problem = str(error.message)
            raise self._document.error(path, f"the value does not fit the tool: {problem:.200}")
        return op

    # --- databases -------------------------------------------------------------------------------

    def sql(self, step: SqlStep, place: Place, path: Path_, label: str) -> Known:
        if "{{" in step.sql:
            raise self._document.error(
                (*path, "sql"),
                "values are no part of a query's text, where they could become SQL; write $name "
                "in the text and `params: {name: REFERENCE}`",
                step.sql[: step.sql.index("{{")],
            )
        named = set(_PARAMETER.findall(_SQL_TEXTS.sub(" ", step.sql)))
        for name in sorted(named - set(step.params)):
            raise self._document.error(
                (*path, "params"), f"the query names ${name}; write `params: {{{name}: REFERENCE}}`"
            )
        for name in step.params:
            if name not in named:
                raise self._document.error((*path, "params", name), f"no ${name} in the query")
        effect = Effect.WRITE if step.writes else Effect.PURE
        return self._query(step, (), step.sql, place, path, label, effect)

    def query(self, step: QueryStep, place: Place, path: Path_, label: str) -> Known:
        text = self._names.resolve(step.query, place, (*path, "query")).op
        return self._query(step, (text,), None, place, path, label, Effect.PURE)

    def _query(
        self,
        step: SqlStep | QueryStep,
        first: tuple[Op, ...],
        text: str | None,
        place: Place,
        path: Path_,
        label: str,
        effect: Effect,
    ) -> Known:
        params = {
            name: self._names.value(step.params[name], place, (*path, "params", name)).op
            for name in sorted(step.params)
        }
        database = ""
        if step.database is not None:
            database = self._names.database(step.database, (*path, "database"))
        written = step.id if isinstance(step, SqlStep) else None
        op = Sql(
            (*first, *params.values()),
            database=database,
            text=text,
            params=tuple(params),
            max_rows=step.max_rows,
            read_only=effect is Effect.PURE,
            call_id=self._call_id(written, effect, path),
            label=label,
        )
        return Known(place.scope.add(op), ROWS)


def _sampling(call: ModelCall) -> Effect:
    return Effect.SAMPLED if call.temperature > 0 else Effect.PURE


def _schema_json(out: ValueType) -> str | None:
    return None if out.schema is None else schema_text(out.schema)
