"""What every optimizer offers: an ordinary step, and for the delayed update its direction with derivative.

Source: docs/method.md section 4 (π and π'); MetaGrad Eq. 4 and 11.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Direction:
    """One step's direction π(g) per parameter and its derivative π' = dπ/dg by the current gradient.

    Attributes:
        pi: one tensor per parameter, its shape and dtype; may alias the optimizer's buffers, so it is read-only
            and valid until the next step.
        pi_prime: a number where the derivative is the same everywhere (SGD), else one tensor per parameter.
        lasting: whether `pi` are buffers that the optimizer keeps anyway, so that W = W⁺ + μ·π can be had back later.
    """

    pi: list[Tensor]
    pi_prime: float | list[Tensor]
    lasting: bool = False


class Optimizer(Protocol):
    """The interface that training and the delayed update share; `lr` may be set before every step."""

    params: list[Tensor]
    lr: float

    def step(self, grads: Sequence[Tensor] | None = None, *, lr_factors: Sequence[Tensor] | None = None) -> None:
        """Step the parameters in place.

        Args:
            grads: one gradient per parameter; None reads each parameter's ``.grad``.
            lr_factors: one () float tensor per parameter that multiplies its learning rate (UINT8 gradients).
        """

    def direction(self, grads: Sequence[Tensor]) -> Direction:
        """Advance the history by `grads` and answer π and π'; the parameters stay as they are.

        Args:
            grads: one gradient per parameter, before weight decay, which enters here (after the quantizer).
        """

    def state_dict(self) -> dict[str, Any]:
        """History and counters, by reference; the learning rate belongs to the schedule and is left out."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Copy a state answered by `state_dict` back."""


def gather_grads(params: Sequence[Tensor], grads: Sequence[Tensor] | None) -> list[Tensor]:
    """The gradients to step with: those given, else each parameter's ``.grad``, which must be there."""
    if grads is None:
        found = [param.grad for param in params]
        missing = [index for index, grad in enumerate(found) if grad is None]
        assert not missing, f"parameters {missing} have no gradient: run backward before the optimizer's step"
        return [grad for grad in found if grad is not None]
    assert len(grads) == len(params), f"{len(grads)} gradients for {len(params)} parameters"
    return list(grads)


def move_(
    params: Sequence[Tensor],
    directions: Sequence[Tensor],
    lr: float,
    lr_factors: Sequence[Tensor] | None = None,
) -> None:
    """W ← W − lr·factor·π in place, with one call per operation for all parameters."""
    if lr_factors is not None:
        directions = torch._foreach_mul(list(directions), list(lr_factors))
    torch._foreach_add_(list(params), list(directions), alpha=-lr)


def copy_state_(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copy saved buffers into living ones of the same shapes."""
    assert len(targets) == len(sources), f"saved {len(sources)} buffers, expected {len(targets)}"
    for target, source in zip(targets, sources, strict=True):
        assert target.shape == source.shape, f"saved shape {tuple(source.shape)}, expected {tuple(target.shape)}"
        target.copy_(source)
