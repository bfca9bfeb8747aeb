"""One weight matrix in the precision and layout that its device multiplies fastest."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Protocol, cast

import torch
import torch.nn.functional as F

Precision = Literal["float32", "bfloat16", "int8"]
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16", "int8")


MANY_ROWS = 256
"""From this many rows on, torch's own float32 product is faster than oneDNN's on processors with
AVX2 and no AVX-512: 5 to 15 % at 1,024 rows of a model with 576 dimensions."""


class Linear(Protocol):
    """`x @ weight.T + bias` for rows `x`, with `add` (of the result's shape) added where it is
    given; `weights` is the number of parameters."""

    weights: int

    def __call__(self, x: torch.Tensor, *, add: torch.Tensor | None = None) -> torch.Tensor: ...


class PlainLinear:
    """torch's own product, on any device."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.weights = weight.numel()
        self._weight, self._bias = weight, bias

    def __call__(self, x: torch.Tensor, *, add: torch.Tensor | None = None) -> torch.Tensor:
        y = F.linear(x, self._weight, self._bias)
        return y if add is None else y.add_(add)


class PackedLinear:
    """A weight in oneDNN's blocked layout: reordered once at load instead of at every call, which
    for few rows costs as much as the product."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.weights = weight.numel()
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight)
        self._bias = bias

    def __call__(self, x: torch.Tensor, *, add: torch.Tensor | None = None) -> torch.Tensor:
        product, w, b = torch.ops.mkldnn._linear_pointwise, self._weight, self._bias
        if add is None:
            return cast("torch.Tensor", product(x, w, b, "none", [], ""))
        # Added while the result is in the processor's cache.
        return cast("torch.Tensor", product.binary(x, add, w, b, "add"))


class TwoLayouts:
    """The weight in both layouts: packed for few rows, plain for many. Takes twice the memory."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.weights = weight.numel()
        self._packed = PackedLinear(weight, bias)
        self._plain = PlainLinear(weight, bias)

    def __call__(self, x: torch.Tensor, *, add: torch.Tensor | None = None) -> torch.Tensor:
        return (self._plain if len(x) >= MANY_ROWS else self._packed)(x, add=add)


class Int8Linear:
    """8-bit weights, one scale a row; activations stay as they are. Halves what decoding reads."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.weights = weight.numel()
        wide = weight.float()
        scale = wide.abs().amax(1, keepdim=True).clamp(min=1e-8) / 127
        self._weight = (wide / scale).round().clamp(-127, 127).to(torch.int8)
        self._scale = scale[:, 0].to(weight.dtype)
        self._bias = bias

    def __call__(self, x: torch.Tensor, *, add: torch.Tensor | None = None) -> torch.Tensor:
        y: torch.Tensor = torch.ops.aten._weight_int8pack_mm(x, self._weight, self._scale)
        y = y if self._bias is None else y + self._bias
        return y if add is None else y + add


def resolve_precision(precision: Precision, device: torch.device) -> tuple[Precision, str]:
    """The precision that `device` can really run, and a note when it is not the one asked for."""
    if precision == "int8" and device.type != "cpu":
        return "bfloat16", "int8 weights run on CPU alone: bfloat16 is used"
    if precision != "float32" and device.type == "cpu" and not _bf16_on_cpu():
        fallback: Precision = "float32"
        return fallback, f"this CPU has no bfloat16 products: {fallback} is used"
    return precision, ""


def default_precision(device: torch.device) -> Precision:
    """The faster of the two exact types of weights. A bfloat16 product pays where the processor has
    tiles for it (AMX) or multiplies bfloat16 vectors at full rate (AMD's AVX-512); Intel's AVX-512
    does it at half the rate of float32, which costs more than the smaller weights save from about
    ten rows on."""
    if device.type != "cpu":
        return "bfloat16"
    if not _bf16_on_cpu():
        return "float32"
    processor = cast("Any", torch.cpu)
    if processor._is_amx_tile_supported():
        return "bfloat16"
    amd = _cpu_vendor() == "AuthenticAMD"
    return "bfloat16" if amd and processor._is_avx512_bf16_supported() else "float32"


def _cpu_vendor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return ""
    return next((x.partition(":")[2].strip() for x in lines if x.startswith("vendor_id")), "")


def compute_dtype(precision: Precision) -> torch.dtype:
    """What activations and the KV cache are held in."""
    return torch.float32 if precision == "float32" else torch.bfloat16


def make_linear(
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    precision: Precision,
    device: torch.device,
    *,
    twice: bool = False,
) -> Linear:
    """The matrix, ready to use on `device`; `twice`: in two layouts, where both are of use."""
    dtype = compute_dtype(precision)
    weight = weight.to(device=device, dtype=dtype).contiguous()
    bias = None if bias is None else bias.to(device=device, dtype=dtype)
    if precision == "int8":
        return Int8Linear(weight, bias)
    if device.type == "cpu" and _has_onednn() and (dtype == torch.float32 or _bf16_on_cpu()):
        return (
            TwoLayouts(weight, bias) if twice and _plain_wins(dtype) else PackedLinear(weight, bias)
        )
    return PlainLinear(weight, bias)


def _plain_wins(dtype: torch.dtype) -> bool:
    """Whether the plain product is the faster one for many rows."""
    capability = cast("Any", torch.backends).cpu.get_cpu_capability()
    return dtype == torch.float32 and capability == "AVX2"


def _bf16_on_cpu() -> bool:
    return _has_onednn() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _has_onednn() -> bool:
    return bool(cast("Any", torch.backends.mkldnn).is_available())
