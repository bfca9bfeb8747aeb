"""PTE in paper mode: the printed gammas and hardware table of arXiv 2604.05404 v2, and the paper's
formula, with its rounding, for a model that it does not list.

Errata, kept as constants because results must compare with the publication:
- Qwen2.5-32B is printed with the KV factor 1/2; the printed gamma needs 1/5, its real 8/40.
- DeepSeek-V3.1's printed gamma, 0.00068, follows from no reading of the formula.
- H200: 1,617 TFLOPS over 4.80 TB/s is 336.9; the printed 348.1 needs 1,671 (digits swapped).
- 1,513, 1,671 and 624 TFLOPS are structured-sparsity peaks, 330 and 125 are dense.
- The paper assumes that query heads times head size equal the model's width, which is false for
  Qwen3, GLM-4.5 and GPT-OSS: their printed gammas are 1.4 to 2.4 times too low.
"""

from __future__ import annotations

from dataclasses import dataclass

from costmodel.errors import ProfileError
from costmodel.pte import LayerGroup, PteRates
from costmodel.pte_names import nearest, plain_name

REFERENCE_HOI = 756.5
"""FLOP per byte of the reference device, H100 PCIe: 1,513 TFLOPS over 2.0 TB/s."""


@dataclass(frozen=True, slots=True)
class PaperModel:
    """A row of the gamma table.

    Attributes:
        active_params: parameters active for a token.
        width: d_model, or latent plus rope width for MLA.
        kv_ratio: KV heads over query heads, as the printed gamma needs it.
        gamma: as printed, on the reference device.
    """

    name: str
    active_params: float
    layers: int
    width: int
    kv_ratio: float
    gamma: float


@dataclass(frozen=True, slots=True)
class PaperHardware:
    """A row of the hardware table, as printed (see the errata above)."""

    name: str
    peak_flops_per_s: float
    bytes_per_s: float
    hoi_flop_per_byte: float
    alpha: float
    spearman: float


PAPER_MODELS = (
    PaperModel("Qwen2.5-7B-Instruct", 6.53e9, 28, 3584, 1 / 7, 0.00329),
    PaperModel("Qwen2.5-32B-Instruct", 31.0e9, 64, 5120, 1 / 5, 0.00320),
    PaperModel("Qwen2.5-72B-Instruct", 70.0e9, 80, 8192, 1 / 8, 0.00175),
    PaperModel("Qwen3-32B", 31.2e9, 64, 5120, 1 / 8, 0.00200),
    PaperModel("Llama-3.1-8B-Instruct", 8.0e9, 32, 4096, 1 / 4, 0.00625),
    PaperModel("Llama-3.1-70B-Instruct", 70.6e9, 80, 8192, 1 / 8, 0.00175),
    PaperModel("Qwen3-30B-A3B", 3.3e9, 48, 2048, 1 / 8, 0.00563),
    PaperModel("GLM-4.5", 32e9, 92, 5120, 1 / 12, 0.00183),
    PaperModel("GPT-OSS-120B", 5.1e9, 36, 2880, 1 / 8, 0.00388),
    PaperModel("DeepSeek-V3.1-Terminus", 37e9, 61, 576, 1.0, 0.00068),
)

PAPER_HARDWARE = (
    PaperHardware("H100-PCIe", 1513e12, 2.00e12, 756.5, 1.00, 1.000000),
    PaperHardware("H200", 1617e12, 4.80e12, 348.1, 0.46, 0.994505),
    PaperHardware("A100", 624e12, 1.93e12, 322.5, 0.43, 0.989011),
    PaperHardware("RTX-4090", 330e12, 1.00e12, 327.4, 0.43, 0.989011),
    PaperHardware("V100", 125e12, 0.90e12, 138.9, 0.18, 0.956044),
)


def formula_gamma(
    active_params: float,
    layers: int,
    width: int,
    kv_ratio: float = 1.0,
    hoi_flop_per_byte: float = REFERENCE_HOI,
) -> float:
    """The paper's gamma without rounding: 2 * layers * width * HOI / N, times the KV ratio.

    Example:
        >>> round(formula_gamma(8.0e9, 32, 4096, 1 / 4), 6)
        0.006197
    """
    return 2 * layers * width * hoi_flop_per_byte / active_params * kv_ratio


def rounded_gamma(
    active_params: float,
    layers: int,
    width: int,
    kv_ratio: float = 1.0,
    hoi_flop_per_byte: float = REFERENCE_HOI,
) -> float:
    """The paper's gamma with the rounding that reproduces its table: to 3 decimals *before* the KV
    ratio. Two rows then land on a half of the fifth decimal: compare with tolerance 6e-6.

    Example:
        >>> rounded_gamma(8.0e9, 32, 4096, 1 / 4)
        0.00625
    """
    before = formula_gamma(active_params, layers, width, 1.0, hoi_flop_per_byte)
    return round(before, 3) * kv_ratio


def paper_model(name: str) -> PaperModel | None:
    """The row of the gamma table for `name`, or None."""
    wanted = plain_name(name)
    return next((row for row in PAPER_MODELS if plain_name(row.name) == wanted), None)


def paper_hardware(name: str) -> PaperHardware:
    """The row of the hardware table for `name`. Raises `ProfileError` with the nearest names."""
    wanted = plain_name(name)
    for row in PAPER_HARDWARE:
        if plain_name(row.name) == wanted or (wanted == "h100" and row.name == "H100-PCIe"):
            return row
    names = [row.name for row in PAPER_HARDWARE]
    raise ProfileError(
        f"no hardware {name!r} in the paper's table; {nearest(name, names)}. "
        "Exact mode knows more devices"
    )


def rates_of(
    gamma_on_reference: float, model: str, hardware: PaperHardware, evidence: str
) -> PteRates:
    """Paper-mode rates: gamma moved by alpha = HOI / HOI of the reference, full eviction, no
    growth within a turn, nothing for weights."""
    alpha = hardware.hoi_flop_per_byte / REFERENCE_HOI
    return PteRates(
        model=model,
        hardware=hardware.name,
        mode="paper",
        evidence=evidence,
        peak=f"as printed, {hardware.hoi_flop_per_byte:g} FLOP/byte",
        groups=(LayerGroup(gamma_on_reference * alpha),),
        growth=False,
        cache_counts=False,
    )
