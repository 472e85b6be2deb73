"""Spans around the products of torch's own convolutions and linear layers: the same operators, told apart.

A convolution's backward is one operator that computes both gradients; here it is called once for each, so that dgrad
and wgrad have times of their own. oneDNN and cuDNN compute them apart anyway: the numbers are the same.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from bench.kernels.spans import span

_aten = torch.ops.aten


@contextmanager
def float_spans(model: nn.Module) -> Iterator[None]:
    """Set spans around the products of the model's ``nn.Conv2d`` and ``nn.Linear`` layers inside the block.

    Subclasses, layers with another forward and convolutions that pad with anything but zeros are left as they are.
    """
    changed: list[nn.Module] = []
    try:
        for module in model.modules():
            plain = "forward" not in vars(module)
            if plain and type(module) is nn.Conv2d and module.padding_mode == "zeros":
                module.forward = types.MethodType(_conv_forward, module)  # type: ignore[method-assign]
            elif plain and type(module) is nn.Linear:
                module.forward = types.MethodType(_linear_forward, module)  # type: ignore[method-assign]
            else:
                continue
            changed.append(module)
        yield
    finally:
        for module in changed:
            del module.forward


def _conv_forward(layer: nn.Conv2d, x: Tensor) -> Tensor:
    y: Tensor = _Conv.apply(*_as_autocast(x, layer.weight, layer.bias), layer)
    return y


def _linear_forward(layer: nn.Linear, x: Tensor) -> Tensor:
    y: Tensor = _Linear.apply(*_as_autocast(x, layer.weight, layer.bias))
    return y


def _as_autocast(*operands: Tensor | None) -> tuple[Tensor | None, ...]:
    """Cast as autocast would: it does not see into a Function of ours."""
    device_type = next(operand.device.type for operand in operands if operand is not None)
    if not torch.is_autocast_enabled(device_type):
        return operands
    dtype = torch.get_autocast_dtype(device_type)
    return tuple(operand if operand is None else operand.to(dtype) for operand in operands)


class _Conv(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, layer: nn.Conv2d) -> Tensor:
        ctx.layer = layer
        ctx.save_for_backward(x, weight)
        with span("gemm", gemm="fprop"):
            return F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        layer = ctx.layer
        wants_dx, wants_dw, wants_db, _ = ctx.needs_input_grad
        padding = layer.padding
        if isinstance(padding, str):
            same = [extent * (size - 1) for extent, size in zip(layer.dilation, layer.kernel_size, strict=True)]
            assert padding == "valid" or not any(total % 2 for total in same), "an even kernel pads one side more"
            padding = [0, 0] if padding == "valid" else [total // 2 for total in same]
        sizes = (grads[0], x, weight, [len(weight)] if wants_db else None, layer.stride, padding, layer.dilation, False,
                 [0, 0], layer.groups)  # fmt: skip
        dx = dw = db = None
        if wants_dx:
            with span("gemm", gemm="dgrad"):
                dx = _aten.convolution_backward(*sizes, [True, False, False])[0]
        if wants_dw or wants_db:
            with span("gemm", gemm="wgrad"):
                _, dw, db = _aten.convolution_backward(*sizes, [False, wants_dw, wants_db])
        return dx, dw, db, None


class _Linear(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        with span("gemm", gemm="fprop"):
            return F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        wants_dx, wants_dw, wants_db = ctx.needs_input_grad
        error = grads[0].flatten(0, -2)
        dx = dw = None
        if wants_dx:
            with span("gemm", gemm="dgrad"):
                dx = (error @ weight).view_as(x)
        if wants_dw:
            with span("gemm", gemm="wgrad"):
                dw = error.t() @ x.flatten(0, -2)
        return dx, dw, error.sum(0) if wants_db else None
