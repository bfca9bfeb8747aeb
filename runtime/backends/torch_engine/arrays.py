"""Between numpy, torch and lists, with the types that torch's own signatures lack."""

from __future__ import annotations

from typing import Any, cast

import numpy.typing as npt
import torch


def to_tensor(array: npt.NDArray[Any], device: torch.device | None = None) -> torch.Tensor:
    """The array as a tensor, without a copy where it stays on the CPU."""
    tensor = cast("torch.Tensor", cast("Any", torch).from_numpy(array))
    return tensor if device is None else tensor.to(device)


def to_ints(tensor: torch.Tensor) -> list[int]:
    """A one-dimensional tensor of whole numbers as a list."""
    return cast("list[int]", cast("Any", tensor).tolist())


def to_floats(tensor: torch.Tensor) -> list[float]:
    """A one-dimensional tensor as a list."""
    return cast("list[float]", cast("Any", tensor).tolist())
