"""The tools that a workflow document names."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, cast
from urllib.parse import urlsplit

from halo.dsl.tool import ToolFunction, tool
from halo.errors import HaloError
from halo.spec.document import Document, Path_
from halo.spec.names import unknown
from halo.spec.schema import HttpTool, PythonTool
from planner.logical import Effect
from runtime.tools import ToolSpec


def load_tools(
    tools: Mapping[str, PythonTool | HttpTool], document: Document, directory: Path
) -> dict[str, ToolSpec]:
    """The tools by name. Python files are relative to `directory`, and are executed.

    Raises `WorkflowError` for a file or function that is not there, and for a function that is no
    tool and has no declared effect.
    """
    modules: dict[Path, ModuleType] = {}
    loaded: dict[str, ToolSpec] = {}
    for name, entry in tools.items():
        path: Path_ = ("tools", name)
        try:
            if isinstance(entry, HttpTool):
                loaded[name] = _http(name, entry, document, path)
            else:
                loaded[name] = _python(name, entry, document, path, directory, modules)
        except HaloError as error:
            message = str(error)
            if message.startswith(document.name):
                raise
            raise document.error(path, message) from error
    return loaded


def _http(name: str, entry: HttpTool, document: Document, path: Path_) -> ToolSpec:
    parts = urlsplit(entry.http)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise document.error((*path, "http"), f"{entry.http!r} is no http:// or https:// address")
    parameters: dict[str, Any] = {
        "type": "object",
        "properties": entry.params,
        "additionalProperties": False,
    }
    if entry.params:
        parameters["required"] = list(entry.params)
    # The decorator checks the name and the limits; the types are JSON Schema already.
    checked = tool.http(
        name,
        url=entry.http,
        method=entry.method,
        description=entry.description,
        timeout=entry.timeout_s,
        effect=entry.effect,
        retries=entry.retries,
        max_concurrency=entry.max_concurrency,
        version=entry.version,
    )
    return replace(checked.spec, parameters=parameters)


def _python(
    name: str,
    entry: PythonTool,
    document: Document,
    path: Path_,
    directory: Path,
    modules: dict[Path, ModuleType],
) -> ToolSpec:
    file_text, colon, attribute = entry.python.rpartition(":")
    where = (*path, "python")
    if not colon or not file_text.endswith(".py"):
        raise document.error(where, f"expected file.py:function, got {entry.python!r}")
    file = (directory / file_text).absolute()
    if not file.is_file():
        raise document.error(where, f"no file {file_text} in {directory.absolute()}")
    if file not in modules:
        modules[file] = _execute(file, document, where)
    module = modules[file]
    found: object = getattr(module, attribute, None)
    if found is None:
        have = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise document.error(where, unknown("function", attribute, have))
    if isinstance(found, ToolFunction):
        declared = entry.model_fields_set - {"python"}
        if declared:
            raise document.error(
                (*path, min(declared)),
                f"{attribute} is a halo.tool; it declares this in {file_text}, not here",
            )
        spec = cast("ToolFunction[..., Any]", found).spec
        return spec if spec.name == name else replace(spec, name=name)
    if not callable(found):
        raise document.error(where, f"{attribute} in {file_text} is no function")
    if entry.effect is None:
        raise document.error(
            path,
            f"{attribute} is a plain function; decorate it with @halo.tool, or say what it does to "
            "the world: `effect: pure` (equal arguments, equal result), `sampled` or `write`",
        )
    decorate = tool(
        effect=Effect(entry.effect),
        timeout=entry.timeout_s,
        retries=entry.retries,
        max_concurrency=entry.max_concurrency,
        version=entry.version,
        name=name,
    )
    return decorate(cast("Callable[..., Any]", found)).spec


def _execute(file: Path, document: Document, path: Path_) -> ModuleType:
    module_name = f"halo_tools_{file.stem}"
    spec = importlib.util.spec_from_file_location(module_name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Registered before execution: pydantic resolves annotations through sys.modules.
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except HaloError:
        raise
    except Exception as error:
        problem = f"{file} cannot be imported: {type(error).__name__}: {error}"
        raise document.error(path, problem) from error
    return module
