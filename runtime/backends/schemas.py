"""JSON Schema as the simulated engine reads it: two schemas in one, and single values of types."""

from __future__ import annotations

import math
from typing import Any, cast

NOUNS = (
    *("amber", "basin", "cedar", "delta", "ember", "fjord", "grove", "harbor", "inlet", "juniper"),
    *("kelp", "lagoon", "meadow", "nectar", "orchid", "prairie", "quartz", "river", "summit"),
)

_FORMATS = {
    "date": "2024-{m:02}-{d:02}",
    "date-time": "2024-{m:02}-{d:02}T12:00:00Z",
    "time": "12:{d:02}:{m:02}Z",
    "duration": "PT{d}M",
    "email": "{w}@example.org",
    "uri": "https://example.org/{w}",
    "hostname": "{w}.example.org",
    "ipv4": "192.0.2.{d}",
    "ipv6": "2001:db8::{d}",
    "uuid": "00000000-0000-4000-8000-{n:012x}",
}
_SCALARS = ("string", "integer", "number", "boolean", "null")


class UnsupportedError(Exception):
    """This part of a schema cannot be made; a union may try its next option."""


class Draw:
    """A stream of choices from one number, without a random generator's cost or state."""

    def __init__(self, state: int) -> None:
        self._state = state & (2**64 - 1)

    def below(self, n: int) -> int:
        """The next choice out of `n`, from 0."""
        # A 64-bit linear congruential step (Knuth's MMIX constants); its high bits are the good
        # ones.
        self._state = (self._state * 6364136223846793005 + 1442695040888963407) % 2**64
        return (self._state >> 33) % n if n > 0 else 0

    def word(self) -> str:
        return f"{NOUNS[self.below(len(NOUNS))]}-{self.below(65536):04x}"


def merge_schemas(left: dict[str, Any], right: dict[str, Any]) -> dict[str, Any]:
    """A schema that asks for both, as far as one object of keywords can say it.

    Example:
        >>> merge_schemas({"minimum": 1, "type": "integer"}, {"minimum": 3, "maximum": 9})
        {'minimum': 3, 'type': 'integer', 'maximum': 9}
    """
    merged = dict(left)
    for key, value in right.items():
        have = merged.get(key)
        if have is None or have == value:
            merged[key] = value
        elif key in ("minimum", "exclusiveMinimum", "minLength", "minItems"):
            merged[key] = max(have, value)
        elif key in ("maximum", "exclusiveMaximum", "maxLength", "maxItems"):
            merged[key] = min(have, value)
        elif key == "required":
            merged[key] = list(dict.fromkeys([*have, *value]))
        elif key == "enum":
            merged[key] = [v for v in have if v in value] or value
        elif key in ("properties", "$defs"):
            merged[key] = {**have, **value} | {
                name: {"allOf": [have[name], value[name]]}
                for name in value
                if key == "properties" and name in have and have[name] != value[name]
            }
        elif key == "type":
            merged[key] = _common_type(have, value)
        else:
            merged[key] = value
    return merged


def _common_type(left: Any, right: Any) -> Any:
    def kinds(of: Any) -> list[str]:
        return cast("list[str]", of) if isinstance(of, list) else [str(of)]

    both = [k for k in kinds(right) if k in kinds(left)]
    if not both and {"integer", "number"} == {*kinds(left), *kinds(right)}:
        both = ["integer"]
    return both[0] if len(both) == 1 else both or right


def implied_type(node: dict[str, Any]) -> str:
    """The type that the keywords of a schema without `type` speak of."""
    if "properties" in node or "required" in node or "additionalProperties" in node:
        return "object"
    if "items" in node or "prefixItems" in node or "minItems" in node:
        return "array"
    if any(k in node for k in ("minimum", "maximum", "multipleOf", "exclusiveMinimum")):
        return "number"
    return "string"


def size_rank(option: Any) -> int:
    """How much an option of a union may contain: 0 for what has no inside."""
    if not isinstance(option, dict):
        return 0
    node = cast("dict[str, Any]", option)
    if "const" in node or "enum" in node or node.get("type") in _SCALARS:
        return 0
    return 2 if "$ref" in node else 1


def string_of(node: dict[str, Any], draw: Draw) -> str:
    """A string of `node`: its format, or words within its length limits."""
    template = _FORMATS.get(str(node.get("format", "")))
    if template is not None:
        return template.format(
            w=draw.word(), m=1 + draw.below(12), d=1 + draw.below(28), n=draw.below(2**31)
        )
    text = draw.word()
    while len(text) < int(node.get("minLength", 0)):
        text += f" {draw.word()}"
    longest = node.get("maxLength")
    return text if longest is None else text[: int(longest)]


def number_of(node: dict[str, Any], draw: Draw, *, whole: bool) -> int | float:
    """A number of `node` within its bounds, a multiple of its step."""
    low = node.get("minimum")
    high = node.get("maximum")
    above = node.get("exclusiveMinimum")
    below = node.get("exclusiveMaximum")
    step = node.get("multipleOf", 1 if whole else None)
    lows = [float(v) for v in (low, above) if v is not None]
    highs = [float(v) for v in (high, below) if v is not None]
    least = max(lows) if lows else min(0.0, min(highs) - 100 if highs else 0.0)
    most = min(highs) if highs else least + 100
    if step is None:
        # Quarters of the range, its open ends avoided: short decimals for common bounds.
        if least > most:
            raise UnsupportedError(f"no number lies between {least} and {most}")
        value = least + (most - least) * (1 + draw.below(15)) / 16
        return value if math.isfinite(value) else least
    first, last = math.ceil(least / step), math.floor(most / step)
    first += 1 if above is not None and first * step <= above else 0
    last -= 1 if below is not None and last * step >= below else 0
    if first > last:
        raise UnsupportedError(f"no multiple of {step} lies between {least} and {most}")
    multiple: int | float = (first + draw.below(last - first + 1)) * step
    return multiple
