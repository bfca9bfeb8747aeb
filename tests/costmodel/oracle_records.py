"""What a record of fixtures/oracles.yaml gives, and what is compared with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Given = Mapping[str, Any]
Values = Mapping[str, Any]


@dataclass(frozen=True)
class Bound:
    """A printed number that limits the computed one instead of equalling it."""

    value: float
    kind: str  # "at most", "at least", "in range"
