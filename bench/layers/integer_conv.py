"""A convolution whose three products run on integer codes, as one autograd function.

Source: docs/method.md sections 2 and 5. Shapes: N images, C channels, H×W input, O output channels, R×S kernel, P×Q
output. Codes are kept channels-last, (N, H, W, C) and (O, R, S, C).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from bench import native
from bench.kernels import affine, conv, conv_native, depthwise
from bench.kernels.conv_native import Grids, fits
from bench.kernels.conv_plan import ConvPlan, plan_conv, split_images
from bench.kernels.int_mm import INT32_MAX, log_product
from bench.kernels.landing import After
from bench.kernels.spans import recording, span
from bench.layers.base import IntegerLayer, LayerQuantizers, values_of
from bench.layers.dispatch import DIRECT, INT_MM, Result, exact_floats, part_name, run_fastest
from bench.layers.handover import AMAX, CODES, STATISTICS, SUMS, Codes, Padding, Residual, leave, take
from bench.layers.operands import (
    add_up,
    both_quantized,
    channels_first,
    grid_of,
    quantize_error,
    quantize_operand,
    restore_operand,
    split_filter_scale,
    sum_of_grids,
    tensors_of,
)
from bench.layers.shortcut import add_padded
from bench.native.bits import unpack_bits
from bench.quantizers.base import QTensor
from bench.quantizers.dorefa import DorefaActivation

Pair = tuple[int, int]


class IntegerConv2d(IntegerLayer):
    """Replaces ``nn.Conv2d``: same parameters, integer fprop, dgrad and wgrad as its quantizers allow."""

    kind = "conv2d"
    has_several_paths = True

    def __init__(self, source: nn.Conv2d, name: str, quantizers: LayerQuantizers) -> None:
        """Take over a float layer's parameters (the very tensors, so that an optimizer keeps them).

        Args:
            source: the float layer, zero padding.
            name: its name in the model.
            quantizers: what quantizes each operand.
        """
        super().__init__(name, quantizers)
        self.weight = source.weight
        self.bias = source.bias
        self.in_channels, self.out_channels = source.in_channels, source.out_channels
        self.kernel_size: Pair = _pair(source.kernel_size)
        self.stride: Pair = _pair(source.stride)
        self.dilation: Pair = _pair(source.dilation)
        self.groups = source.groups
        self.padding = _padding_of(source)
        self.training = source.training
        self.feeds_norm = False  # whether a batch-norm reads the output, which is summed up for it then

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) float to (N, O, P, Q) float32, channels last in memory; or (C, H, W), one image.

        Raises:
            ShapeError: for an input that does not fit the layer.
        """
        x = self._checked_input(input)
        if x.dim() == 3:
            return self.forward(x.unsqueeze(0)).squeeze(0)
        if x.dim() == 4 and len(x) == 0:
            return self._no_images(x)
        y: Tensor = _ConvFunction.apply(x, self.weight, self.bias, self, self._codes_of(x))
        return y

    def _codes_of(self, x: Tensor) -> Codes | None:
        """The codes that came with the input, if they are those of this layer's quantizer."""
        left: Codes | None = take(x, CODES)
        quantizer = self.activation_quantizer
        if left is None or type(quantizer) is not DorefaActivation or left.operand.bits != quantizer.bits:
            return None
        return left

    def _no_images(self, x: Tensor) -> Tensor:
        """An empty batch has nothing to multiply: torch gives it its shape, and zeros for gradients."""
        self.plan(torch.Size((1, *x.shape[1:])))  # what fits no image fits none of none
        (top, bottom), (left, right) = self.padding
        padded = F.pad(x, (left, right, top, bottom))
        return F.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)

    def plan(self, x_shape: torch.Size) -> ConvPlan:
        """Sizes for an input shape (N, C, H, W)."""
        return plan_conv(
            tuple(x_shape), tuple(self.weight.shape), self.stride, self.padding, self.dilation, self.groups
        )

    def extra_repr(self) -> str:
        """Sizes and quantizers in one line."""
        facts = self.facts()
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"weight=({facts.weight}), activation=({facts.activation}), error=({facts.error}), {self.dispatch}"
        )


class _ConvFunction(Function):
    """Saves int8 codes and a mask; which products are integer follows from the layer's quantizers."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, layer: IntegerConv2d, left: Codes | None
    ) -> Tensor:
        plan = layer.plan(x.shape)
        a: QTensor | Tensor
        with span("quantize", layer=layer.name, gemm="fprop"):
            if left is None:
                a, inside = quantize_operand(layer.activation_quantizer, x.permute(0, 2, 3, 1).contiguous())
            else:
                a, inside = left.operand, left.inside
            w, _ = quantize_operand(layer.weight_quantizer, weight.permute(0, 2, 3, 1).contiguous())
        bias = None if bias is None else bias.contiguous()
        after = None
        if layer.feeds_norm and layer.training and native.usable(x.device):
            after = After(sums=torch.empty(2, plan.o, dtype=torch.float64))
        if layer.dispatch == "integer":
            y_npqo = integer_fprop(*both_quantized(a, w), plan, layer.name, bias=bias, after=after)
        elif layer.dispatch == "auto":
            y_npqo = _fastest_fprop(*both_quantized(a, w), plan, layer, bias, after)
        else:
            with span("gemm", layer=layer.name, gemm="fprop"):
                y_npqo = float_fprop(values_of(a), values_of(w), plan)
            if bias is not None:
                y_npqo.add_(bias)
        ctx.layer, ctx.plan = layer, plan
        ctx.grids = grid_of(a), grid_of(w)
        # what is wanted of the input's gradient, if this layer's is all of it
        ctx.sole, ctx.residual = (False, None) if left is None else (left.sole, left.residual)
        before = (None, None, None) if left is None else (left.gate, left.norm_input, left.mean)
        ctx.save_for_backward(weight, inside, *before, *tensors_of(a), *tensors_of(w))
        y = channels_first(y_npqo)
        return leave(y, STATISTICS, after.sums) if after is not None and after.done else y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        layer, plan = ctx.layer, ctx.plan
        weight, inside, gate, norm_input, mean, *saved = ctx.saved_tensors
        a, w = (restore_operand(grid, saved) for grid in ctx.grids)
        needs_dx, needs_dw, needs_db, *_ = ctx.needs_input_grad
        padded = _padded_gradient(ctx.residual) if needs_dx else None
        after = _before(ctx.sole, ctx.residual, gate, norm_input, mean) if needs_dx else None
        error_npqo = grads[0].permute(0, 2, 3, 1).contiguous()
        dx = dw_hat = db = None
        w, fold = split_filter_scale(w) if layer.error_quantizer is not None else (w, None)
        for_dx = for_dw = None
        if layer.error_quantizer is not None:
            only = "" if needs_dx and needs_dw else "dgrad" if needs_dx else "wgrad"
            with span("quantize", layer=layer.name, gemm=only):  # once for both products
                for_dx, for_dw = quantize_error(
                    layer.error_quantizer,
                    error_npqo,
                    fold=fold,
                    needs_dgrad=needs_dx,
                    needs_wgrad=needs_dw or needs_db,
                    amax=take(grads[0], AMAX),
                )
        if layer.error_quantizer is not None and layer.dispatch != "simulate":
            a, w = both_quantized(a, w)
            always = layer.dispatch == "integer"
            if for_dx is not None and needs_dx:
                last = after if len(for_dx) == 1 else None
                if always:
                    terms = [integer_dgrad(grid, w, plan, layer.name, inside=inside, after=last) for grid in for_dx]
                else:
                    terms = [
                        _fastest_dgrad(grid, w, plan, layer, inside, part, last) for part, grid in enumerate(for_dx)
                    ]
                dx = add_up(terms)
            if for_dw is not None and needs_dw:
                if always:
                    gradients = [integer_wgrad(a, grid, plan, layer.name) for grid in for_dw]
                else:
                    gradients = [_fastest_wgrad(a, grid, plan, layer, part) for part, grid in enumerate(for_dw)]
                dw_hat = add_up([dw for dw, _ in gradients])
                sums = [sums for _, sums in gradients]
            elif for_dw is not None and needs_db:
                sums = [_channel_sums(grid.codes) for grid in for_dw]
            if for_dw is not None and needs_db:
                db = add_up([error_sum(*each, plan.rows) for each in zip(sums, for_dw, strict=True)])
        else:
            dx_error, dw_error = (error_npqo if grids is None else sum_of_grids(grids) for grids in (for_dx, for_dw))
            dx, dw_hat = float_backward(
                dx_error, dw_error, values_of(a), values_of(w), plan, (needs_dx, needs_dw), layer=layer.name
            )
            if dx is not None and inside is not None:
                dx.mul_(unpack_bits(inside, dx.shape))
            db = dw_error.sum((0, 1, 2)) if needs_db else None
        dw = None
        if dw_hat is not None:
            dw = dw_hat.permute(0, 3, 1, 2)
            if layer.weight_quantizer is not None and not layer.leaves_quantized_gradient:
                with span("quantize", layer=layer.name, gemm="wgrad"):
                    dw = layer.weight_quantizer.backward(dw, weight)
        if dx is not None:
            if after is not None and after.residual is not None and not after.done:
                dx.add_(after.residual)
            if padded is not None:
                with span("dequantize", layer=layer.name, gemm="dgrad"):
                    add_padded(dx, *padded)
            dx = dx.permute(0, 3, 1, 2)
            if after is not None and after.done and after.sums is not None:
                leave(dx, SUMS, after.sums)
        return dx, dw, db if needs_db else None, None, None


def _padded_gradient(residual: Residual | None) -> tuple[Tensor, Padding] | None:
    """What a padding shortcut handed over: some of the values, to be added where they belong; taken out."""
    if residual is None or residual.padding is None or residual.gradient is None:
        return None
    found = residual.gradient, residual.padding
    residual.gradient = residual.padding = None
    return found


def _before(
    sole: bool, residual: Residual | None, gate: Tensor | None, norm_input: Tensor | None, mean: Tensor | None
) -> After | None:
    """What the module before this layer wants of its gradient, where no other reader adds to it later.

    Args:
        sole: whether this layer is the only reader.
        residual: holds the gradient of the one other reader, a shortcut, if it was handed over.
        gate: packed flags of the ReLU before, or None.
        norm_input: of the batch-norm before, or None.
        mean: the same norm's.
    """
    given = None if residual is None else residual.gradient
    if residual is not None:
        residual.gradient = None
    if norm_input is None:
        return None if given is None else After(residual=given)
    if not sole and given is None:
        return None
    sums = torch.empty(2, norm_input.shape[-1], dtype=torch.float64)
    return After(residual=given, gate=gate, norm_input=norm_input, mean=mean, sums=sums)


def integer_fprop(
    a: QTensor, w: QTensor, plan: ConvPlan, layer: str, *, bias: Tensor | None = None, after: After | None = None
) -> Tensor:
    """Dequantized output of an integer convolution.

    Args:
        a: codes (N, H, W, C) on a grid with mult 1 that has a zero, for the spatial padding.
        w: codes (O, R, S, C/groups), one scale, or one (O, 1, 1, 1) per output channel.
        plan: the sizes.
        layer: name for the GEMM log.
        bias: (O,) float32, added at the end; or None.
        after: what the output is wanted for next, done where the compiled pieces can.

    Returns:
        (N, P, Q, O) float32, contiguous: one rounding of the exact sum, times the scales' product.
    """
    assert a.mult == 1, "an activation's grid has steps of one"
    more = w.offset * plan.reduction
    bound = plan.reduction * a.value_max * w.value_max
    scale = a.scale * (w.scale.view(-1) if w.scale.dim() else w.scale)
    grids = Grids(a_max=a.code_max, b_max=w.code_max, factor=w.mult, row_weight=w.offset, bound=bound)
    columns = None
    if native.usable(a.codes.device) and fits(grids):
        if a.offset:
            columns = conv_native.code_columns(w.codes, other=a.offset, mult=w.mult, more=more)
        return conv_native.fprop(
            a.codes, w.codes, plan, grids, pad_value=a.zero_code, columns=columns, scale=scale, bias=bias,
            layer=layer, after=after,
        )  # fmt: skip
    if a.offset:
        per_output = w.codes.sum((1, 2, 3), dtype=torch.int64).mul_(w.mult).add_(more)
        columns = per_output.mul_(a.offset)
    y = torch.empty(plan.n, plan.p, plan.q, plan.o, device=a.codes.device)
    by_group = (plan.groups, -1)
    for images, part in split_images(plan, a.codes.device.type):
        acc, sums = conv.fprop(
            a.codes[images], w.codes, part, pad_value=a.zero_code, a_max=a.code_max, w_max=w.code_max, layer=layer
        )
        total = affine.combine(
            acc.unflatten(1, by_group),
            factor=w.mult,
            rows=_weighted(sums, w.offset),
            columns=None if columns is None else columns.view(by_group),
            bound=bound,
        )
        affine.dequantize(total, scale.view(by_group) if scale.dim() else scale, out=y[images].view(total.shape))
    return y if bias is None else y.add_(bias)


def integer_dgrad(
    error: QTensor, w: QTensor, plan: ConvPlan, layer: str, *, inside: Tensor | None = None, after: After | None = None
) -> Tensor:
    """Dequantized error signal of the input, (N, H, W, C) float32.

    Args:
        error: codes (N, P, Q, O), one scale. Code 0 fills padding and strides; on a grid with an offset (DoReFa's) it
            would not be zero, so what the offset adds is summed over the true positions alone.
        w: codes (O, R, S, C/groups).
        plan: the sizes.
        layer: name for the GEMM log.
        inside: packed flags of the positions that pass a gradient; None if all do.
        after: what the error signal is wanted for next, done where the compiled pieces can.
    """
    scale = error.scale * w.scale
    columns = None if error.offset == 0 else _offset_dgrad(error, w, plan, layer)
    bound = plan.r * plan.s * plan.o // plan.groups * error.value_max * w.value_max
    grids = Grids(
        a_max=error.code_max,
        b_max=w.code_max,
        factor=error.mult * w.mult,
        row_weight=error.mult * w.offset,
        bound=bound,
    )
    if native.usable(error.codes.device) and fits(grids):
        places = None if columns is None else columns.view(plan.h, plan.w, plan.c)
        return conv_native.dgrad(
            error.codes, w.codes, plan, grids, places=places, scale=scale, bits=inside, layer=layer, after=after
        )
    dx = torch.empty(plan.n, plan.h, plan.w, plan.c, device=error.codes.device)
    for images, part in split_images(plan, error.codes.device.type):
        acc, sums = conv.dgrad(
            error.codes[images], w.codes, part, err_max=error.code_max, w_max=w.code_max, layer=layer
        )
        total = affine.combine(
            acc.unflatten(3, (plan.groups, -1)),
            factor=error.mult * w.mult,
            rows=_weighted(sums, error.mult * w.offset),
            columns=columns,
            bound=bound,
        )
        affine.dequantize(total, scale, out=dx[images].view(total.shape))
    return dx if inside is None else dx.mul_(unpack_bits(inside, dx.shape))


def integer_wgrad(a: QTensor, error: QTensor, plan: ConvPlan, layer: str) -> tuple[Tensor, Tensor]:
    """Dequantized gradient of Ŵ, (O, R, S, C/groups) float32, and the sums of each channel's error codes, (O,).

    Args:
        a: codes (N, H, W, C).
        error: codes (N, P, Q, O), with one scale, or one (O,) per output channel.
        plan: the sizes.
        layer: name for the GEMM log.
    """
    assert a.mult == 1, "an activation's grid has steps of one"
    bound = plan.rows * a.value_max * error.value_max
    columns = None if error.offset == 0 else _input_sums(a, plan).mul_(error.offset)
    grids = Grids(a_max=a.code_max, b_max=error.code_max, factor=error.mult, row_weight=0, bound=bound)
    if native.usable(a.codes.device) and conv_native.check_wgrad(plan, grids):
        sums = conv_native.channel_sums(error.codes)
        rows = sums * (a.offset * error.mult) if a.offset else None
        by_channel = error.scale.reshape(-1) if error.scale.dim() else error.scale
        dw = conv_native.wgrad(
            a.codes, error.codes, plan, grids, pad_value=a.zero_code, rows=rows, columns=columns,
            scale=a.scale * by_channel, layer=layer,
        )  # fmt: skip
        return dw, sums
    acc, sums = conv.wgrad(
        a.codes, error.codes, plan, pad_value=a.zero_code, a_max=a.code_max, err_max=error.code_max, layer=layer
    )
    rows = sums.to(torch.int64).mul_(a.offset * error.mult).view(-1, 1, 1, 1) if a.offset else None
    total = affine.combine(acc, factor=error.mult, rows=rows, columns=columns, bound=bound)
    by_channel = error.scale.view(-1, 1, 1, 1) if error.scale.dim() else error.scale
    return affine.dequantize(total, a.scale * by_channel), sums


def error_sum(sums: Tensor, error: QTensor, terms: int) -> Tensor:
    """The bias's gradient (O,) float32 from the sums of `terms` error codes per output channel."""
    if (error.mult, error.offset) != (1, 0):
        sums = sums.to(torch.int64).mul(error.mult).add_(terms * error.offset)
    return affine.dequantize(sums, error.scale)


def _fastest_fprop(
    a: QTensor, w: QTensor, plan: ConvPlan, layer: IntegerConv2d, bias: Tensor | None, after: After | None
) -> Tensor:
    """``integer_fprop`` by the path that dispatch=auto chose."""
    device, bound = a.codes.device, plan.reduction * a.value_max * w.value_max
    scale = a.scale * (w.scale.view(-1) if w.scale.dim() else w.scale)

    def direct() -> Tensor:
        integers = _integers(w)
        columns = integers.sum((1, 2, 3), dtype=torch.int64).mul_(a.offset) if a.offset else None
        return depthwise.depthwise_fprop(
            a.codes, _depthwise_weight(integers), plan, pad_value=a.zero_code, columns=columns, scale=scale, bias=bias,
            layer=layer.name, after=after,
        )  # fmt: skip

    def floating(path: str) -> Tensor:
        with span("im2col", layer=layer.name, gemm="fprop"):
            values, weight = _as_floats(a, path), _as_floats(w, path)
        with span("gemm", layer=layer.name, gemm="fprop"):
            y = float_fprop(values, weight, plan)
        log_product("fprop", layer.name, path, plan.rows, plan.reduction, plan.o)
        with span("dequantize", layer=layer.name, gemm="fprop"):
            y = y.to(torch.float32).mul_(scale)
            return y if bias is None else y.add_(bias)

    paths: dict[str, Callable[[], Result]] = {
        INT_MM: lambda: integer_fprop(a, w, plan, layer.name, bias=bias, after=after)
    }
    if _can_sum_directly(plan, device, bound):
        paths[DIRECT] = direct
    for name in exact_floats(device, bound):
        paths[name] = functools.partial(floating, name)
    return cast(Tensor, run_fastest(layer.paths, "fprop", paths))


def _fastest_dgrad(
    error: QTensor, w: QTensor, plan: ConvPlan, layer: IntegerConv2d, inside: Tensor | None, part: int,
    after: After | None,
) -> Tensor:  # fmt: skip
    """``integer_dgrad`` by the path that dispatch=auto chose."""
    name = part_name("dgrad", part)
    if name not in layer.paths:
        after = None  # while paths are compared they give the bare product
    device, bound = error.codes.device, plan.r * plan.s * plan.o // plan.groups * error.value_max * w.value_max
    scale = error.scale * w.scale

    def direct() -> Tensor:
        columns = None if error.offset == 0 else _offset_dgrad(error, w, plan, layer.name)
        return depthwise.depthwise_dgrad(
            error.codes, _depthwise_weight(_integers(w)), plan, factor=error.mult,
            places=None if columns is None else columns.view(plan.h, plan.w, plan.c), scale=scale, bits=inside,
            layer=layer.name, after=after,
        )  # fmt: skip

    def floating(path: str) -> Tensor:
        with span("im2col", layer=layer.name, gemm="dgrad"):
            values, weight = _as_floats(error, path), _as_floats(w, path)
        with span("gemm", layer=layer.name, gemm="dgrad"):
            shape_only = values.new_empty(plan.n, plan.h, plan.w, plan.c)
            dx, _ = float_backward(values, values, shape_only, weight, plan, (True, False))
        assert dx is not None, "dgrad was asked for"
        log_product("dgrad", layer.name, path, plan.rows, plan.reduction, plan.o)
        with span("dequantize", layer=layer.name, gemm="dgrad"):
            dx = dx.to(torch.float32).mul_(scale)
            return dx if inside is None else dx.mul_(unpack_bits(inside, dx.shape))

    paths: dict[str, Callable[[], Result]] = {
        INT_MM: lambda: integer_dgrad(error, w, plan, layer.name, inside=inside, after=after)
    }
    if _can_sum_directly(plan, device, bound):
        paths[DIRECT] = direct
    for path in exact_floats(device, bound):
        paths[path] = functools.partial(floating, path)
    return cast(Tensor, run_fastest(layer.paths, name, paths))


def _fastest_wgrad(
    a: QTensor, error: QTensor, plan: ConvPlan, layer: IntegerConv2d, part: int
) -> tuple[Tensor, Tensor]:
    """``integer_wgrad`` by the path that dispatch=auto chose."""
    device, bound = a.codes.device, plan.rows * a.value_max * error.value_max
    by_channel = error.scale.reshape(-1) if error.scale.dim() else error.scale

    def direct() -> tuple[Tensor, Tensor]:
        sums = conv_native.channel_sums(error.codes)
        columns = None if error.offset == 0 else _input_sums(a, plan).mul_(error.offset)
        dw = depthwise.depthwise_wgrad(
            a.codes, error.codes, plan, factor=error.mult, pad_value=a.zero_code, columns=columns,
            rows=sums * (a.offset * error.mult) if a.offset else None, scale=a.scale * by_channel, layer=layer.name,
        )  # fmt: skip
        return dw, sums

    def floating(path: str) -> tuple[Tensor, Tensor]:
        with span("im2col", layer=layer.name, gemm="wgrad"):
            values, inputs = _as_floats(error, path), _as_floats(a, path)
        with span("gemm", layer=layer.name, gemm="wgrad"):
            weight = values.new_empty(1).expand(plan.o, plan.r, plan.s, plan.c // plan.groups)
            _, dw = float_backward(values, values, inputs, weight, plan, (False, True))
        assert dw is not None, "wgrad was asked for"
        log_product("wgrad", layer.name, path, plan.reduction, plan.rows, plan.o)
        with span("dequantize", layer=layer.name, gemm="wgrad"):
            scale = a.scale * (by_channel.view(-1, 1, 1, 1) if by_channel.dim() else by_channel)
            return dw.to(torch.float32).mul_(scale), _channel_sums(error.codes)

    paths: dict[str, Callable[[], Result]] = {INT_MM: lambda: integer_wgrad(a, error, plan, layer.name)}
    if depthwise.is_depthwise(plan) and native.usable(device):
        paths[DIRECT] = direct
    for name in exact_floats(device, bound):
        paths[name] = functools.partial(floating, name)
    return cast(tuple[Tensor, Tensor], run_fastest(layer.paths, part_name("wgrad", part), paths))


def _can_sum_directly(plan: ConvPlan, device: torch.device, bound: int) -> bool:
    return depthwise.is_depthwise(plan) and native.usable(device) and bound <= INT32_MAX


def _integers(operand: QTensor) -> Tensor:
    """mult·code + offset, int16."""
    return operand.codes.to(torch.int16).mul_(operand.mult).add_(operand.offset)


def _as_floats(operand: QTensor, path: str) -> Tensor:
    """The same as the floating-point values of a path, "float32" or "float64"."""
    return _integers(operand).to(getattr(torch, path))


def _depthwise_weight(integers: Tensor) -> Tensor:
    """(C, R, S, 1) as (R, S, C), contiguous."""
    return integers.squeeze(3).permute(1, 2, 0).contiguous()


def _channel_sums(codes: Tensor) -> Tensor:
    """Σ of the codes per channel (last axis), int64."""
    if native.usable(codes.device):
        return conv_native.channel_sums(codes)
    return codes.view(-1, codes.shape[-1]).sum(0, dtype=torch.int64)


def _offset_dgrad(error: QTensor, w: QTensor, plan: ConvPlan, layer: str) -> Tensor:
    """What the error grid's offset adds to every image's dgrad, (1, H, W, groups, C/groups) int64.

    The offset times Σ(m_w·w + o_w) over the taps that reach each position: the dgrad of one image of ones, whose frame
    of zeros is the mask of what padding, stride and dilation insert.
    """
    ones = torch.ones(1, plan.p, plan.q, plan.o, dtype=torch.int8, device=w.codes.device)
    acc, sums = conv.dgrad(ones, w.codes, dataclasses.replace(plan, n=1), err_max=1, w_max=w.code_max, layer=layer)
    total = acc.unflatten(3, (plan.groups, -1)).to(torch.int64) * (w.mult * error.offset)
    return total.add_(sums.unsqueeze(-1).to(torch.int64), alpha=w.offset * error.offset)


def _input_sums(a: QTensor, plan: ConvPlan) -> Tensor:
    """Σ of the input's grid values that each weight meets, (O, R, S, C/groups) int64; padding is zero there."""
    values = a.codes.sum(0, dtype=torch.int64).add_(plan.n * a.offset)  # (H, W, C)
    (top, bottom), (left, right) = plan.padding
    values = F.pad(values, (0, 0, left, right, top, bottom))
    (sh, sw), (dh, dw) = plan.stride, plan.dilation
    rows = [slice(r * dh, r * dh + (plan.p - 1) * sh + 1, sh) for r in range(plan.r)]
    columns = [slice(s * dw, s * dw + (plan.q - 1) * sw + 1, sw) for s in range(plan.s)]
    taps = torch.stack([torch.stack([values[row, column].sum((0, 1)) for column in columns]) for row in rows])
    by_group = taps.unflatten(2, (plan.groups, -1)).permute(2, 0, 1, 3)  # (G, R, S, C/G)
    return by_group.repeat_interleave(plan.o // plan.groups, dim=0)


def _weighted(sums: Tensor, offset: int) -> Tensor | None:
    """Sums times the weight grid's offset, ready to broadcast over a group's channels."""
    if not offset:
        return None
    return (sums if offset == 1 else sums * offset).unsqueeze(-1)


def float_fprop(a_nhwc: Tensor, w_orsc: Tensor, plan: ConvPlan) -> Tensor:
    """(N, P, Q, O) of a floating-point convolution of the same sizes."""
    (x, padding), w = _input_of(a_nhwc, plan), _plain(w_orsc.permute(0, 3, 1, 2))
    y = F.conv2d(x, w, stride=plan.stride, padding=padding, dilation=plan.dilation, groups=plan.groups)
    return y.permute(0, 2, 3, 1).contiguous()


def float_backward(
    dx_error: Tensor,
    dw_error: Tensor,
    a_nhwc: Tensor,
    w_orsc: Tensor,
    plan: ConvPlan,
    needs: tuple[bool, bool],
    *,
    layer: str = "",
) -> tuple[Tensor | None, Tensor | None]:
    """Floating-point dgrad (N, H, W, C) and wgrad (O, R, S, C/groups), each only if needed.

    Args:
        dx_error: (N, P, Q, O) that dgrad reads.
        dw_error: (N, P, Q, O) that wgrad reads; the same tensor unless the quantizer makes two.
        a_nhwc: (N, H, W, C).
        w_orsc: (O, R, S, C/groups).
        plan: the sizes.
        needs: whether dgrad and wgrad are wanted.
        layer: the layer's name, for a span around each product; "" where the caller sets it. Products of one error
            signal are one call where nobody records spans.
    """
    (x, padding), w = _input_of(a_nhwc, plan), _plain(w_orsc.permute(0, 3, 1, 2))

    def backward(error_npqo: Tensor, wanted: tuple[bool, bool]) -> tuple[Tensor | None, Tensor | None]:
        error = _plain(error_npqo.permute(0, 3, 1, 2))
        dx, dw, _ = torch.ops.aten.convolution_backward(
            error, x, w, None, plan.stride, padding, plan.dilation, False, (0, 0), plan.groups, (*wanted, False)
        )
        return dx, dw

    dx = dw = None
    if all(needs) and dx_error is dw_error and not recording():
        dx, dw = backward(dx_error, (True, True))  # one call lays the error signal out once
    else:
        if needs[0]:
            with span("gemm", layer=layer, gemm="dgrad") if layer else nullcontext():
                dx, _ = backward(dx_error, (True, False))
        if needs[1]:
            with span("gemm", layer=layer, gemm="wgrad") if layer else nullcontext():
                _, dw = backward(dw_error, (False, True))
    if dx is not None:
        if dx.shape[2:] != (plan.h, plan.w):
            (top, _), (left, _) = plan.padding
            dx = dx[:, :, top : top + plan.h, left : left + plan.w]
        dx = dx.permute(0, 2, 3, 1).contiguous()
    return dx, None if dw is None else dw.permute(0, 2, 3, 1)


def _input_of(a_nhwc: Tensor, plan: ConvPlan) -> tuple[Tensor, Pair]:
    """(N, C, H, W) and the padding that torch's convolution adds to it; padded here where the two sides differ."""
    x = a_nhwc.permute(0, 3, 1, 2)
    (top, bottom), (left, right) = plan.padding
    if (top, left) == (bottom, right):
        return _plain(x), (top, left)
    return _plain(F.pad(x, (left, right, top, bottom))), (0, 0)


def _plain(x: Tensor) -> Tensor:
    """The same tensor with the usual strides where its sizes of 1 left a choice.

    Torch 2.13 on the CPU returned garbage for a float image of one channel with strides (30, 1, 3, 1), stride (1, 2).
    """
    return x.reshape(-1).view(x.shape) if x.is_contiguous() else x


def _padding_of(source: nn.Conv2d) -> tuple[Pair, Pair]:
    if source.padding == "same":
        # as nn.Conv2d: the odd one goes after
        totals = [d * (k - 1) for d, k in zip(_pair(source.dilation), _pair(source.kernel_size), strict=True)]
        return (totals[0] // 2, totals[0] - totals[0] // 2), (totals[1] // 2, totals[1] - totals[1] // 2)
    if source.padding == "valid":
        return (0, 0), (0, 0)
    assert not isinstance(source.padding, str), "torch knows no other word"
    vertical, horizontal = _pair(source.padding)
    return (vertical, vertical), (horizontal, horizontal)


def _pair(values: tuple[int, ...]) -> Pair:
    first, second = values
    return first, second
