"""AFP's error signals: 8, 16 or 24 bits per layer, chosen by how much quantization moves the mean magnitude.

Source: Zhang et al., "Fixed-Point Back-Propagation Training", CVPR 2020 (arXiv 1911.00361): quantization error
measurement Diff = log2(|Σ|g| − Σ|ĝ|| / Σ|g| + 1); at an update the width grows by 8 bits while Diff > 3 %, up to 24,
and the resolution is set anew; the next update is due after β/max(δ·Diff², α·|s − m|) − γ steps, s = log2 of the
resolution and m its moving average m ← α·s + (1 − α)·m, with α = 0.04, β = 0.1, γ = 2, δ = 100 (constants unchecked).
Weights and activations have 8 bits throughout.

Codes of 16 and 24 bits run in integers as two and three int8 grids, hence as many products each way; the width of
each layer goes into the record, and how many steps ran at which.

Left open there and decided here: a width never falls again; the first 10 quantizations are updates, the longest
interval is 100; between two updates what lies beyond the range saturates. Which products run depends on the measured
Diff, so an update waits for the device, once for every width that it tries; other steps do not.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from bench.errors import ConfigError
from bench.quantizers.base import Grids, amax
from bench.quantizers.byte_grids import WIDTHS, byte_grids, largest_code
from bench.quantizers.fixed_point import resolution_of

THRESHOLD = 0.03
ALPHA, BETA, GAMMA, DELTA = 0.04, 0.1, 2.0, 100.0
_FIRST_UPDATES = 10
_LONGEST_INTERVAL = 100


def fixed_point_integers(gradient: Tensor, resolution: Tensor, bits: int) -> Tensor:
    """round(g/r), saturated at the largest code of that many bits, as fresh float32 integers."""
    top = largest_code(bits)
    return torch.div(gradient.detach(), resolution).round_().clamp_(-top, top)


def mean_change(gradient: Tensor, quantized: Tensor) -> Tensor:
    """Diff = log2(|mean|g| − mean|ĝ|| / mean|g| + 1); 0 for a zero gradient.

    Args:
        gradient: float32.
        quantized: ĝ, its shape.

    Returns:
        () float32.

    Source: arXiv 1911.00361, quantization error measurement.
    """
    before, after = gradient.detach().abs().mean(), quantized.abs().mean()
    change = (before - after).abs() / torch.where(before == 0, 1.0, before)
    return torch.log2(change + 1)


def update_interval(diff: float, drift: float) -> int:
    """Steps to the next update, 1 to 100.

    Args:
        diff: Diff of the chosen width.
        drift: |s − m|, of log2 of the resolution from its moving average.
    """
    worst = max(DELTA * diff**2, ALPHA * drift)
    if not math.isfinite(worst):
        return 1
    if worst == 0:
        return _LONGEST_INTERVAL
    return min(_LONGEST_INTERVAL, max(1, round(BETA / worst - GAMMA)))


class AdaptiveQuantizer(nn.Module):
    """One layer's error signals; width, resolution and schedule travel in the state dict."""

    code_bits = 8  # of every grid
    resolution: Tensor

    def __init__(self, bits: int = 8, *, rounding: str = "nearest") -> None:
        """Check the choices.

        Args:
            bits: 8, the width that a layer starts with.
            rounding: "nearest".

        Raises:
            ConfigError: for any other choice, naming the valid one.
        """
        super().__init__()
        if bits != WIDTHS[0]:
            raise ConfigError(
                f"error quantizer afp starts at 8 bits and goes to 16 and 24 by itself, not at {bits}: set error_bits=8"
            )
        if rounding != "nearest":
            raise ConfigError(f"error quantizer afp rounds to the nearest; {rounding} is not a choice")
        self.bits = bits
        self.quantizations = 0
        self.next_update = 0
        self.average: float | None = None  # m
        self.steps_at_bits = dict.fromkeys(WIDTHS, 0)
        self.register_buffer("resolution", torch.ones(()))

    @torch.no_grad()
    def quantize(self, gradient: Tensor) -> Grids:
        """One, two or three int8 grids."""
        if self.quantizations >= self.next_update:
            codes = self._update(gradient)
        else:
            codes = fixed_point_integers(gradient, self.resolution, self.bits)
        self.quantizations += 1
        self.steps_at_bits[self.bits] += 1
        # an infinite value saturates, its sum shows it
        return byte_grids(codes, self.resolution + 0 * amax(gradient), self.bits)

    def _update(self, gradient: Tensor) -> Tensor:
        largest = amax(gradient)
        while True:
            self.resolution.copy_(resolution_of(largest, largest_code(self.bits)))
            codes = fixed_point_integers(gradient, self.resolution, self.bits)
            measured = torch.stack([mean_change(gradient, codes * self.resolution), torch.log2(self.resolution)])
            diff, exponent = measured.tolist()  # waits for the device
            if not diff > THRESHOLD or self.bits == WIDTHS[-1]:
                break
            self.bits += 8
            self.average = None if self.average is None else self.average - 8  # the resolution falls with it
        drift = 0.0 if self.average is None else abs(exponent - self.average)
        self.average = exponent if self.average is None else ALPHA * exponent + (1 - ALPHA) * self.average
        early = self.quantizations + 1 < _FIRST_UPDATES
        self.next_update = self.quantizations + (1 if early else update_interval(diff, drift))
        return codes

    def get_extra_state(self) -> dict[str, Any]:
        """Width and schedule, for a checkpoint."""
        return {
            "bits": self.bits,
            "quantizations": self.quantizations,
            "next_update": self.next_update,
            "average": self.average,
            "steps_at_bits": dict(self.steps_at_bits),
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.bits = state["bits"]
        self.quantizations = state["quantizations"]
        self.next_update = state["next_update"]
        self.average = state["average"]
        self.steps_at_bits = dict(state["steps_at_bits"])

    def describe(self) -> str:
        """One line for the record."""
        return f"afp, {self.bits} bits so far, 8, 16 or 24 by the change of the mean; fixed point, nearest, per tensor"
