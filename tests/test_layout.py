from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bench.layout import flat, laid_out_like, unflat

GENERATOR = torch.Generator().manual_seed(1)


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=GENERATOR)


LAYOUTS = {
    "contiguous": numbers(6, 5, 3, 3),
    "channels last": numbers(6, 5, 3, 3).to(memory_format=torch.channels_last),
    "one kernel position": numbers(6, 5, 1, 1).to(memory_format=torch.channels_last),
    "depthwise": numbers(6, 1, 3, 3).to(memory_format=torch.channels_last),
    "transposed": numbers(4, 7).t(),
    "a column of a table": numbers(8, 3)[:, 1],
    "part of its rows": numbers(6, 9)[:, :4],
    "one number": numbers(),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_flat_numbers_come_back_to_their_places(name: str) -> None:
    values = LAYOUTS[name]
    assert torch.equal(unflat(flat(values).contiguous(), values), values)
    assert flat(values).shape == (values.numel(),)


@pytest.mark.parametrize("name", ["contiguous", "channels last", "one kernel position", "depthwise", "transposed"])
def test_numbers_without_gaps_are_not_copied(name: str) -> None:
    values = LAYOUTS[name].clone(memory_format=torch.preserve_format)
    assert flat(values).data_ptr() == values.data_ptr()
    flat(values).fill_(2.0)
    assert bool((values == 2.0).all())


@pytest.mark.parametrize("other", ["contiguous", "channels last"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_two_tensors_are_brought_into_one_order(name: str, other: str) -> None:
    like = LAYOUTS[name]
    values = torch.arange(like.numel(), dtype=torch.float64).view(like.shape)
    if other == "channels last" and like.dim() == 4:
        values = values.to(memory_format=torch.channels_last)
    together = laid_out_like(values, like)
    assert torch.equal(together, values)
    assert together.dtype == torch.float64
    assert torch.equal(flat(together * 2.0), 2.0 * flat(together))
    # the same coordinate stands in the same place: pairs survive sorting by either
    pairs = {(float(a), float(b)) for a, b in zip(flat(like).tolist(), flat(together).tolist(), strict=True)}
    assert pairs == {(float(a), float(b)) for a, b in zip(like.reshape(-1).tolist(), values.reshape(-1).tolist(), strict=True)}  # fmt: skip  # noqa: E501


def test_what_lies_alike_is_left_alone() -> None:
    like = LAYOUTS["channels last"]
    values = torch.zeros_like(like)
    assert laid_out_like(values, like) is values
