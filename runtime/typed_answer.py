"""Does a model's answer fit its declared type?"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn

from planner.logical import Json

if TYPE_CHECKING:
    from collections.abc import Sequence


class Misfit(Exception):
    """An answer that does not fit; `truncated` when it was cut off."""

    def __init__(self, message: str, *, truncated: bool = False) -> None:
        super().__init__(message)
        self.truncated = truncated


def check_schema(text: str, schema_json: str) -> Json:
    """The value that `text` is JSON of. Raises `Misfit` when it is no JSON or not of the schema."""
    try:
        value: Json = json.loads(text, parse_constant=_refuse_constant)
    except ValueError as error:
        raise Misfit(f"not JSON: {error}") from None
    error = next(_validator(schema_json).iter_errors(value), None)
    if error is not None:
        raise Misfit(f"{error.message} at {'/'.join(map(str, error.instance_path)) or 'the top'}")
    return value


def check_choice(text: str, options: Sequence[str]) -> Json:
    """The option that `text` is. Raises `Misfit`."""
    answer = text.strip()
    if answer not in options:
        raise Misfit(f"{answer!r:.80} is none of {', '.join(options)}")
    return answer


@lru_cache(maxsize=256)
def _validator(schema_json: str) -> Any:
    import jsonschema_rs

    return jsonschema_rs.validator_for(json.loads(schema_json))


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
