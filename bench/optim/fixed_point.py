"""WAGEUBN's update: SGD with momentum whose every quantity is fixed-point.

Source: Yang et al., arXiv 1909.02384, section 3.4 (constants unchecked), with Q(x, k) = round(x·2^(k−1))/2^(k−1):
learning rate at k = 10, clipped below 1; momentum at 3, so 0, ¼, ½ or ¾; gradients of what is no quantized weight
(batch-norm, biases) at 15; the stored momentum buffer at 13; parameters at 24, those of quantized layers clipped
below 1. ∇W of quantized layers comes in at 15 from its own quantizer (``quantizers/wageubn.py``). Weight decay is
this project's: it enters the buffer before that is rounded.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bench.errors import ConfigError
from bench.optim.base import gather_grads
from bench.optim.sgd import SGD

MOMENTUM_BITS, LR_BITS, BUFFER_BITS, GRADIENT_BITS, UPDATE_BITS = 3, 10, 13, 15, 24


def fixed_point_(values: Sequence[Tensor], bits: int, *, clipped: bool = False) -> None:
    """Round to multiples of 2^(1−bits) in place, half to even; clipped to ±(1 − 2^(1−bits)) where asked."""
    steps = 2.0 ** (bits - 1)
    if not values:
        return
    torch._foreach_mul_(list(values), steps)
    torch._foreach_round_(list(values))
    if clipped:
        torch._foreach_clamp_min_(list(values), 1 - steps)
        torch._foreach_clamp_max_(list(values), steps - 1)
    torch._foreach_div_(list(values), steps)


def fixed_point_lr(lr: float) -> float:
    """A learning rate as a multiple of 2^−9, from 0 to 1 − 2^−9."""
    steps = 2 ** (LR_BITS - 1)
    return min(max(round(lr * steps), 0), steps - 1) / steps


def check_momentum(momentum: float) -> None:
    """Refuse a momentum that 3 bits do not hold.

    Raises:
        ConfigError: naming those that they do.
    """
    steps = 2 ** (MOMENTUM_BITS - 1)
    if momentum * steps != round(momentum * steps) or not 0 <= momentum < 1:
        choices = ", ".join(f"{i / steps:g}" for i in range(steps))
        raise ConfigError(f"WAGEUBN's momentum has {MOMENTUM_BITS} bits: set optimizer.momentum to one of {choices}")


class FixedPointSGD(SGD):
    """SGD that rounds what it reads and what it leaves."""

    def __init__(
        self, params: Sequence[Tensor], *, lr: float, weights: Sequence[Tensor], momentum: float, weight_decay: float
    ) -> None:
        """Take the parameters.

        Args:
            params: everything that steps.
            lr: learning rate of the first step.
            weights: those of ``params`` that quantized layers read.
            momentum: a multiple of ¼ below 1.
            weight_decay: λ.

        Raises:
            ConfigError: for a momentum that 3 bits do not hold.
        """
        check_momentum(momentum)
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay)
        known = {id(weight) for weight in weights}
        self.is_weight = [id(param) in known for param in self.params]

    @torch.no_grad()
    def step(self, grads: Sequence[Tensor] | None = None, *, lr_factors: Sequence[Tensor] | None = None) -> None:
        """Step the parameters in place; see `Optimizer.step`. Gradients of other parameters are rounded in place."""
        gradients = gather_grads(self.params, grads)
        fixed_point_(self._select(gradients, weights=False), GRADIENT_BITS)
        given, self.lr = self.lr, fixed_point_lr(self.lr)
        super().step(gradients, lr_factors=lr_factors)
        self.lr = given
        fixed_point_(self.buffers, BUFFER_BITS)
        fixed_point_(self._select(self.params, weights=True), UPDATE_BITS, clipped=True)
        fixed_point_(self._select(self.params, weights=False), UPDATE_BITS)

    def _select(self, tensors: Sequence[Tensor], *, weights: bool) -> list[Tensor]:
        return [tensor for tensor, own in zip(tensors, self.is_weight, strict=True) if own == weights]
