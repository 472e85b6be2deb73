"""A linear layer's three products equal int64, bit for bit."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.kernels import linear


@settings(max_examples=60, deadline=None, derandomize=True)
@given(m=st.integers(1, 40), k=st.integers(1, 70), n=st.integers(1, 30), seed=st.integers(0, 2**31))
def test_all_three_products_equal_int64(m, k, n, seed):
    generator = torch.Generator().manual_seed(seed)
    a, w, err = (
        torch.randint(-128, 128, shape, dtype=torch.int8, generator=generator) for shape in ((m, k), (n, k), (m, n))
    )
    wide_a, wide_w, wide_err = a.to(torch.int64), w.to(torch.int64), err.to(torch.int64)
    assert torch.equal(linear.fprop(a, w).to(torch.int64), wide_a @ wide_w.t())
    assert torch.equal(linear.dgrad(err, w).to(torch.int64), wide_err @ wide_w)
    assert torch.equal(linear.wgrad(a, err).to(torch.int64), wide_err.t() @ wide_a)
    assert torch.equal(linear.sum_rows(a), wide_a.sum(1, keepdim=True))
