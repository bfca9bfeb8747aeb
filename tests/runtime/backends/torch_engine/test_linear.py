"""A weight's layouts give the same products, whichever a number of rows chooses."""

from __future__ import annotations

import pytest
import torch

from runtime.backends.torch_engine.arrays import zeros
from runtime.backends.torch_engine.linear import (
    MANY_ROWS,
    Linear,
    PackedLinear,
    PlainLinear,
    TwoLayouts,
)


@pytest.mark.parametrize("kind", [PlainLinear, PackedLinear, TwoLayouts])
@pytest.mark.parametrize("rows", [1, MANY_ROWS - 1, MANY_ROWS, MANY_ROWS + 1])
@pytest.mark.parametrize("with_bias", [False, True])
def test_every_layout_multiplies(kind: type[Linear], rows: int, with_bias: bool) -> None:
    random = torch.Generator()
    random.manual_seed(rows)
    sizes = ((24, 40), (rows, 40), (rows, 24), (24,))
    weight, x, add, some = (torch.randn(size, generator=random) for size in sizes)
    bias = some if with_bias else None
    linear = kind(weight, bias)  # type: ignore[call-arg]
    expected = x @ weight.T + (0 if bias is None else bias)
    before = add.clone()
    torch.testing.assert_close(linear(x), expected)
    torch.testing.assert_close(linear(x, add=add), expected + before)
    assert torch.equal(add, before)
    assert linear.weights == weight.numel()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_room_for_later_is_zero(dtype: torch.dtype) -> None:
    room = zeros((3, 5, 7), dtype, torch.device("cpu"))
    assert room.dtype is dtype
    assert room.shape == (3, 5, 7)
    assert not room.any()
    room[1, 2] = 1
    assert room.float().sum() == 7
