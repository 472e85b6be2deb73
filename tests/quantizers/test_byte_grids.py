"""Codes of 16 and 24 bits as sums of int8 grids."""

from __future__ import annotations

import pytest
import torch

from bench.quantizers.base import dequantize
from bench.quantizers.byte_grids import byte_grids, largest_code

ONE = torch.ones(())


def test_the_largest_codes_are_those_that_signed_bytes_reach():
    assert [largest_code(bits) for bits in (8, 16, 24)] == [127, 127 * 256 + 127, 127 * 65536 + 127 * 256 + 127]


def test_a_code_is_its_bytes_times_powers_of_256():
    high, low = byte_grids(torch.tensor([300.0, -300.0, 127.0, 128.0, -129.0, 0.0]), ONE, 16)
    # 300 = 1·256 + 44; 128 is one byte too large for the low one: 1·256 − 128
    assert high.codes.tolist() == [1, -1, 0, 1, -1, 0]
    assert low.codes.tolist() == [44, -44, 127, -128, 127, 0]
    assert (high.scale, low.scale) == (256, 1)
    assert all((grid.mult, grid.offset, grid.bits) == (1, 0, 16) for grid in (high, low))


@pytest.mark.parametrize("bits", [8, 16, 24])
def test_the_grids_add_up_to_every_code(bits):
    top = largest_code(bits)
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(-top, top + 1, (5000,), generator=generator).float()
    codes[:4] = torch.tensor([top, -top, 0.0, top - 1.0])
    grids = byte_grids(codes, ONE, bits)
    assert len(grids) == bits // 8
    assert torch.equal(sum(dequantize(grid).double() for grid in grids), codes.double())
    for grid in grids:
        assert grid.codes.dtype == torch.int8
        assert grid.codes.abs().max().item() <= grid.code_max or grid.codes.min().item() == -128
    assert grids[0].codes.max() == 127
