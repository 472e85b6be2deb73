"""CPT's cyclic precision: the bits of weights and activations rise along half a cosine, again and again.

Source: Fu et al., "CPT: Efficient Deep Neural Network Training via Cyclic Precision", ICLR 2021 (arXiv 2101.09868),
Eq. 1: B_t = round(B_min + ½(B_max − B_min)(1 − cos(π·(t mod T)/T))) in each of N cycles of T steps; gradients keep
their bits.

Left open there and decided here: t counts training steps, a cycle is the training's steps over N, rounded up, at
least 1; evaluation runs at B_max, as what is deployed would; the bounds are given, no range test looks for them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor, nn

from bench.errors import ConfigError
from bench.quantizers.base import MIN_BITS, ForwardQuantizer, QTensor, WeightQuantizer


def cyclic_bits(step: int, *, cycle_steps: int, low: int, high: int) -> int:
    """Bits of a training step, half to even.

    Args:
        step: t, from 0.
        cycle_steps: T.
        low: B_min.
        high: B_max.
    """
    share = (step % cycle_steps) / cycle_steps
    return round(low + 0.5 * (high - low) * (1 - math.cos(math.pi * share)))


class CyclicPrecision(nn.Module):
    """The schedule that a model's quantizers share; the training step advances it, its count is in the state dict."""

    def __init__(self, low: int, cycle_steps: int) -> None:
        """Start before the first step, at the lower bound.

        Args:
            low: B_min.
            cycle_steps: T, training steps in a cycle.

        Raises:
            ConfigError: for bounds that are none.
        """
        super().__init__()
        if low < MIN_BITS:
            raise ConfigError(f"cyclic precision from {low} bits is not possible: take {MIN_BITS} bits or more")
        if cycle_steps < 1:
            raise ConfigError(f"a cycle of {cycle_steps} steps is none: take 1 or more")
        self.low = low
        self.cycle_steps = cycle_steps
        self.step = -1

    def advance(self) -> None:
        """Begin the next training step."""
        self.step += 1

    def bits(self, high: int) -> int:
        """Bits now, between the schedule's lower bound and this upper one, which evaluation takes."""
        if not self.training:
            return high
        return cyclic_bits(max(0, self.step), cycle_steps=self.cycle_steps, low=self.low, high=high)

    def get_extra_state(self) -> int:
        """Steps begun, for a checkpoint."""
        return self.step

    def set_extra_state(self, state: int) -> None:
        """Continue from a checkpoint."""
        self.step = state


class CyclicActivation:
    """Activations at the bits of the step; ``bits`` is the upper bound."""

    def __init__(self, bits: int, precision: CyclicPrecision, build: Callable[[int], ForwardQuantizer]) -> None:
        """One quantizer for each width.

        Args:
            bits: B_max.
            precision: the shared schedule.
            build: makes the quantizer of a width.

        Raises:
            ConfigError: if B_max is below B_min.
        """
        if bits < precision.low:
            raise ConfigError(f"cyclic precision from {precision.low} to {bits} bits is not possible: raise the upper")
        self.bits = bits
        # neither is a parameter or a child: the model holds the schedule once
        self.precision = precision
        self.at = {width: build(width) for width in range(precision.low, bits + 1)}

    def quantize(self, x: Tensor) -> tuple[QTensor, Tensor | None]:
        """Codes at the step's bits, and where the gradient passes."""
        return self.at[self.precision.bits(self.bits)].quantize(x)

    def describe(self) -> str:
        """One line for the record."""
        return f"cyclic from {self.precision.low}: {self.at[self.bits].describe()}"


class CyclicWeight(CyclicActivation):
    """Weights at the bits of the step; every width has the same backward."""

    at: dict[int, WeightQuantizer]  # type: ignore[assignment]

    def __init__(self, bits: int, precision: CyclicPrecision, build: Callable[[int], WeightQuantizer]) -> None:
        """As for activations."""
        super().__init__(bits, precision, build)

    def factor(self, weight: Tensor) -> Tensor | None:
        """∂Ŵ/∂W, the same at every width."""
        return self.at[self.bits].factor(weight)

    def backward(self, grad_w_hat: Tensor, weight: Tensor) -> Tensor:
        """∇W from ∇Ŵ."""
        return self.at[self.bits].backward(grad_w_hat, weight)
