"""What a run may spend, and the meter that says when that is reached (promise P5)."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields

from costmodel.usage import Usage
from runtime.errors import BudgetError

_SUFFIXES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}
_NUMBER = re.compile(r"(\d+(?:\.\d+)?)\s*([kmg]?)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Prices:
    """What an engine asks, in US dollars for a million tokens."""

    usd_per_million_input: float | None = None
    usd_per_million_output: float | None = None

    def usd(self, usage: Usage) -> float:
        """The price of `usage`; cached tokens cost what others cost."""
        return 1e-6 * (
            usage.input_tokens * (self.usd_per_million_input or 0.0)
            + usage.output_tokens * (self.usd_per_million_output or 0.0)
        )


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits of one process of a run; None is no limit.

    Attributes:
        calls: model calls made; shared and replayed ones cost nothing.
        tokens: input and output tokens of the calls made.
        minutes: on the run's clock.
        usd: dollars, by `prices`.
    """

    calls: float | None = None
    tokens: float | None = None
    minutes: float | None = None
    usd: float | None = None
    prices: Prices = Prices()

    def __post_init__(self) -> None:
        prices = (self.prices.usd_per_million_input, self.prices.usd_per_million_output)
        if self.usd is not None and not any(prices):
            raise BudgetError(
                "a budget in usd needs prices: set usd_per_million_input and "
                "usd_per_million_output, or budget calls, tokens or minutes"
            )

    @classmethod
    def parse(cls, text: str, prices: Prices = Prices()) -> Budget:
        """The budget that `text` writes. Raises `BudgetError`.

        Example:
            >>> budget = Budget.parse("tokens=1.5M, minutes=30")
            >>> budget.tokens, budget.minutes, budget.calls
            (1500000.0, 30.0, None)
        """
        limits: dict[str, float] = {}
        known = [f.name for f in fields(cls) if f.name != "prices"]
        for part in filter(None, (part.strip() for part in text.split(","))):
            name, equals, amount = (piece.strip() for piece in part.partition("="))
            match = _NUMBER.fullmatch(amount)
            if name not in known or not equals or match is None:
                raise BudgetError(
                    f"cannot read {part!r} of the budget {text!r}; it is written like "
                    f"tokens=2M,minutes=30, with the limits: {', '.join(known)}"
                )
            if name in limits:
                raise BudgetError(f"the budget {text!r} limits {name} twice")
            limits[name] = float(match[1]) * _SUFFIXES[match[2].lower()]
        return cls(**limits, prices=prices)

    @property
    def is_limited(self) -> bool:
        """Whether there is anything to keep."""
        return any(x is not None for x in (self.calls, self.tokens, self.minutes, self.usd))


class BudgetMeter:
    """Counts what a run spends. `begin_s` is the run's clock at the start."""

    def __init__(self, budget: Budget, begin_s: float) -> None:
        self._budget = budget
        self._begin_s = begin_s
        self._started = 0
        self._usage = Usage()

    def start(self, now_s: float) -> str:
        """A call wants to start: the empty text when it may (and it is counted), otherwise what is
        spent. Calls that are under way go on, so the overshoot is at most those."""
        reason = self._reached(now_s)
        if not reason:
            self._started += 1
        return reason

    def end(self, usage: Usage) -> None:
        """A call has ended and used this."""
        self._usage += usage

    def _reached(self, now_s: float) -> str:
        budget, usage = self._budget, self._usage
        spent = {
            "calls": (budget.calls, float(self._started)),
            "tokens": (budget.tokens, float(usage.input_tokens + usage.output_tokens)),
            "minutes": (budget.minutes, (now_s - self._begin_s) / 60),
            "usd": (budget.usd, budget.prices.usd(usage)),
        }
        for name, (limit, amount) in spent.items():
            if limit is not None and amount >= limit:
                return f"budget reached: {amount:,.4g} of {limit:,.4g} {name}"
        return ""
