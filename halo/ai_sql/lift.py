"""Lifting: from a masked call in sqlglot's tree to a `Call`, with every option checked."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlglot import exp

from halo.ai_sql.calls import Call
from halo.ai_sql.errors import SqlError, nearest
from halo.ai_sql.foreign import in_our_order
from halo.ai_sql.functions import FOREIGN, FUNCTIONS, MASKED, Function
from halo.ai_sql.literals import offset_of
from halo.ai_sql.options import OptionReader
from halo.ai_sql.specs import SpecReader

_LOOKS_LIKE_AI = re.compile(r"^(AI_|LLM_|ZZ_)", re.IGNORECASE)


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
        given = in_our_order(written, function, given, options, self.knows_model)
        return SpecReader(self, node, function, given, options, order).call()

    def similarity(self, node: exp.Anonymous) -> Any:
        """AI_SIMILARITY(a, b) as the cosine of two embeddings, each of which is made once."""
        function = FUNCTIONS["AI_SIMILARITY"]
        given, options, _ = self._arguments(node, function)
        OptionReader(self, node, function, given, options, None)
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

    def _is_call_argument(self, node: exp.Anonymous) -> bool:
        parent: Any = node.parent
        while isinstance(parent, exp.Order | exp.Paren | exp.PropertyEQ | exp.Kwarg | exp.Ordered):
            parent = parent.parent
        return isinstance(parent, exp.Anonymous) and (
            str(parent.this).upper() in MASKED or str(parent.this).upper() == "PROMPT"
        )

    def _error(self, code: str, node: Any, message: str) -> SqlError:
        return SqlError(code, message, text=self.text, offset=offset_of(node))
