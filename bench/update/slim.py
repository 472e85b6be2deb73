"""`slim` (MetaQuant 7.1): one random layer keeps its graph, the others run without.

∇ψ is that layer's share; its expectation over the draw is the whole divided by the number of layers.
Keeps O(N_layer·H).
Source: docs/method.md section 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bench.hypernets import Hypernet
from bench.layout import unflat
from bench.update.base import WHOLE, Parts
from bench.update.states import CarriedStates


class Slim:
    """The papers' memory-saving strategy."""

    can_carry = True
    keeps_weight = False

    def __init__(self, *, seed: int = 0) -> None:
        """Draw the layers from a generator of this seed."""
        self.generator = torch.Generator().manual_seed(seed)
        self.chosen = -1
        self.held: int | None = None  # the layer to take in every iteration, for a measurement; None draws
        self.graph: Tensor | None = None
        self.states = CarriedStates()

    def outputs(self, hypernet: Hypernet, grads: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
        """See `Strategy.outputs`; draws the layer of this iteration."""
        self.chosen = int(torch.randint(len(grads), (), generator=self.generator))
        if self.held is not None:
            self.chosen = self.held
        self.states.begin(hypernet, grads)
        results = []
        for index, (grad, weight) in enumerate(zip(grads, weights, strict=True)):
            with torch.set_grad_enabled(index == self.chosen):
                output = self.states.published(hypernet, index, grad, weight)
            if index == self.chosen:
                self.graph = output
            results.append(unflat(output.detach(), grad))
        return results

    def meta_gradient(
        self,
        hypernet: Hypernet,
        grads: Sequence[Tensor],
        weights: Parts,
        cotangents: Parts,
    ) -> None:
        """See `Strategy.meta_gradient`."""
        assert self.graph is not None, "meta_gradient without outputs"
        graph, self.graph = self.graph, None
        torch.autograd.backward(graph, cotangents(self.chosen, WHOLE))
        self.states.advance()

    def state_dict(self) -> dict[str, Any]:
        """The generator and carried states."""
        return {"generator": self.generator.get_state(), **self.states.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the generator and carried states."""
        self.generator.set_state(state["generator"].cpu())
        self.states.load_state_dict(state)
