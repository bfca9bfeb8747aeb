"""Plans as workflow documents: what is written loads as the same plan."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import yaml

from halo.dsl.tool import ToolFunction
from halo.errors import HaloError, WorkflowError
from halo.flow import Traced
from halo.spec.document import add_resolvers
from halo.spec.dump_steps import StepWriter
from halo.spec.flow import load_spec_text
from halo.spec.template import is_name
from halo.spec.value_type import written_type
from planner.logical import (
    Agent,
    Column,
    Effect,
    Filter,
    Limit,
    LogicalPlan,
    ModelOp,
    Op,
    Result,
    Scan,
    Sql,
    Tool,
)
from planner.relations import ALL_ROWS
from runtime.tools import ToolSpec


def dump_spec(traced: Traced, *, directory: Path | None = None, description: str = "") -> str:
    """The workflow as YAML that loads as a plan of the same fingerprint.

    Python tools are referred to by their files, relative to `directory` where they are inside it.
    A database path that is relative in the plan means the working directory there and the
    document's directory in a file.

    Raises `WorkflowError` for a plan that has no form in YAML: one of several queries, a tool whose
    function has no name in a file, an operator that no front end makes.
    """
    if len(traced.plan.outputs) != 1:
        names = ", ".join(name for name, _ in traced.plan.outputs)
        raise WorkflowError(f"a document is one workflow; this plan has several: {names}")
    name, result = traced.plan.outputs[0]
    if not is_name(name):
        raise WorkflowError(f"{name!r} cannot name a workflow in YAML")
    everything = list(traced.plan.walk_all())
    model = _default_model(everything)
    databases = _databases(everything)
    columns = list(dict.fromkeys(op.name for op in everything if isinstance(op, Column)))
    writer = StepWriter(name, model, databases, columns)
    predicates, limits = _kept(result)
    block = writer.block(result.value, {}, predicates)
    document: dict[str, Any] = {"name": name}
    if description:
        document["description"] = description
    document["columns"] = columns
    if model:
        document["model"] = model
    used = _used_tools(everything)
    if used:
        document["tools"] = {tool: _tool(_spec_of(tool, traced), directory) for tool in used}
    if databases:
        document["databases"] = {alias: path for path, alias in databases.items()}
    text = to_yaml({**document, **block, **limits})
    _check(text, traced, name, result.scan)
    return text


def _kept(result: Result) -> tuple[list[Op], dict[str, int]]:
    """The predicates of a plan's rows, the innermost first, and `limit` and `offset`."""
    rows, limits = result.rows, dict[str, int]()
    if isinstance(rows, Limit):
        limits |= {"limit": rows.count} if rows.count != ALL_ROWS else {}
        limits |= {"offset": rows.offset} if rows.offset else {}
        rows = rows.rows
    predicates: list[Op] = []
    while isinstance(rows, Filter):
        predicates.append(rows.predicate)
        rows = rows.rows
    if not isinstance(rows, Scan):
        raise WorkflowError(f"{rows!r} has no form in YAML: a document is a workflow over its rows")
    return predicates[::-1], limits


def _check(text: str, traced: Traced, name: str, scan: Scan) -> None:
    try:
        flow = load_spec_text(text, f"{name}.yaml", tools=traced.tools)
        again = flow.trace(scan.source, scan.columns).plan
    except HaloError as error:
        raise WorkflowError(f"workflow {name!r} has no form in YAML: {error}") from error
    if again.fingerprint != traced.plan.fingerprint:
        raise WorkflowError(
            f"workflow {name!r} has no form in YAML: {_difference(traced.plan, again)}"
        )


def _difference(plan: LogicalPlan, again: LogicalPlan) -> str:
    there = {op.fingerprint for op in again.walk_all()}
    lost = next((op for op in plan.walk_all() if op.fingerprint not in there), None)
    return f"{lost!r} would be read back as another operator" if lost else "its order is lost"


def _default_model(ops: Sequence[Op]) -> str:
    models = Counter(op.model for op in ops if isinstance(op, ModelOp))
    return models.most_common(1)[0][0] if models else ""


def _databases(ops: Sequence[Op]) -> dict[str, str]:
    """A name for each database file of the plan."""
    names: dict[str, str] = {}
    for op in ops:
        if isinstance(op, Sql) and op.database and op.database not in names:
            stem = Path(op.database).stem
            base = stem if is_name(stem) else "database"
            name, n = base, 2
            while name in names.values() or name in ("row", "databases"):
                name, n = f"{base}{n}", n + 1
            names[op.database] = name
    return names


def _used_tools(ops: Sequence[Op]) -> list[str]:
    used: dict[str, None] = {}
    for op in ops:
        if isinstance(op, Tool):
            used[op.tool.name] = None
        elif isinstance(op, Agent):
            used.update(dict.fromkeys(tool.name for tool in op.tools))
    return list(used)


def _spec_of(name: str, traced: Traced) -> ToolSpec:
    if name not in traced.tools:
        raise WorkflowError(f"the plan names the tool {name!r}, whose definition is not there")
    return traced.tools[name]


def _tool(spec: ToolSpec, directory: Path | None) -> dict[str, Any]:
    limits = {
        "timeout_s": spec.timeout_s,
        "retries": spec.retries,
        "max_concurrency": spec.max_concurrency,
        "version": spec.version,
    }
    defaults = {"timeout_s": 60.0, "retries": 1, "max_concurrency": 8, "version": ""}
    options = {key: value for key, value in limits.items() if value != defaults[key]}
    if spec.function is None:
        properties = cast("dict[str, dict[str, Any]]", spec.parameters.get("properties", {}))
        entry: dict[str, Any] = {"http": spec.url}
        if spec.method != "GET":
            entry["method"] = spec.method
        if properties:
            entry["params"] = {name: written_type(schema) for name, schema in properties.items()}
        if spec.description:
            entry["description"] = spec.description
        if spec.effect is not Effect.WRITE:
            entry["effect"] = spec.effect.value
        return {**entry, **options}
    function: Any = getattr(spec.function, "__wrapped__", spec.function)
    code, name = getattr(function, "__code__", None), getattr(function, "__qualname__", "")
    module = sys.modules.get(getattr(function, "__module__", ""))
    found: object = getattr(module, name, None)
    if code is None or "." in name or found is None:
        raise WorkflowError(
            f"the function of tool {spec.name!r} has no name in a file, so that YAML cannot refer "
            "to it; define it at the top level of a module"
        )
    file = Path(code.co_filename).absolute()
    base = (directory or Path()).absolute()
    shown = file.relative_to(base) if file.is_relative_to(base) else file
    reference = f"{shown.as_posix()}:{name}"
    if isinstance(found, ToolFunction):
        return {"python": reference}
    return {"python": reference, "effect": spec.effect.value, **options}


# --- text ----------------------------------------------------------------------------------------


class _Dumper(yaml.SafeDumper):
    """Block style; texts of several lines as blocks; no aliases. Quotes what YAML 1.1 or 1.2 would
    not read as a text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text_node(dumper: Any, text: str) -> Any:
    style = "|" if "\n" in text.rstrip("\n") else None
    if any(mark in text for mark in "\r\x85\u2028\u2029"):
        style = '"'  # other line breaks are folded away in every other style
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


def _list_node(dumper: Any, values: list[Any]) -> Any:
    flat = all(not isinstance(each, list | dict) for each in values)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=flat)


add_resolvers(_Dumper)
_Dumper.add_representer(str, _text_node)
_Dumper.add_representer(list, _list_node)


def to_yaml(document: Mapping[str, Any]) -> str:
    """A document as YAML text, keys in the given order."""
    text = cast(Any, yaml).dump(
        dict(document),
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=False,
        width=100,
    )
    return str(text)
