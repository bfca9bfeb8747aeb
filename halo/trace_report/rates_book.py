"""Prices for the models that traces name. A model whose geometry is not public gets a stand-in,
and the report says so."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from costmodel.errors import ProfileError
from costmodel.pte import PteRates
from costmodel.pte_profiles import Pricing

STAND_IN = "llama-3.1-70b"


@dataclass
class RatesBook:
    """Prices by model name.

    Attributes:
        pricing: mode, hardware, peak and terms.
        model: prices every trace as this model; None prices each as the model that it names.
    """

    pricing: Pricing
    model: str | None = None
    stand_ins: dict[str, str] = field(default_factory=dict[str, str])
    _rates: dict[str, PteRates] = field(default_factory=dict[str, PteRates])

    def check(self) -> None:
        """Raise `ProfileError` for a given model or device that is not known."""
        self._load(self.model or STAND_IN)

    def rates(self, model: str) -> PteRates:
        """The prices for a trace of `model`."""
        name = self.model or model or STAND_IN
        found = self._rates.get(name)
        if found is not None:
            return found
        if self.model is not None:
            found = self._load(name)
        else:
            try:
                found = self._load(name)
            except ProfileError:
                found = self._load(STAND_IN)
            if not model or found.model == self._load(STAND_IN).model != name:
                self.stand_ins[model or "(no model named)"] = STAND_IN
        self._rates[name] = found
        return found

    def _load(self, name: str) -> PteRates:
        path = Path(name)
        is_file = path.suffix in (".json", ".toml") or (path.is_dir() and "/" in name)
        return self.pricing.rates(path if is_file else _without_provider(name))


def _without_provider(name: str) -> str:
    """A model's name without the provider's prefix that gateways add, and without a date.

    Example:
        >>> _without_provider("openrouter/qwen/qwen3-32b:free")
        'qwen3-32b'
    """
    return name.rsplit("/", 1)[-1].split(":", 1)[0]
