"""PTE prices by name: from the shipped model and hardware profiles, or any profile's file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from costmodel.errors import ProfileError
from costmodel.hardware import HardwareProfile, load_hardware
from costmodel.models import ModelProfile, load_model
from costmodel.pte import Mode, PteRates
from costmodel.pte_exact import (
    DevicePeak,
    ExactTerms,
    Experts,
    Geometry,
    KvLayers,
    exact_rates,
)
from costmodel.pte_paper import paper_hardware, paper_model, rates_of, rounded_gamma

PeakKind = Literal["dense", "sparse", "reached"]
"""Which peak HOI rests on: the data sheet's dense or structured-sparsity peak, or what the profile
says that kernels reach of the dense one and of the bandwidth."""

DEFAULT_HARDWARE: dict[Mode, str] = {"exact": "h100-sxm", "paper": "H100-PCIe"}


@dataclass(frozen=True, slots=True)
class Pricing:
    """How PTE is priced: everything but the model.

    Attributes:
        hardware: a profile's name or file; None is the mode's default device.
        terms: of exact mode; paper mode has none.
    """

    mode: Mode = "exact"
    hardware: str | None = None
    peak: PeakKind = "dense"
    terms: ExactTerms = field(default_factory=ExactTerms)

    @property
    def hardware_name(self) -> str:
        return self.hardware or DEFAULT_HARDWARE[self.mode]

    def rates(self, model: str | Path) -> PteRates:
        """Prices of a model given by name, profile file or config.json. Raises `ProfileError`
        with the nearest names for what is not known.

        Example:
            >>> round(Pricing("paper").rates("Llama-3.1-8B-Instruct").gamma, 5)
            0.00625
        """
        if self.mode == "paper":
            return _paper(model, self.hardware_name)
        device = load_hardware(self.hardware_name)
        profile = load_model(model)
        return exact_rates(
            geometry_of(profile), device_peak(device, profile.dtype, self.peak), self.terms
        )


def geometry_of(model: ModelProfile) -> Geometry:
    """What of a model profile sets its PTE prices: true heads and head size, one latent vector for
    MLA, windows, recurrent layers that keep no KV, experts apart from the rest."""
    counts = {kind: model.kinds.count(kind) for kind in ("full", "window")}
    pair = 4.0 * model.n_query_heads * model.head_dim
    if (latent := model.latent) is not None:
        head = latent.nope_head_dim + latent.rope_head_dim + latent.value_head_dim
        pair = 2.0 * model.n_query_heads * head
    kv_bytes = model.kv_elements_per_layer * model.kv_bytes_per_element
    layers = [KvLayers(counts["full"], kv_bytes, pair)]
    if counts["window"]:
        layers.append(KvLayers(counts["window"], kv_bytes, pair, model.window_tokens))
    experts = None
    weights = model.weight_bytes
    if (mixture := model.experts) is not None:
        moe_layers = model.n_layers - mixture.n_dense_layers
        routed = moe_layers * mixture.n_experts * model.expert_params * model.expert_bytes_per_param
        weights -= routed
        experts = Experts(mixture.n_experts, mixture.top_k, routed, mixture.coverage_alpha)
    if not model.tied_embeddings:  # a step reads a few rows of the input table, not the table
        weights -= model.embedding_params * model.weight_bytes_per_param
    grade = model.grade_of("n_layers")
    source = model.evidence["n_layers"].source if "n_layers" in model.evidence else model.title
    return Geometry(
        name=model.name,
        active_params=float(model.active_params),
        weight_bytes=weights,
        layers=tuple(group for group in layers if group.count),
        experts=experts,
        evidence=f"{source} ({grade})",
    )


def device_peak(device: HardwareProfile, dtype: str, kind: PeakKind) -> DevicePeak:
    """The named peak of a device. Raises `ProfileError` when the profile does not state it."""
    flops = device.peak(dtype, "sparse" if kind == "sparse" else "dense")
    bandwidth = device.memory_bytes_per_s
    if kind == "reached":
        flops *= max(share for _, share in device.compute_efficiency)
        bandwidth *= device.kv_read_efficiency
    grade = device.grade_of("compute_efficiency" if kind == "reached" else "memory_bytes_per_s")
    return DevicePeak(device.name, flops, bandwidth, f"{kind} {dtype}", f"{device.title} ({grade})")


def _paper(model: str | Path, hardware: str) -> PteRates:
    device = paper_hardware(hardware)
    listed = paper_model(str(model))
    if listed is not None:
        return rates_of(listed.gamma, listed.name, device, "printed in arXiv 2604.05404 v2")
    profile = load_model(model)
    if profile.latent is not None:
        width = profile.latent.kv_lora_rank + profile.latent.rope_head_dim
        ratio = 1.0
    else:
        width, ratio = profile.d_model, profile.n_kv_heads / profile.n_query_heads
    gamma = rounded_gamma(profile.active_params, profile.n_layers, width, ratio)
    if not gamma > 0:
        raise ProfileError(
            f"model {profile.name!r}: the paper's rounding to 3 decimals gives gamma 0; "
            "use exact mode"
        )
    return rates_of(gamma, profile.name, device, "the paper's formula with its rounding")
