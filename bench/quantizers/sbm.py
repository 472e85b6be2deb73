"""SBM's gradient bifurcation: an 8-bit error signal for dgrad, a 16-bit copy of it for wgrad.

Source: Banner et al., "Scalable Methods for 8-bit Training of Neural Networks", NeurIPS 2018, arXiv 1805.11046,
section 4: the chain of error signals runs at 8 bits with stochastic rounding, only the weight gradients, which nothing
waits for, see the more precise copy.

Left open there and decided here: both copies are symmetric with c = max|g| per tensor; the 16-bit one is rounded to the
nearest (its step is 1/257 of the other's). It runs in integers, as two int8 grids and so two products; the authors'
code multiplies floats there.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bench.quantizers.base import Grids, QTensor, amax, check_bits
from bench.quantizers.byte_grids import byte_grids, largest_code
from bench.quantizers.uniform import check_choices, uniform_codes

WGRAD_BITS = 16


def wide_grids(gradient: Tensor, clip: Tensor, bits: int) -> Grids:
    """Codes round(g·q/c) of 16 or 24 bits, q the largest code, as int8 grids.

    Args:
        gradient: float32.
        clip: c ≥ max|g|, () float32; 0 gives code 0.
        bits: 16 or 24.

    Returns:
        Two or three grids that add up to the quantized gradient.
    """
    top = largest_code(bits)
    divisor = torch.where(clip == 0, math.inf, clip)
    codes = torch.mul(gradient.detach(), float(top)).div_(divisor).round_().clamp_(-top, top)
    return byte_grids(codes, clip / top, bits)


class BifurcatedQuantizer:
    """One layer's error signals: ``quantize`` for dgrad, ``quantize_for_wgrad`` for wgrad."""

    code_bits = 8  # of every grid, whatever the two widths are

    def __init__(
        self, bits: int = 8, *, rounding: str = "stochastic", generator: torch.Generator | None = None
    ) -> None:
        """Check the choices.

        Args:
            bits: 2..8, for dgrad; the paper's are 8.
            rounding: of those, "stochastic" (the paper's) or "nearest".
            generator: needed for stochastic rounding.

        Raises:
            ConfigError: for a choice that does not exist.
        """
        check_bits(bits, "SBM quantizer")
        check_choices(rounding, "tensor")
        self.bits = bits
        self.rounding = rounding
        self.generator = generator

    def quantize(self, gradient: Tensor) -> QTensor:
        """Codes with c = max|g|, for dgrad."""
        return uniform_codes(gradient, amax(gradient), self.bits, rounding=self.rounding, generator=self.generator)

    def quantize_for_wgrad(self, gradient: Tensor) -> Grids:
        """The 16-bit copy as two grids, for wgrad and the bias's gradient."""
        return wide_grids(gradient, amax(gradient), WGRAD_BITS)

    def describe(self) -> str:
        """One line for the record."""
        return (
            f"sbm, {self.bits} bits, {self.rounding}, per tensor for dgrad; {WGRAD_BITS} bits, nearest, as two int8 "
            "grids for wgrad"
        )
