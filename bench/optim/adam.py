"""Adam with bias correction, and the derivative of its step by the current gradient.

With g holding the weight decay, cᵢ = 1 − βᵢᵗ, m̂ = m/c₁, v̂ = v/c₂ and π = m̂/(√v̂ + ε), the quotient rule gives
π' = a/(√v̂ + ε) − m̂·b·g/(√v̂·(√v̂ + ε)²), a = (1 − β₁)/c₁, b = (1 − β₂)/c₂. Its two terms all but cancel in early
steps (at t = 1 they leave ε/(|g| + ε)², below float32's resolution), so g² is cancelled on paper, with the moments
m₀ and v₀ before the step:
π' = [((1 − β₁)β₂v₀ − (1 − β₂)β₁m₀g)/(c₁c₂√v̂) + aε]/(√v̂ + ε)².

Where v̂ = 0 (every gradient so far was zero, common under a coarse quantizer) π' is 0 by definition: autograd gives
NaN there. MetaQuant takes π' = 1 instead, an option here.
Source: docs/method.md section 4; Kingma and Ba, arXiv 1412.6980.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bench.errors import ConfigError
from bench.optim.base import Direction, copy_state_, gather_grads

PI_PRIMES = ("analytic", "one")


def advance_moments(
    grads: Sequence[Tensor], firsts: Sequence[Tensor], seconds: Sequence[Tensor], *, betas: tuple[float, float]
) -> None:
    """Advance both moments: m ← β₁m + (1 − β₁)g, v ← β₂v + (1 − β₂)g², in place."""
    torch._foreach_lerp_(list(firsts), list(grads), 1.0 - betas[0])
    torch._foreach_mul_(list(seconds), betas[1])
    torch._foreach_addcmul_(list(seconds), list(grads), list(grads), 1.0 - betas[1])


def denominators(seconds: Sequence[Tensor], steps: int, *, beta2: float, eps: float) -> list[Tensor]:
    """√v̂ + ε as new tensors."""
    roots = torch._foreach_sqrt(list(seconds))
    torch._foreach_div_(roots, math.sqrt(1.0 - beta2**steps))
    torch._foreach_add_(roots, eps)
    return list(roots)


def adam_direction(
    firsts: Sequence[Tensor], seconds: Sequence[Tensor], steps: int, *, betas: tuple[float, float], eps: float
) -> list[Tensor]:
    """π = m̂/(√v̂ + ε) after step number `steps`, as new tensors."""
    directions = torch._foreach_div(list(firsts), denominators(seconds, steps, beta2=betas[1], eps=eps))
    torch._foreach_div_(directions, 1.0 - betas[0] ** steps)
    return list(directions)


def adam_derivative(
    grad: Tensor, first: Tensor, second: Tensor, steps: int, *, betas: tuple[float, float], eps: float
) -> Tensor:
    """π' of one parameter by its current gradient, with the history held constant.

    Args:
        grad: the current gradient with weight decay.
        first: m₀, before this step.
        second: v₀, before this step.
        steps: t of this step, counted from 1.
        betas: β₁ and β₂.
        eps: ε.

    Returns:
        A tensor shaped like `grad`, 0 where v̂ = 0.
    """
    beta1, beta2 = betas
    correction1, correction2 = 1.0 - beta1**steps, 1.0 - beta2**steps
    root = (second * beta2).addcmul_(grad, grad, value=1.0 - beta2).div_(correction2).sqrt_()
    slope = (second * ((1.0 - beta1) * beta2)).addcmul_(grad, first, value=-(1.0 - beta2) * beta1)
    slope.div_(correction1 * correction2).div_(root).add_((1.0 - beta1) / correction1 * eps)
    slope.div_((root + eps).square_())
    return slope.masked_fill_(root == 0, 0.0)


class Adam:
    """Adam over a fixed list of parameters; the same numbers as ``torch.optim.Adam``, one counter for all."""

    def __init__(
        self,
        params: Sequence[Tensor],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        pi_prime: str = "analytic",
    ) -> None:
        """Take the parameters; both moments and the counter start at zero.

        Raises:
            ConfigError: if `pi_prime` is neither analytic nor one.
        """
        if pi_prime not in PI_PRIMES:
            raise ConfigError(f"unknown pi_prime {pi_prime!r}; choose one of: {', '.join(PI_PRIMES)}.")
        self.params = list(params)
        self.lr = lr
        self.betas = betas
        self.eps = eps
        self.weight_decay = weight_decay
        self.pi_prime = pi_prime
        self.firsts = [torch.zeros_like(param).detach() for param in self.params]
        self.seconds = [torch.zeros_like(param).detach() for param in self.params]
        self.steps = 0

    @torch.no_grad()
    def step(self, grads: Sequence[Tensor] | None = None, *, lr_factors: Sequence[Tensor] | None = None) -> None:
        """Step the parameters in place; see `Optimizer.step`."""
        self._advance(self._decay(gather_grads(self.params, grads)))
        firsts = self.firsts
        if lr_factors is not None:
            firsts = list(torch._foreach_mul(firsts, list(lr_factors)))
        scale = -self.lr / (1.0 - self.betas[0] ** self.steps)
        denominator = denominators(self.seconds, self.steps, beta2=self.betas[1], eps=self.eps)
        torch._foreach_addcdiv_(self.params, firsts, denominator, scale)

    @torch.no_grad()
    def direction(self, grads: Sequence[Tensor]) -> Direction:
        """Advance the moments and answer π and π'; see `Optimizer.direction`."""
        decayed = self._decay(gather_grads(self.params, grads))
        moments = zip(decayed, self.firsts, self.seconds, strict=True)
        pi_prime: float | list[Tensor] = 1.0
        if self.pi_prime == "analytic":
            t = self.steps + 1
            pi_prime = [adam_derivative(g, m, v, t, betas=self.betas, eps=self.eps) for g, m, v in moments]
        self._advance(decayed)
        pi = adam_direction(self.firsts, self.seconds, self.steps, betas=self.betas, eps=self.eps)
        return Direction(pi, pi_prime)

    def _decay(self, grads: list[Tensor]) -> list[Tensor]:
        if not self.weight_decay:
            return grads
        return list(torch._foreach_add(grads, self.params, alpha=self.weight_decay))

    def _advance(self, decayed: list[Tensor]) -> None:
        self.steps += 1
        advance_moments(decayed, self.firsts, self.seconds, betas=self.betas)

    def state_dict(self) -> dict[str, Any]:
        """Both moments and the counter."""
        return {"firsts": list(self.firsts), "seconds": list(self.seconds), "steps": self.steps}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Copy both moments and the counter back."""
        copy_state_(self.firsts, state["firsts"])
        copy_state_(self.seconds, state["seconds"])
        self.steps = int(state["steps"])
