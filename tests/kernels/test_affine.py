"""Zero-point sums are added as integers, wide enough, before anything becomes a float."""

from __future__ import annotations

import torch

from bench.kernels import affine


def test_a_total_within_int32_stays_int32_even_if_a_step_on_the_way_wraps():
    # 2·(2³⁰ + 1) wraps to a negative int32; minus 4 it is back in range
    acc = torch.tensor([[2**30 + 1]], dtype=torch.int32)
    total = affine.combine(acc, factor=2, rows=torch.tensor([[-4]]), bound=2**31 - 1)
    assert total.dtype == torch.int32
    assert total.item() == 2**31 - 2


def test_a_total_beyond_int32_is_added_in_int64():
    # docs/method.md section 2: 131,072·127·128 just fits, 128·Σq on top of it reaches 4.2e9
    acc = torch.tensor([[131_072 * 127 * 127]], dtype=torch.int32)
    zero_point = torch.tensor([[128 * 131_072 * 127]])
    total = affine.combine(acc, factor=1, rows=zero_point, bound=131_072 * 127 * 255)
    assert total.dtype == torch.int64
    assert total.item() == 131_072 * 127 * 255 == 4_244_766_720


def test_rows_and_columns_broadcast_over_the_sums():
    acc = torch.zeros(2, 3, dtype=torch.int32)
    rows, columns = torch.tensor([[10], [20]]), torch.tensor([1, 2, 3])
    total = affine.combine(acc, factor=5, rows=rows, columns=columns, bound=100)
    assert total.tolist() == [[11, 12, 13], [21, 22, 23]]


def test_dequantizing_rounds_the_exact_integer_once():
    total = torch.tensor([2**24 + 1, 2**24 + 3, -(2**40) - 1])
    assert affine.dequantize(total, torch.tensor(1.0)).tolist() == [2.0**24, 2.0**24 + 4, -(2.0**40)]
    assert affine.dequantize(torch.tensor([3, -5]), torch.tensor(0.5)).tolist() == [1.5, -2.5]
