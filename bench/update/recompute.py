"""`recompute` (ours): W⁺ is made without a graph, and f_ψ is evaluated again, part by part, for its gradient.

Exact and equal to `retain`, since G, the old W, ψ and the layer-wide maxima are those of the first evaluation. Keeps
O(part·H), and where momentum's buffer does not give the old weights back (to rounding) O(N): a copy of them.
Source: docs/method.md section 4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from bench.errors import ConfigError
from bench.hypernets import CarriedEvaluation, Hypernet, Scales, layer_scales
from bench.layout import flat, unflat
from bench.update.base import Parts
from bench.update.states import CarriedStates, part_of

Values = Callable[[int, slice, Tensor], Tensor]  # layer, part and features (inputs, n) to the core's (n,)


class Recompute:
    """The exact strategy whose memory does not grow with N·H."""

    can_carry = True
    keeps_weight = True

    def __init__(self, *, chunk: int | None = None) -> None:
        """Evaluate `chunk` weights at a time; None takes what suits the hidden size and the device.

        Raises:
            ConfigError: if `chunk` is below 1.
        """
        if chunk is not None and chunk < 1:
            raise ConfigError(f"recompute needs a chunk of at least 1 weight, got {chunk}.")
        self.chunk = chunk
        self.scales: list[Scales] = []
        self.states = CarriedStates()

    @torch.no_grad()
    def outputs(self, hypernet: Hypernet, grads: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
        """See `Strategy.outputs`."""
        self.states.begin(hypernet, grads)
        values = self._carried_values(hypernet) if hypernet.carries else zero_state_values(hypernet)
        chunk = self.chunk or suitable_chunk(hypernet.hidden, grads[0].device)
        self.scales, results = [], []
        for index, (grad, weight) in enumerate(zip(grads, weights, strict=True)):
            scales = layer_scales(grad, weight)
            flat_grad, flat_weight, output = flat(grad), flat(weight), grad.new_empty(grad.numel())
            for part in parts(output.numel(), chunk):
                core = values(index, part, hypernet.features(flat_grad[part], flat_weight[part], scales))
                output[part] = hypernet.combine(flat_grad[part], core, scales)
            self.scales.append(scales)
            results.append(unflat(output, grad))
        return results

    @torch.no_grad()
    def meta_gradient(
        self,
        hypernet: Hypernet,
        grads: Sequence[Tensor],
        weights: Parts,
        cotangents: Parts,
    ) -> None:
        """See `Strategy.meta_gradient`."""
        zero, carried = (None, CarriedEvaluation(hypernet)) if hypernet.carries else (hypernet.evaluation(), None)
        chunk = self.chunk or suitable_chunk(hypernet.hidden, grads[0].device)
        for index, scales in enumerate(self.scales):
            grad = flat(grads[index])
            for part in parts(grad.numel(), chunk):
                features = hypernet.features(grad[part], weights(index, part), scales)
                by_core = cotangents(index, part) * hypernet.gain(grad[part], scales)
                if carried is not None:
                    carried.accumulate(features, by_core, part_of(self.states.before[index], part))
                elif zero is not None:
                    zero.accumulate(features, by_core)
        if zero is not None:
            zero.finish()
        self.scales = []
        self.states.advance()

    def _carried_values(self, hypernet: Hypernet) -> Values:
        """Values from the state before, which leave the state after."""
        evaluation = CarriedEvaluation(hypernet)

        def values(index: int, part: slice, features: Tensor) -> Tensor:
            core, after = evaluation.values(features, part_of(self.states.before[index], part))
            for kept, new in zip(part_of(self.states.after[index], part), after, strict=True):
                kept.copy_(new)
            return core

        return values

    def state_dict(self) -> dict[str, Any]:
        """Carried states."""
        return self.states.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore carried states."""
        self.states.load_state_dict(state)


def zero_state_values(hypernet: Hypernet) -> Values:
    """Values from the hypernetwork's cheapest evaluation, whatever the layer."""
    evaluation = hypernet.evaluation()
    return lambda index, part, features: evaluation.values(features)


def suitable_chunk(hidden: int, device: torch.device) -> int:
    """Weights evaluated at a time.

    On the CPU (chunk, H) arrays that stay in the second-level cache: with H = 100, 2,048 weights took 142 ms for
    268,336, 16,384 took 172 ms; with H = 4 16,384 were best, and fewer cost calls. On a GPU few launches count.
    """
    if device.type == "cpu":
        return min(max(2**17 // hidden, 2048), 16_384)
    return max(2**23 // hidden, 16_384)


def parts(count: int, chunk: int) -> Iterator[slice]:
    """Slices of at most `chunk` that cover 0..count."""
    for start in range(0, count, chunk):
        yield slice(start, min(start + chunk, count))
