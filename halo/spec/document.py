"""YAML text as plain values that know their lines.

The reading is that of YAML 1.2's core schema: `yes`, `no`, `on`, `off`, dates and `12:30` are
texts, so that `choose: [yes, no]` means what it says. Tags that build objects do not exist here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import yaml

from halo.errors import WorkflowError

Path_: TypeAlias = "tuple[str | int, ...]"
"""Where a value is in a document: keys and list positions from the top."""

MAX_NODES = 100_000
MAX_DEPTH = 60

_TAG = "tag:yaml.org,2002:"
RESOLVERS: tuple[tuple[str, re.Pattern[str], list[str]], ...] = (
    (f"{_TAG}null", re.compile(r"(?:~|null|Null|NULL|)\Z"), ["~", "n", "N", ""]),
    (f"{_TAG}bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"), list("tTfF")),
    (
        f"{_TAG}int",
        re.compile(r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)\Z"),
        list("-+0123456789"),
    ),
    (
        f"{_TAG}float",
        re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z"),
        list("-+0123456789."),
    ),
)
"""(tag, pattern, first characters) of plain scalars that are no texts, as PyYAML wants them."""


@dataclass(frozen=True, slots=True)
class Mark:
    """Lines, from 1: of the key (or list item) and of the first character of a text value.
    `literal` texts (`|`) keep their lines."""

    line: int
    text_line: int
    literal: bool


@dataclass(frozen=True)
class Document:
    """A parsed file. `name` is the file as messages show it."""

    name: str
    value: Any
    marks: dict[Path_, Mark] = field(default_factory=dict[Path_, Mark])

    def line(self, path: Path_, text_before: str | None = None) -> int:
        """The line of a value, or of the nearest enclosing one; with `text_before`, the line of a
        place inside a text."""
        while path not in self.marks and path:
            path, text_before = path[:-1], None
        mark = self.marks.get(path, Mark(1, 1, False))
        if text_before is None:
            return mark.line
        return mark.text_line + (text_before.count("\n") if mark.literal else 0)

    def message(self, path: Path_, problem: str, text_before: str | None = None) -> str:
        """`file:line: path: problem`."""
        where = f"{self.name}:{self.line(path, text_before)}"
        return f"{where}: {shown(path)}: {problem}" if path else f"{where}: {problem}"

    def error(self, path: Path_, problem: str, text_before: str | None = None) -> WorkflowError:
        return WorkflowError(self.message(path, problem, text_before))


def shown(path: Path_) -> str:
    """A path as messages show it: `steps.judge.stop[0]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def read_document(text: str, name: str) -> Document:
    """Parse one YAML document. Raises `WorkflowError` with file and line for a syntax error, a key
    that is there twice or is no text, an unknown tag, and for documents that are nested without end
    or too large."""
    try:
        node = yaml.compose(text, Loader=_CoreLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        problem = " ".join(part for part in (error.context, error.problem) if part)
        raise WorkflowError(f"{name}:{line}: not YAML: {problem}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise WorkflowError(
            f"{name}:{line}: the character U+{ord(text[error.position]):04X} is not allowed in YAML"
        ) from None
    except RecursionError:
        raise WorkflowError(f"{name}: nested too deeply") from None
    if node is None:
        raise WorkflowError(f"{name}: the file is empty; a workflow needs at least `steps:`")
    reader = _Reader(name)
    value = reader.read(node, (), node.start_mark.line + 1)
    return Document(name, value, reader.marks)


class _CoreLoader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2's core schema; only composes."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}  # noqa: RUF012  (PyYAML's own name)


def add_resolvers(cls: Any) -> None:
    """Let a PyYAML loader or dumper class know the plain scalars that are no texts."""
    for tag, pattern, first in RESOLVERS:
        cls.add_implicit_resolver(tag, pattern, first)


add_resolvers(_CoreLoader)


class _Reader:
    """Plain values of a node tree, with the mark of each path."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.marks: dict[Path_, Mark] = {}

    def read(self, node: yaml.Node, path: Path_, line: int) -> Any:
        literal = isinstance(node, yaml.ScalarNode) and node.style == "|"
        block = isinstance(node, yaml.ScalarNode) and node.style in ("|", ">")
        self.marks[path] = Mark(line, node.start_mark.line + 1 + block, literal)
        if len(self.marks) > MAX_NODES:
            raise self._error(node, f"more than {MAX_NODES} values (aliases count each time)")
        if len(path) > MAX_DEPTH:
            raise self._error(node, "nested too deeply, or an alias that contains itself")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
            return [
                self.read(each, (*path, i), each.start_mark.line + 1)
                for i, each in enumerate(node.value)
            ]
        return self._scalar(node)

    def _mapping(self, node: yaml.MappingNode, path: Path_) -> dict[str, Any]:
        if node.tag != f"{_TAG}map":
            raise self._error(node, f"unknown tag {node.tag!r}")
        value: dict[str, Any] = {}
        first_lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != f"{_TAG}str":
                shown_key = getattr(key_node, "value", "")
                hint = f"; write '{shown_key}' in quotes" if isinstance(shown_key, str) else ""
                raise self._error(key_node, f"a key must be a text{hint}")
            key = str(key_node.value)
            if key in value:
                where = shown((*path, key))
                raise WorkflowError(
                    f"{self.name}:{line}: {where}: {key!r} is there twice (first in line "
                    f"{first_lines[key]}); rename or remove one"
                )
            first_lines[key] = line
            value[key] = self.read(value_node, (*path, key), line)
        return value

    def _scalar(self, node: yaml.Node) -> Any:
        text = str(node.value)
        kind = node.tag.removeprefix(_TAG)
        try:
            match kind:
                case "str":
                    return text
                case "null":
                    return None
                case "bool":
                    return {"true": True, "false": False}[text.lower()]
                case "int":
                    return int(text, 0) if text[:2] in ("0x", "0o") else int(text)
                case "float":
                    number = float(text)
                    if abs(number) == float("inf"):
                        raise self._error(node, f"the number {text} is too large")
                    return number
                case _:
                    pass
        except (ValueError, KeyError):
            raise self._error(node, f"{text!r} is no {kind}") from None
        raise self._error(node, f"unknown tag {node.tag!r}; only plain YAML values are read")

    def _error(self, node: yaml.Node, problem: str) -> WorkflowError:
        return WorkflowError(f"{self.name}:{node.start_mark.line + 1}: {problem}")
