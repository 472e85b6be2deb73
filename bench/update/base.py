"""What a strategy is: a way to the hypernetwork's outputs and, one forward and backward later, to its gradient.

Source: docs/method.md section 4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor

from bench.hypernets import Hypernet

# Layer index and a slice of the layer, in the order of ``layout.flat``, to the values there, (n,).
Parts = Callable[[int, slice], Tensor]
WHOLE = slice(None)


class Strategy(Protocol):
    """One way to f_ψ(G, W) of all layers and to the gradient of Σ cotangent·f_ψ(G, W) by ψ."""

    can_carry: bool  # whether it works with a hypernetwork that carries a state per weight
    keeps_weight: bool  # whether `meta_gradient` reads the old weights

    def outputs(self, hypernet: Hypernet, grads: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
        """f_ψ(G, W) of every layer, detached.

        Args:
            hypernet: f_ψ.
            grads: pending gradient G of each layer, any shape.
            weights: weight W of each layer, detached, the gradient's shape and strides.

        Returns:
            New tensors of the layers' shapes and strides.
        """

    def meta_gradient(
        self,
        hypernet: Hypernet,
        grads: Sequence[Tensor],
        weights: Parts,
        cotangents: Parts,
    ) -> None:
        """Add ∇ψ to the ``.grad`` of the hypernetwork's parameters, which are still those of `outputs`.

        Args:
            hypernet: f_ψ.
            grads: as given to `outputs`.
            weights: parts of the W given to `outputs`; only for strategies with `keeps_weight`.
            cotangents: parts of −μ·π'·∇W⁺, made anew by each call.
        """

    def state_dict(self) -> dict[str, Any]:
        """What the next iterations depend on."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state answered by `state_dict`."""
