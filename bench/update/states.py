"""The LSTM state (h, c) of every weight, carried from one iteration to the next.

Costs 2·N·H numbers, twice that between preview and meta-gradient: the pair before the iteration is kept until then.
Source: docs/method.md section 3 (`carry`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bench.hypernets import Hypernet, State
from bench.layout import flat


class CarriedStates:
    """Each layer's state before and after the iteration under way; empty for hypernetworks with zero state."""

    def __init__(self) -> None:
        """Start at zero."""
        self.before: list[State] = []
        self.after: list[State] = []

    def begin(self, hypernet: Hypernet, grads: Sequence[Tensor]) -> None:
        """Have a state for every layer, and room for the next ones."""
        if not hypernet.carries:
            return
        if not self.before:
            self.before = [zero_state(grad, hypernet.hidden) for grad in grads]
        self.before = [(h.to(grad.device), c.to(grad.device)) for (h, c), grad in zip(self.before, grads, strict=True)]
        self.after = [(torch.empty_like(h), torch.empty_like(c)) for h, c in self.before]

    def advance(self) -> None:
        """The meta-gradient is taken: the old pairs are no longer needed."""
        if self.after:
            self.before, self.after = self.after, []

    def published(self, hypernet: Hypernet, index: int, grad: Tensor, weight: Tensor) -> Tensor:
        """f_ψ of one layer as published, with a graph where gradients are enabled; flat."""
        flat_grad, flat_weight = flat(grad), flat(weight)
        if not hypernet.carries:
            output: Tensor = hypernet(flat_grad, flat_weight)
            return output
        output, (h, c) = hypernet.forward_carried(flat_grad, flat_weight, self.before[index])
        self.after[index] = (h.detach(), c.detach())
        return output

    def state_dict(self) -> dict[str, Any]:
        """The states before the next iteration."""
        return {"states": list(self.before)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Copy them back."""
        self.before = [(h.clone(), c.clone()) for h, c in state["states"]]


def zero_state(grad: Tensor, hidden: int) -> State:
    """(h, c) of a layer's n weights, each (n, H)."""
    return grad.new_zeros(grad.numel(), hidden), grad.new_zeros(grad.numel(), hidden)


def part_of(state: State, part: slice) -> State:
    """Views of some weights' states."""
    return state[0][part], state[1][part]
