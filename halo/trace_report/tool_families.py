"""Families of tools, by their names, and kinds of tool answers."""

from __future__ import annotations

import ast
import re
from functools import lru_cache
from typing import Any, Literal, cast

from halo.trace_report.answers import is_nothing
from halo.trace_report.view import CallAt

Family = Literal["retrieval", "browse", "compute", "shell", "file", "domain"]
AnswerKind = Literal["error", "empty", "expected empty", "normal", "missing"]

_SPLIT = re.compile(r"[^A-Za-z]+|(?<=[a-z])(?=[A-Z])")


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


_FAMILIES: tuple[tuple[Family, frozenset[str]], ...] = (
    (
        "compute",
        _set(
            "python calculator calculate calc interpreter jupyter code math eval wolfram ipython "
            "sandbox"
        ),
    ),
    ("shell", _set("bash shell terminal exec execute command cmd powershell")),
    (
        "browse",
        _set("browse browser visit fetch url web page click navigate scroll goto crawl scrape"),
    ),
    (
        "file",
        _set(
            "file files read write edit view open glob grep ls cat dir directory create replace "
            "patch path notebook"
        ),
    ),
    (
        "retrieval",
        _set("search retrieve retrieval google bing lookup wiki wikipedia rag query find"),
    ),
)
_FINAL = _set("submit finish final answer done exit respond")
_POLLING = _set("wait poll status sleep progress")
_VOID_WORDS = _set(
    "write edit create delete remove save set update send put move copy mkdir close insert add "
    "cancel replace patch apply commit append rename"
)
_VOID_COMMAND = re.compile(
    r"^\s*(?:cd|mkdir|touch|rm|mv|cp|export|source|chmod|chown|ln|set|alias|git (?:add|checkout|"
    r"config|init|switch|restore)|sed -i|pip install -q|kill|sleep|true)\b|>{1,2}\s*[\w./~-]+\s*"
    r"(?:<<|$|\n)|\bpatch\b.*-s|\bdiff\b|\bgrep\b|\bfind\b|\btest\b|\[\s"
)


@lru_cache(maxsize=4096)
def name_words(name: str) -> frozenset[str]:
    """Words of a tool's name.

    Example:
        >>> sorted(name_words("WebFetch")), sorted(name_words("str_replace_editor"))
        (['fetch', 'web'], ['editor', 'replace', 'str'])
    """
    return frozenset(word.lower() for word in _SPLIT.split(name) if word)


@lru_cache(maxsize=4096)
def family_of(name: str) -> Family:
    """The family of a tool, by the words of its name; "domain" when none of them tells.

    Example:
        >>> family_of("python"), family_of("web_search"), family_of("get_order_details")
        ('compute', 'retrieval', 'domain')
    """
    found = name_words(name)
    if found & {"search", "google", "bing"}:
        return "retrieval"
    for family, known in _FAMILIES:
        if found & known:
            return family
    return "domain"


@lru_cache(maxsize=4096)
def is_final(name: str) -> bool:
    """Whether a tool hands in an answer rather than doing work."""
    return bool(name_words(name) & _FINAL)


@lru_cache(maxsize=4096)
def is_polling(name: str) -> bool:
    """Whether asking the same thing again is what the tool is for."""
    return bool(name_words(name) & _POLLING)


def is_action(call: CallAt) -> bool:
    """Whether a call changes something rather than asking: what follows depends on its effect, and
    not on its answer."""
    family = family_of(call.name)
    if family == "shell":
        return bool(_VOID_COMMAND.search(code_of(call)))
    arguments = call.call.arguments
    if isinstance(arguments, dict):
        command = cast("dict[str, Any]", arguments).get("command")
        if isinstance(command, str):  # an editor with several commands
            return bool(name_words(command[:80]) & _VOID_WORDS)
    return bool(name_words(call.name) & _VOID_WORDS)


def code_of(call: CallAt) -> str:
    """Program text or command of a compute or shell call."""
    arguments = call.call.arguments
    if isinstance(arguments, dict):
        fields = cast("dict[str, Any]", arguments)
        for key in ("code", "command", "cmd", "script", "source", "input", "expression"):
            if isinstance(fields.get(key), str):
                return str(fields[key])
        return ""
    return arguments if isinstance(arguments, str) else call.call.arguments_text


def answer_kind(call: CallAt, failed: bool) -> AnswerKind:
    """What came back from a call that `failed` or not: tool-aware, for silence is a shell's normal
    sign of success."""
    answer = call.answer
    if answer is None:
        return "missing"
    if failed:
        return "error"
    if not is_nothing(answer.text):
        return "normal"
    family = family_of(call.name)
    if family == "shell":
        # A command with exit code 0 succeeded, whatever it printed.
        if answer.exit_code == 0 or _VOID_COMMAND.search(code_of(call)):
            return "expected empty"
        return "empty"
    if family == "compute":
        return "empty"
    return "expected empty" if name_words(call.name) & _VOID_WORDS else "empty"


_LONGEST_CODE = 20_000


def ends_in_bare_expression(code: str) -> bool:
    """Whether Python code computes something last and prints nothing of it.

    Example:
        >>> ends_in_bare_expression("x = 2\\nx * 3"), ends_in_bare_expression("print(6)")
        (True, False)
    """
    if len(code) > _LONGEST_CODE:
        return False
    try:
        body = ast.parse(code).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    if not body:
        return False
    last = body[-1]
    if isinstance(last, ast.Assign | ast.AnnAssign | ast.AugAssign):
        return not any(_is_print(node) for node in ast.walk(ast.Module(body, [])))
    if not isinstance(last, ast.Expr):
        return False
    return not _is_print(last.value)


def _is_print(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call):
        return False
    target = node.func
    name = target.id if isinstance(target, ast.Name) else getattr(target, "attr", "")
    return name in ("print", "display", "write", "pprint", "show")
