"""`retain`, the papers' way: f_ψ's graph through nn.LSTM lives through the network's forward and backward.

Exact; keeps O(N·H) for the N weights of all layers. Since history is constant, W⁺ depends on ψ through
f_ψ alone and elementwise, so the graph of f_ψ against −μ·π'·∇W⁺ is the whole meta-gradient (MetaGrad Eq. 13).
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


class Retain:
    """The non-slim strategy."""

    can_carry = True
    keeps_weight = False

    def __init__(self) -> None:
        """No graph is held yet."""
        self.graphs: list[Tensor] = []
        self.states = CarriedStates()

    def outputs(self, hypernet: Hypernet, grads: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
        """See `Strategy.outputs`; the graphs stay alive until `meta_gradient`."""
        self.states.begin(hypernet, grads)
        with torch.enable_grad():
            self.graphs = [
                self.states.published(hypernet, index, grad, weight)
                for index, (grad, weight) in enumerate(zip(grads, weights, strict=True))
            ]
        return [unflat(output.detach(), grad) for output, grad in zip(self.graphs, grads, strict=True)]

    def meta_gradient(
        self,
        hypernet: Hypernet,
        grads: Sequence[Tensor],
        weights: Parts,
        cotangents: Parts,
    ) -> None:
        """See `Strategy.meta_gradient`; layer by layer, so that each graph is freed as soon as it was used."""
        for index in range(len(self.graphs)):
            graph, self.graphs[index] = self.graphs[index], self.graphs[index].detach()
            torch.autograd.backward(graph, cotangents(index, WHOLE))
            del graph
        self.graphs = []
        self.states.advance()

    def state_dict(self) -> dict[str, Any]:
        """Carried states."""
        return self.states.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore carried states."""
        self.states.load_state_dict(state)
