"""The compiled products of a linear layer equal their plain twins and int64, at the accumulator's bound and past it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bench import native
from bench.kernels.int_mm import INT32_MAX, record_gemms
from bench.layers.integer_linear import integer_dgrad, integer_fprop, integer_wgrad
from bench.quantizers.base import QTensor

pytestmark = pytest.mark.skipif(not native.usable(torch.device("cpu")), reason=native.status())

SIGNED = (1, 0, -127, 127)  # mult, offset, lowest and highest code
ODD = (2, 1, -128, 127)  # DoReFa's weights and gradients
SHIFTED = (1, 128, -128, 127)  # DoReFa's activations


def operand(shape: tuple[int, int], grid: tuple[int, int, int, int], seed: int | None = None) -> QTensor:
    """Full-range codes; without a seed the ones of the largest values."""
    mult, offset, low, high = grid
    generator = torch.Generator().manual_seed(seed or 0)
    codes = torch.randint(low, high + 1, shape, dtype=torch.int8, generator=generator)
    if seed is None:
        codes.fill_(high)
    largest = max(abs(mult * low + offset), abs(mult * high + offset))
    return QTensor(
        codes=codes, scale=torch.tensor(0.37), mult=mult, offset=offset, bits=8, code_max=max(-low, high),
        value_max=largest,
    )  # fmt: skip


def values(q: QTensor) -> Tensor:
    return q.codes.to(torch.int64) * q.mult + q.offset


def expected(total: Tensor, left: QTensor, right: QTensor) -> Tensor:
    return total.to(torch.float32) * (left.scale * right.scale)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    m=st.integers(1, 40),
    k=st.integers(1, 70),
    n=st.integers(1, 40),
    w=st.sampled_from([SIGNED, ODD]),
    error=st.sampled_from([SIGNED, ODD]),
    a=st.sampled_from([SIGNED, SHIFTED]),
    with_bias=st.booleans(),
    seed=st.integers(1, 99),
)
def test_compiled_products_are_those_of_int64_and_of_the_plain_twins(m, k, n, w, error, a, with_bias, seed):
    w_nk, error_mn, a_mk = operand((n, k), w, seed), operand((m, n), error, seed + 1), operand((m, k), a, seed + 2)
    bias = torch.randn(n) if with_bias else None
    bits = torch.randint(0, 256, (-(-m * k // 8),), dtype=torch.uint8)
    sums = error_mn.codes.sum(0, dtype=torch.int64)

    def all_three() -> tuple[Tensor, Tensor, Tensor]:
        return (
            integer_fprop(a_mk, w_nk, "l", bias=bias), integer_dgrad(error_mn, w_nk, "l", inside=bits),
            integer_wgrad(a_mk, error_mn, sums, "l"),
        )  # fmt: skip

    y, dx, dw = all_three()
    with native.disabled():
        assert all(torch.equal(*pair) for pair in zip((y, dx, dw), all_three(), strict=True))
    exact = expected(values(a_mk) @ values(w_nk).t(), a_mk, w_nk)
    assert torch.equal(y, exact if bias is None else exact + bias)
    places = torch.arange(m * k).view(m, k)
    passes = bits[places // 8] >> (places % 8) & 1
    assert torch.equal(dx, expected(values(error_mn) @ values(w_nk), error_mn, w_nk) * passes)
    assert torch.equal(dw, expected(values(error_mn).t() @ values(a_mk), a_mk, error_mn))


@pytest.mark.parametrize("gemm", ["fprop", "dgrad", "wgrad"])
@pytest.mark.parametrize("past", [0, 1])
def test_sums_at_the_accumulators_bound_and_past_it_are_exact(gemm, past):
    largest = 255 * 255
    terms = INT32_MAX // largest + past
    with record_gemms() as calls:
        if gemm == "fprop":
            found = integer_fprop(operand((2, terms), SHIFTED), operand((3, terms), ODD), "l")
        elif gemm == "dgrad":
            found = integer_dgrad(operand((2, terms), ODD), operand((terms, 3), ODD), "l")
        else:
            error = operand((terms, 2), ODD)
            found = integer_wgrad(operand((terms, 3), SHIFTED), error, error.codes.sum(0, dtype=torch.int64), "l")
    total = torch.tensor(terms * largest, dtype=torch.int64)
    assert int(total) > INT32_MAX if past else int(total) <= INT32_MAX
    assert torch.equal(found, expected(total, operand((1, 1), ODD), operand((1, 1), ODD)).expand_as(found))
    assert {call.gemm for call in calls} == {gemm}


def test_a_reduction_too_long_for_one_product_is_split_and_exact():
    a, w = operand((2, 140_000), SIGNED), operand((9, 140_000), SIGNED)
    with record_gemms() as calls:
        y = integer_fprop(a, w, "l")
    assert [call.path for call in calls] == ["int_mm, K in 2 parts"]
    assert torch.equal(y, expected(torch.tensor(140_000 * 127 * 127), a, w).expand(2, 9))
