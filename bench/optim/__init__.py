"""Differentiable optimizers: a pure direction π with its derivative π', the shells around it, and schedules."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from bench.errors import ConfigError
from bench.optim.adam import Adam
from bench.optim.base import Direction, Optimizer
from bench.optim.schedule import SCHEDULES, build_schedule
from bench.optim.sgd import SGD

OPTIMIZERS: dict[str, type[SGD] | type[Adam]] = {"sgd": SGD, "adam": Adam}


def build_optimizer(
    name: str, params: Sequence[Tensor], *, lr: float, weight_decay: float = 0.0, **options: Any
) -> Optimizer:
    """The optimizer of that name over `params`.

    Args:
        name: sgd or adam.
        params: the tensors that it steps.
        lr: learning rate of the first step; set ``optimizer.lr`` for later ones.
        weight_decay: λ, added to the gradient as λW.
        options: momentum and nesterov for sgd; betas, eps and pi_prime (analytic or one) for adam.

    Raises:
        ConfigError: for an unknown name, or an option that the optimizer does not have.
    """
    if name not in OPTIMIZERS:
        raise ConfigError(f"unknown optimizer {name!r}; choose one of: {', '.join(OPTIMIZERS)}.")
    optimizer = OPTIMIZERS[name]
    known = [key for key in inspect.signature(optimizer).parameters if key not in ("params", "lr", "weight_decay")]
    for key in options:
        if key not in known:
            raise ConfigError(f"{name} has no option {key!r}; it takes: {', '.join(known)}.")
    return optimizer(params, lr=lr, weight_decay=weight_decay, **options)


__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "Adam",
    "Direction",
    "Optimizer",
    "SGD",
    "build_optimizer",
    "build_schedule",
]
