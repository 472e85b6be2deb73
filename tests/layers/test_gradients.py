"""Outputs and all gradients of integer layers agree with a plain float64 reference of the same quantizers."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bench.kernels.int_mm import record_gemms
from bench.kernels.reference import dgrad_reference, wgrad_reference
from bench.layers import IntegerConv2d, IntegerLinear, conv_products
from bench.layers.base import LayerQuantizers
from bench.layers.operands import quantize_error, sum_of_grids
from bench.quantizers import (
    DirectActivation,
    DorefaWeight,
    activation_of,
    build_activation_quantizer,
    build_error_quantizer,
    build_weight_quantizer,
)
from bench.quantizers.base import dequantize
from bench.quantizers.dorefa import gradient_codes, weight_codes

BITS = st.integers(2, 8)


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Conv2d, tuple[int, ...]]:
    """A float convolution and the shape of its input."""
    groups = draw(st.sampled_from([1, 1, 2, 6]))
    channels, outputs = groups * draw(st.sampled_from([1, 3, 8])), groups * draw(st.sampled_from([1, 2, 8]))
    kernel = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    stride = (draw(st.integers(1, 2)), draw(st.integers(1, 3)))
    dilation = (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
    padding: str | tuple[int, int] = (draw(st.integers(0, 2)), draw(st.integers(0, 2)))
    if stride == (1, 1) and draw(st.booleans()):
        padding = "same"
    size = (draw(st.integers(1, 8)), draw(st.integers(1, 8)))
    if padding != "same":
        for length, pad, step, taps in zip(size, padding, dilation, kernel, strict=True):
            assume(length + 2 * pad >= step * (taps - 1) + 1)
    bias = draw(st.booleans())
    layer = nn.Conv2d(
        channels, outputs, kernel, stride, padding, dilation, groups, bias, padding_mode="zeros", device="cpu"
    )
    return layer, (draw(st.integers(1, 3)), channels, *size)


def quantizers(
    weight: int,
    activation: int,
    error: int | None,
    signed: bool,
    dispatch: str,
    kind: str = "uniform",
    channels: int | None = None,
    forward: str = "dorefa",
) -> LayerQuantizers:
    return LayerQuantizers(
        weight=build_weight_quantizer(forward, weight),
        activation=build_activation_quantizer(activation_of(forward, signed=signed), activation),
        error=None if error is None else build_error_quantizer(kind, error, channels=channels),
        dispatch=dispatch,
    )


def straight_through(values: Tensor, quantized: Tensor) -> Tensor:
    return values + (quantized.double() - values).detach()


def reference(layer: nn.Conv2d | nn.Linear, used: LayerQuantizers, x: Tensor, upstream: Tensor) -> list[Tensor]:
    """Output, ∇x, ∇W and, if there is one, ∇b, by autograd in float64."""
    x64, w64 = x.double().requires_grad_(), layer.weight.detach().double().requires_grad_()
    b64 = None if layer.bias is None else layer.bias.detach().double().requires_grad_()
    a, inside = used.activation.quantize(x)
    through = x64 if inside is None else x64.clamp(0, 1)
    if isinstance(used.activation, DirectActivation):
        through = x64.clamp(-1, 1)
    a_hat = straight_through(through, dequantize(a))
    squashed = torch.tanh(w64)
    is_dorefa = isinstance(used.weight, DorefaWeight)
    passing = squashed / squashed.abs().max().detach() if is_dorefa else w64
    codes = used.weight.quantize(layer.weight.detach())[0]
    w_hat = straight_through(passing, dequantize(codes))

    def product(w: Tensor) -> Tensor:
        if isinstance(layer, nn.Linear):
            return F.linear(a_hat, w, b64)
        padded = F.pad(a_hat, layer._reversed_padding_repeated_twice)
        return F.conv2d(padded, w, b64, layer.stride, 0, layer.dilation, layer.groups)

    y = y_dx = product(w_hat)
    folded = upstream
    if codes.scale.dim() and used.error is not None:  # BWN-F: α goes from the weight into dgrad's error signal
        y_dx = product(codes.codes.double())
        folded = upstream * codes.scale.view(1, -1, *[1] * (upstream.dim() - 2))
    for_dx, for_dw = errors_of(used, folded)[0], errors_of(used, upstream)[1]
    leaves = [w64] if b64 is None else [w64, b64]
    (dx,) = torch.autograd.grad(y_dx, x64, for_dx.double(), retain_graph=True)
    return [y.detach(), dx, *torch.autograd.grad(y, leaves, for_dw.double())]


def errors_of(used: LayerQuantizers, upstream: Tensor) -> tuple[Tensor, Tensor]:
    """The error signals that ∇x and ∇W see, quantized anew, channels last as the layers hand them over."""
    if used.error is None:
        return upstream, upstream
    quantizer = copy.deepcopy(used.error)
    last = upstream.movedim(1, -1).contiguous()
    for_dx, for_dw = quantize_error(quantizer, last, fold=None, needs_dgrad=True, needs_wgrad=True)
    return sum_of_grids(for_dx).movedim(-1, 1), sum_of_grids(for_dw).movedim(-1, 1)


def check_layer(layer: nn.Conv2d | nn.Linear, shape: tuple[int, ...], used: LayerQuantizers, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    nn.init.normal_(layer.weight, generator=generator)
    x = torch.rand(shape, generator=generator) * 1.6 - 0.3
    swap = IntegerConv2d if isinstance(layer, nn.Conv2d) else IntegerLinear
    integer = swap(layer, "probe", used)
    x32 = x.clone().requires_grad_()
    y = integer(x32)
    upstream = torch.randn(y.shape, generator=generator)
    expected = reference(layer, used, x, upstream)
    layer.zero_grad()
    y.backward(upstream)
    found = [y.detach(), x32.grad, layer.weight.grad]
    if layer.bias is not None:
        found.append(layer.bias.grad)
    # The reference adds values that were rounded to float32; ours adds integers, and is exact where sums cancel.
    tolerance = 5e-6 if used.dispatch == "integer" else 2e-5
    for name, ours, theirs in zip(("y", "dx", "dw", "db")[: len(found)], found, expected, strict=True):
        assert (ours.double() - theirs).abs().max() < tolerance * theirs.abs().max().clamp_min(1), name


CASES = {
    "weight": BITS,
    "activation": BITS,
    "error": st.one_of(st.none(), BITS),
    "signed": st.booleans(),
    "dispatch": st.sampled_from(["integer", "integer", "simulate"]),
    "seed": st.integers(0, 2**31),
}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(case=convolutions(), **CASES)
def test_a_convolution_agrees_with_float64(case, weight, activation, error, signed, dispatch, seed):
    check_layer(*case, quantizers(weight, activation, error, signed, dispatch), seed)


@pytest.mark.slow
@settings(max_examples=250, deadline=None, derandomize=False)
@given(case=convolutions(), **CASES)
def test_a_convolution_agrees_with_float64_on_many_more_geometries(
    case, weight, activation, error, signed, dispatch, seed
):
    check_layer(*case, quantizers(weight, activation, error, signed, dispatch), seed)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(case=convolutions(), **{**CASES, "error": BITS})
def test_a_convolution_with_dorefas_grid_without_zero_agrees_with_float64(
    case, weight, activation, error, signed, dispatch, seed
):
    check_layer(*case, quantizers(weight, activation, error, signed, dispatch, "dorefa"), seed)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(m=st.integers(1, 30), k=st.integers(1, 60), n=st.integers(1, 20), bias=st.booleans(), **{**CASES, "error": BITS})
def test_a_linear_layer_with_dorefas_grid_without_zero_agrees_with_float64(
    m, k, n, bias, weight, activation, error, signed, dispatch, seed
):
    check_layer(nn.Linear(k, n, bias), (m, k), quantizers(weight, activation, error, signed, dispatch, "dorefa"), seed)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(case=convolutions(), weight=BITS, activation=BITS, error=BITS, signed=st.booleans(), seed=st.integers(0, 2**31))
def test_sums_over_dorefas_odd_grid_are_those_of_int64(case, weight, activation, error, signed, seed):
    # Scales of one: the products' integers themselves, zeros of padding, stride and dilation masked.
    layer, shape = case
    generator = torch.Generator().manual_seed(seed)
    plan = IntegerConv2d(layer, "probe", quantizers(8, 8, 8, False, "integer")).plan(torch.Size(shape))
    one = torch.ones(())
    w = replace(weight_codes(torch.randn(plan.o, plan.r, plan.s, plan.c // plan.groups), weight), scale=one)
    x = torch.rand(plan.n, plan.h, plan.w, plan.c, generator=generator) * 1.6 - 0.3
    a = replace(build_activation_quantizer("uniform" if signed else "dorefa", activation).quantize(x)[0], scale=one)
    upstream = torch.randn(plan.n, plan.p, plan.q, plan.o, generator=generator)
    e = replace(gradient_codes(upstream, upstream.abs().max(), error, rounding="nearest"), scale=one)
    grids = [(q.mult * q.codes.long() + q.offset) for q in (a, w, e)]
    dx = conv_products.integer_dgrad(e, w, plan, "probe")
    dw, sums = conv_products.integer_wgrad(a, e, plan, "probe")
    assert torch.equal(dx, dgrad_reference(grids[2], grids[1], plan).float())
    assert torch.equal(dw, wgrad_reference(grids[0], grids[2], plan).float())
    assert torch.equal(conv_products.error_sum(sums, e, plan.rows), grids[2].sum((0, 1, 2)).float())


@settings(max_examples=40, deadline=None, derandomize=True)
@given(case=convolutions(), **{**CASES, "error": BITS})
def test_a_convolution_with_two_quantizations_of_the_error_agrees_with_float64(
    case, weight, activation, error, signed, dispatch, seed
):
    layer, shape = case
    used = quantizers(weight, activation, error, signed, dispatch, "daint8", layer.out_channels)
    check_layer(layer, shape, used, seed)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(m=st.integers(1, 30), k=st.integers(1, 60), n=st.integers(1, 20), bias=st.booleans(), **{**CASES, "error": BITS})
def test_a_linear_layer_with_two_quantizations_of_the_error_agrees_with_float64(
    m, k, n, bias, weight, activation, error, signed, dispatch, seed
):
    used = quantizers(weight, activation, error, signed, dispatch, "daint8", n)
    check_layer(nn.Linear(k, n, bias), (m, k), used, seed)


# Error signals that are sums of several int8 grids, and the forward quantizers that their methods take.
SUMS = {
    "kind": st.sampled_from([("sbm", 8), ("sbm", 4), ("wageubn", 8), ("wageubn", 5), ("afp", 8), ("fp4", 4)]),
    "forward": st.sampled_from(["dorefa", "minmax", "fixed_point", "wageubn"]),
}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(case=convolutions(), **SUMS, **{name: CASES[name] for name in CASES if name != "error"})
def test_a_convolution_whose_error_is_a_sum_of_grids_agrees_with_float64(
    case, kind, forward, weight, activation, signed, dispatch, seed
):
    used = quantizers(weight, activation, kind[1], signed, dispatch, kind[0], forward=forward)
    check_layer(*case, used, seed)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    m=st.integers(1, 30),
    k=st.integers(1, 60),
    n=st.integers(1, 20),
    bias=st.booleans(),
    **SUMS,
    **{name: CASES[name] for name in CASES if name != "error"},
)
def test_a_linear_layer_whose_error_is_a_sum_of_grids_agrees_with_float64(
    m, k, n, bias, kind, forward, weight, activation, signed, dispatch, seed
):
    used = quantizers(weight, activation, kind[1], signed, dispatch, kind[0], forward=forward)
    check_layer(nn.Linear(k, n, bias), (m, k), used, seed)


@pytest.mark.parametrize("bits", [16, 24])
def test_a_wide_error_signal_runs_as_integer_products_of_its_bytes(bits):
    layer = nn.Conv2d(3, 5, 3, 1, 1)
    used = quantizers(8, 8, 8, False, "integer", "afp", forward="fixed_point")
    used.error.bits = bits  # as if earlier gradients had asked for it
    check_layer(layer, (4, 3, 7, 6), used, 3)
    with record_gemms() as calls:
        integer = IntegerConv2d(layer, "probe", used)
        integer(torch.rand(4, 3, 7, 6, requires_grad=True)).square().sum().backward()
    assert {kind: sum(call.gemm == kind for call in calls) for kind in ("fprop", "dgrad", "wgrad")} == {
        "fprop": 1,
        "dgrad": bits // 8,
        "wgrad": bits // 8,
    }
    assert (integer.facts().error_bits, integer.facts().dgrad) == (bits, "integer")


@settings(max_examples=60, deadline=None, derandomize=True)
@given(m=st.integers(1, 30), k=st.integers(1, 60), n=st.integers(1, 20), bias=st.booleans(), **CASES)
def test_a_linear_layer_agrees_with_float64(m, k, n, bias, weight, activation, error, signed, dispatch, seed):
    check_layer(nn.Linear(k, n, bias), (m, k), quantizers(weight, activation, error, signed, dispatch), seed)


def test_a_sum_beyond_int32_in_wgrad_is_still_right():
    # 132·1024 positions of code 127 · 255 reach 4.4e9; a zero-point sum in int32 would wrap
    layer = nn.Conv2d(1, 1, 1, bias=False)
    used = quantizers(8, 8, 8, False, "integer")
    x = torch.ones(132, 1, 32, 32)
    IntegerConv2d(layer, "probe", used)(x).sum().backward()
    assert layer.weight.grad is not None
    # ∇Ŵ = 135,168; its factor is (1 − tanh²W)/|tanh W|
    squashed = torch.tanh(layer.weight.detach().double())
    factor = (1 - squashed.square()) / squashed.abs()
    assert torch.allclose(layer.weight.grad.double(), 135_168 * factor, rtol=1e-6)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    case=convolutions(),
    kind=st.sampled_from(["uniform", "dorefa", "daint8"]),
    forward=st.sampled_from(["dorefa", "bwn", "bwn_f"]),
    **CASES,
)
def test_a_convolution_with_one_bit_weights_agrees_with_float64(
    case, kind, forward, weight, activation, error, signed, dispatch, seed
):
    layer, shape = case
    used = quantizers(1, activation, error, signed, dispatch, kind, layer.out_channels, forward)
    check_layer(layer, shape, used, seed)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    m=st.integers(1, 30),
    k=st.integers(1, 60),
    n=st.integers(1, 20),
    bias=st.booleans(),
    forward=st.sampled_from(["bwn", "bwn_f"]),
    **CASES,
)
def test_a_linear_layer_with_one_bit_weights_agrees_with_float64(
    m, k, n, bias, forward, weight, activation, error, signed, dispatch, seed
):
    used = quantizers(1, activation, error, signed, dispatch, "uniform", n, forward)
    check_layer(nn.Linear(k, n, bias), (m, k), used, seed)


@pytest.mark.parametrize("forward", ["dorefa", "bwn", "bwn_f"])
def test_weights_alone_are_quantized_in_floating_point_products(forward):
    torch.manual_seed(0)
    layer, plain = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
    used = LayerQuantizers(weight=build_weight_quantizer(forward, 1), activation=None, error=None, dispatch="simulate")
    integer = IntegerConv2d(layer, "probe", used)
    alpha = layer.weight.detach().abs().mean((1, 2, 3), keepdim=True)
    alpha = alpha if forward == "bwn_f" else alpha.mean()
    with torch.no_grad():
        plain.weight.copy_(alpha * layer.weight.sign())
        plain.bias.copy_(layer.bias)
    x = torch.randn(2, 3, 5, 5, requires_grad=True)
    twin = x.detach().clone().requires_grad_()
    integer(x).square().sum().backward()
    plain(twin).square().sum().backward()
    for ours, theirs in (
        (x.grad, twin.grad),
        (layer.weight.grad, plain.weight.grad),
        (layer.bias.grad, plain.bias.grad),
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["uniform", "dorefa"])
@pytest.mark.parametrize("granularity", ["tensor", "sample"])
def test_simulation_takes_a_scale_per_sample(kind, granularity):
    used = LayerQuantizers(
        weight=build_weight_quantizer("dorefa", 4),
        activation=build_activation_quantizer("dorefa", 4),
        error=build_error_quantizer(kind, 4, granularity=granularity),
        dispatch="simulate",
    )
    check_layer(nn.Conv2d(3, 5, 3, 2, 1), (4, 3, 7, 6), used, 3)
    check_layer(nn.Linear(6, 5), (4, 6), used, 3)


@pytest.mark.parametrize("shape", [(5, 7, 12), (12,), (2, 3, 4, 12)])
def test_a_linear_layer_takes_inputs_of_any_number_of_dimensions(shape):
    layer = nn.Linear(12, 4)
    x = torch.rand(shape, requires_grad=True)
    y = IntegerLinear(layer, "probe", quantizers(8, 8, 8, False, "integer"))(x)
    assert y.shape == (*shape[:-1], 4)
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.shape == shape


def test_memory_formats_change_no_bit():
    layer = nn.Conv2d(8, 8, 3, padding=1)
    integer = IntegerConv2d(layer, "probe", quantizers(8, 8, 8, False, "integer"))
    results = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x = torch.rand(2, 8, 6, 6, generator=torch.Generator().manual_seed(0)).to(memory_format=memory_format)
        x.requires_grad_()
        layer.zero_grad()
        y = integer(x)
        assert y.is_contiguous(memory_format=torch.channels_last)
        y.square().sum().backward()
        results.append((y.detach(), x.grad, layer.weight.grad))
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)


def test_a_half_precision_input_gets_a_gradient_of_its_own_type():
    layer = nn.Conv2d(4, 4, 3)
    integer = IntegerConv2d(layer, "probe", quantizers(8, 8, 8, False, "integer"))
    x = torch.rand(1, 4, 5, 5, dtype=torch.bfloat16, requires_grad=True)
    y = integer(x)
    assert y.dtype == torch.float32
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.bfloat16
