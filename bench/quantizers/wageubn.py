"""WAGEUBN's quantizers: direct for weights and activations, flagged shifts for error signals, constant for ∇W.

Source: Yang et al., "Training High-Performance and Large-Scale Deep Neural Networks with Full 8-bit Integers", Neural
Networks 125, 2020 (arXiv 1909.02384), section 3 (constants unchecked). With Q(x, k) = round(x·2^(k−1))/2^(k−1) and
R(x) = 2^round(log2 max|x|):

- direct: clip(Q(x, k), ±(1 − 2^(1−k))); the authors leave activations unclipped, int8 codes cannot.
- flag: with S = R/2^(k−1), values from S up are S·round(g/S), saturated at ±(2^(k−1) − 1), smaller ones
  S·clip(Q(g/S, k)): a 9th bit says which. Here they are two int8 grids, one of them 0 at each place, and so two integer
  products. The clip at 1 − 2^(1−k) in the place of 1 keeps the lower code in int8.
- constant: round stochastically dr·g/R, dr = 2^(k−1), saturate at ±(dr − 1), divide by 2^(k_GC − 1), k_GC = 15: what is
  left of a gradient is its shape, not its size.

Batch-norm is in ``layers/fixed_point_norm.py``, the update in ``optim/fixed_point.py``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bench.native.bits import pack_bits
from bench.quantizers.base import Grids, QTensor, amax, check_bits, flat_pieces
from bench.quantizers.rounding import round_
from bench.quantizers.uniform import check_choices, qmax_of

GRADIENT_STEP = 2.0**-14  # 2^(1 − k_GC) at 8 bits
_HALF_OCTAVE = 2.0**-0.5


def shift_of(largest: Tensor) -> Tensor:
    """R = 2^round(log2 largest); 1 for 0, not finite where ``largest`` is not.

    Args:
        largest: () float32, max|x|.

    Returns:
        () float32.
    """
    mantissa, exponent = torch.frexp(torch.where(largest == 0, 1.0, largest))  # mantissa in [½, 1)
    rounded = torch.where(mantissa < _HALF_OCTAVE, exponent - 1, exponent)
    return torch.ldexp(torch.ones_like(mantissa), rounded) + 0 * largest


def direct_codes(x: Tensor, bits: int) -> QTensor:
    """Codes of clip(Q(x, bits), ±(1 − 2^(1−bits))).

    Args:
        x: float32; not finite anywhere makes the scale NaN.
        bits: 2..8.

    Returns:
        Codes in −qmax..qmax with scale 2^(1−bits).
    """
    top, steps = qmax_of(bits), 2.0 ** (bits - 1)
    x = x.detach().contiguous()
    codes = torch.empty_like(x, dtype=torch.int8)
    for values, code in flat_pieces(x, codes):
        code.copy_(torch.mul(values, steps).round_().clamp_(-top, top))
    scale = x.sum() * 0 + 1 / steps  # clipping hides an infinite value
    return QTensor(codes=codes, scale=scale, mult=1, offset=0, bits=bits, code_max=top, value_max=top)


def flag_grids(
    gradient: Tensor, bits: int, *, rounding: str = "nearest", generator: torch.Generator | None = None
) -> Grids:
    """The two ranges of a flagged error signal, the upper one first.

    Args:
        gradient: float32.
        bits: 2..8.
        rounding: "nearest" (the paper's) or "stochastic".
        generator: for stochastic rounding.

    Returns:
        Codes with scale S where |g| ≥ S, and codes with scale S·2^(1−bits) where |g| < S; 0 elsewhere.
    """
    top, steps = qmax_of(bits), 2.0 ** (bits - 1)
    unit = shift_of(amax(gradient)) / steps
    ratio = gradient.detach() / unit
    upper = ratio.abs() >= 1

    def grid(values: Tensor, scale: Tensor) -> QTensor:
        codes = round_(values, rounding, generator).clamp_(-top, top).to(torch.int8)
        return QTensor(codes=codes, scale=scale, mult=1, offset=0, bits=bits, code_max=top, value_max=top)

    return grid(ratio * upper, unit), grid((ratio * steps).masked_fill_(upper, 0.0), unit / steps)


def constant_values(
    gradient: Tensor, bits: int, *, rounding: str = "stochastic", generator: torch.Generator | None = None
) -> Tensor:
    """∇W of constant size: multiples of 2^−14 (of 2^(−6−bits) at other widths) up to almost 2^−7.

    Args:
        gradient: float32.
        bits: 2..8.
        rounding: "stochastic" (the paper's) or "nearest".
        generator: for stochastic rounding.

    Returns:
        Fresh float32 tensor; 0 for a zero gradient.
    """
    top, steps = qmax_of(bits), 2.0 ** (bits - 1)
    largest = amax(gradient)
    divisor = torch.where(largest == 0, math.inf, shift_of(largest))
    codes = round_(torch.mul(gradient.detach(), steps).div_(divisor), rounding, generator).clamp_(-top, top)
    return codes.mul_(GRADIENT_STEP * 128 / steps)


class DirectWeight:
    """Weights on the grid of 2^(1−bits) below 1; the gradient passes unchanged."""

    def __init__(self, bits: int) -> None:
        """Check the width.

        Raises:
            ConfigError: outside 2..8 bits.
        """
        check_bits(bits, "WAGEUBN weight")
        self.bits = bits

    def quantize(self, x: Tensor) -> tuple[QTensor, Tensor | None]:
        """Codes; all of the gradient passes."""
        return direct_codes(x, self.bits), None

    def factor(self, weight: Tensor) -> Tensor | None:
        """∂Ŵ/∂W is 1 everywhere: None."""
        return None

    def backward(self, grad_w_hat: Tensor, weight: Tensor) -> Tensor:
        """∇W is ∇Ŵ."""
        return grad_w_hat

    def describe(self) -> str:
        """One line for the record."""
        return f"wageubn direct, {self.bits} bits, nearest, steps of 2^{1 - self.bits}"


class DirectActivation:
    """Activations on the same grid; the gradient passes where |x| ≤ 1."""

    def __init__(self, bits: int) -> None:
        """Check the width.

        Raises:
            ConfigError: outside 2..8 bits.
        """
        check_bits(bits, "WAGEUBN activation")
        self.bits = bits

    def quantize(self, x: Tensor) -> tuple[QTensor, Tensor | None]:
        """Codes, and packed flags of the positions that are not clipped."""
        return direct_codes(x, self.bits), pack_bits(x.detach().abs() <= 1)

    def describe(self) -> str:
        """One line for the record."""
        return f"wageubn direct, {self.bits} bits, nearest, steps of 2^{1 - self.bits}"


class FlagQuantizer:
    """One layer's error signals, flagged."""

    code_bits = 8  # of both grids' containers

    def __init__(self, bits: int = 8, *, rounding: str = "nearest", generator: torch.Generator | None = None) -> None:
        """Check the choices.

        Args:
            bits: 2..8, without the flag.
            rounding: "nearest" (the paper's) or "stochastic".
            generator: needed for stochastic rounding.

        Raises:
            ConfigError: for a choice that does not exist.
        """
        check_bits(bits, "WAGEUBN error signal")
        check_choices(rounding, "tensor")
        self.bits = bits
        self.rounding = rounding
        self.generator = generator

    def quantize(self, gradient: Tensor) -> Grids:
        """Both ranges, one grid each."""
        return flag_grids(gradient, self.bits, rounding=self.rounding, generator=self.generator)

    def describe(self) -> str:
        """One line for the record."""
        return f"wageubn flag, {self.bits} bits and a flag as two int8 grids, {self.rounding}, per tensor"
