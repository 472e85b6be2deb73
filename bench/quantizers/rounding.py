"""Rounding to integers: nearest (half to even) and stochastic, drawn from an explicit generator.

Source: docs/method.md section 1: stochastic rounding is floor(x + u), u in [0, 1), clamped by the caller afterwards,
since 127 + u can round up to 128, which int8 reads as -128.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench.errors import ConfigError

ROUNDINGS = ("nearest", "stochastic")

# u is drawn on a grid of 2⁻¹⁶: four draws from one 64-bit integer (1.3 against 4.8 ms for 2 million on one core). The
# expectation of a rounded value is off by at most 2⁻¹⁷ of a step.
_LANES = 4
LANE_STEP = 2.0**-16
LANE_CENTRE = 0.5 + LANE_STEP / 2  # lanes run from -2^15; half a step more makes u symmetric in (0, 1)


def round_nearest_(x: Tensor) -> Tensor:
    """Round in place, half to even."""
    return x.round_()


def round_stochastic_(x: Tensor, generator: torch.Generator) -> Tensor:
    """Round in place to floor(x + u).

    Args:
        x: float32, contiguous.
        generator: source of u, on the device of ``x``.

    Raises:
        ConfigError: if the generator lives on another device.
    """
    check_generator(generator, x.device)
    return x.add_(draw_uniform(x.shape, generator)).floor_()


def check_generator(generator: torch.Generator | None, device: torch.device) -> torch.Generator:
    """The generator of a stochastic rounding on ``device``.

    Raises:
        ConfigError: if there is none, or it lives on another device.
    """
    if generator is None:
        raise ConfigError("stochastic rounding needs an explicit generator; pass generator=")
    if generator.device.type != device.type:
        raise ConfigError(
            f"stochastic rounding: the generator is on {generator.device} and the tensor on {device}; "
            "give a generator of the tensor's device"
        )
    return generator


def draw_lanes(size: int, generator: torch.Generator) -> Tensor:
    """(size,) int16 uniform integers: u = lane · LANE_STEP + LANE_CENTRE."""
    words = torch.empty(-(-size // _LANES), dtype=torch.int64, device=generator.device)
    words.random_(-(2**63), None, generator=generator)
    return words.view(torch.int16)[:size]


def draw_uniform(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Uniform numbers in (0, 1), odd multiples of 2⁻¹⁷, float32."""
    lanes = draw_lanes(shape.numel(), generator).view(shape)
    return (
        torch.empty(shape, dtype=torch.float32, device=generator.device).copy_(lanes).mul_(LANE_STEP).add_(LANE_CENTRE)
    )


def round_(x: Tensor, rounding: str, generator: torch.Generator | None) -> Tensor:
    """Round in place by the rule's name.

    Raises:
        ConfigError: for an unknown rule, or stochastic rounding without a generator.
    """
    if rounding == "nearest":
        return round_nearest_(x)
    if rounding != "stochastic":
        raise ConfigError(f"rounding {rounding!r} is unknown; choose one of: {', '.join(ROUNDINGS)}")
    return round_stochastic_(x, check_generator(generator, x.device))
