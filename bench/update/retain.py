"""`retain`, the papers' way: f_ψ's graph through nn.LSTM lives through the network's forward and backward.

Exact; keeps O(N·H) for the N weights of all layers. Since history is constant, W⁺ depends on ψ through
f_ψ alone and elementwise, so the graph of f_ψ against −μ·π'·∇W⁺ is the whole meta-gradient (MetaGrad Eq. 13).
Source: docs/method.md section 4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bench.hypernets import Hypernet


class Retain:
    """The non-slim strategy."""

    keeps_weight = False

    def __init__(self) -> None:
        """No graph is held yet."""
        self.graphs: list[Tensor] = []

    def outputs(self, hypernet: Hypernet, grads: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
        """See `Strategy.outputs`; the graphs stay alive until `meta_gradient`."""
        with torch.enable_grad():
            self.graphs = [
                hypernet(grad.reshape(-1), weight.reshape(-1)) for grad, weight in zip(grads, weights, strict=True)
            ]
        return [output.detach().view(grad.shape) for output, grad in zip(self.graphs, grads, strict=True)]

    def meta_gradient(
        self,
        hypernet: Hypernet,
        grads: Sequence[Tensor],
        weights: Callable[[int], Tensor],
        cotangents: Callable[[int], Tensor],
    ) -> None:
        """See `Strategy.meta_gradient`; layer by layer, so that each graph is freed as soon as it was used."""
        for index in range(len(self.graphs)):
            graph, self.graphs[index] = self.graphs[index], self.graphs[index].detach()
            torch.autograd.backward(graph, cotangents(index).reshape(-1))
            del graph
        self.graphs = []

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing."""
