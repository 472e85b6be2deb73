"""INT4 codes two to a byte."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import native
from bench.errors import ShapeError
from bench.kernels.int4 import gemm_label, pack_int4, unpack_int4


@settings(max_examples=60, deadline=None, derandomize=True)
@given(codes=st.lists(st.integers(-8, 7), max_size=40))
def test_unpacking_undoes_packing(codes):
    tensor = torch.tensor(codes, dtype=torch.int8)
    packed = pack_int4(tensor)
    assert packed.nbytes == (len(codes) + 1) // 2
    assert torch.equal(unpack_int4(packed, tuple(tensor.shape)), tensor)


@pytest.mark.parametrize("size", [0, 1, 2, 31, 4097, 200_001])
def test_the_compiled_piece_packs_as_torch_does(size):
    codes = torch.randint(-8, 8, (size,), dtype=torch.int8)
    packed = pack_int4(codes)
    with native.disabled():
        assert torch.equal(pack_int4(codes), packed)
        assert torch.equal(unpack_int4(packed, (size,)), codes)
    assert torch.equal(unpack_int4(packed, (size,)), codes)


def test_the_first_code_lies_in_the_low_half():
    assert pack_int4(torch.tensor([[1, -1], [-8, 7]], dtype=torch.int8)).tolist() == [0xF1, 0x78]


def test_wrong_dtypes_and_sizes_are_refused():
    with pytest.raises(ShapeError, match=r"give torch\.int8"):
        pack_int4(torch.zeros(4))
    with pytest.raises(ShapeError, match="do not hold 5 codes"):
        unpack_int4(torch.zeros(2, dtype=torch.uint8), (5,))


def test_only_products_of_two_int4_operands_are_called_emulated():
    assert gemm_label(4, 4) == "emulated"
    assert gemm_label(4, 8) == gemm_label(8, 8) == gemm_label(6, 5) == "integer"
