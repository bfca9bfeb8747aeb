"""Workflow documents as flows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from halo.errors import WorkflowError
from halo.flow import Traced
from halo.spec.document import Document, read_document
from halo.spec.lower import lower
from halo.spec.parse import parse_spec
from halo.spec.schema import Spec
from halo.spec.template import is_name
from halo.spec.tools import load_tools
from runtime.tools import ToolSpec


class SpecFlow:
    """A workflow that was read from YAML (see `halo.flow.Flow`)."""

    def __init__(
        self,
        spec: Spec,
        document: Document,
        name: str,
        tools: Mapping[str, ToolSpec],
        databases: Mapping[str, str],
    ) -> None:
        self.name = name
        self.description = spec.description
        self._spec = spec
        self._document = document
        self._tools = tools
        self._databases = databases

    def __repr__(self) -> str:
        return f"<workflow {self.name} of {self._document.name}>"

    def trace(self, source: str, columns: Sequence[str]) -> Traced:
        """The plan over rows named `source` that have `columns`. Raises `WorkflowError` when a
        needed column is missing, naming it and those that exist."""
        for needed in self._spec.columns or ():
            if needed not in columns:
                have = ", ".join(columns) or "none"
                raise self._document.error(
                    ("columns",),
                    f"workflow {self.name!r} needs the column {needed!r}; the rows have: {have}",
                )
        return self._lower(source, columns)

    def check(self) -> None:
        """Find what is wrong with the document before its rows are known."""
        self._lower("rows", None)

    def _lower(self, source: str, columns: Sequence[str] | None) -> Traced:
        return lower(
            self._spec,
            self._document,
            self.name,
            self._tools,
            self._databases,
            source,
            columns,
        )


def load_spec(path: Path) -> SpecFlow:
    """The workflow of a YAML file. Python files of tools and database files are relative to it.

    Raises `WorkflowError` naming file, line and field of everything that is wrong with it.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise WorkflowError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise WorkflowError(f"{path}: byte {error.start} is not UTF-8") from None
    return _load(text, str(path), path.stem, path.parent, None)


def load_spec_text(
    text: str,
    name: str = "workflow.yaml",
    *,
    directory: Path | None = None,
    tools: Mapping[str, ToolSpec] | None = None,
) -> SpecFlow:
    """The workflow of a YAML text. `name` stands for the file in messages, and its stem names the
    workflow unless the document does.

    Without a `directory`, Python files are relative to the working directory and paths of databases
    stay as they are written, as in `halo.sql.readonly`. `tools` are used in place of loading those
    that the document names.
    """
    return _load(text, name, Path(name).stem, directory, tools)


def _load(
    text: str,
    file: str,
    stem: str,
    directory: Path | None,
    tools: Mapping[str, ToolSpec] | None,
) -> SpecFlow:
    document = read_document(text, file)
    spec = parse_spec(document)
    databases = {
        # Absolute, so that a run and its resumption from another directory have equal plans.
        name: str((directory / path).absolute()) if directory is not None else path
        for name, path in spec.databases.items()
    }
    if tools is None:
        tools = load_tools(spec.tools, document, directory or Path())
    flow = SpecFlow(spec, document, spec.name or _name_of(stem), tools, databases)
    flow.check()
    return flow


def _name_of(stem: str) -> str:
    name = re.sub(r"[^\w-]+", "-", stem).strip("-")
    return name if is_name(name) else f"workflow-{name}".rstrip("-")
