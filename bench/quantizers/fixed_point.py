"""Fixed-point numbers, code·2^e: one exponent per tensor, from its largest magnitude; AFP's weights and activations.

Source: Zhang et al., "Fixed-Point Back-Propagation Training", CVPR 2020 (arXiv 1911.00361, "Adaptive Precision
Training"): x̂ = r·round(x/r), r = 2^⌈log2(max|x|/(2^(n−1) − 1))⌉, so that nothing saturates.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench.quantizers.base import QTensor, amax, check_bits, flat_pieces
from bench.quantizers.uniform import qmax_of


def resolution_of(largest: Tensor, top: int) -> Tensor:
    """Resolution r = 2^⌈log2(largest/top)⌉, exactly; 1 where ``largest`` is 0, NaN or infinite where it is.

    Args:
        largest: () float32, max|x|.
        top: largest code.

    Returns:
        () float32.
    """
    mantissa, exponent = torch.frexp(torch.where(largest == 0, float(top), largest) / top)
    exponent = torch.where(mantissa == 0.5, exponent - 1, exponent)  # a power of two is its own ceiling
    return torch.ldexp(torch.ones_like(mantissa), exponent) + 0 * largest


def fixed_point_codes(x: Tensor, bits: int) -> QTensor:
    """Codes round(x/r), half to even.

    Args:
        x: float32.
        bits: 2..8.

    Returns:
        Codes in −qmax..qmax with scale r, a power of two.
    """
    top = qmax_of(bits)
    x = x.detach().contiguous()
    resolution = resolution_of(amax(x), top)
    codes = torch.empty_like(x, dtype=torch.int8)
    for values, code in flat_pieces(x, codes):
        code.copy_(torch.div(values, resolution).round_().clamp_(-top, top))
    return QTensor(codes=codes, scale=resolution, mult=1, offset=0, bits=bits, code_max=top, value_max=top)


class FixedPointQuantizer:
    """Weights or activations in fixed point; the gradient passes unchanged."""

    def __init__(self, bits: int) -> None:
        """Check the width.

        Raises:
            ConfigError: outside 2..8 bits.
        """
        check_bits(bits, "fixed-point quantizer")
        self.bits = bits

    def quantize(self, x: Tensor) -> tuple[QTensor, Tensor | None]:
        """Codes; nothing is clipped, so there is no mask."""
        return fixed_point_codes(x, self.bits), None

    def factor(self, weight: Tensor) -> Tensor | None:
        """∂Ŵ/∂W is 1 everywhere: None."""
        return None

    def backward(self, grad_w_hat: Tensor, weight: Tensor) -> Tensor:
        """∇W is ∇Ŵ."""
        return grad_w_hat

    def describe(self) -> str:
        """One line for the record."""
        return f"fixed_point, {self.bits} bits, nearest, one power of two per tensor"
