"""UINT8's direction-sensitive clipping of error signals, for any bits from 2 to 8.

Source: "Towards Unified INT8 Training for Convolutional Neural Network", arXiv 1912.12607; docs/method.md section 1.
The clip c minimises d_c = 1 − cos(g, ĝ) with nearest rounding, the layer's learning rate is multiplied by
max(exp(−20·d_c), 0.1), both refreshed every 100 iterations. Where we differ: the paper descends on c, we search a grid
of clips (geometric, then finer around the best), which needs no step size and no synchronisation.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.quantizers.base import QTensor, amax, check_bits
from bench.quantizers.uniform import check_choices, qmax_of, uniform_codes

REFRESH_PERIOD = 100
DISTANCE_DECAY = 20.0
MIN_LR_FACTOR = 0.1

_COARSE, _FINE = 16, 7
_COARSE_STEP = 2.0**-0.5


def cosine_distance(gradient: Tensor, clip: Tensor, bits: int) -> Tensor:
    """d_c = 1 − cos(g, ĝ) with nearest rounding; 0 for a zero gradient, 1 where every code is 0.

    Args:
        gradient: float32.
        clip: () float32.
        bits: 2..8.

    Returns:
        () float32.

    Source: arXiv 1912.12607, section 3.3.
    """
    qmax = qmax_of(bits)
    flat = gradient.detach().reshape(-1)
    codes = torch.mul(flat, float(qmax)).div_(torch.where(clip == 0, torch.inf, clip)).round_().clamp_(-qmax, qmax)
    # cos is the same for the codes and for the values c·codes/qmax
    along, norm_g, norm_q = flat.double().dot(codes.double()), flat.double().norm(), codes.double().norm()
    product = norm_g * norm_q
    cosine = along / torch.where(product == 0, 1.0, product)
    return torch.where(norm_g == 0, 0.0, 1 - cosine).to(torch.float32)


def search_clip(gradient: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """The clip of smallest cosine distance among 16 geometric candidates below max|g| and 7 finer ones.

    Args:
        gradient: float32, any shape.
        bits: 2..8.

    Returns:
        (c, d_c), both () float32; c = 0 and d_c = 0 for a zero gradient, NaN where the gradient is not finite.
    """
    largest = amax(gradient)
    ratios = _COARSE_STEP ** torch.arange(_COARSE, device=gradient.device, dtype=torch.float32)
    clip, distance = _best_of(gradient, largest * ratios, bits)
    around = _COARSE_STEP ** torch.linspace(-1, 1, _FINE + 2, device=gradient.device)[1:-1]
    clip, distance = _best_of(gradient, torch.minimum(clip * around, largest), bits)
    return clip, distance + 0 * largest


def _best_of(gradient: Tensor, clips: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    distances = torch.stack([cosine_distance(gradient, clip, bits) for clip in clips])
    best = distances.argmin()
    return clips[best], distances[best]


def lr_factor_of(distance: Tensor) -> Tensor:
    """max(exp(−20·d_c), 0.1); NaN stays NaN."""
    return torch.exp(-DISTANCE_DECAY * distance).clamp_min(MIN_LR_FACTOR)


class Uint8ClipQuantizer(nn.Module):
    """Keeps c and d_c of one layer between refreshes; its state travels in the model's state dict."""

    clip: Tensor
    distance: Tensor

    def __init__(
        self,
        bits: int = 8,
        *,
        rounding: str = "stochastic",
        generator: torch.Generator | None = None,
        period: int = REFRESH_PERIOD,
    ) -> None:
        """Check the choices.

        Args:
            bits: 2..8.
            rounding: "stochastic" (the method's) or "nearest".
            generator: needed for stochastic rounding.
            period: iterations between refreshes.

        Raises:
            ConfigError: for a choice that does not exist.
        """
        super().__init__()
        check_bits(bits, "UINT8 clip quantizer")
        check_choices(rounding, "tensor")
        self.bits = bits
        self.rounding = rounding
        self.generator = generator
        self.period = period
        self.iterations = 0
        self.register_buffer("clip", torch.zeros(()))
        self.register_buffer("distance", torch.zeros(()))

    @property
    def lr_factor(self) -> Tensor:
        """() float32: what multiplies this layer's learning rate."""
        return lr_factor_of(self.distance)

    @torch.no_grad()
    def quantize(self, gradient: Tensor) -> QTensor:
        """Codes of an error signal; every ``period``-th call searches the clip again.

        A clip found on an all-zero gradient would silence the layer until the next refresh: max|g| stands in for it.
        """
        if self.iterations % self.period == 0:
            clip, distance = search_clip(gradient, self.bits)
            self.clip.copy_(clip)
            self.distance.copy_(distance)
        self.iterations += 1
        largest = amax(gradient)
        clip = torch.where(self.clip == 0, largest, self.clip) + 0 * largest
        return uniform_codes(gradient, clip, self.bits, rounding=self.rounding, generator=self.generator)

    def get_extra_state(self) -> int:
        """The iteration count, for a checkpoint."""
        return self.iterations

    def set_extra_state(self, state: int) -> None:
        """Continue from a checkpoint's iteration count."""
        self.iterations = state

    def describe(self) -> str:
        """One line for the record."""
        return f"uint8 clip, {self.bits} bits, {self.rounding}, per tensor, refreshed every {self.period} iterations"
