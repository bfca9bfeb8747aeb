"""Between numpy, torch and lists, with the types that torch's own signatures lack."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch


def to_tensor(array: npt.NDArray[Any], device: torch.device | None = None) -> torch.Tensor:
    """The array as a tensor, without a copy where it stays on the CPU."""
    tensor = cast("torch.Tensor", cast("Any", torch).from_numpy(array))
    return tensor if device is None else tensor.to(device)


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A tensor of zeros. On a CPU the operating system zeroes a page when it is first used: room
    that is kept for later costs nothing."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    raw = np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)
    return to_tensor(raw).view(dtype).view(shape)


def to_ints(tensor: torch.Tensor) -> list[int]:
    """A one-dimensional tensor of whole numbers as a list."""
    return cast("list[int]", cast("Any", tensor).tolist())


def to_floats(tensor: torch.Tensor) -> list[float]:
    """A one-dimensional tensor as a list."""
    return cast("list[float]", cast("Any", tensor).tolist())
