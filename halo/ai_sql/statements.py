"""Statements: a batch of SQL text as separate statements of known kinds.

DuckDB's own parser reads the text first, so that a syntax error has DuckDB's words and position.
Nothing is passed through to DuckDB unread: a kind of statement that Halo does not know is refused.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from halo.ai_sql.errors import SqlError, SqlRefusedError, nearest
from halo.ai_sql.literals import parameter_text
from halo.ai_sql.masking import mask

Kind = Literal["select", "create", "insert", "copy", "set"]

FORMATS = ("text", "json", "html", "mermaid", "dot")
_FORMAT_NAMES = {**{name: name for name in FORMATS}, "graphviz": "dot"}
_EXPLAIN_WORDS = frozenset({"format", "cost", "analyze", *_FORMAT_NAMES})
_EXPLAIN = re.compile(
    r"EXPLAIN\b(?P<analyze>\s+ANALYZE\b)?"
    r"(?:\s*\(\s*(?P<options>(?:FORMAT|COST|ANALYZE)\b[^()]*)\))?",
    re.IGNORECASE,
)
_HINT = "halo reads DuckDB SQL with AI functions; see docs/sql.md"


@dataclass(frozen=True)
class Explain:
    """EXPLAIN before a statement."""

    analyze: bool = False
    format: str = "text"


@dataclass(frozen=True)
class Statement:
    """One statement of a batch.

    Attributes:
        number: from 1.
        text: as written, without EXPLAIN and the semicolon.
        offset: of `text` in the batch.
        tree: sqlglot's, with masked names and positions in the whole batch; None for SET.
        query: the query inside (the tree itself, for a SELECT).
        setting: (name, value) of SET.
    """

    number: int
    text: str
    offset: int
    kind: Kind
    tree: Any = None
    query: Any = None
    explain: Explain | None = None
    setting: tuple[str, Any] = ("", None)

    @property
    def name(self) -> str:
        """The query's name in results and EXPLAIN."""
        return f"q{self.number}"

    @property
    def target(self) -> str:
        """The table that a CREATE or INSERT writes, lower case without quotes."""
        if self.kind not in ("create", "insert"):
            return ""
        table = self.tree.find(exp.Table)
        return "" if table is None else table.name.lower()

    @property
    def written(self) -> str:
        """What it writes, as other statements may name it: its table, or the file of a COPY."""
        if self.kind != "copy":
            return self.target
        return next((str(e.this).lower() for e in self.tree.args.get("files") or ()), "")


def read_batch(text: str, parameters: Mapping[str, Any] | None = None) -> list[Statement]:
    """The statements of `text`, with `$name` parameters replaced by their values.

    Raises `SqlError`; `SqlRefusedError` for a kind of statement that is not accepted.
    """
    plain, explains = _without_explain(text)
    tokens = _tokens(plain)
    _check_syntax(plain, tokens)
    masked = mask(plain, tokens)
    statements: list[Statement] = []
    before = 0
    for group in _split(tokens):
        start = group[0].start
        explain = next((e for at, e in explains.items() if before <= at < start), None)
        statements.append(_read(text, masked, group, len(statements) + 1, explain))
        before = group[-1].end
    if not statements:
        raise SqlError("S001", "there is no statement")
    _bind(statements, parameters or {}, text)
    return statements


def _split(tokens: Sequence[Any]) -> list[list[Any]]:
    groups: list[list[Any]] = [[]]
    for token in tokens:
        if token.token_type.name == "SEMICOLON":
            groups.append([])
        else:
            groups[-1].append(token)
    return [group for group in groups if group]


def _check_syntax(text: str, tokens: Sequence[Any]) -> None:
    import duckdb

    # The dotted names of BigQuery are no functions of DuckDB's grammar.
    try:
        duckdb.extract_statements(_undotted(text, tokens))
    except duckdb.Error as error:
        message = str(error)
        raise SqlError("S001", f"{message}\n({_HINT})") from None


def _undotted(text: str, tokens: Sequence[Any]) -> str:
    masked = mask(text, tokens)
    return "".join("_" if a == "." and b == "_" else a for a, b in zip(text, masked, strict=True))


def _tokens(text: str) -> list[Any]:
    try:
        return list(sqlglot.tokenize(text, read="duckdb"))
    except SqlglotError as error:
        raise SqlError("S001", f"the text cannot be read: {error}") from None


def _without_explain(text: str) -> tuple[str, dict[int, Explain]]:
    """The text with blanks in place of every EXPLAIN prefix, and what stood there by position.
    sqlglot takes EXPLAIN and all that follows for one opaque command."""
    found: dict[int, Explain] = {}
    while True:
        command = next(
            (
                token
                for token in _tokens(text)
                if token.token_type.name in ("COMMAND", "DESCRIBE")
                and token.text.upper() == "EXPLAIN"
            ),
            None,
        )
        if command is None:
            return text, found
        match = _EXPLAIN.match(text, command.start)
        assert match is not None
        found[command.start] = _explain(text, command.start, match)
        blank = "".join(c if c == "\n" else " " for c in match[0])
        text = text[: command.start] + blank + text[match.end() :]


def _explain(text: str, start: int, match: re.Match[str]) -> Explain:
    words = re.findall(r"\w+", (match["options"] or "").lower())
    if unknown := [each for each in words if each not in _EXPLAIN_WORDS]:
        raise SqlError(
            "S102",
            f"EXPLAIN has no option or format {unknown[0]!r}."
            f"{nearest(unknown[0], list(_FORMAT_NAMES))} Formats: {', '.join(_FORMAT_NAMES)}",
            text=text, offset=start,
        )  # fmt: skip
    form = next((_FORMAT_NAMES[word] for word in words if word in _FORMAT_NAMES), "text")
    return Explain(bool(match["analyze"]) or "analyze" in words, form)


def _read(
    text: str, masked: str, tokens: list[Any], number: int, explain: Explain | None
) -> Statement:
    start, end = tokens[0].start, tokens[-1].end + 1
    first = tokens[0].text.upper()
    if first == "SET":
        return _set(text, tokens, number)
    # Blanks in place of everything else, so that positions are those in the batch.
    alone = "".join(c if c == "\n" else " " for c in masked[:start]) + masked[start:end]
    try:
        with _quiet():
            tree = sqlglot.parse_one(alone, read="duckdb")
    except SqlglotError as error:
        details = _details(cast("Any", error))
        found: dict[str, Any] = details[0] if details else {}
        reason = str(found.get("description") or error).rstrip(".")
        offset = _offset(text, found.get("line"), found.get("col"), start)
        raise SqlError("S001", f"{reason} ({_HINT})", text=text, offset=offset) from None
    shared: dict[str, Any] = {
        "number": number,
        "text": text[start:end],
        "offset": start,
        "explain": explain,
    }
    match tree:
        case exp.Query():
            return Statement(**shared, kind="select", tree=tree, query=tree)
        case exp.Create(kind="TABLE") if isinstance(tree.expression, exp.Query):
            return Statement(**shared, kind="create", tree=tree, query=tree.expression)
        case exp.Insert() if isinstance(tree.expression, exp.Query):
            return Statement(**shared, kind="insert", tree=tree, query=tree.expression)
        case exp.Copy() if (
            isinstance(tree.this, exp.Subquery) and tree.args.get("kind") is not True
        ):
            return Statement(**shared, kind="copy", tree=tree, query=tree.this.this)
        case _:
            raise SqlRefusedError(
                "S002",
                f"{first} is no statement that halo runs; accepted are SELECT, CREATE TABLE AS, "
                "INSERT ... SELECT, COPY (...) TO, EXPLAIN and SET of halo's settings"
                f"{_instead(first)}",
                text=text, offset=start,
            )  # fmt: skip


def _instead(first: str) -> str:
    """How a SELECT says what a refused statement says."""
    match first:
        case "SHOW":
            return ". Tables are listed by SELECT table_name FROM information_schema.tables"
        case "DESCRIBE" | "SUMMARIZE" | "PIVOT" | "UNPIVOT" | "VALUES":
            return f". As a table it is read: SELECT * FROM ({first} ...)"
        case _:
            return ""


@contextmanager
def _quiet() -> Generator[None, None, None]:
    """sqlglot warns of a statement that it does not know; Halo refuses it in words of its own."""
    logger = logging.getLogger("sqlglot")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _set(text: str, tokens: list[Any], number: int) -> Statement:
    start, end = tokens[0].start, tokens[-1].end + 1
    name = tokens[1].text.lower() if len(tokens) > 1 else ""
    plain = len(tokens) == 4 and tokens[2].text in ("=", "TO", "to")
    if not plain or not name.startswith("ai_"):
        raise SqlRefusedError(
            "S002",
            "SET is for Halo's own settings (SET ai_model = 'name'); settings of DuckDB are locked",
            text=text, offset=start,
        )  # fmt: skip
    value: Any = tokens[3].text
    if tokens[3].token_type.name == "NUMBER":
        value = float(value) if "." in value else int(value)
    elif value.lower() in ("true", "false") and tokens[3].token_type.name != "STRING":
        value = value.lower() == "true"
    return Statement(number, text[start:end], start, "set", setting=(name, value))


def _bind(statements: Sequence[Statement], parameters: Mapping[str, Any], text: str) -> None:
    used: set[str] = set()
    for statement in statements:
        for node in (
            list(statement.tree.find_all(exp.Placeholder, exp.Parameter)) if statement.tree else []
        ):
            name = node.name
            if not name or name.isdigit() or name not in parameters:
                known = ", ".join(f"${each}" for each in parameters) or "none"
                what = f"${name}" if name.isidentifier() else "a positional parameter"
                raise SqlError(
                    "S004",
                    f"statement {statement.number} names {what}; the parameters given are: {known}."
                    " Give one with --param NAME=VALUE, or halo.sql(..., NAME=VALUE)",
                )  # fmt: skip
            used.add(name)
            node.replace(parameter_node(name, parameters[name]))
    if unused := [name for name in parameters if name not in used]:
        raise SqlError(
            "S004", f"the parameter {unused[0]!r} is not used; write ${unused[0]} in the text"
        )


def parameter_node(name: str, value: Any) -> Any:
    """A Python value as a SQL literal. It is never text that is parsed again."""
    import datetime
    import decimal

    if value is None:
        return exp.null()
    if isinstance(value, bool):
        return exp.Boolean(this=value)
    if isinstance(value, int | decimal.Decimal):
        return exp.paren(exp.Literal.number(str(value)))
    if isinstance(value, float):
        return exp.cast(exp.Literal.string(repr(value)), "DOUBLE")
    if isinstance(value, str):
        return parameter_text(value)
    if isinstance(value, datetime.datetime):
        return exp.cast(exp.Literal.string(value.isoformat(" ")), "TIMESTAMP")
    if isinstance(value, datetime.date):
        return exp.cast(exp.Literal.string(value.isoformat()), "DATE")
    if isinstance(value, list | tuple):
        return exp.Array(
            expressions=[parameter_node(name, each) for each in cast("list[Any]", value)]
        )
    raise SqlError(
        "S004", f"parameter {name!r} is a {type(value).__name__}; pass text, a number, a boolean, "
        "a date, null or a list of them",
    )  # fmt: skip


def _details(error: Any) -> list[Any]:
    """What sqlglot tells of a parse error: a dictionary for each."""
    found: list[Any] = getattr(error, "errors", None) or []
    return found


def _offset(text: str, line: Any, column: Any, start: int) -> int:
    if not isinstance(line, int) or not isinstance(column, int):
        return start
    lines = text.split("\n")
    return min(len(text), sum(len(each) + 1 for each in lines[: line - 1]) + max(0, column - 1))
