"""DAINT8's distribution-adaptive error signals, for any bits from 2 to 8: two quantizations of one error signal.

Source: Zhao et al., "Distribution Adaptive INT8 Quantization for Training CNNs", AAAI 2021 (arXiv 2102.04782);
docs/method.md sections 1 and 5 (constants unchecked). wgrad reads codes with one scale per output channel, dgrad codes
with one scale per tensor, since it sums over the channels. Where P(|g| > σ) > 0.3 the values are Gaussian and the clip
is max|g|; else they are an inverted T and the clip is s_t = 0.2·s_(t−1) + 0.8·max|g|_t, s_0 = max|g|_0.

Left open there and decided here: σ is the standard deviation over the values that share a scale, about their mean,
divided by their number; s_t follows every step, whichever of the two clips is in use; the rounding is a choice.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.errors import ConfigError
from bench.quantizers.base import QTensor, amax, check_bits
from bench.quantizers.uniform import check_choices, uniform_codes

GAUSSIAN_SHARE = 0.3
KEPT_SHARE = 0.2  # of s_(t−1) in s_t


def is_gaussian(gradient: Tensor, *, per_channel: bool) -> Tensor:
    """Whether P(|g| > σ) > 0.3, over the whole tensor or per index of its last axis.

    Args:
        gradient: float32, channels last.
        per_channel: one answer for each channel.

    Returns:
        () or (channels,) bool.

    Source: arXiv 2102.04782; a normal distribution has 0.317 of its values beyond σ.
    """
    rows = gradient.detach().reshape(-1, gradient.shape[-1] if per_channel else 1)
    sigma = rows.var(0, correction=0).sqrt_()
    share = (rows.abs() > sigma).sum(0) / max(1, rows.shape[0])
    return (share > GAUSSIAN_SHARE).view(-1 if per_channel else ())


class AdaptiveClip(nn.Module):
    """The clip of one granularity; s_t is a buffer and travels in the state dict."""

    moving: Tensor

    def __init__(self, channels: int | None) -> None:
        """Start before the first step.

        Args:
            channels: how many channels have a clip each; None for one clip per tensor.
        """
        super().__init__()
        self.per_channel = channels is not None
        self.started = False
        self.register_buffer("moving", torch.zeros(() if channels is None else (channels,)))

    def update(self, gradient: Tensor) -> Tensor:
        """Advance s_t by a gradient and answer its clip, () or (channels,), not finite where a value is not."""
        largest = amax(gradient, "channel" if self.per_channel else "tensor")
        largest = largest.view(self.moving.shape)
        kept = KEPT_SHARE if self.started else 0.0
        self.moving.mul_(kept).add_(largest, alpha=1 - kept)
        self.started = True
        clip = torch.where(is_gaussian(gradient, per_channel=self.per_channel), largest, self.moving)
        return clip + 0 * largest.amax()

    def get_extra_state(self) -> bool:
        """Whether s_0 is there, for a checkpoint."""
        return self.started

    def set_extra_state(self, state: bool) -> None:
        """Continue from a checkpoint."""
        self.started = state


class Daint8Quantizer(nn.Module):
    """Codes of one layer's error signals: ``quantize`` for dgrad, ``quantize_for_wgrad`` for wgrad."""

    def __init__(
        self,
        bits: int = 8,
        *,
        channels: int | None = None,
        rounding: str = "nearest",
        granularity: str = "tensor",
        generator: torch.Generator | None = None,
    ) -> None:
        """Check the choices.

        Args:
            bits: 2..8.
            channels: output channels of the layer.
            rounding: "nearest" or "stochastic".
            granularity: of dgrad's scale, "tensor"; wgrad's is always per output channel.
            generator: needed for stochastic rounding.

        Raises:
            ConfigError: for a choice that does not exist, or a scale that dgrad cannot have.
        """
        super().__init__()
        check_bits(bits, "DAINT8 quantizer")
        check_choices(rounding, granularity)
        check_granularity(granularity)
        assert channels is not None, "DAINT8 keeps one moving maximum per output channel: say how many there are"
        self.bits = bits
        self.rounding = rounding
        self.generator = generator
        self.tensor_clip = AdaptiveClip(None)
        self.channel_clip = AdaptiveClip(channels)

    @torch.no_grad()
    def quantize(self, gradient: Tensor) -> QTensor:
        """Codes with one scale, for dgrad."""
        return self._codes(gradient, self.tensor_clip.update(gradient))

    @torch.no_grad()
    def quantize_for_wgrad(self, gradient: Tensor) -> QTensor:
        """Codes with one scale (channels,) per index of the last axis, for wgrad and the bias's gradient."""
        return self._codes(gradient, self.channel_clip.update(gradient))

    def _codes(self, gradient: Tensor, clip: Tensor) -> QTensor:
        return uniform_codes(gradient, clip, self.bits, rounding=self.rounding, generator=self.generator)

    def describe(self) -> str:
        """One line for the record."""
        return (
            f"daint8, {self.bits} bits, {self.rounding}, two quantizations: per tensor for dgrad, "
            "per output channel for wgrad"
        )


def check_granularity(granularity: str) -> None:
    """Refuse a scale that dgrad sums over.

    Raises:
        ConfigError: naming the valid choices.
    """
    if granularity != "tensor":
        raise ConfigError(
            f"error quantizer daint8 cannot give dgrad one scale per {granularity}: it quantizes twice, per tensor for "
            "dgrad, which sums over the channels, and per output channel for wgrad; leave "
            "method.error_granularity=tensor, or take method=uniform with dispatch=simulate for one scale per "
            f"{granularity}"
        )
