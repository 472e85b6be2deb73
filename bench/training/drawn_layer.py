"""Which layer slim takes while it is measured: a few draws would say as much about the draw as about the step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bench.training.assemble import Parts
from bench.update import Slim


def take_largest_layer(parts: Parts) -> str:
    """Let slim take its largest layer in every step: a training of any length comes upon it.

    Returns:
        The layer's name; "" where nothing is drawn.
    """
    return _hold(parts, lambda sizes: max(range(len(sizes)), key=sizes.__getitem__))


def take_typical_layer(parts: Parts) -> str:
    """Let slim take, in every step, the layer whose size is nearest to the layers' mean: the mean of all draws, nearly.

    Returns:
        The layer's name; "" where nothing is drawn.
    """

    def nearest_to_mean(sizes: Sequence[int]) -> int:
        mean = sum(sizes) / len(sizes)
        return min(range(len(sizes)), key=lambda index: abs(sizes[index] - mean))

    return _hold(parts, nearest_to_mean)


def _hold(parts: Parts, choose: Callable[[Sequence[int]], int]) -> str:
    if parts.delayed is None or not isinstance(parts.delayed.strategy, Slim):
        return ""
    index = choose([weight.numel() for weight in parts.weights])
    parts.delayed.strategy.held = index
    names = (name for name, parameter in parts.model.named_parameters() if parameter is parts.weights[index])
    return next(names).removesuffix(".weight")
