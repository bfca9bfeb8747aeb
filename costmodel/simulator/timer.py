"""How long one engine step takes: the seam between the simulator and whatever prices a step.

A step is one pass of the model over some prompt tokens (prefill) and one token for each running
request (decode). Measured affine timers live here; a calibrated profile plugs in the same way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from costmodel.errors import ProfileError


class StepTimer(Protocol):
    """Prices engine steps. Pure: equal arguments give equal seconds."""

    def step_s(
        self, prefill_tokens: int, prefill_context: int, decodes: float, context_tokens: float
    ) -> float:
        """Seconds of one step.

        Args:
            prefill_tokens: prompt tokens computed in this step (after cache hits).
            prefill_context: tokens that those tokens attend to and that were there before, on the
                mean. Below zero when the tokens belong to several prompts, each of which attends
                to less than one prompt of that length would: n tokens of k prompts behind a
                context c count as n tokens behind c - (n - n / k) / 2, the same pairs.
            decodes: running requests that get one token each.
            context_tokens: of all decodes together.
        """
        ...


@dataclass(frozen=True, slots=True)
class AffineTimer:
    """A step that costs a constant plus a rate per prompt token, request and context token.

    `decode_s` and `per_request_s` apply to steps with decodes, `prefill_s` to steps with prompt
    tokens. The context terms are zero where nobody measured them.
    """

    per_prefill_token_s: float
    decode_s: float
    per_request_s: float
    prefill_s: float = 0.0
    per_context_token_s: float = 0.0
    per_token_pair_s: float = 0.0

    def __post_init__(self) -> None:
        for name in ("per_prefill_token_s", "decode_s", "per_request_s"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise ProfileError(f"{name} is {value}; it must be a number of seconds >= 0")

    def step_s(
        self, prefill_tokens: int, prefill_context: int, decodes: float, context_tokens: float
    ) -> float:
        seconds = 0.0
        if prefill_tokens:
            seconds += self.prefill_s + self.per_prefill_token_s * prefill_tokens
            pairs = prefill_tokens * max(0.0, prefill_context + prefill_tokens / 2)
            seconds += self.per_token_pair_s * pairs
        if decodes:
            seconds += self.decode_s + self.per_request_s * decodes
            seconds += self.per_context_token_s * context_tokens
        return seconds

    def scaled(self, factor: float) -> AffineTimer:
        """The timer of a model of `factor` times the size on the same machine: an estimate."""
        return AffineTimer(
            self.per_prefill_token_s * factor,
            self.decode_s * factor,
            self.per_request_s * factor,
            self.prefill_s,
            self.per_context_token_s * factor,
            self.per_token_pair_s * factor,
        )


H200_8B = AffineTimer(per_prefill_token_s=24e-6, decode_s=4.8e-3, per_request_s=25e-6)
"""SGLang 0.5.17, an 8B Llama shape in bf16 on one H200. Measured: 24 us an uncached prompt token,
4.8 ms + 25 us a running request for a decode step at short contexts. The context terms were not
measured and are zero."""

H200_HOST_RELOAD_S_PER_TOKEN = 3.5e-6
"""A prompt token fetched from the host tier on the same machine. Measured."""

H200_CO_RUN_THROUGHPUT = 1.18
"""Two servers that share one H200 do 1.18 times the work of one. Measured on two pairs of runs: 64
requests alone take 0.60 s (8B) and 0.23 s (0.6B), together 0.75 s and 0.39 s. Sharing the card
evenly at this throughput gives 0.76 s and 0.39 s."""


class TabulatedTimer:
    """Any step price, sampled once on a grid and interpolated: prices of microseconds, not of the
    whole formula.

    The price is taken as prefill part + decode part (a mixed step is their sum less the shared
    constant). Between grid points both are linear; beyond the last point they go on with its slope.
    """

    _TOKENS = (1, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
    _CONTEXTS = (0, 1024, 4096, 16384, 65536)
    _DECODES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
    _MEAN_CONTEXTS = (1, 256, 1024, 4096, 16384, 65536)

    def __init__(self, price: Callable[[int, int, int, int], float]) -> None:
        """`price(prefill_tokens, prefill_context, decodes, context_tokens)` in seconds."""
        self._prefill = [[price(n, c, 0, 0) for c in self._CONTEXTS] for n in self._TOKENS]
        self._decode = [[price(0, 0, b, b * c) for c in self._MEAN_CONTEXTS] for b in self._DECODES]
        one = price(1, 0, 1, 1)
        self._shared = max(0.0, self._prefill[0][0] + self._decode[0][0] - one)

    def step_s(
        self, prefill_tokens: int, prefill_context: int, decodes: float, context_tokens: float
    ) -> float:
        seconds = 0.0
        if prefill_tokens:
            seconds = _bilinear(
                self._prefill, self._TOKENS, self._CONTEXTS, prefill_tokens, prefill_context
            )
        if decodes:
            seconds += _bilinear(
                self._decode,
                self._DECODES,
                self._MEAN_CONTEXTS,
                decodes,
                context_tokens / decodes,
            )
            if prefill_tokens:
                seconds -= self._shared
        return max(0.0, seconds)


def _bilinear(
    table: list[list[float]],
    rows: tuple[int, ...],
    columns: tuple[int, ...],
    row: float,
    column: float,
) -> float:
    i, t = _position(rows, row)
    j, u = _position(columns, column)
    low, high = table[i], table[i + 1]
    below = low[j] + (low[j + 1] - low[j]) * u
    above = high[j] + (high[j + 1] - high[j]) * u
    return below + (above - below) * t


def _position(points: tuple[int, ...], value: float) -> tuple[int, float]:
    last = len(points) - 2
    i = 0
    while i < last and value > points[i + 1]:
        i += 1
    return i, (value - points[i]) / (points[i + 1] - points[i])
