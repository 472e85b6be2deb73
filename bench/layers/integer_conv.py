"""A convolution whose three products run on integer codes, as one autograd function.

Source: docs/method.md sections 2 and 5. Shapes: N images, C channels, H×W input, O output channels, R×S kernel, P×Q
output. Codes are kept channels-last, (N, H, W, C) and (O, R, S, C).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from bench import native
from bench.kernels.conv_plan import ConvPlan, Pair, plan_conv
from bench.kernels.landing import After
from bench.kernels.spans import span
from bench.layers.base import IntegerLayer, LayerQuantizers, values_of
from bench.layers.conv_paths import fastest_dgrad, fastest_fprop, fastest_wgrad
from bench.layers.conv_products import channel_sums, error_sum, integer_dgrad, integer_fprop, integer_wgrad
from bench.layers.float_conv import float_backward, float_fprop
from bench.layers.handover import AMAX, CODES, STATISTICS, SUMS, Codes, Padding, Residual, leave, take
from bench.layers.operands import (
    add_up,
    both_quantized,
    channels_first,
    keep_operand,
    quantize_error,
    quantize_operand,
    restore_operand,
    split_filter_scale,
    sum_of_grids,
)
from bench.layers.shortcut import add_padded
from bench.native.bits import unpack_bits
from bench.quantizers.base import QTensor
from bench.quantizers.dorefa import DorefaActivation


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
            y_npqo = fastest_fprop(*both_quantized(a, w), plan, layer, bias, after)
        else:
            with span("gemm", layer=layer.name, gemm="fprop"):
                y_npqo = float_fprop(values_of(a), values_of(w), plan)
            if bias is not None:
                y_npqo.add_(bias)
        ctx.layer, ctx.plan = layer, plan
        with span("quantize", layer=layer.name, gemm="fprop"):
            kept_a = keep_operand(a, compact=layer.compact, readers=None if left is None else left.packed)
            kept_w = keep_operand(w, compact=layer.compact)
        ctx.grids = kept_a.grid, kept_w.grid
        # what is wanted of the input's gradient, if this layer's is all of it
        ctx.sole, ctx.residual = (False, None) if left is None else (left.sole, left.residual)
        before = (None, None, None) if left is None else (left.gate, left.norm_input, left.mean)
        ctx.save_for_backward(weight, inside, *before, *kept_a.tensors, *kept_w.tensors)
        y = channels_first(y_npqo)
        return leave(y, STATISTICS, after.sums) if after is not None and after.done else y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        layer, plan = ctx.layer, ctx.plan
        weight, inside, gate, norm_input, mean, *saved = ctx.saved_tensors
        a = restore_operand(ctx.grids[0], saved, layer=layer.name, gemm="wgrad")
        w = restore_operand(ctx.grids[1], saved, layer=layer.name, gemm="dgrad")
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
                        fastest_dgrad(grid, w, plan, layer, inside, part, last) for part, grid in enumerate(for_dx)
                    ]
                dx = add_up(terms)
            if for_dw is not None and needs_dw:
                if always:
                    gradients = [integer_wgrad(a, grid, plan, layer.name) for grid in for_dw]
                else:
                    gradients = [fastest_wgrad(a, grid, plan, layer, part) for part, grid in enumerate(for_dw)]
                dw_hat = add_up([dw for dw, _ in gradients])
                sums = [sums for _, sums in gradients]
            elif for_dw is not None and needs_db:
                sums = [channel_sums(grid.codes) for grid in for_dw]
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
