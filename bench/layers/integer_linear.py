"""A linear layer whose three products run on integer codes, as one autograd function.

Source: docs/method.md sections 2 and 5. Shapes: M samples, K input features, N output features.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from bench import native
from bench.errors import ShapeError
from bench.kernels import affine, conv_native, linear, linear_native
from bench.kernels.conv_native import Grids, fits
from bench.kernels.spans import span
from bench.layers.base import IntegerLayer, LayerQuantizers, values_of
from bench.layers.operands import (
    add_up,
    both_quantized,
    keep_operand,
    quantize_error,
    quantize_operand,
    restore_operand,
    split_filter_scale,
    sum_of_grids,
)
from bench.native.bits import unpack_bits
from bench.quantizers.base import QTensor


class IntegerLinear(IntegerLayer):
    """Replaces ``nn.Linear``: same parameters, integer fprop, dgrad and wgrad as its quantizers allow."""

    kind = "linear"

    def __init__(self, source: nn.Linear, name: str, quantizers: LayerQuantizers) -> None:
        """Take over a float layer's parameters (the very tensors, so that an optimizer keeps them).

        Args:
            source: the float layer.
            name: its name in the model.
            quantizers: what quantizes each operand.
        """
        super().__init__(name, quantizers)
        self.weight = source.weight
        self.bias = source.bias
        self.in_features, self.out_features = source.in_features, source.out_features
        self.training = source.training

    def forward(self, input: Tensor) -> Tensor:
        """(..., in_features) float to (..., out_features) float32.

        Raises:
            ShapeError: for an input that does not fit the layer.
        """
        x = self._checked_input(input)
        if x.dim() == 0 or x.shape[-1] != self.in_features:
            raise ShapeError(
                f"layer {self.name}: the input's shape is {tuple(x.shape)}; its last size must be {self.in_features}"
            )
        if x.numel() == 0:  # nothing to multiply: torch gives the shape, and zeros for gradients
            return F.linear(x, self.weight, self.bias)
        y: Tensor = _LinearFunction.apply(x.reshape(-1, self.in_features), self.weight, self.bias, self)
        return y.view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """Sizes and quantizers in one line."""
        facts = self.facts()
        return (
            f"{self.in_features}, {self.out_features}, weight=({facts.weight}), activation=({facts.activation}), "
            f"error=({facts.error}), {self.dispatch}"
        )


class _LinearFunction(Function):
    """Saves int8 codes and a mask; which products are integer follows from the layer's quantizers."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, layer: IntegerLinear) -> Tensor:
        with span("quantize", layer=layer.name, gemm="fprop"):
            a, inside = quantize_operand(layer.activation_quantizer, x.contiguous())
            w, _ = quantize_operand(layer.weight_quantizer, weight.contiguous())
        if layer.dispatch != "simulate":
            y = integer_fprop(*both_quantized(a, w), layer.name, bias=None if bias is None else bias.contiguous())
        else:
            with span("gemm", layer=layer.name, gemm="fprop"):
                y = values_of(a) @ values_of(w).t()
            if bias is not None:
                y.add_(bias)
        ctx.layer = layer
        with span("quantize", layer=layer.name, gemm="fprop"):
            kept_a, kept_w = (keep_operand(operand, compact=layer.compact) for operand in (a, w))
        ctx.grids = kept_a.grid, kept_w.grid
        ctx.save_for_backward(weight, inside, *kept_a.tensors, *kept_w.tensors)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        layer = ctx.layer
        weight, inside, *saved = ctx.saved_tensors
        a = restore_operand(ctx.grids[0], saved, layer=layer.name, gemm="wgrad")
        w = restore_operand(ctx.grids[1], saved, layer=layer.name, gemm="dgrad")
        needs_dx, needs_dw, needs_db, _ = ctx.needs_input_grad
        error_mn = grads[0].contiguous()
        dx = dw = db = None
        w, fold = split_filter_scale(w) if layer.error_quantizer is not None else (w, None)
        for_dx = for_dw = None
        if layer.error_quantizer is not None:
            only = "" if needs_dx and needs_dw else "dgrad" if needs_dx else "wgrad"
            with span("quantize", layer=layer.name, gemm=only):  # once for both products
                for_dx, for_dw = quantize_error(
                    layer.error_quantizer,
                    error_mn,
                    fold=fold,
                    needs_dgrad=needs_dx,
                    needs_wgrad=needs_dw or needs_db,
                )
        if layer.error_quantizer is not None and layer.dispatch != "simulate":
            a, w = both_quantized(a, w)
            if for_dx is not None and needs_dx:
                dx = add_up([integer_dgrad(grid, w, layer.name, inside=inside) for grid in for_dx])
            if for_dw is not None:
                sums = [_column_sums(grid.codes) for grid in for_dw]
                pairs = list(zip(for_dw, sums, strict=True))
                dw = add_up([integer_wgrad(a, grid, total, layer.name) for grid, total in pairs]) if needs_dw else None
                db = add_up([error_sum(total, grid, len(error_mn)) for grid, total in pairs]) if needs_db else None
        else:
            dx_error, dw_error = (error_mn if grids is None else sum_of_grids(grids) for grids in (for_dx, for_dw))
            with span("gemm", layer=layer.name, gemm="dgrad"):
                dx = dx_error @ values_of(w) if needs_dx else None
            with span("gemm", layer=layer.name, gemm="wgrad"):
                dw = dw_error.t() @ values_of(a) if needs_dw else None
            db = dw_error.sum(0) if needs_db else None
            if dx is not None and inside is not None:
                dx.mul_(unpack_bits(inside, dx.shape))
        if dw is not None and layer.weight_quantizer is not None and not layer.leaves_quantized_gradient:
            with span("quantize", layer=layer.name, gemm="wgrad"):
                dw = layer.weight_quantizer.backward(dw, weight)
        return dx, dw, db, None


def error_sum(sums: Tensor, error: QTensor, terms: int) -> Tensor:
    """The bias's gradient (N,) float32 from the int64 sums of `terms` error codes per output feature."""
    return affine.dequantize(sums * error.mult + terms * error.offset, error.scale)


def integer_fprop(a: QTensor, w: QTensor, layer: str, *, bias: Tensor | None = None) -> Tensor:
    """Dequantized output (M, N) float32 of codes (M, K) and (N, K), plus the bias (N,)."""
    assert a.mult == 1, "an activation's grid has steps of one"
    k = a.codes.shape[1]
    scale = a.scale * (w.scale.view(-1) if w.scale.dim() else w.scale)
    bound = k * a.value_max * w.value_max
    grids = Grids(a_max=a.code_max, b_max=w.code_max, factor=w.mult, row_weight=w.offset, bound=bound)
    columns = None
    if a.offset:
        columns = _row_sums(w.codes).mul_(w.mult).add_(k * w.offset).mul_(a.offset)
    if native.usable(a.codes.device) and fits(grids):
        return linear_native.fprop(a.codes, w.codes, grids, columns=columns, scale=scale, bias=bias, layer=layer)
    with span("gemm", layer=layer, gemm="fprop"):
        acc = linear.fprop(a.codes, w.codes, a_max=a.code_max, w_max=w.code_max, layer=layer)
    with span("dequantize", layer=layer, gemm="fprop"):
        rows = linear.sum_rows(a.codes).mul_(w.offset) if w.offset else None
        y = affine.dequantize(affine.combine(acc, factor=w.mult, rows=rows, columns=columns, bound=bound), scale)
        return y if bias is None else y.add_(bias)


def integer_dgrad(error: QTensor, w: QTensor, layer: str, *, inside: Tensor | None = None) -> Tensor:
    """Dequantized error signal of the input (M, K) float32, from codes (M, N) and (N, K); 0 where ``inside`` is."""
    terms = error.codes.shape[1]
    bound, factor, row_weight = terms * error.value_max * w.value_max, error.mult * w.mult, error.mult * w.offset
    grids = Grids(a_max=error.code_max, b_max=w.code_max, factor=factor, row_weight=row_weight, bound=bound)
    scale = error.scale * w.scale
    columns = None
    if error.offset:
        columns = _column_sums(w.codes).mul_(w.mult).add_(terms * w.offset).mul_(error.offset)
    if native.usable(error.codes.device) and fits(grids):
        return linear_native.dgrad(error.codes, w.codes, grids, columns=columns, scale=scale, bits=inside, layer=layer)
    with span("gemm", layer=layer, gemm="dgrad"):
        acc = linear.dgrad(error.codes, w.codes, err_max=error.code_max, w_max=w.code_max, layer=layer)
    with span("dequantize", layer=layer, gemm="dgrad"):
        rows = linear.sum_rows(error.codes).mul_(row_weight) if row_weight else None
        dx = affine.dequantize(affine.combine(acc, factor=factor, rows=rows, columns=columns, bound=bound), scale)
        return dx if inside is None else dx.mul_(unpack_bits(inside, dx.shape))


def integer_wgrad(a: QTensor, error: QTensor, error_sums: Tensor, layer: str) -> Tensor:
    """Dequantized gradient of Ŵ (N, K) float32, from codes (M, K) and (M, N) and the error's int64 sums (N,).

    The error has one scale, or one (N,) per output feature.
    """
    assert a.mult == 1, "an activation's grid has steps of one"
    terms = a.codes.shape[0]
    bound, row_weight = terms * a.value_max * error.value_max, a.offset * error.mult
    grids = Grids(a_max=error.code_max, b_max=a.code_max, factor=error.mult, row_weight=row_weight, bound=bound)
    columns = None
    if error.offset:
        columns = _column_sums(a.codes).add_(terms * a.offset).mul_(error.offset)
    if native.usable(a.codes.device) and fits(grids) and not error.scale.dim():
        return linear_native.wgrad(
            a.codes,
            error.codes,
            grids,
            error_sums=error_sums,
            columns=columns,
            scale=a.scale * error.scale,
            layer=layer,
        )
    with span("gemm", layer=layer, gemm="wgrad"):
        acc = linear.wgrad(a.codes, error.codes, a_max=a.code_max, err_max=error.code_max, layer=layer)
    with span("dequantize", layer=layer, gemm="wgrad"):
        rows = (error_sums * row_weight).unsqueeze(1) if row_weight else None
        total = affine.combine(acc, factor=error.mult, rows=rows, columns=columns, bound=bound)
        return affine.dequantize(total, a.scale * (error.scale.unsqueeze(1) if error.scale.dim() else error.scale))


def _row_sums(codes: Tensor) -> Tensor:
    """(rows,) int64 sums of a matrix's codes."""
    if native.usable(codes.device):
        return linear_native.row_sums(codes).to(torch.int64)
    return codes.sum(1, dtype=torch.int64)


def _column_sums(codes: Tensor) -> Tensor:
    """(columns,) int64 sums of a matrix's codes."""
    return conv_native.channel_sums(codes) if native.usable(codes.device) else codes.sum(0, dtype=torch.int64)
