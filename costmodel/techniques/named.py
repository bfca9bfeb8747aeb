"""Techniques by the name that a user writes: `fastkv`, `fastkv(retain=0.2)`, `swiftkv(group=2)`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from costmodel.attention import AttentionProfile
from costmodel.errors import ProfileError
from costmodel.techniques.fastkv import fastkv
from costmodel.techniques.recurrent import recurrent_transformer
from costmodel.techniques.sparse_prefill import sparse_prefill
from costmodel.techniques.swiftkv import swiftkv

Number = int | float

TECHNIQUES: Mapping[str, tuple[Callable[..., AttentionProfile], Mapping[str, type[Number]]]] = {
    "fastkv": (fastkv, {"tsp_layer": int, "tsp_rate": float, "retain": float}),
    "swiftkv": (swiftkv, {"keep_layers": int, "group": int}),
    "sparse-prefill": (sparse_prefill, {"vertical": float, "diagonal": float}),
    "recurrent-transformer": (recurrent_transformer, {}),
}
"""Techniques that serve a whole engine, and the types of their settings. Those of single segments
of a prompt, and architectures that a model's own configuration tells, are not asked for by name."""

_WRITTEN = re.compile(r"\s*([a-z-]+)\s*(?:\((.*)\))?\s*\Z")


@dataclass(frozen=True, slots=True)
class NamedTechnique:
    """A technique as it was asked for: its name, the settings that were given, and what it is."""

    name: str
    settings: Mapping[str, Number]
    profile: AttentionProfile


def named_technique(text: str) -> NamedTechnique:
    """The technique that `text` names. Raises `ProfileError` for an unknown name or setting, or a
    value out of range.

    Example:
        >>> named_technique("fastkv(retain=0.2)").settings
        {'retain': 0.2}
    """
    match = _WRITTEN.match(text)
    if match is None or match[1] not in TECHNIQUES:
        raise ProfileError(f"no technique {text!r}; there are: {', '.join(TECHNIQUES)}")
    make, types = TECHNIQUES[match[1]]
    settings: dict[str, Number] = {}
    for part in filter(None, map(str.strip, (match[2] or "").split(","))):
        key, _, value = (each.strip() for each in part.partition("="))
        if key not in types:
            known = ", ".join(types) or "none"
            raise ProfileError(f"{match[1]} has no setting {key!r}; it has: {known}")
        try:
            settings[key] = types[key](value)
        except ValueError:
            raise ProfileError(f"{key} of {match[1]} is {value!r}; it is a number") from None
    return NamedTechnique(match[1], settings, make(**settings))
