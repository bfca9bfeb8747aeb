"""The root of Halo's error tree. `halo.errors` draws the whole tree."""

from __future__ import annotations


class HaloError(Exception):
    """Base of every error that Halo raises on purpose.

    The message says what happened, where (file, line, row or operator), and what to do.
    """


class ProfileError(HaloError):
    """A hardware, model or link profile has a missing or impossible field."""


class SimulationError(HaloError):
    """A plan cannot be simulated: a model without room on its worker, an order that waits for
    itself, a call larger than the KV cache."""
