"""A convolution's three products equal int64, bit for bit, for any geometry."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from bench.errors import ShapeError
from bench.kernels import conv, reference
from bench.kernels.conv_plan import ConvPlan, plan_conv, split_images
from bench.kernels.int_mm import record_gemms


@st.composite
def plans(draw: st.DrawFn) -> ConvPlan:
    """Any geometry with an output: groups from none to depthwise, channels that need padding and that do not."""
    groups = draw(st.sampled_from([1, 1, 1, 2, 3, 8, 20]))
    c_group, o_group = draw(st.sampled_from([1, 2, 3, 5, 8, 16])), draw(st.sampled_from([1, 2, 4, 9, 16]))
    n, h, w = draw(st.integers(1, 3)), draw(st.integers(1, 9)), draw(st.integers(1, 9))
    r, s = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    stride = (draw(st.integers(1, 3)), draw(st.integers(1, 4)))
    dilation = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    padding = tuple((draw(st.integers(0, 3)), draw(st.integers(0, 3))) for _ in range(2))
    for size, taps, step, pads in ((h, r, dilation[0], padding[0]), (w, s, dilation[1], padding[1])):
        assume(size + sum(pads) >= step * (taps - 1) + 1)
    shapes = (n, groups * c_group, h, w), (groups * o_group, c_group, r, s)
    return plan_conv(*shapes, stride, padding, dilation, groups)


def full_range(shape: tuple[int, ...], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-128, 128, shape, dtype=torch.int8, generator=generator)


def operands(plan: ConvPlan, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    a = full_range((plan.n, plan.h, plan.w, plan.c), seed)
    w = full_range((plan.o, plan.r, plan.s, plan.c // plan.groups), seed + 1)
    err = full_range((plan.n, plan.p, plan.q, plan.o), seed + 2)
    return a, w, err


def check_fprop(plan: ConvPlan, seed: int, pad_value: int) -> None:
    a, w, _ = operands(plan, seed)
    acc, sums = conv.fprop(a, w, plan, pad_value=pad_value)
    ones = torch.ones_like(w)[:: plan.o // plan.groups]
    each = dataclasses.replace(plan, o=plan.groups)
    assert torch.equal(sums.to(torch.int64), reference.fprop_reference(a, ones, each, pad_value=pad_value))
    assert torch.equal(acc.to(torch.int64), reference.fprop_reference(a, w, plan, pad_value=pad_value))


def check_dgrad(plan: ConvPlan, seed: int) -> None:
    _, w, err = operands(plan, seed)
    acc, sums = conv.dgrad(err, w, plan)
    assert torch.equal(acc.to(torch.int64), reference.dgrad_reference(err, w, plan))
    of_ones = reference.dgrad_reference(err, torch.ones_like(w), plan)
    assert torch.equal(sums.to(torch.int64), of_ones[..., :: plan.c // plan.groups])


def check_wgrad(plan: ConvPlan, seed: int, pad_value: int) -> None:
    a, _, err = operands(plan, seed)
    acc, sums = conv.wgrad(a, err, plan, pad_value=pad_value)
    assert torch.equal(sums.to(torch.int64), err.sum((0, 1, 2), dtype=torch.int64))
    assert torch.equal(acc.to(torch.int64), reference.wgrad_reference(a, err, plan, pad_value=pad_value))


FAST = settings(max_examples=60, deadline=None, derandomize=True)
MANY = settings(max_examples=250, deadline=None, derandomize=False)
SEEDS, PADS = st.integers(0, 2**31), st.sampled_from([0, -8, -128])


@FAST
@given(plan=plans(), seed=SEEDS, pad_value=PADS)
def test_fprop_equals_int64(plan, seed, pad_value):
    check_fprop(plan, seed, pad_value)


@FAST
@given(plan=plans(), seed=SEEDS)
def test_dgrad_equals_int64(plan, seed):
    check_dgrad(plan, seed)


@FAST
@given(plan=plans(), seed=SEEDS, pad_value=PADS)
def test_wgrad_equals_int64(plan, seed, pad_value):
    check_wgrad(plan, seed, pad_value)


@pytest.mark.slow
@MANY
@given(plan=plans(), seed=SEEDS, pad_value=PADS)
def test_fprop_equals_int64_on_many_more_geometries(plan, seed, pad_value):
    check_fprop(plan, seed, pad_value)


@pytest.mark.slow
@MANY
@given(plan=plans(), seed=SEEDS)
def test_dgrad_equals_int64_on_many_more_geometries(plan, seed):
    check_dgrad(plan, seed)


@pytest.mark.slow
@MANY
@given(plan=plans(), seed=SEEDS, pad_value=PADS)
def test_wgrad_equals_int64_on_many_more_geometries(plan, seed, pad_value):
    check_wgrad(plan, seed, pad_value)


def test_wgrad_of_a_long_batch_is_split_and_stays_exact():
    plan = plan_conv((132, 1, 32, 32), (1, 1, 1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1), 1)
    a = torch.full((132, 32, 32, 1), -128, dtype=torch.int8)
    err = torch.full((132, 32, 32, 1), -128, dtype=torch.int8)
    with record_gemms() as calls:
        acc, sums = conv.wgrad(a, err, plan)
    assert sums.tolist() == [-135_168 * 128]
    assert plan.rows == 135_168
    assert acc.dtype == torch.int64
    assert acc.item() == 135_168 * 128 * 128 > 2**31
    assert calls[0].path == "int_mm, K in 2 parts"


def test_wgrad_of_a_wide_layer_takes_the_error_as_its_rows_and_stays_exact():
    plan = plan_conv((2, 200, 3, 3), (160, 200, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1)
    with record_gemms() as calls:
        check_wgrad(plan, 0, -128)
    assert [(call.m, call.k) for call in calls] == [(160, 24)]


def test_a_batch_larger_than_the_caches_runs_in_pieces_that_add_up():
    plan = plan_conv((5, 64, 40, 40), (8, 64, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1)
    parts = split_images(plan, "cpu")
    assert [images for images, _ in parts] == [slice(0, 3), slice(3, 5)]
    assert [part.n for _, part in parts] == [3, 2]
    assert [part.n for _, part in split_images(plan, "cuda")] == [5]
    check_wgrad(plan, 0, -128)


def test_a_strided_dgrad_multiplies_no_inserted_zeros():
    plan = plan_conv((2, 16, 8, 8), (16, 16, 3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1), 1)
    _, w, err = operands(plan, 0)
    with record_gemms() as calls:
        conv.dgrad(err, w, plan)
    # 1 + 2 + 2 + 4 taps of 16 channels, each over a quarter of the positions
    assert sorted((call.m, call.k) for call in calls) == [(32, 16), (32, 32), (32, 32), (32, 64)]
    assert sum(call.m * call.k for call in calls) == plan.n * 8 * 8 * 9 * 16 // 4


def test_a_depthwise_convolution_runs_in_blocks_of_sixteen_channels():
    plan = plan_conv((2, 40, 6, 6), (40, 1, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 40)
    a, w, _ = operands(plan, 0)
    with record_gemms() as calls:
        conv.fprop(a, w, plan)
    # beside each block's channels a column per group that sums the input
    assert [(call.n, call.k) for call in calls] == [(16 + 16, 144), (16 + 16, 144), (8 + 8, 72)]


def test_a_single_pixel_with_odd_strides_is_read_rightly():
    plan = plan_conv((1, 8, 1, 1), (2, 8, 1, 1), (1, 1), ((1, 1), (0, 0)), (1, 2), 1)
    _, w, _ = operands(plan, 0)
    a = full_range((1, 8, 1, 1), 4).permute(0, 2, 3, 1)
    assert a.is_contiguous()
    assert a.stride() != a.clone(memory_format=torch.contiguous_format).view(-1).view(a.shape).stride()
    for padding in (((1, 1), (0, 0)), ((0, 0), (0, 0))):
        plan = plan_conv((1, 8, 1, 1), (2, 8, 1, 1), (1, 1), padding, (1, 2), 1)
        acc, _ = conv.fprop(a, w, plan)
        assert torch.equal(acc.to(torch.int64), reference.fprop_reference(a, w, plan))


def test_images_inside_a_larger_batch_are_read_where_they_lie():
    plan = plan_conv((2, 3, 5, 5), (4, 3, 3, 3), (1, 1), ((0, 0), (0, 0)), (1, 1), 1)
    wide = full_range((3, 5, 5, 3), 4)
    _, w, _ = operands(plan, 0)
    acc, _ = conv.fprop(wide[1:], w, plan)
    assert torch.equal(acc.to(torch.int64), reference.fprop_reference(wide[1:].clone(), w, plan))


@pytest.mark.parametrize(
    ("x_shape", "w_shape", "groups", "words"),
    [
        ((3, 8, 8), (4, 3, 3, 3), 1, "give (N, C, H, W)"),
        ((1, 4, 8, 8), (4, 3, 3, 3), 1, "4 channels and the weight wants 3"),
        ((1, 3, 2, 2), (4, 3, 5, 5), 1, "leaves no output"),
        ((0, 3, 8, 8), (4, 3, 3, 3), 1, "leaves no output"),
    ],
)
def test_geometries_that_do_not_fit_are_refused_in_a_sentence(x_shape, w_shape, groups, words):
    with pytest.raises(ShapeError) as refusal:
        plan_conv(x_shape, w_shape, (1, 1), ((0, 0), (0, 0)), (1, 1), groups)
    assert words in str(refusal.value)
