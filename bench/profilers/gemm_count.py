"""Counts the products of a training step by kind and path: through ``torch._int_mm``, or in floating point.

A floating-point convolution counts as fprop, its backward as dgrad and wgrad by the gradients it was asked for; in a
linear layer's backward the product whose first operand is a transposed view is wgrad (``xᵀ·∇y``), the other dgrad.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from bench.kernels.int_mm import GemmCall

KINDS = ("fprop", "dgrad", "wgrad")
_aten = torch.ops.aten
_MATRIX_PRODUCTS = (_aten.mm.default, _aten.addmm.default, _aten.bmm.default, _aten.baddbmm.default)


class FloatProductCounter(TorchDispatchMode):
    """Counts floating-point convolutions and matrix products while it is active; set ``backward`` around backward."""

    def __init__(self) -> None:
        """Start at zero."""
        super().__init__()
        self.calls = dict.fromkeys(KINDS, 0)
        self.macs = 0
        self.backward = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator and count it."""
        result = func(*args, **(kwargs or {}))
        if func in _MATRIX_PRODUCTS:
            self._count(func, args, kwargs, result, [self._product_kind(func, args)])
        elif func is _aten.convolution.default:
            self._count(func, args, kwargs, result, ["fprop"])
        elif func is _aten.convolution_backward.default:
            kinds = [kind for kind, wanted in zip(("dgrad", "wgrad"), args[-1], strict=False) if wanted]
            self._count(func, args, kwargs, result, kinds)
        return result

    def _product_kind(self, func: Any, args: tuple[Any, ...]) -> str:
        if not self.backward:
            return "fprop"
        first = args[1] if func in (_aten.addmm.default, _aten.baddbmm.default) else args[0]
        return "wgrad" if first.stride(-2) == 1 and first.stride(-1) > 1 else "dgrad"

    def _count(self, func: Any, args: Any, kwargs: Any, result: Any, kinds: list[str]) -> None:
        for kind in kinds:
            self.calls[kind] += 1
        formula = flop_registry[func.overloadpacket]
        self.macs += int(formula(*args, **(kwargs or {}), out_val=result)) // 2


@dataclass(frozen=True, slots=True, kw_only=True)
class GemmCounts:
    """Products of one step."""

    integer_calls: dict[str, int]
    float_calls: dict[str, int]
    integer_share_pct: float  # of multiply-accumulates


def combine_counts(calls: list[GemmCall], floats: FloatProductCounter) -> GemmCounts:
    """Both logs of the same step together.

    Args:
        calls: integer products, from ``record_gemms``; a grouped convolution logs several per layer.
        floats: the floating-point ones.
    """
    layers = {kind: {call.layer for call in calls if call.gemm == kind} for kind in KINDS}
    macs = sum(call.m * call.k * call.n for call in calls)
    total = macs + floats.macs
    return GemmCounts(
        integer_calls={kind: len(layers[kind]) for kind in KINDS},
        float_calls=dict(floats.calls),
        integer_share_pct=100.0 * macs / total if total else 0.0,
    )
