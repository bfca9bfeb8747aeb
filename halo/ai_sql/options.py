"""The options of a call: literals, each of its type and in its range."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from sqlglot import exp

from halo.ai_sql.errors import SqlError, nearest
from halo.ai_sql.functions import Function
from halo.ai_sql.literals import NO_LITERAL, literal, offset_of
from halo.ai_sql.types import UnknownTypeError, schema_of

if TYPE_CHECKING:
    from halo.ai_sql.lift import Lifter


ON_ERROR = ("null", "fail", "detail")
MAX_TOKENS = 1_000_000
MAX_TEMPERATURE = 2.0


def wrong_setting(name: str, value: Any) -> str:
    """What the value of SET ai_... must be, when it is something else; empty when it fits."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    match name:
        case "ai_on_error" if str(value).lower() not in ON_ERROR:
            return f"one of {', '.join(map(repr, ON_ERROR))}"
        case "ai_temperature" if not number or not 0 <= value <= MAX_TEMPERATURE:
            return f"a number {_range(0, MAX_TEMPERATURE)}"
        case "ai_max_tokens" if not isinstance(value, int) or not 1 <= value <= MAX_TOKENS:
            return f"a whole number {_range(1, MAX_TOKENS)}"
        case _:
            return ""


def _range(low: float, high: float) -> str:
    return f"between {low:,.10g} and {high:,.10g}"


class OptionReader:
    """Reads the options of one call, each checked. Errors are `SqlError`s with their place."""

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
            raise self._wrong(name, value, _range(low, high))
        return float(value)

    def _whole(self, name: str, default: int, low: int, high: int) -> int:
        value = self._number(name, default, low, high)
        if value != int(value):
            raise self._wrong(name, value, "a whole number")
        return int(value)

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
        given: list[Any] = cast("Any", value) if isinstance(value, list) else [value]
        for each in given:
            if isinstance(each, dict) and set(cast("dict[str, Any]", each)) >= {"input", "answer"}:
                pairs.append((_as_text(each["input"]), _as_text(each["answer"])))
            elif isinstance(each, list) and len(cast("Any", each)) == 2:
                pairs.append((_as_text(each[0]), _as_text(each[1])))
            else:
                raise self._wrong(
                    "examples", each, "a list of {'input': ..., 'answer': ...} structs"
                )
        return tuple(pairs)


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _partition(text: str) -> tuple[str, str, str]:
    for arrow in ("→", "->"):
        if arrow in text:
            return text.partition(arrow)
    return text, "", ""
