"""A convolution's products by the path that dispatch=auto chose: the integer product, direct sums or exact floats.

Shapes as in ``conv_products.py``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from bench import native
from bench.kernels import conv_native, depthwise
from bench.kernels.conv_plan import ConvPlan
from bench.kernels.int_mm import INT32_MAX, log_product
from bench.kernels.landing import After
from bench.kernels.spans import span
from bench.layers.base import IntegerLayer
from bench.layers.conv_products import (
    channel_sums,
    input_sums,
    integer_dgrad,
    integer_fprop,
    integer_wgrad,
    offset_dgrad,
)
from bench.layers.dispatch import DIRECT, INT_MM, Result, exact_floats, part_name, run_fastest
from bench.layers.float_conv import float_backward, float_fprop
from bench.native.bits import unpack_bits
from bench.quantizers.base import QTensor


def fastest_fprop(
    a: QTensor, w: QTensor, plan: ConvPlan, layer: IntegerLayer, bias: Tensor | None, after: After | None
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

    paths = _paths(
        lambda: integer_fprop(a, w, plan, layer.name, bias=bias, after=after),
        direct if _can_sum_directly(plan, device, bound) else None,
        floating, exact_floats(device, bound),
    )  # fmt: skip
    return cast(Tensor, run_fastest(layer.paths, "fprop", paths))


def fastest_dgrad(
    error: QTensor, w: QTensor, plan: ConvPlan, layer: IntegerLayer, inside: Tensor | None, part: int,
    after: After | None,
) -> Tensor:  # fmt: skip
    """``integer_dgrad`` by the path that dispatch=auto chose."""
    name = part_name("dgrad", part)
    if name not in layer.paths:
        after = None  # while paths are compared they give the bare product
    device, bound = error.codes.device, plan.r * plan.s * plan.o // plan.groups * error.value_max * w.value_max
    scale = error.scale * w.scale

    def direct() -> Tensor:
        columns = None if error.offset == 0 else offset_dgrad(error, w, plan, layer.name)
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

    paths = _paths(
        lambda: integer_dgrad(error, w, plan, layer.name, inside=inside, after=after),
        direct if _can_sum_directly(plan, device, bound) else None,
        floating, exact_floats(device, bound),
    )  # fmt: skip
    return cast(Tensor, run_fastest(layer.paths, name, paths))


def fastest_wgrad(a: QTensor, error: QTensor, plan: ConvPlan, layer: IntegerLayer, part: int) -> tuple[Tensor, Tensor]:
    """``integer_wgrad`` by the path that dispatch=auto chose."""
    device, bound = a.codes.device, plan.rows * a.value_max * error.value_max
    by_channel = error.scale.reshape(-1) if error.scale.dim() else error.scale

    def direct() -> tuple[Tensor, Tensor]:
        sums = conv_native.channel_sums(error.codes)
        columns = None if error.offset == 0 else input_sums(a, plan).mul_(error.offset)
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
            return dw.to(torch.float32).mul_(scale), channel_sums(error.codes)

    paths = _paths(
        lambda: integer_wgrad(a, error, plan, layer.name),
        direct if depthwise.is_depthwise(plan) and native.usable(device) else None,
        floating, exact_floats(device, bound),
    )  # fmt: skip
    return cast(tuple[Tensor, Tensor], run_fastest(layer.paths, part_name("wgrad", part), paths))


def _paths(
    integer: Callable[[], Result], direct: Callable[[], Result] | None, floating: Callable[[str], Result],
    floats: tuple[str, ...],
) -> dict[str, Callable[[], Result]]:  # fmt: skip
    """A product's paths by name, the integer one first; without direct sums where they do not run."""
    sums = {} if direct is None else {DIRECT: direct}
    return {INT_MM: integer, **sums, **{name: functools.partial(floating, name) for name in floats}}


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
