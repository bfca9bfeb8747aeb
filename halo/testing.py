"""Helpers for people's own tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from halo.pte_api import PteOfTrace, pte


def assert_pte_below(
    messages: Sequence[Mapping[str, Any]] | Mapping[str, Any],
    limit: float,
    *,
    model: str | Path,
    **options: Any,
) -> PteOfTrace:
    """Fail a test when a conversation costs `limit` prefill token equivalents or more; the message
    says where they went. `options` are those of `halo.pte`.

    Where cached tokens are unknown the upper end counts, so that a test cannot pass because its
    trace says little. Returns the price, for further assertions.

    Example:
        >>> talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
        >>> assert_pte_below(talk, 1000, model="llama-3.1-8b").value < 100
        True
    """
    __tracebackhide__ = True
    cost = pte(messages, model=model, **options)
    if not cost.value < limit:
        raise AssertionError(f"expected less than {limit:,.0f} PTE\n{cost.explain()}")
    return cost
