"""The compiled gathering, products and landing equal int64, bit for bit, for any geometry; so do direct depthwise sums.

Totals are converted to float32 once, so the expected value is the int64 total in float32.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from bench import native
from bench.kernels import conv_native, conv_parts, depthwise, reference
from bench.kernels.conv_native import Grids
from bench.kernels.conv_plan import ConvPlan, plan_conv
from bench.kernels.im2col import Axis
from bench.kernels.int_mm import record_gemms
from bench.layers.conv_products import integer_fprop, integer_wgrad
from bench.native.bits import pack_bits
from bench.quantizers.base import QTensor

pytestmark = pytest.mark.skipif(not native.usable(torch.device("cpu")), reason=native.status())

FAST = settings(max_examples=60, deadline=None, derandomize=True)
MANY = settings(max_examples=250, deadline=None, derandomize=False)
SEEDS, PADS = st.integers(0, 2**31), st.sampled_from([0, -8, -128])
ONE = torch.ones(())


@st.composite
def plans(draw: st.DrawFn, *, by_channel: bool = False) -> ConvPlan:
    """Any geometry with an output; wide rows and few channels, so that every pack factor comes up."""
    groups = (
        draw(st.sampled_from([2, 3, 16, 17, 40])) if by_channel else draw(st.sampled_from([1, 1, 1, 1, 2, 3, 8, 20]))
    )
    c_group, o_group = (
        draw(st.sampled_from([1, 2, 3, 5, 8, 16, 33])),
        draw(st.sampled_from([1, 2, 4, 8, 9, 16, 32, 40])),
    )
    if by_channel:
        c_group = o_group = 1
    n, h, w = draw(st.integers(1, 3)), draw(st.integers(1, 9)), draw(st.sampled_from([1, 2, 4, 5, 8, 9, 16, 18]))
    r, s = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    stride = (draw(st.integers(1, 3)), draw(st.sampled_from([1, 1, 2, 3])))
    dilation = (draw(st.integers(1, 3)), draw(st.sampled_from([1, 1, 2, 3])))
    padding = tuple((draw(st.integers(0, 3)), draw(st.integers(0, 3))) for _ in range(2))
    for size, taps, step, pads in ((h, r, dilation[0], padding[0]), (w, s, dilation[1], padding[1])):
        assume(size + sum(pads) >= step * (taps - 1) + 1)
    shapes = (n, groups * c_group, h, w), (groups * o_group, c_group, r, s)
    return plan_conv(*shapes, stride, padding, dilation, groups)


def full_range(shape: tuple[int, ...], seed: int, bits: int = 8) -> Tensor:
    half = 2 ** (bits - 1)
    return torch.randint(-half, half, shape, dtype=torch.int8, generator=torch.Generator().manual_seed(seed))


def operands(plan: ConvPlan, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    bits = 8 if seed % 3 else 4
    a = full_range((plan.n, plan.h, plan.w, plan.c), seed)
    w = full_range((plan.o, plan.r, plan.s, plan.c // plan.groups), seed + 1, bits)
    err = full_range((plan.n, plan.p, plan.q, plan.o), seed + 2, bits)
    return a, w, err


def grids(factor: int = 1, row_weight: int = 0, bound: int = 2**31 - 1) -> Grids:
    return Grids(a_max=128, b_max=128, factor=factor, row_weight=row_weight, bound=bound)


def drawn(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randint(-5000, 5000, shape, generator=torch.Generator().manual_seed(seed))


def check_fprop(plan: ConvPlan, seed: int, pad_value: int) -> None:
    a, w, _ = operands(plan, seed)
    columns = drawn((plan.o,), seed) if seed % 2 else None
    row_weight = seed % 3 - 1
    scale = torch.rand(plan.o, generator=torch.Generator().manual_seed(seed)) if seed % 5 == 0 else ONE
    bias = torch.randn(plan.o, generator=torch.Generator().manual_seed(seed)) if seed % 7 < 3 else None
    y = conv_native.fprop(
        a, w, plan, grids(2, row_weight), pad_value=pad_value, columns=columns, scale=scale, bias=bias, layer="probe"
    )
    total = 2 * reference.fprop_reference(a, w, plan, pad_value=pad_value)
    total += row_weight * reference.fprop_reference(a, torch.ones_like(w), plan, pad_value=pad_value)
    expected = (total if columns is None else total + columns).float() * scale
    expected = expected if bias is None else expected + bias
    assert torch.equal(y, expected.view(y.shape))


def check_dgrad(plan: ConvPlan, seed: int) -> None:
    _, w, err = operands(plan, seed)
    shape = (plan.n, plan.h, plan.w, plan.c)
    places = drawn(shape[1:], seed) if seed % 2 else None
    flags = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    row_weight = seed % 3 - 1
    dx = conv_native.dgrad(
        err, w, plan, grids(2, row_weight), places=places, scale=torch.tensor(0.25),
        bits=pack_bits(flags) if seed % 5 < 3 else None, layer="probe",
    )  # fmt: skip
    total = 2 * reference.dgrad_reference(err, w, plan)
    total += row_weight * reference.dgrad_reference(err, torch.ones_like(w), plan)
    if places is not None:  # where no tap reaches there is no product to add to, and an offset adds nothing
        reached = reference.dgrad_reference(torch.ones_like(err), torch.ones_like(w), plan) != 0
        total, dx = total + places * reached, dx * reached
    expected = total.float() * 0.25
    assert torch.equal(dx, expected * flags if seed % 5 < 3 else expected)


def check_wgrad(plan: ConvPlan, seed: int, pad_value: int) -> None:
    a, _, err = operands(plan, seed)
    rows = drawn((plan.o,), seed) * 2**20 if seed % 2 else None
    columns = drawn((plan.o, plan.r, plan.s, plan.c // plan.groups), seed) if seed % 3 else None
    scale = torch.rand(plan.o, generator=torch.Generator().manual_seed(seed)) if seed % 5 == 0 else ONE
    dw = conv_native.wgrad(
        a, err, plan, grids(2), pad_value=pad_value, rows=rows, columns=columns, scale=scale, layer="probe"
    )
    total = 2 * reference.wgrad_reference(a, err, plan, pad_value=pad_value)
    total = total if rows is None else total + rows.view(-1, 1, 1, 1)
    total = total if columns is None else total + columns
    assert torch.equal(dw, total.float() * (scale.view(-1, 1, 1, 1) if scale.dim() else scale))
    assert torch.equal(conv_native.channel_sums(err), err.sum((0, 1, 2), dtype=torch.int64))


def check_depthwise(plan: ConvPlan, seed: int, pad_value: int) -> None:
    assert depthwise.is_depthwise(plan)
    a, w, err = operands(plan, seed)
    weight = w.squeeze(3).permute(1, 2, 0).contiguous().to(torch.int16)
    columns, flags = drawn((plan.o,), seed), pack_bits(drawn((plan.n, plan.h, plan.w, plan.c), seed) > 0)
    given = {"scale": torch.tensor(0.5), "layer": "probe"}
    common = {"pad_value": pad_value, "columns": columns, "bias": None, **given}
    direct = depthwise.depthwise_fprop(a, weight, plan, **common)
    assert torch.equal(direct, conv_native.fprop(a, w, plan, grids(), **common))
    direct = depthwise.depthwise_dgrad(err, weight, plan, factor=2, places=None, bits=flags, **given)
    assert torch.equal(direct, conv_native.dgrad(err, w, plan, grids(2), places=None, bits=flags, **given))
    common = {"pad_value": pad_value, "rows": drawn((plan.o,), seed), "columns": None, **given}
    direct = depthwise.depthwise_wgrad(a, err, plan, factor=2, **common)
    assert torch.equal(direct, conv_native.wgrad(a, err, plan, grids(2), **common))


def check_nine_bits(plan: ConvPlan, seed: int, pad_value: int) -> None:
    """DoReFa's weights as integers, 2·code + 1, do not fit a byte."""
    a, w, err = operands(plan, seed)
    weight = (w.to(torch.int16) * 2 + 1).squeeze(3).permute(1, 2, 0).contiguous()
    given = {"scale": ONE, "layer": "probe"}
    y = depthwise.depthwise_fprop(a, weight, plan, pad_value=pad_value, columns=None, bias=None, **given)
    ones = torch.ones_like(w)
    total = 2 * reference.fprop_reference(a, w, plan, pad_value=pad_value)
    total += reference.fprop_reference(a, ones, plan, pad_value=pad_value)
    assert torch.equal(y, total.float().view(y.shape))
    dx = depthwise.depthwise_dgrad(err, weight, plan, factor=1, places=None, bits=None, **given)
    total = 2 * reference.dgrad_reference(err, w, plan) + reference.dgrad_reference(err, ones, plan)
    assert torch.equal(dx, total.float())


@pytest.mark.parametrize("kernel", [(3, 3), (5, 5), (1, 7), (7, 1), (17, 2)])
@pytest.mark.parametrize("channels", [2, 16, 64, 65, 144])
@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise_kernels_of_any_size_are_exact(kernel, channels, stride):
    padding = tuple((size // 2, size // 2) for size in kernel)
    plan = plan_conv((2, channels, 17, 9), (channels, 1, *kernel), (stride, stride), padding, (1, 1), channels)
    check_depthwise(plan, 3, -128)
    check_nine_bits(plan, 3, -128)


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


@FAST
@given(plan=plans(by_channel=True), seed=SEEDS, pad_value=PADS)
def test_direct_depthwise_sums_equal_the_products(plan, seed, pad_value):
    check_depthwise(plan, seed, pad_value)
    check_nine_bits(plan, seed, pad_value)


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


@pytest.mark.slow
@MANY
@given(plan=plans(by_channel=True), seed=SEEDS, pad_value=PADS)
def test_direct_depthwise_sums_equal_the_products_on_many_more_geometries(plan, seed, pad_value):
    check_depthwise(plan, seed, pad_value)


@pytest.mark.parametrize(
    ("outputs", "width", "pack"), [(40, 16, 1), (32, 16, 2), (16, 16, 4), (8, 16, 8), (8, 12, 4), (8, 9, 1)]
)
def test_neighbours_share_a_patch_and_every_pack_factor_is_exact(outputs, width, pack):
    axis = Axis(-1, 1, 3, 1, width)
    assert conv_parts.pack_of(outputs, axis, axis) == pack
    plan = plan_conv((2, 16, 5, width), (outputs, 16, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1)
    for seed in range(6):
        check_fprop(plan, seed, -128)
        check_dgrad(plan, seed)
        check_wgrad(plan, seed, -128)


def test_a_patch_that_saves_no_bytes_is_not_shared():
    assert conv_parts.pack_of(8, Axis(0, 1, 3, 3, 16), Axis(0, 1, 3, 3, 16)) == 1


def test_a_batch_larger_than_a_piece_runs_in_pieces():
    plan = plan_conv((14, 64, 40, 40), (72, 64, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1)
    with record_gemms() as calls:
        check_fprop(plan, 1, -128)
        check_wgrad(plan, 1, -128)
    assert [call.gemm for call in calls].count("fprop") > 1
    assert [call.gemm for call in calls].count("wgrad") > 1
    check_dgrad(plan, 1)


def test_a_stride_past_the_kernel_leaves_positions_that_nothing_reaches():
    plan = plan_conv((2, 3, 7, 7), (4, 3, 1, 1), (3, 2), ((0, 0), (0, 0)), (1, 1), 1)
    _, w, err = operands(plan, 1)
    dx = conv_native.dgrad(err, w, plan, grids(), places=None, scale=ONE, bits=None, layer="probe")
    assert not dx[:, 1::3].any()
    assert not dx[:, :, 1::2].any()


def worst(shape: tuple[int, ...]) -> Tensor:
    return torch.full(shape, -128, dtype=torch.int8)


@pytest.mark.parametrize("groups", [1, 16])
def test_a_long_sum_of_a_block_of_groups_stays_in_int32(groups):
    # 8,200 terms fit; the 16 groups of a block lie side by side in one product of 131,200, zeros but for a 16th
    plan = plan_conv((1, 8200 * groups, 1, 1), (groups, 8200, 1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1), groups)
    a, w = worst((1, 1, 1, plan.c)), worst((plan.o, 1, 1, 8200))
    bound = grids(bound=8200 * 128 * 128)
    with record_gemms() as calls:
        y = conv_native.fprop(
            a, w, plan, bound, pad_value=0, columns=None, scale=ONE, bias=None, layer="probe"
        )  # fmt: skip
    assert y.unique().tolist() == [8200 * 128 * 128]
    assert {call.path for call in calls} == {"int_mm"}


def test_the_bound_decides_at_its_edge():
    assert conv_native.fits(grids(bound=2**31 - 1))
    assert not conv_native.fits(grids(bound=2**31))


@pytest.mark.parametrize("terms", [131_071, 131_072])
def test_fprop_at_the_edge_of_the_accumulator_and_beyond_it(terms):
    plan = plan_conv((1, terms, 1, 1), (1, terms, 1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1), 1)
    y = integer_fprop(symmetric(worst((1, 1, 1, terms))), symmetric(worst((1, 1, 1, terms))), plan, "probe")
    assert y.item() == float(torch.tensor(terms * 128 * 128, dtype=torch.int64).float())


@pytest.mark.parametrize("rows", [131_071, 131_072])
def test_one_row_of_wgrad_at_the_edge_of_the_accumulator_and_beyond_it(rows):
    plan = plan_conv((1, 1, 1, rows), (1, 1, 1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1), 1)
    assert conv_native.check_wgrad(plan, grids()) == (rows == 131_071)
    codes = worst((1, 1, rows, 1))
    dw, sums = integer_wgrad(symmetric(codes), symmetric(codes), plan, "probe")
    assert dw.item() == float(torch.tensor(rows * 128 * 128, dtype=torch.int64).float())
    assert sums.item() == -128 * rows


def test_wgrad_of_a_long_batch_joins_its_pieces_in_int64():
    plan = plan_conv((132, 1, 32, 32), (1, 1, 1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1), 1)
    codes = worst((132, 32, 32, 1))
    with record_gemms() as calls:
        dw = conv_native.wgrad(codes, codes, plan, grids(), pad_value=0, rows=None, columns=None, scale=ONE, layer="")
    assert dw.item() == 132 * 32 * 32 * 128 * 128 > 2**31
    assert sum(call.k for call in calls) >= plan.rows // 8  # pack 8: eight neighbours lie in eight columns
    assert {call.path for call in calls} == {"int_mm"}


def test_an_offset_too_large_for_int32_is_added_in_int64():
    plan = plan_conv((2, 3, 4, 4), (5, 3, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1)
    a, _, err = operands(plan, 1)
    rows = torch.arange(5) * 2**40
    dw = conv_native.wgrad(a, err, plan, grids(), pad_value=0, rows=rows, columns=None, scale=ONE, layer="")
    expected = reference.wgrad_reference(a, err, plan) + rows.view(-1, 1, 1, 1)
    assert torch.equal(dw, expected.float())


def symmetric(codes: Tensor) -> QTensor:
    return QTensor(codes=codes, scale=ONE, mult=1, offset=0, bits=8, code_max=128, value_max=128)


def test_results_do_not_depend_on_the_threads():
    plan = plan_conv((8, 16, 16, 16), (16, 16, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1)
    torch.set_num_threads(2)
    for seed in (1, 2, 5):
        check_fprop(plan, seed, -128)
        check_dgrad(plan, seed)
        check_wgrad(plan, seed, -128)
    check_depthwise(dataclasses.replace(plan, groups=16), 1, -128)
