"""The one caller of torch._int_mm: exact, padded by CUDA's rules on every device, strict about layouts, counted."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bench.errors import ShapeError
from bench.kernels.int_mm import INT32_MAX, CheckedProduct, int_mm, max_reduction, record_gemms
from bench.kernels.reference import int_mm_reference

SIZES = {"m": st.integers(1, 70), "k": st.integers(1, 300), "n": st.integers(1, 40), "seed": st.integers(0, 2**31)}


def full_range(shape: tuple[int, ...], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-128, 128, shape, dtype=torch.int8, generator=generator)


def check_product(m: int, k: int, n: int, seed: int) -> None:
    a, b = full_range((m, k), seed), full_range((n, k), seed + 1)
    a[0], b[0] = -128, -128
    product = int_mm(a, b.t())
    assert product.dtype == torch.int32
    assert torch.equal(product.to(torch.int64), int_mm_reference(a, b.t()))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(**SIZES)
def test_the_product_is_exact_for_full_range_operands_of_any_size(m, k, n, seed):
    check_product(m, k, n, seed)


@pytest.mark.slow
@settings(max_examples=250, deadline=None, derandomize=False)
@given(**SIZES)
def test_the_product_is_exact_for_many_more_full_range_operands(m, k, n, seed):
    check_product(m, k, n, seed)


def test_every_size_that_ran_obeys_the_rules_of_cuda():
    with record_gemms() as calls:
        for m, k, n in [(1, 1, 1), (16, 27, 10), (17, 8, 8), (16, 8, 8), (18, 9, 8), (100, 64, 63)]:
            int_mm(full_range((m, k), 0), full_range((n, k), 1).t(), gemm="fprop", layer="probe")
    assert [call.padded for call in calls] == [
        (17, 8, 8),
        (17, 32, 16),
        (17, 8, 8),
        (17, 8, 8),
        (18, 16, 8),
        (100, 64, 64),
    ]
    assert [(call.m, call.k, call.n) for call in calls[:2]] == [(1, 1, 1), (16, 27, 10)]
    assert {(call.gemm, call.layer, call.path) for call in calls} == {("fprop", "probe", "int_mm")}


def test_the_longest_reduction_that_fits_is_not_split():
    k = max_reduction(128, 128)
    assert k == 131071
    assert k * 128 * 128 <= INT32_MAX < (k + 1) * 128 * 128
    a, b = torch.full((17, k), -128, dtype=torch.int8), torch.full((8, k), -128, dtype=torch.int8)
    with record_gemms() as calls:
        product = int_mm(a, b.t())
    assert product.dtype == torch.int32
    assert product.eq(k * 128 * 128).all()
    assert calls[0].path == "int_mm"


@pytest.mark.parametrize("k", [131072, 131080, 270000])
def test_a_longer_reduction_is_split_and_joined_in_int64(k):
    a, b = torch.full((17, k), -128, dtype=torch.int8), torch.full((8, k), -128, dtype=torch.int8)
    with record_gemms() as calls:
        product = int_mm(a, b.t())
    assert product.dtype == torch.int64
    assert product.eq(k * 128 * 128).all()
    assert calls[0].path == f"int_mm, K in {-(-k // 131064)} parts"


def test_declared_maxima_lengthen_the_reduction_that_needs_no_split():
    k = 131072
    a, b = torch.full((17, k), 127, dtype=torch.int8), torch.full((8, k), -128, dtype=torch.int8)
    product = int_mm(a, b.t(), a_max=127)
    assert product.dtype == torch.int32
    assert product.eq(-k * 127 * 128).all()


def test_inserted_zeros_do_not_count_as_terms():
    k = 200_000
    a, b = torch.zeros(17, k, dtype=torch.int8), torch.full((8, k), -128, dtype=torch.int8)
    a[:, :1000] = -128
    product = int_mm(a, b.t(), terms=1000)
    assert product.dtype == torch.int32
    assert product.eq(1000 * 128 * 128).all()


def test_an_empty_product_is_zero():
    assert torch.equal(
        int_mm(torch.zeros(3, 0, dtype=torch.int8), torch.zeros(5, 0, dtype=torch.int8).t()),
        torch.zeros(3, 5, dtype=torch.int32),
    )
    assert int_mm(torch.zeros(0, 4, dtype=torch.int8), torch.zeros(5, 4, dtype=torch.int8).t()).shape == (0, 5)


def test_the_output_lands_in_the_buffer_that_was_given():
    a, b, out = full_range((32, 16), 0), full_range((8, 16), 1), torch.empty(32, 8, dtype=torch.int32)
    assert int_mm(a, b.t(), out=out).data_ptr() == out.data_ptr()
    assert torch.equal(out.to(torch.int64), int_mm_reference(a, b.t()))


GOOD_A, GOOD_B = full_range((32, 16), 0), full_range((8, 16), 1)


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        (GOOD_A.float(), GOOD_B.t(), "A is torch.float32; quantize it"),
        (GOOD_A, GOOD_B.t().to(torch.uint8), "B is torch.uint8; quantize it"),
        (GOOD_A[0], GOOD_B.t(), "A has 1 dimensions"),
        (GOOD_A[:, :8].contiguous(), GOOD_B.t(), "A is 32×8 and B is 16×8"),
        (GOOD_A.t().contiguous().t(), GOOD_B.t(), "not the layout (M, K) row-major"),
        (GOOD_A, GOOD_B.t().contiguous(), "not the layout the transpose of a contiguous (N, K)"),
        (GOOD_A[:1].expand(32, 16), GOOD_B.t(), "expanded and overlapping operands give wrong numbers"),
        (GOOD_A, GOOD_B[:1].expand(8, 16).t(), "expanded and overlapping operands give wrong numbers"),
        (GOOD_A.flatten().as_strided((32, 16), (8, 1)), GOOD_B.t(), "has strides (8, 1) for shape (32, 16)"),
        (GOOD_A[:, ::2], GOOD_B[:, :8].contiguous().t(), "has strides (16, 2)"),
    ],
)
def test_operands_that_the_kernel_would_multiply_wrongly_are_refused_in_a_sentence(a, b, words):
    with pytest.raises(ShapeError) as refusal:
        int_mm(a, b)
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_declared_maxima_outside_int8_are_refused():
    with pytest.raises(ShapeError, match=r"must lie in 1\.\.128"):
        int_mm(GOOD_A, GOOD_B.t(), a_max=255)


def test_recordings_nest_and_the_outer_one_sees_everything():
    with record_gemms() as outer:
        int_mm(GOOD_A, GOOD_B.t(), layer="before")
        with record_gemms() as inner:
            int_mm(GOOD_A, GOOD_B.t(), layer="inside")
        int_mm(GOOD_A, GOOD_B.t(), layer="after")
    int_mm(GOOD_A, GOOD_B.t(), layer="unseen")
    assert [call.layer for call in inner] == ["inside"]
    assert [call.layer for call in outer] == ["before", "inside", "after"]


def test_threads_change_no_integer():
    a, b = full_range((4096, 144), 0), full_range((16, 144), 1)
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(int_mm(a, b.t()))
    assert torch.equal(*results)
    assert torch.equal(results[0].to(torch.int64), int_mm_reference(a, b.t()))


def checked(m: int, k: int, n: int, **changes) -> CheckedProduct:
    given = {"a_max": 128, "b_max": 128, "terms": k, "rows": m, "macs": m * k * n, **changes}
    out = given.pop("out", torch.empty(m, n, dtype=torch.int32))
    return CheckedProduct(full_range((m, k), 0), full_range((n, k), 1).t(), out, **given)


def test_a_checked_product_multiplies_what_its_operands_hold_at_each_call():
    product = checked(24, 64, 16, rows=20)
    a, b, out = product.operands
    for seed in (3, 4):
        a.copy_(full_range((24, 64), seed))
        b.copy_(full_range((16, 64), seed + 1))
        with record_gemms() as calls:
            product(gemm="dgrad", layer="probe")
        assert torch.equal(out.to(torch.int64), int_mm_reference(a, b.t()))
    (call,) = calls
    assert (call.gemm, call.layer, call.m, call.padded, call.path) == ("dgrad", "probe", 20, (24, 64, 16), "int_mm")


@pytest.mark.parametrize(
    ("sizes", "changes", "words"),
    [
        ((16, 64, 16), {}, "not a padded size"),
        ((24, 63, 16), {}, "not a padded size"),
        ((24, 64, 15), {}, "not a padded size"),
        ((24, 64, 16), {"out": torch.empty(24, 8, dtype=torch.int32)}, "contiguous int32 tensor of 24×16"),
        ((24, 64, 16), {"out": torch.empty(24, 16)}, "contiguous int32 tensor"),
        ((17, 131_072, 8), {}, "which splits"),
        ((24, 64, 16), {"a_max": 129}, "must lie in 1..128"),
    ],
)
def test_what_int_mm_would_pad_split_or_refuse_is_no_checked_product(sizes, changes, words):
    with pytest.raises(ShapeError, match=words):
        checked(*sizes, **changes)
