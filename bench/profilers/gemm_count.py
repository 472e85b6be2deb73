"""Counts the products of a training step: of the model's layers by kind and path, and of the hypernetwork apart.

A floating-point convolution counts as fprop, its backward as dgrad and wgrad by the gradients it was asked for; in a
linear layer's backward the product whose first operand is a transposed view is wgrad (``xᵀ·∇y``), the other dgrad.
Multiply-accumulates of a layer follow from its shapes, so that a grouped convolution's zero blocks do not count.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from bench.kernels.int_mm import GemmCall
from bench.layers.base import IntegerLayer
from bench.layers.dispatch import ran_as_integer

KINDS = ("fprop", "dgrad", "wgrad")
_aten = torch.ops.aten
_ADDING = (_aten.addmm.default, _aten.addmm.out, _aten.baddbmm.default, _aten.baddbmm.out)
_MATRIX_PRODUCTS = (_aten.mm.default, _aten.mm.out, _aten.bmm.default, _aten.bmm.out, *_ADDING)
_RNN_FORWARD = (_aten.mkldnn_rnn_layer.default, _aten._cudnn_rnn.default)
_RNN_BACKWARD = (_aten.mkldnn_rnn_layer_backward.default, _aten._cudnn_rnn_backward.default)


class FloatProductCounter(TorchDispatchMode):
    """Counts floating-point products while it is active; it is also the ``phases`` of the step that it watches.

    What runs in the phase ``meta`` is the hypernetwork's and goes into ``hypernet_macs``; the rest is the layers' and
    goes into ``calls``.
    """

    def __init__(self) -> None:
        """Start at zero."""
        super().__init__()
        self.calls = dict.fromkeys(KINDS, 0)
        self.hypernet_macs = 0
        self._phase = ""

    @contextlib.contextmanager
    def phases(self, name: str) -> Iterator[None]:
        """Tell the counter which phase runs."""
        outer, self._phase = self._phase, name
        try:
            yield
        finally:
            self._phase = outer

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator and count it."""
        if self._phase == "meta":
            self.hypernet_macs += _hypernet_macs(func, args)
        elif func in _MATRIX_PRODUCTS and _operands(func, args)[0].is_floating_point():  # not the int64 self-check
            self.calls[self._product_kind(func, args)] += 1
        elif func is _aten.convolution.default:
            self.calls["fprop"] += 1
        elif func is _aten.convolution_backward.default:
            for kind, wanted in zip(("dgrad", "wgrad"), args[-1], strict=False):
                self.calls[kind] += bool(wanted)
        return func(*args, **(kwargs or {}))

    def _product_kind(self, func: Any, args: tuple[Any, ...]) -> str:
        if self._phase != "backward":
            return "fprop"
        first, _ = _operands(func, args)
        return "wgrad" if first.stride(-2) == 1 and first.stride(-1) > 1 else "dgrad"


@contextlib.contextmanager
def record_layer_macs(model: nn.Module) -> Iterator[dict[str, int]]:
    """Multiply-accumulates of one of a layer's products (fprop, dgrad and wgrad take equally many), by layer name."""
    macs: dict[str, int] = {}

    def hook(name: str) -> Any:
        def see(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            macs[name] = output.numel() * (layer.weight.numel() // layer.weight.shape[0])

        return see

    kinds = (nn.Conv2d, nn.Linear, IntegerLayer)
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, kinds)]
    handles = [layer.register_forward_hook(hook(name)) for name, layer in layers]
    try:
        yield macs
    finally:
        for handle in handles:
            handle.remove()


def integer_layers(calls: list[GemmCall]) -> dict[str, set[str]]:
    """Layers by kind whose product multiplied integers; one product may be several calls, all of them integer."""
    ran: dict[str, set[str]] = {}
    for kind in KINDS:
        of_kind = [call for call in calls if call.gemm == kind]
        floats = {call.layer for call in of_kind if not ran_as_integer(call.path)}
        ran[kind] = {call.layer for call in of_kind} - floats
    return ran


def _hypernet_macs(func: Any, args: tuple[Any, ...]) -> int:
    if func in _MATRIX_PRODUCTS:
        first, second = _operands(func, args)
        return first.numel() * second.shape[-1]
    if func in _RNN_FORWARD or func in _RNN_BACKWARD:
        weights = args[1] if isinstance(args[1], list | tuple) else args[1:3]
        rows = args[0].numel() // args[0].shape[-1]
        macs = rows * sum(weight.numel() for weight in weights if weight.dim() == 2)
        return macs if func in _RNN_FORWARD else 2 * macs
    return 0


def _operands(func: Any, args: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
    start = 1 if func in _ADDING else 0
    return args[start], args[start + 1]
