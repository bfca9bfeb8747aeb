"""The root of Halo's error tree. `halo.errors` draws the whole tree."""

from __future__ import annotations


class HaloError(Exception):
    """Base of every error that Halo raises on purpose.

    The message says what happened, where (file, line, row or operator), and what to do.
    """


class ProfileError(HaloError):
    """A hardware, model, link or technique profile has a missing or impossible field, or does not
    apply; or a step to be priced is impossible (a negative token count).

    Attributes:
        file: the profile's file, or None when the profile was not read from one.
        field: the field at fault, or None when the profile as a whole is.
    """

    def __init__(self, message: str, *, file: str | None = None, field: str | None = None) -> None:
        super().__init__(message)
        self.file = file
        self.field = field


class CalibrationError(ProfileError):
    """A calibration is refused: its held-out error is too large, or it has too few samples."""


class SimulationError(HaloError):
    """A plan cannot be simulated: a model without room on its worker, an order that waits for
    itself, a call larger than the KV cache."""
