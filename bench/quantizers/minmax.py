"""Weights and activations over the range that they have: what SBM and CPT quantize with.

Source: Banner et al., "Scalable Methods for 8-bit Training of Neural Networks", arXiv 1805.11046, section 3 (after
GEMMLOWP): a uniform grid between the smallest and the largest value, for activations between the means of the samples'
extremes. CPT (arXiv 2101.09868) takes the same quantizer.

Where we differ: grids are symmetric for weights and start at zero for activations behind a ReLU, so that the zero point
is a constant and no step waits for the device to learn it; signed activations take the symmetric uniform quantizer.
Evaluation takes the range of the batch at hand, as training does, and no running average. Values above the mean of the
samples' maxima saturate, and their gradient passes (constants unchecked).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bench.quantizers.base import QTensor, amax, check_bits, flat_pieces
from bench.quantizers.uniform import uniform_codes

# Containers whose signed range is as wide as the codes: the activation is stored minus half its range.
_SIGNED_CONTAINERS = (4, 8)


def unsigned_codes(x: Tensor, largest: Tensor, bits: int) -> QTensor:
    """Codes round(n·clip(x, 0, c)/c), n = 2^bits − 1.

    Args:
        x: float32.
        largest: c ≥ 0, () float32; 0 gives the value 0.
        bits: 2..8.

    Returns:
        Codes with mult 1 and scale c/n: a − 2^(bits−1) with offset 2^(bits−1) for 8 and 4 bits, a otherwise.
    """
    n = 2**bits - 1
    offset = 2 ** (bits - 1) if bits in _SIGNED_CONTAINERS else 0
    x = x.detach().contiguous()
    divisor = torch.where(largest == 0, math.inf, largest)
    codes = torch.empty_like(x, dtype=torch.int8)
    for values, code in flat_pieces(x, codes):
        code.copy_(torch.mul(values, float(n)).div_(divisor).round_().clamp_(0, n).sub_(offset))
    return QTensor(
        codes=codes, scale=largest / n, mult=1, offset=offset, bits=bits, code_max=max(offset, n - offset), value_max=n
    )


def mean_of_maxima(x: Tensor) -> Tensor:
    """Mean over the samples (first axis) of each one's largest value, at least 0; not finite where a value is not."""
    largest = x.detach().flatten(1).amax(1)
    return largest.clamp_min(0).mean() + 0 * amax(x)


class MinMaxWeight:
    """Weights on the symmetric grid with c = max|W|; the gradient passes unchanged."""

    def __init__(self, bits: int) -> None:
        """Check the width.

        Raises:
            ConfigError: outside 2..8 bits.
        """
        check_bits(bits, "min-max weight")
        self.bits = bits

    def quantize(self, x: Tensor) -> tuple[QTensor, Tensor | None]:
        """Codes; all of the gradient passes."""
        return uniform_codes(x, amax(x), self.bits), None

    def factor(self, weight: Tensor) -> Tensor | None:
        """∂Ŵ/∂W is 1 everywhere: None."""
        return None

    def backward(self, grad_w_hat: Tensor, weight: Tensor) -> Tensor:
        """∇W is ∇Ŵ."""
        return grad_w_hat

    def describe(self) -> str:
        """One line for the record."""
        return f"minmax, {self.bits} bits, nearest, per tensor"


class MinMaxActivation:
    """Activations that are not negative, over 0 and the mean of the samples' maxima."""

    def __init__(self, bits: int) -> None:
        """Check the width.

        Raises:
            ConfigError: outside 2..8 bits.
        """
        check_bits(bits, "min-max activation")
        self.bits = bits

    def quantize(self, x: Tensor) -> tuple[QTensor, Tensor | None]:
        """Codes; all of the gradient passes."""
        return unsigned_codes(x, mean_of_maxima(x), self.bits), None

    def describe(self) -> str:
        """One line for the record."""
        return f"minmax, {self.bits} bits, nearest, 0 to the mean of the samples' maxima"
