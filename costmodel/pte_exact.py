"""PTE in exact mode: prices from a model's real geometry and a device's named peak.

    gamma      KV bytes per token * HOI / (2 N), summed over layers by what they see (GQA and MLA
               store what they store; a sliding window stops growing)
    attention  FLOP per (query, key) pair / (2 N): prefill attention of a long prompt
    weights    weight bytes touched by a decode step * HOI / (2 N), shared by the batch; a token's
               own arithmetic, 1, where that takes longer

with HOI = peak FLOP/s over bytes/s and N the parameters active for a token. One prefilled token,
2 N FLOP, is the unit. The roofline of a decode step and the share of experts that a batch touches
are Halo's extensions of the paper (docs/pte.md).
"""

from __future__ import annotations

from dataclasses import dataclass

from costmodel.errors import ProfileError
from costmodel.pte import LayerGroup, PteRates

DEFAULT_BATCH = 32.0
"""Sequences assumed to share a decode step when nobody says: a served model under load."""


@dataclass(frozen=True, slots=True)
class KvLayers:
    """`count` layers that keep `kv_bytes` a token each, do `pair_flops` FLOP for a (query, key)
    pair and see `window_tokens` back (None sees all)."""

    count: int
    kv_bytes: float
    pair_flops: float
    window_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture of experts: `per_token` of `count` experts are used, and all of them together hold
    `weight_bytes`."""

    count: int
    per_token: int
    weight_bytes: float
    coverage_alpha: float = 1.0

    def touched_bytes(self, batch: float) -> float:
        """Expert weights that a step of `batch` tokens touches: 1 - (1 - k/E)^(batch^alpha) of
        them, alpha 1 when every token chooses evenly."""
        missed: float = (1.0 - self.per_token / self.count) ** (batch**self.coverage_alpha)
        return self.weight_bytes * (1.0 - missed)


@dataclass(frozen=True, slots=True)
class Geometry:
    """What of a model sets its prices.

    Attributes:
        active_params: parameters active for a token, N.
        weight_bytes: weights that every decode step reads, experts apart.
        evidence: where the numbers come from.
    """

    name: str
    active_params: float
    weight_bytes: float
    layers: tuple[KvLayers, ...]
    experts: Experts | None
    evidence: str

    @property
    def kv_bytes_per_token(self) -> float:
        """KV bytes of one token in all layers, before any window is full."""
        return sum(group.count * group.kv_bytes for group in self.layers)


@dataclass(frozen=True, slots=True)
class DevicePeak:
    """A device's named peak.

    Attributes:
        peak: kind and type of the arithmetic peak, such as "dense bf16".
    """

    name: str
    flops_per_s: float
    bytes_per_s: float
    peak: str
    evidence: str

    @property
    def hoi_flop_per_byte(self) -> float:
        """FLOP per byte: peak arithmetic over memory bandwidth."""
        return self.flops_per_s / self.bytes_per_s


@dataclass(frozen=True, slots=True)
class ExactTerms:
    """The terms that the paper leaves out, each of which can be switched off.

    Attributes:
        growth: tokens decoded in a turn are read by those after them.
        attention: prefill attention.
        batch: sequences that share the weight reads of a decode step; None leaves those out.
    """

    growth: bool = True
    attention: bool = True
    batch: float | None = DEFAULT_BATCH

    def __post_init__(self) -> None:
        if self.batch is not None and not self.batch >= 1:
            raise ProfileError(f"batch is {self.batch}; at least 1 sequence shares a decode step")


def true_gamma(geometry: Geometry, hoi_flop_per_byte: float) -> float:
    """KV bytes per token * HOI / (2 N).

    Example:
        >>> llama = dense("llama-3.1-8b", 8.0e9, layers=32, kv_heads=8, head_dim=128, q_heads=32)
        >>> round(true_gamma(llama, 756.5), 6)
        0.006197
    """
    return geometry.kv_bytes_per_token * hoi_flop_per_byte / (2 * geometry.active_params)


def exact_rates(
    geometry: Geometry, device: DevicePeak, terms: ExactTerms | None = None
) -> PteRates:
    """Prices of `geometry` on `device`. Raises `ProfileError` for sizes that cannot be."""
    terms = terms or ExactTerms()
    if not (geometry.active_params > 0 and geometry.layers):
        raise ProfileError(
            f"model {geometry.name!r}: PTE needs its active parameters and its layers"
        )
    if not (device.flops_per_s > 0 and device.bytes_per_s > 0):
        raise ProfileError(f"hardware {device.name!r}: PTE needs peak FLOP/s and bytes/s above 0")
    token_flops = 2 * geometry.active_params
    hoi = device.hoi_flop_per_byte
    groups = tuple(
        LayerGroup(
            gamma=group.count * group.kv_bytes * hoi / token_flops,
            attention=group.count * group.pair_flops / token_flops if terms.attention else 0.0,
            window_tokens=group.window_tokens,
        )
        for group in geometry.layers
    )
    decode_token = 0.0
    if terms.batch is not None:
        touched = geometry.weight_bytes
        if geometry.experts is not None:
            touched += geometry.experts.touched_bytes(terms.batch)
        decode_token = max(1.0, touched * hoi / token_flops / terms.batch)
    return PteRates(
        model=geometry.name,
        hardware=device.name,
        mode="exact",
        evidence=f"model: {geometry.evidence}; device: {device.evidence}",
        peak=f"{device.peak}, {hoi:.1f} FLOP/byte",
        groups=groups,
        growth=terms.growth,
        decode_token=decode_token,
        batch=terms.batch,
    )


def dense(
    name: str,
    active_params: float,
    *,
    layers: int,
    kv_heads: int,
    head_dim: int,
    q_heads: int,
    weight_bytes_per_param: float = 2.0,
    kv_bytes_per_element: float = 2.0,
    evidence: str = "given",
) -> Geometry:
    """A dense model with grouped-query attention, K and V of `kv_heads * head_dim` a layer."""
    return Geometry(
        name=name,
        active_params=active_params,
        weight_bytes=active_params * weight_bytes_per_param,
        layers=(
            KvLayers(
                layers,
                2 * kv_heads * head_dim * kv_bytes_per_element,
                4.0 * q_heads * head_dim,
            ),
        ),
        experts=None,
        evidence=evidence,
    )
