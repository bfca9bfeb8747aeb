"""From the arguments and options of a call to its `CallSpec`: one method for each function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from sqlglot import exp

from halo.ai_sql.calls import Call, CallSpec, OnError
from halo.ai_sql.errors import nearest
from halo.ai_sql.literals import is_parameter, literal, offset_of
from halo.ai_sql.options import MAX_TEMPERATURE, MAX_TOKENS, ON_ERROR, OptionReader
from halo.ai_sql.prompts import holes
from halo.ai_sql.types import is_type, like_type

_SENTIMENTS = (
    ("positive", ""), ("negative", ""), ("neutral", ""), ("mixed", "both positive and negative"),
)  # fmt: skip
_SUMMARY_TASK = "Summarize these texts as one short text."


class SpecReader(OptionReader):
    """Reads one call."""

    def call(self) -> Call:
        """The call. Raises `SqlError`."""
        spec, on_error = self._spec()
        offset = offset_of(self._node)
        return Call(
            spec, self._node, self._args, on_error, 0 if offset is None else offset,
            order=self._order,
        )  # fmt: skip

    # --- specs -----------------------------------------------------------------------------------

    def _spec(self) -> tuple[CallSpec, OnError]:
        on_error = cast(OnError, self._choice("on_error", ON_ERROR))
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
            common["temperature"] = self._number("temperature", 0.0, 0.0, MAX_TEMPERATURE)
        if "max_tokens" in has:
            common["max_tokens"] = self._whole("max_tokens", 0, 1, MAX_TOKENS)
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
        for each in cast("Any", value):
            if isinstance(each, str):
                labels.append((each, ""))
            elif isinstance(each, dict) and isinstance(
                cast("dict[str, Any]", each).get("label"), str
            ):
                described = cast("dict[str, Any]", each)
                labels.append((described["label"], str(described.get("description") or "")))
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
        if isinstance(value, list) and all(isinstance(v, str) for v in cast("Any", value)):
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
                if fields[-1][2] and (hint := like_type(kind)):
                    self._lifter.warnings.append(
                        f"AI_EXTRACT: {kind!r} is no type and is asked as a question.{hint}"
                    )
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
                f"there is no workflow {name!r}.{nearest(name, self._lifter.workflows)} The "
                f"workflows are: {known}. Pass one with "
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
        tokens = self._whole("tokens", 512, 1, MAX_TOKENS)
        overlap = self._whole("overlap", min(32, tokens // 2), 0, MAX_TOKENS)
        if overlap >= tokens:
            raise self._wrong("overlap", overlap, f"smaller than tokens ({tokens})")
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
        if is_parameter(node):
            if any(not isinstance(part, str) for part in holes(str(node.this))):
                self._lifter.warnings.append(
                    f"{self._function.name}: the braces in a parameter are text like the rest of "
                    "it; PROMPT($name) reads it as a template"
                )
            return (self._argument(node),)
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
                str(each.this)
                if isinstance(each, exp.Literal) and each.is_string and not is_parameter(each)
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


def _is_joined(node: Any) -> bool:
    if isinstance(node, exp.DPipe | exp.Concat):
        parts = list(node.flatten()) if isinstance(node, exp.DPipe) else node.expressions
        return any(isinstance(each, exp.Literal) for each in parts)
    return False


def _column(path: tuple[str, ...], near: Any) -> Any:
    column = exp.column(*reversed(path)) if len(path) <= 4 else exp.column(path[-1])
    start = offset_of(near)
    if start is not None:
        column.this.meta.update(start=start)
    return column
