"""Flags survive packing, whatever their count and shape."""

from __future__ import annotations

import pytest
import torch

from bench.native.bits import pack_bits, packed_size, unpack_bits


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 255, 256, 257, 1025])
def test_flags_come_back_as_they_went_in(count):
    flags = torch.rand(count, generator=torch.Generator().manual_seed(count)) < 0.5
    bits = pack_bits(flags)
    assert (bits.dtype, bits.numel()) == (torch.uint8, packed_size(count))
    assert torch.equal(unpack_bits(bits, (count,)), flags.to(torch.int8))


def test_the_first_flag_is_the_lowest_bit_and_the_tail_is_zero():
    assert pack_bits(torch.tensor([1, 0, 0, 0, 0, 0, 0, 1, 1, 1], dtype=torch.int8)).tolist() == [129, 3]


def test_flags_of_any_shape_keep_their_order():
    flags = torch.rand(3, 5, 2, 7, generator=torch.Generator().manual_seed(0)) < 0.5
    assert torch.equal(unpack_bits(pack_bits(flags), flags.shape), flags.to(torch.int8))
    turned = flags.permute(3, 1, 0, 2)
    assert torch.equal(unpack_bits(pack_bits(turned), turned.shape), turned.to(torch.int8))
