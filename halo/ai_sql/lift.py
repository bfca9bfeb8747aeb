"""Lifting: from a masked call in sqlglot's tree to a `Call`, with every option checked."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from sqlglot import exp

from halo.ai_sql.calls import Call, CallSpec, OnError
from halo.ai_sql.errors import SqlError, nearest
from halo.ai_sql.functions import FOREIGN, FUNCTIONS, MASKED, Function
from halo.ai_sql.literals import NO_LITERAL, literal, members, offset_of
from halo.ai_sql.prompts import holes
from halo.ai_sql.types import UnknownTypeError, is_type, schema_of

_LOOKS_LIKE_AI = re.compile(r"^(AI_|LLM_|ZZ_)", re.IGNORECASE)
_SENTIMENTS = (
    ("positive", ""), ("negative", ""), ("neutral", ""), ("mixed", "both positive and negative"),
)  # fmt: skip
_THEIR_OPTIONS = (
    ("categories", "labels"), ("input", "text"), ("responseformat", "fields"),
    ("return_type", "returns"), ("returntype", "returns"), ("endpoint", "model"),
    ("struct", "fields"),
)  # fmt: skip
_SUMMARY_TASK = "Summarize these texts as one short text."


@dataclass
class Lifter:
    """Lifts the calls of one text.

    Args:
        text: the batch as written, for positions.
        knows_model: whether a name is a configured model (`AI_COMPLETE('name', prompt)`).
        check_model: raises nothing for a model that can be used; returns the reason otherwise.
        warnings: what the author should know, added to here.
    """

    text: str
    knows_model: Callable[[str], bool]
    check_model: Callable[[str], str]
    workflows: Sequence[str] = ()
    defaults: dict[str, Any] = field(default_factory=dict[str, Any])
    warnings: list[str] = field(default_factory=list[str])

    def is_call(self, node: Any) -> bool:
        """Whether a node is a call of an AI function (`PROMPT` as an argument is not)."""
        if not isinstance(node, exp.Anonymous):
            return False
        name = str(node.this).upper()
        if name in MASKED:
            return True
        return name == "PROMPT" and not self._is_call_argument(node)

    def check_name(self, node: exp.Anonymous) -> None:
        """Refuse a name that looks like an AI function and is none."""
        name = str(node.this).upper()
        if name in MASKED or name == "PROMPT" or not _LOOKS_LIKE_AI.match(name):
            return
        raise self._error(
            "S101", node, f"there is no AI function {name}.{nearest(name, FUNCTIONS)}"
        )

    def lift(self, node: exp.Anonymous) -> Call:
        """The call that `node` is. Raises `SqlError`."""
        written = MASKED.get(str(node.this).upper(), "PROMPT")
        name = FOREIGN.get(written, written)
        if name == "PROMPT":
            function = FUNCTIONS["AI_COMPLETE"]
            given, order = [node], None
            options = dict[str, Any]()
            if any(isinstance(each, exp.PropertyEQ | exp.Kwarg) for each in node.expressions):
                # MotherDuck's prompt(text, model := ...): a call with options, not a template.
                given, options, order = self._arguments(node, function)
        else:
            function = FUNCTIONS[name]
            given, options, order = self._arguments(node, function)
        given = self._unpack(written, function, given, options)
        return _Reader(self, node, function, given, options, order).call()

    def similarity(self, node: exp.Anonymous) -> Any:
        """AI_SIMILARITY(a, b) as the cosine of two embeddings, each of which is made once."""
        function = FUNCTIONS["AI_SIMILARITY"]
        given, options, _ = self._arguments(node, function)
        _Reader(self, node, function, given, options, None)
        named = [
            exp.PropertyEQ(this=exp.to_identifier(name), expression=value)
            for name, value in options.items()
        ]
        embeddings: list[Any] = []
        for each in given:
            embed = exp.Anonymous(
                this="ZZ_EMBED", expressions=[each.copy(), *(n.copy() for n in named)]
            )
            embed.meta.update(node.meta)
            embeddings.append(exp.cast(embed, "FLOAT[]"))
        return exp.Anonymous(this="list_cosine_similarity", expressions=embeddings)

    # --- arguments -------------------------------------------------------------------------------

    def _arguments(
        self, node: exp.Anonymous, function: Function
    ) -> tuple[list[Any], dict[str, Any], Any]:
        given: list[Any] = []
        options: dict[str, Any] = {}
        order: Any = None
        for each in node.expressions:
            if isinstance(each, exp.PropertyEQ | exp.Kwarg):
                name = str(each.this.name).lower()
                if name in options:
                    raise self._error("S102", each, f"{function.name} has {name!r} twice")
                value = each.expression
                if isinstance(value, exp.Order):
                    # ORDER BY of an aggregate after its last option.
                    order, value = value, value.this
                options[name] = value
            elif options:
                raise self._error(
                    "S104", each, f"{function.name} has a positional argument after a named one"
                )
            elif isinstance(each, exp.Distinct):
                raise self._error(
                    "S205", each,
                    f"{function.name}(DISTINCT ...) is not supported; select the distinct texts in "
                    "a subquery",
                )  # fmt: skip
            elif isinstance(each, exp.Order):
                order = each
                given.append(each.this)
            else:
                given.append(each)
        if order is not None and not function.aggregate:
            raise self._error(
                "S104", node, f"{function.name} is no aggregate: it takes no ORDER BY"
            )
        return given, options, order

    def _unpack(
        self, written: str, function: Function, given: list[Any], options: dict[str, Any]
    ) -> list[Any]:
        """What other products write, in our order."""
        # BigQuery's keywords and Snowflake's names for arguments.
        for theirs, ours in _THEIR_OPTIONS:
            if theirs in options and ours not in options and theirs not in function.options:
                options[ours] = options.pop(theirs)
        if "failonerror" in options:
            fails = options.pop("failonerror")
            options["on_error"] = exp.Literal.string(
                "null" if isinstance(fails, exp.Boolean) and not fails.this else "fail"
            )
        for position, name in enumerate(function.arguments):
            if name in options and len(given) <= position:
                given.append(options.pop(name))
        if function.name == "AI_COMPLETE" and "fields" in options:
            fields = options.pop("fields")
            options["returns"] = exp.Literal.string(_struct_text(fields))
        if function.name == "AI_COMPLETE" and len(given) == 2:
            first = given[0]
            if (
                isinstance(first, exp.Literal)
                and first.is_string
                and (written in ("AI_QUERY", "AI_GEN") or self.knows_model(str(first.this)))
            ):
                options.setdefault("model", first)
                given = given[1:]
        if written in ("LLM_FILTER", "LLM_COMPLETE", "LLM_REDUCE"):
            given = self._flock(given, options)
        return given

    def _flock(self, given: list[Any], options: dict[str, Any]) -> list[Any]:
        """Flock's `f({'model_name': ...}, {'prompt': ..., 'context_columns': [{'data': x}]})`."""
        if len(given) != 2 or not all(isinstance(each, exp.Struct) for each in given):
            return given
        model, prompt = (members(each) for each in given)
        if isinstance(name := model.get("model_name"), exp.Literal):
            options.setdefault("model", name)
        text = prompt.get("prompt")
        if not isinstance(text, exp.Literal):
            return given
        columns = prompt.get("context_columns")
        values = list[Any]()
        template = str(text.this)
        for index, column in enumerate(columns.expressions if columns is not None else ()):
            parts = members(column)
            values.append(parts.get("data", column))
            name = parts.get("name")
            hole = f"{{{name.this}}}" if isinstance(name, exp.Literal) else ""
            if hole and hole in template:
                template = template.replace(hole, f"{{{index}}}")
            else:
                template = f"{template}\n{{{index}}}"
        return [exp.Anonymous(this="PROMPT", expressions=[exp.Literal.string(template), *values])]

    def _is_call_argument(self, node: exp.Anonymous) -> bool:
        parent: Any = node.parent
        while isinstance(parent, exp.Order | exp.Paren | exp.PropertyEQ | exp.Kwarg | exp.Ordered):
            parent = parent.parent
        return isinstance(parent, exp.Anonymous) and (
            str(parent.this).upper() in MASKED or str(parent.this).upper() == "PROMPT"
        )

    def _error(self, code: str, node: Any, message: str) -> SqlError:
        return SqlError(code, message, text=self.text, offset=offset_of(node))


def _struct_text(fields: Any) -> str:
    parts = [
        f'"{name}" {kind.this if isinstance(kind, exp.Literal) else kind.sql("duckdb")}'
        for name, kind in (members(fields) if isinstance(fields, exp.Struct) else {}).items()
    ]
    return f"STRUCT({', '.join(parts)})"


class _Reader:
    """Reads the arguments and options of one call."""

    def __init__(
        self,
        lifter: Lifter,
        node: exp.Anonymous,
        function: Function,
        given: list[Any],
        options: dict[str, Any],
        order: Any,
    ) -> None:
        self._lifter = lifter
        self._node = node
        self._function = function
        self._given = given
        self._options = options
        self._order = order
        self._args: list[Any] = []
        self._check_counts()

    def call(self) -> Call:
        spec, on_error = self._spec()
        offset = offset_of(self._node)
        return Call(
            spec, self._node, self._args, on_error, 0 if offset is None else offset,
            order=self._order,
        )  # fmt: skip

    # --- checks ----------------------------------------------------------------------------------

    def _check_counts(self) -> None:
        function, given = self._function, self._given
        named = function.name == "AI_RUN"
        for name in self._options:
            if name not in function.options and not named:
                refused = name in ("cascade", "returns", "sample", "temperature", "max_tokens",
                                   "examples", "model", "cache")  # fmt: skip
                reason = (
                    f"the option {name!r} means nothing for {function.name}"
                    if refused
                    else f"{function.name} has no option {name!r}"
                )
                raise self._error(
                    "S102",
                    self._options[name].parent or self._node,
                    f"{reason}.{nearest(name, list(function.options))} "
                    f"Its options are: {', '.join(function.options)}",
                )
        if len(given) < function.required:
            missing = ", ".join(function.arguments[len(given) : function.required])
            raise self._error(
                "S104", self._node,
                f"{function.name} needs {missing}; it is called as {function.usage}",
            )  # fmt: skip
        if len(given) > len(function.arguments) and not function.variadic:
            raise self._error(
                "S104", given[len(function.arguments)],
                f"{function.name} takes {len(function.arguments)} arguments at most; it is called "
                f"as {function.usage}",
            )  # fmt: skip

    def _error(self, code: str, node: Any, message: str) -> SqlError:
        offset = offset_of(node) if node is not None else None
        if offset is None:
            offset = offset_of(self._node)
        return SqlError(code, message, text=self._lifter.text, offset=offset)

    # --- options ---------------------------------------------------------------------------------

    def _option(self, name: str) -> Any:
        """The literal value of an option; None when it is not given."""
        node = self._options.get(name)
        if node is None:
            return self._lifter.defaults.get(name)
        value = literal(node)
        if value is NO_LITERAL:
            raise self._error(
                "S103", node,
                f"{name!r} of {self._function.name} must be a literal: it is part of the plan",
            )  # fmt: skip
        return value

    def _text(self, name: str) -> str:
        value = self._option(name)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise self._wrong(name, value, "a text")
        return value

    def _wrong(self, name: str, value: Any, wanted: str) -> SqlError:
        return self._error(
            "S103", self._options.get(name),
            f"{name!r} of {self._function.name} is {value!r}; it must be {wanted}",
        )  # fmt: skip

    def _number(self, name: str, default: float, low: float, high: float) -> float:
        value = self._option(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(name, value, "a number")
        if not low <= value <= high:
            raise self._wrong(name, value, f"between {low:g} and {high:g}")
        return float(value)

    def _flag(self, name: str, default: bool) -> bool:
        value = self._option(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self._wrong(name, value, "true or false")
        return value

    def _choice(self, name: str, choices: Sequence[str]) -> str:
        value = self._text(name) or choices[0]
        if value.lower() not in choices:
            raise self._wrong(name, value, f"one of {', '.join(map(repr, choices))}")
        return value.lower()

    def _model(self, name: str) -> str:
        model = self._text(name)
        if model and (reason := self._lifter.check_model(model)):
            raise self._error("S106", self._options.get(name), reason)
        return model

    def _cascade(self) -> tuple[str, str] | None:
        text = self._text("cascade") if "cascade" in self._function.options else ""
        if not text or text == "off":
            return None
        cheap, arrow, trusted = (part.strip() for part in _partition(text))
        if not arrow or not cheap or not trusted or cheap == trusted:
            raise self._wrong("cascade", text, "'off' or two models, as in 'small->large'")
        for model in (cheap, trusted):
            if reason := self._lifter.check_model(model):
                raise self._error("S106", self._options["cascade"], reason)
        return cheap, trusted

    def _returns(self) -> str:
        text = self._text("returns") if "returns" in self._function.options else ""
        if text:
            try:
                schema_of(text)
            except UnknownTypeError as error:
                raise self._error(
                    "S103", self._options.get("returns"), f"returns: {error}"
                ) from None
        return text

    def _examples(self) -> tuple[tuple[str, str], ...]:
        value: Any = self._option("examples") if "examples" in self._function.options else None
        if value is None:
            return ()
        pairs: list[tuple[str, str]] = []
        given: list[Any] = cast("list[Any]", value) if isinstance(value, list) else [value]
        for each in given:
            if isinstance(each, dict) and set(cast("dict[str, Any]", each)) >= {"input", "answer"}:
                pairs.append((_as_text(each["input"]), _as_text(each["answer"])))
            elif isinstance(each, list) and len(cast("list[Any]", each)) == 2:
                pairs.append((_as_text(each[0]), _as_text(each[1])))
            else:
                raise self._wrong(
                    "examples", each, "a list of {'input': ..., 'answer': ...} structs"
                )
        return tuple(pairs)

    # --- specs -----------------------------------------------------------------------------------

    def _spec(self) -> tuple[CallSpec, OnError]:
        on_error = cast(OnError, self._choice("on_error", ("null", "fail", "detail")))
        function = self._function
        has = function.options
        common: dict[str, Any] = {
            "returns": self._returns(),
            "examples": self._examples(),
            "cascade": self._cascade(),
        }
        if "model" in has:
            common["model"] = self._model("model")
        if "temperature" in has:
            common["temperature"] = self._number("temperature", 0.0, 0.0, 2.0)
        if "max_tokens" in has:
            common["max_tokens"] = int(self._number("max_tokens", 0, 1, 1e6))
        if "cache" in has:
            common["cache"] = self._flag("cache", True)
        if "sample" in has:
            common["per_row"] = self._choice("sample", ("distinct", "per_row")) == "per_row"
        build = getattr(self, f"_{function.name.lower()}")
        spec: CallSpec = build(common)
        return spec, on_error

    def _ai_complete(self, common: dict[str, Any]) -> CallSpec:
        return self._make("AI_COMPLETE", common, self._prompt(self._given[0]))

    def _ai_filter(self, common: dict[str, Any]) -> CallSpec:
        settings: tuple[tuple[str, float], ...] = ()
        if common["cascade"]:
            settings = tuple(
                (name, self._number(name, default, 0.5, 0.9999))
                for name, default in (("precision", 0.9), ("recall", 0.9), ("confidence", 0.95))
            )
        elif given := [n for n in ("precision", "recall", "confidence") if n in self._options]:
            raise self._error(
                "S103", self._options[given[0]], f"{given[0]!r} is a target of a cascade; add "
                "cascade := 'small->large'",
            )  # fmt: skip
        return self._make("AI_FILTER", common, self._prompt(self._given[0]), settings=settings)

    def _ai_classify(self, common: dict[str, Any]) -> CallSpec:
        labels: list[tuple[str, str]] = []
        value = literal(self._given[1])
        if not isinstance(value, list):
            raise self._error(
                "S105", self._given[1],
                "the labels of AI_CLASSIFY must be a list of literals: they are part of the plan",
            )  # fmt: skip
        for each in cast("list[Any]", value):
            if isinstance(each, str):
                labels.append((each, ""))
            elif isinstance(each, dict) and isinstance(
                cast("dict[str, Any]", each).get("label"), str
            ):
                labels.append(
                    (each["label"], str(cast("dict[str, Any]", each).get("description") or ""))
                )
            else:
                raise self._error(
                    "S105", self._given[1],
                    f"a label of AI_CLASSIFY is {each!r}; it must be a text or a struct of label "
                    "and description",
                )  # fmt: skip
        names = [label for label, _ in labels]
        if len(names) < 2 or len(set(names)) < len(names):
            raise self._error(
                "S105", self._given[1], f"AI_CLASSIFY needs two different labels, got {names}"
            )
        multi = self._flag("multi", False)
        return self._make(
            "AI_CLASSIFY", common, self._prompt(self._given[0]), labels=tuple(labels), multi=multi
        )

    def _ai_extract(self, common: dict[str, Any]) -> CallSpec:
        given = self._given[1]
        value = literal(given)
        fields: list[tuple[str, str, str]] = []
        if isinstance(value, list) and all(isinstance(v, str) for v in cast("list[Any]", value)):
            fields = [(name, "VARCHAR", "") for name in cast("list[str]", value)]
        elif isinstance(value, dict):
            for name, kind in cast("dict[str, Any]", value).items():
                if not isinstance(kind, str):
                    raise self._error(
                        "S105", given,
                        f"field {name!r} of AI_EXTRACT is {kind!r}; it must be a DuckDB type or a "
                        "question",
                    )  # fmt: skip
                fields.append((name, kind, "") if is_type(kind) else (name, "VARCHAR", kind))
        if not fields:
            raise self._error(
                "S105", given,
                "AI_EXTRACT needs the fields as literals: {'field': 'TYPE' or 'question', ...}",
            )  # fmt: skip
        return self._make("AI_EXTRACT", common, self._prompt(self._given[0]), fields=tuple(fields))

    def _ai_score(self, common: dict[str, Any]) -> CallSpec:
        return self._make("AI_SCORE", common, self._prompt(self._given[0]))

    def _ai_embed(self, common: dict[str, Any]) -> CallSpec:
        return self._make("AI_EMBED", common, self._prompt(self._given[0]))

    def _ai_summarize(self, common: dict[str, Any]) -> CallSpec:
        text = self._prompt(self._given[0])
        return self._make("AI_COMPLETE", common, ("Summarize this text in short.\n\n", *text))

    def _ai_translate(self, common: dict[str, Any]) -> CallSpec:
        languages = [literal(each) for each in self._given[1:]]
        if not all(isinstance(each, str) for each in languages):
            raise self._error("S105", self._given[1], "the languages of AI_TRANSLATE are literals")
        source = f" from {languages[0]}" if len(languages) == 2 and languages[0] else ""
        instruction = f"Translate this text{source} to {languages[-1]}. Answer with the translation"
        text = self._prompt(self._given[0])
        return self._make("AI_COMPLETE", common, (f"{instruction} alone.\n\n", *text))

    def _ai_sentiment(self, common: dict[str, Any]) -> CallSpec:
        text = self._prompt(self._given[0])
        return self._make("AI_CLASSIFY", common, text, labels=_SENTIMENTS)

    def _ai_agg(self, common: dict[str, Any]) -> CallSpec:
        task = literal(self._given[1])
        if not isinstance(task, str) or not task.strip():
            raise self._error("S105", self._given[1], "the task of AI_AGG is a literal text")
        return self._aggregate(common, task)

    def _ai_summarize_agg(self, common: dict[str, Any]) -> CallSpec:
        return self._aggregate(common, _SUMMARY_TASK)

    def _aggregate(self, common: dict[str, Any], task: str) -> CallSpec:
        if common.get("per_row"):
            raise self._error("S103", self._options["sample"], "an aggregate has no rows to sample")
        self._args = [self._given[0]]
        own: dict[str, Any] = {"function": "AI_AGG", "segments": (0,), "task": task}
        return CallSpec(**{**common, **own})

    def _ai_run(self, common: dict[str, Any]) -> CallSpec:
        name = literal(self._given[0])
        if not isinstance(name, str):
            raise self._error(
                "S105", self._given[0], "AI_RUN takes the workflow's name as a literal"
            )
        if name not in self._lifter.workflows:
            known = ", ".join(self._lifter.workflows) or "none"
            raise self._error(
                "S107", self._given[0],
                f"there is no workflow {name!r}; the workflows are: {known}. Pass one with "
                "--workflow FILE.py:NAME, or halo.sql(..., workflows=[...])",
            )  # fmt: skip
        own = [n for n in self._options if n not in self._function.options]
        self._args = [*self._given[1:], *(self._options[n] for n in own)]
        segments = tuple(range(len(self._args)))
        own_values: dict[str, Any] = {
            "function": "AI_RUN",
            "segments": segments,
            "n_args": len(self._args),
            "workflow": name,
            "names": tuple(own),
        }
        return CallSpec(**{**common, **own_values})

    def _ai_chunks(self, common: dict[str, Any]) -> CallSpec:
        tokens = self._number("tokens", 512, 1, 1e6)
        overlap = self._number("overlap", 32, 0, 1e6)
        if overlap >= tokens:
            raise self._wrong("overlap", overlap, f"smaller than tokens ({tokens:g})")
        return self._make(
            "AI_CHUNKS", common, self._prompt(self._given[0]),
            settings=(("tokens", tokens), ("overlap", overlap)),
        )  # fmt: skip

    def _make(
        self, function: str, common: dict[str, Any], segments: tuple[str | int, ...], **own: Any
    ) -> CallSpec:
        return CallSpec(function, segments=segments, n_args=len(self._args), **{**common, **own})

    # --- prompts ---------------------------------------------------------------------------------

    def _prompt(self, node: Any) -> tuple[str | int, ...]:
        """The segments of a prompt argument; its values become arguments of the call."""
        if isinstance(node, exp.Paren):
            return self._prompt(node.this)
        if isinstance(node, exp.Literal) and node.is_string:
            return self._template(node, str(node.this), ())
        if isinstance(node, exp.Anonymous) and str(node.this).upper() == "PROMPT":
            template, *values = node.expressions
            if not isinstance(template, exp.Literal) or not template.is_string:
                raise self._error(
                    "S105", template,
                    "the template of PROMPT must be a literal text; values go in as {0}, {1}, ...",
                )  # fmt: skip
            return self._template(template, str(template.this), values)
        if isinstance(node, exp.Tuple):
            return tuple(
                str(each.this) if isinstance(each, exp.Literal) and each.is_string
                else self._argument(each)
                for each in node.expressions
            )  # fmt: skip
        if _is_joined(node):
            self._lifter.warnings.append(
                f"{self._function.name}: the prompt is joined from text and data with ||; write "
                "PROMPT('... {0}', value) so that they stay apart"
            )
        return (self._argument(node),)

    def _template(self, node: Any, template: str, values: Sequence[Any]) -> tuple[str | int, ...]:
        segments: list[str | int] = []
        used: dict[int, int] = {}
        columns: dict[tuple[str, ...], int] = {}
        for part in holes(template):
            if isinstance(part, str):
                segments.append(part)
            elif isinstance(part, tuple):
                if part not in columns:
                    columns[part] = self._argument(_column(part, node))
                segments.append(columns[part])
            elif part >= len(values):
                raise self._error(
                    "S104", node, f"the template names {{{part}}}, and has {len(values)} values"
                )
            else:
                if part not in used:
                    used[part] = self._argument(values[part])
                segments.append(used[part])
        if unused := [i for i in range(len(values)) if i not in used]:
            raise self._error(
                "S104", values[unused[0]], f"the template does not use {{{unused[0]}}}"
            )
        return tuple(segments)

    def _argument(self, node: Any) -> int:
        for index, known in enumerate(self._args):
            if known == node:
                return index
        self._args.append(node)
        return len(self._args) - 1


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _is_joined(node: Any) -> bool:
    if isinstance(node, exp.DPipe | exp.Concat):
        parts = list(node.flatten()) if isinstance(node, exp.DPipe) else node.expressions
        return any(isinstance(each, exp.Literal) for each in parts)
    return False


def _partition(text: str) -> tuple[str, str, str]:
    for arrow in ("→", "->"):
        if arrow in text:
            return text.partition(arrow)
    return text, "", ""


def _column(path: tuple[str, ...], near: Any) -> Any:
    column = exp.column(*reversed(path)) if len(path) <= 4 else exp.column(path[-1])
    start = offset_of(near)
    if start is not None:
        column.this.meta.update(start=start)
    return column
