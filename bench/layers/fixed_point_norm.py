"""WAGEUBN's batch-norm: every quantity of it on a fixed-point grid, the error signals too.

Source: Yang et al., arXiv 1909.02384, section 3.3 (constants unchecked), with Q(x, k) = round(x·2^(k−1))/2^(k−1):
mean, standard deviation and x̂ at k = 16, γ and β at 8, ε = 2^−15, rounding passes gradients straight through. The
error signal that comes in is quantized by a shift (E1): R·clip(Q(g/R, 8), ±(1 − 2^−7)), R = 2^round(log2 max|g|). The
gradients of γ and β are rounded by the update (``optim/fixed_point.py``). Values are float32 numbers on those grids:
no product of layers is among them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from bench.quantizers.base import amax
from bench.quantizers.wageubn import shift_of

STATISTICS_BITS, AFFINE_BITS, ERROR_BITS = 16, 8, 8
EPS = 2.0**-15


def shift_values(gradient: Tensor, bits: int) -> Tensor:
    """Error signal R·clip(Q(g/R, bits), ±(1 − 2^(1−bits))) as a fresh float32 tensor; NaN where a value is not finite.

    Args:
        gradient: float32.
        bits: 2 or more.
    """
    steps = 2.0 ** (bits - 1)
    shift = shift_of(amax(gradient))
    return torch.div(gradient, shift / steps).round_().clamp_(1 - steps, steps - 1).mul_(shift / steps)


class _Round(Function):
    """Q(x, k); the gradient passes unchanged."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bits: int) -> Tensor:
        steps = 2.0 ** (bits - 1)
        return torch.mul(x, steps).round_().div_(steps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def rounded(x: Tensor, bits: int) -> Tensor:
    """Q(x, bits), straight through."""
    result: Tensor = _Round.apply(x, bits)
    return result


class FixedPointBatchNorm2d(nn.Module):
    """Replaces ``nn.BatchNorm2d``: same γ, β and running statistics, all on fixed-point grids where they are used."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, source: nn.BatchNorm2d) -> None:
        """Take over a layer's parameters (the very tensors) and running statistics.

        Args:
            source: with γ and β, tracking its statistics.
        """
        super().__init__()
        assert source.running_mean is not None, "batch-norm without running statistics is not replaced"
        assert source.running_var is not None, "batch-norm without running statistics is not replaced"
        self.weight, self.bias = source.weight, source.bias
        assert source.momentum is not None, "batch-norm that averages over all steps is not replaced"
        self.momentum = source.momentum
        self.register_buffer("running_mean", source.running_mean.clone())
        self.register_buffer("running_var", source.running_var.clone())
        self.training = source.training

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) float32, normalised per channel; with batch statistics in training."""
        if self.training:
            var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(var, self.momentum)
        else:
            mean, var = self.running_mean, self.running_var
        mean = rounded(mean, STATISTICS_BITS)
        # a constant channel has no slope at its root
        deviation = rounded(var.clamp_min(EPS**2).sqrt(), STATISTICS_BITS) + EPS
        x_hat = rounded((x - _per_channel(mean)) / _per_channel(deviation), STATISTICS_BITS)
        gamma, beta = rounded(self.weight, AFFINE_BITS), rounded(self.bias, AFFINE_BITS)
        y = torch.addcmul(_per_channel(beta), x_hat, _per_channel(gamma))
        if y.requires_grad:  # a hook, and no view of y: an activation may follow in place
            y.register_hook(_quantized_error)
        return y


def _quantized_error(gradient: Tensor) -> Tensor:
    return shift_values(gradient, ERROR_BITS)


def _per_channel(values: Tensor) -> Tensor:
    return values.view(1, -1, 1, 1)
