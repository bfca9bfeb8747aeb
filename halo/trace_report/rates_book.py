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
        if self.model is None:
            self.pricing.rates(STAND_IN)
        else:
            self.rates("")

    def rates(self, model: str) -> PteRates:
        """The prices for a trace of `model`."""
        name = model if self.model is None else self.model
        found = self._rates.get(name)
        if found is None:
            found = self._rates[name] = self._load(name)
        return found

    def _load(self, name: str) -> PteRates:
        if self.model is not None:
            path = Path(name)
            is_file = path.suffix in (".json", ".toml") or path.is_dir()
            try:
                return self.pricing.rates(path if is_file else name)
            except ProfileError:
                if is_file or without_provider(name) == name:
                    raise
                return self.pricing.rates(without_provider(name))
        plain = without_provider(name)
        try:
            if not plain or _is_path(plain):
                raise ProfileError(f"{name!r} names no model")
            return self.pricing.rates(plain)
        except ProfileError:
            self.stand_ins[name or "(no model named)"] = STAND_IN
            return self.pricing.rates(STAND_IN)


def _is_path(name: str) -> bool:
    """Whether a name would be read as a file: a trace must not choose files of this machine."""
    return name.endswith((".json", ".toml")) or name in (".", "..") or Path(name).is_dir()


def without_provider(name: str) -> str:
    """A model's name without the provider's prefix and the variant that gateways add.

    Example:
        >>> without_provider("openrouter/qwen/qwen3-32b:free")
        'qwen3-32b'
    """
    return name.rsplit("/", 1)[-1].split(":", 1)[0]
