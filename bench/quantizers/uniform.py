"""Symmetric uniform quantization, MetaGrad Eq. 1: q = round(clip(x, −c, c)·qmax/c), qmax = 2^(B−1) − 1.

MetaGrad's Eq. 7 would allow k = ±2^(B−1), which contradicts Eq. 1; Eq. 1 holds (docs/method.md section 1).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bench import native
from bench.errors import ConfigError
from bench.quantizers.base import GRANULARITIES, QTensor, amax, check_bits, flat_pieces
from bench.quantizers.rounding import LANE_CENTRE, LANE_STEP, ROUNDINGS, check_generator, draw_lanes, round_


def qmax_of(bits: int) -> int:
    """Largest code of a symmetric grid: 127 for 8 bits, 7 for 4."""
    return 2 ** (bits - 1) - 1


def uniform_integers(
    x: Tensor,
    clip: Tensor,
    bits: int,
    *,
    rounding: str = "nearest",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Codes of MetaGrad Eq. 1 as float32 integers, in the one fixed expression x·qmax/c.

    Args:
        x: float32.
        clip: c, () or broadcastable to ``x``; 0 gives code 0 everywhere.
        bits: 2..8.
        rounding: "nearest" (half to even) or "stochastic" (clamped after rounding).
        generator: for stochastic rounding.

    Returns:
        Fresh float32 tensor with integers in −qmax..qmax; NaN where x or c is NaN.
    """
    qmax = qmax_of(bits)
    # x / inf = 0: a zero range gives code 0 and never NaN.
    divisor = torch.where(clip == 0, math.inf, clip)
    scaled = torch.mul(x, float(qmax)).div_(divisor)
    return round_(scaled, rounding, generator).clamp_(-qmax, qmax)


def uniform_codes(
    x: Tensor,
    clip: Tensor,
    bits: int,
    *,
    rounding: str = "nearest",
    generator: torch.Generator | None = None,
) -> QTensor:
    """Int8 codes of MetaGrad Eq. 1.

    Args:
        x: float32.
        clip: c ≥ 0, () or broadcastable to ``x``.
        bits: 2..8.
        rounding: "nearest" or "stochastic".
        generator: for stochastic rounding.

    Returns:
        Codes in −qmax..qmax with scale c/qmax.

    Source: MetaGrad Eq. 1.
    """
    qmax = qmax_of(bits)
    x = x.detach().contiguous()
    codes = torch.empty_like(x, dtype=torch.int8)
    if native.usable(x.device) and x.dtype == torch.float32 and clip.dim() == 0:
        _compiled_codes(x, codes, float(clip), qmax, rounding, generator)
        return QTensor(codes=codes, scale=clip / qmax, mult=1, offset=0, bits=bits, code_max=qmax, value_max=qmax)
    parts = flat_pieces(x, codes) if clip.dim() == 0 else [(x, codes)]
    for values, code in parts:
        code.copy_(uniform_integers(values, clip, bits, rounding=rounding, generator=generator))
    return QTensor(
        codes=codes,
        scale=clip / qmax,
        mult=1,
        offset=0,
        bits=bits,
        code_max=qmax,
        value_max=qmax,
    )


def codes_within(
    x: Tensor, largest: float, bits: int, *, rounding: str = "nearest", generator: torch.Generator | None = None
) -> QTensor:
    """``uniform_codes`` with c = max|x| known as a number; the same codes and scale.

    Args:
        x: float32, contiguous.
        largest: max|x|, a float32 number.
        bits: 2..8.
        rounding: "nearest" or "stochastic".
        generator: for stochastic rounding.
    """
    if not native.usable(x.device):
        clip = torch.tensor(largest, device=x.device)
        return uniform_codes(x, clip, bits, rounding=rounding, generator=generator)
    qmax = qmax_of(bits)
    codes = torch.empty_like(x, dtype=torch.int8)
    _compiled_codes(x, codes, largest, qmax, rounding, generator)
    scale = torch.tensor(largest / qmax)  # rounded to float64 and then to float32, which is once: 53 >= 2·24 + 2 digits
    return QTensor(codes=codes, scale=scale, mult=1, offset=0, bits=bits, code_max=qmax, value_max=qmax)


def _compiled_codes(
    x: Tensor, codes: Tensor, clip: float, qmax: int, rounding: str, generator: torch.Generator | None
) -> None:
    """The codes in one pass; the same numbers as ``uniform_integers``, drawn from the same stream."""
    check_choices(rounding, "tensor")
    lanes = None if rounding == "nearest" else draw_lanes(x.numel(), check_generator(generator, x.device))
    native.compiled().uniform_codes(
        native.pointer(x), native.pointer(codes), x.numel(), float(qmax), math.inf if clip == 0 else clip,
        native.pointer(lanes), LANE_STEP, LANE_CENTRE,
    )  # fmt: skip


def uniform_values(
    x: Tensor,
    clip: Tensor,
    bits: int,
    *,
    rounding: str = "nearest",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Quantized values x̂ = q·c/qmax in float32, for a gradient that no integer GEMM reads (∇W).

    Arguments as ``uniform_codes``. Source: MetaGrad Eq. 1.
    """
    scale = clip / qmax_of(bits)
    return uniform_integers(x, clip, bits, rounding=rounding, generator=generator).mul_(scale)


class UniformQuantizer:
    """Error signals (or weights' gradients) on the symmetric grid, c = max|g| of the granularity."""

    def __init__(
        self,
        bits: int,
        *,
        rounding: str = "nearest",
        granularity: str = "tensor",
        generator: torch.Generator | None = None,
    ) -> None:
        """Check the choices.

        Args:
            bits: 2..8.
            rounding: "nearest" or "stochastic".
            granularity: "tensor", "sample" (first axis) or "channel" (last axis).
            generator: needed for stochastic rounding.

        Raises:
            ConfigError: for a choice that does not exist.
        """
        check_bits(bits, "uniform quantizer")
        check_choices(rounding, granularity)
        self.bits = bits
        self.rounding = rounding
        self.granularity = granularity
        self.generator = generator

    def quantize(self, gradient: Tensor) -> QTensor:
        """Codes of a gradient with c = max|g|."""
        return uniform_codes(
            gradient,
            amax(gradient, self.granularity),
            self.bits,
            rounding=self.rounding,
            generator=self.generator,
        )

    def describe(self) -> str:
        """One line for the record."""
        return f"uniform, {self.bits} bits, {self.rounding}, per {self.granularity}"


class UniformActivation:
    """Signed inputs (normalised pixels, linear bottlenecks) on the symmetric grid; gradient passes everywhere."""

    def __init__(self, bits: int) -> None:
        """Check the width.

        Raises:
            ConfigError: outside 2..8 bits.
        """
        check_bits(bits, "uniform activation")
        self.bits = bits

    def quantize(self, x: Tensor) -> tuple[QTensor, Tensor | None]:
        """Codes with c = max|x|; nothing is clipped, so there is no mask."""
        return uniform_codes(x, amax(x), self.bits), None

    def describe(self) -> str:
        """One line for the record."""
        return f"uniform, {self.bits} bits, nearest, per tensor"


def check_choices(rounding: str, granularity: str) -> None:
    """Refuse unknown names.

    Raises:
        ConfigError: listing the known ones.
    """
    if rounding not in ROUNDINGS:
        raise ConfigError(f"rounding {rounding!r} is unknown; choose one of: {', '.join(ROUNDINGS)}")
    if granularity not in GRANULARITIES:
        raise ConfigError(f"granularity {granularity!r} is unknown; choose one of: {', '.join(GRANULARITIES)}")
