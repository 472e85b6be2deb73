"""SGD, with momentum and Nesterov's momentum: buf = m·buf + g + λW; π = buf, or g + λW + m·buf (Nesterov).

Source: docs/method.md section 4. The history is a constant of the update, so π' is 1, for Nesterov 1 + m.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bench.errors import ConfigError
from bench.optim.base import Direction, copy_state_, gather_grads, move_


def sgd_direction(
    grads: Sequence[Tensor],
    params: Sequence[Tensor],
    buffers: Sequence[Tensor],
    *,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
) -> list[Tensor]:
    """π(g) for all parameters; the momentum buffers advance in place.

    Args:
        grads: one gradient per parameter; left as they are.
        params: the parameters, for weight decay.
        buffers: momentum buffers, zero before the first step; empty when `momentum` is 0.
        momentum: m.
        nesterov: whether to look ahead.
        weight_decay: λ.

    Returns:
        One direction per parameter; without Nesterov these are the buffers, or the gradients, themselves.
    """
    if not buffers:
        return list(torch._foreach_add(list(grads), list(params), alpha=weight_decay) if weight_decay else grads)
    if nesterov and weight_decay:
        grads = torch._foreach_add(list(grads), list(params), alpha=weight_decay)
    torch._foreach_mul_(list(buffers), momentum)
    torch._foreach_add_(list(buffers), list(grads))
    if nesterov:
        return list(torch._foreach_add(list(grads), list(buffers), alpha=momentum))
    if weight_decay:  # straight into the buffer: no decayed copy of the gradients
        torch._foreach_add_(list(buffers), list(params), alpha=weight_decay)
    return list(buffers)


def sgd_derivative(*, momentum: float, nesterov: bool) -> float:
    """π' by the current gradient: 1, for Nesterov 1 + m."""
    return 1.0 + momentum if nesterov else 1.0


class SGD:
    """SGD over a fixed list of parameters; the same numbers as ``torch.optim.SGD``."""

    def __init__(
        self,
        params: Sequence[Tensor],
        *,
        lr: float,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        """Take the parameters; momentum buffers start at zero.

        Raises:
            ConfigError: if Nesterov is asked for without momentum.
        """
        if nesterov and not momentum:
            raise ConfigError("nesterov needs a momentum above 0; set optimizer.momentum, 0.9 is usual.")
        self.params = list(params)
        self.lr = lr
        self.momentum = momentum
        self.nesterov = nesterov
        self.weight_decay = weight_decay
        self.buffers = [torch.zeros_like(param).detach() for param in self.params] if momentum else []

    @torch.no_grad()
    def step(self, grads: Sequence[Tensor] | None = None, *, lr_factors: Sequence[Tensor] | None = None) -> None:
        """Step the parameters in place; see `Optimizer.step`."""
        move_(self.params, self._advance(gather_grads(self.params, grads)), self.lr, lr_factors)

    @torch.no_grad()
    def direction(self, grads: Sequence[Tensor]) -> Direction:
        """Advance the momentum and answer π and π'; see `Optimizer.direction`."""
        pi = self._advance(gather_grads(self.params, grads))
        prime = sgd_derivative(momentum=self.momentum, nesterov=self.nesterov)
        return Direction(pi, prime, lasting=bool(self.buffers) and not self.nesterov)

    def _advance(self, grads: list[Tensor]) -> list[Tensor]:
        return sgd_direction(
            grads,
            self.params,
            self.buffers,
            momentum=self.momentum,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
        )

    def state_dict(self) -> dict[str, Any]:
        """The momentum buffers."""
        return {"buffers": list(self.buffers)}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Copy the momentum buffers back."""
        copy_state_(self.buffers, state["buffers"])
