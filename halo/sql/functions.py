"""The AI functions: their names, the foreign names that are read as them, and their options."""

from __future__ import annotations

from dataclasses import dataclass, field

COMMON_OPTIONS = (
    "model", "temperature", "max_tokens", "returns", "examples", "on_error", "cache", "cascade",
    "sample",
)  # fmt: skip
"""Options that every function accepts; a function refuses those that mean nothing for it."""


@dataclass(frozen=True)
class Function:
    """One AI function.

    Attributes:
        name: as documented, upper case.
        usage: for messages.
        arguments: names of its positional arguments, in order.
        required: how many of them must be given.
        variadic: whether more may follow (`PROMPT`, `AI_RUN`).
        without: common options that it refuses.
        own: options of its own.
        aggregate: whether it takes a group of rows.
    """

    name: str
    usage: str
    arguments: tuple[str, ...]
    required: int
    variadic: bool = False
    without: frozenset[str] = frozenset()
    own: tuple[str, ...] = ()
    aggregate: bool = False
    options: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        common = [name for name in COMMON_OPTIONS if name not in self.without]
        object.__setattr__(self, "options", (*common, *self.own))


_TYPED = frozenset({"returns"})
_NO_MODEL_TEXT = frozenset(
    {"temperature", "max_tokens", "returns", "examples", "cascade", "sample"}
)
_NO_CASCADE = frozenset({"cascade"})

FUNCTIONS: dict[str, Function] = {
    each.name: each
    for each in (
        Function("AI_COMPLETE", "AI_COMPLETE(prompt)", ("prompt",), 1, without=_NO_CASCADE),
        Function(
            "AI_FILTER", "AI_FILTER(prompt)", ("prompt",), 1, without=_TYPED,
            own=("precision", "recall", "confidence"),
        ),
        Function(
            "AI_CLASSIFY", "AI_CLASSIFY(input, [label, ...])", ("input", "labels"), 2,
            without=_TYPED | _NO_CASCADE, own=("multi",),
        ),
        Function(
            "AI_EXTRACT", "AI_EXTRACT(input, {field: type})", ("input", "fields"), 2,
            without=_TYPED | _NO_CASCADE,
        ),
        Function("AI_SCORE", "AI_SCORE(prompt)", ("prompt",), 1, without=_TYPED | _NO_CASCADE),
        Function("AI_SIMILARITY", "AI_SIMILARITY(a, b)", ("a", "b"), 2, without=_NO_MODEL_TEXT),
        Function("AI_EMBED", "AI_EMBED(text)", ("text",), 1, without=_NO_MODEL_TEXT),
        Function("AI_SUMMARIZE", "AI_SUMMARIZE(text)", ("text",), 1, without=_TYPED | _NO_CASCADE),
        Function(
            "AI_TRANSLATE", "AI_TRANSLATE(text, [from,] to)", ("text", "language", "to"), 2,
            without=_TYPED | _NO_CASCADE,
        ),
        Function("AI_SENTIMENT", "AI_SENTIMENT(text)", ("text",), 1, without=_TYPED | _NO_CASCADE),
        Function(
            "AI_AGG", "AI_AGG(text, task)", ("text", "task"), 2,
            without=_TYPED | _NO_CASCADE | {"examples"}, aggregate=True,
        ),
        Function(
            "AI_SUMMARIZE_AGG", "AI_SUMMARIZE_AGG(text)", ("text",), 1,
            without=_TYPED | _NO_CASCADE | {"examples"}, aggregate=True,
        ),
        Function(
            "AI_RUN", "AI_RUN('workflow', argument, ..., name := value)", ("workflow",), 1,
            variadic=True,
            without=frozenset({"temperature", "max_tokens", "examples", "cascade", "model"}),
        ),
        Function(
            "AI_CHUNKS", "ai_chunks(text, tokens := 512, overlap := 32)", ("text",), 1,
            without=_NO_MODEL_TEXT | {"model", "cache"}, own=("tokens", "overlap"),
        ),
        Function("PROMPT", "PROMPT('text {0}', value, ...)", ("template",), 1, variadic=True),
    )
}  # fmt: skip
"""By name. `PROMPT` is a prompt value where it is an argument of another, a call elsewhere."""

FOREIGN: dict[str, str] = {
    "AI_QUERY": "AI_COMPLETE",
    "AI_GEN": "AI_COMPLETE",
    "AI_GENERATE": "AI_COMPLETE",
    "AI_IF": "AI_FILTER",
    "AI.IF": "AI_FILTER",
    "AI.GENERATE": "AI_COMPLETE",
    "AI.GENERATE_BOOL": "AI_FILTER",
    "AI.CLASSIFY": "AI_CLASSIFY",
    "AI.SCORE": "AI_SCORE",
    "AI.AGG": "AI_AGG",
    "LLM_FILTER": "AI_FILTER",
    "LLM_COMPLETE": "AI_COMPLETE",
    "LLM_REDUCE": "AI_AGG",
}
"""Names of other products and the function that each is read as."""

TABLE_FUNCTIONS = ("READ_DOCUMENT", "AI_CHUNKS")
"""Halo's own functions that stand in FROM."""

_MASKED = {name: name.replace(".", "_") for name in (*FUNCTIONS, *FOREIGN) if name != "PROMPT"}

MASKED: dict[str, str] = {f"ZZ{masked[2:]}": name for name, masked in _MASKED.items()}
"""Masked name (see `halo.sql.masking`) to the name that it stands for."""


def function_of(name: str) -> Function:
    """The function of a name as written, foreign ones included."""
    return FUNCTIONS[FOREIGN.get(name.upper(), name.upper())]
