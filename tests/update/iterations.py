"""Delayed updates of a small problem, run as a training loop runs them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from bench.hypernets import build_hypernet
from bench.optim import build_optimizer
from bench.update import DelayedUpdate, build_strategy

# weight decay 0 leaves zero codes with a zero second moment; a large eps keeps autograd's own rounding below 1e-10
OPTIMIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("sgd", {"weight_decay": 0.02}),
    "momentum": ("sgd", {"weight_decay": 0.02, "momentum": 0.9}),
    "nesterov": ("sgd", {"weight_decay": 0.02, "momentum": 0.9, "nesterov": True}),
    "adam": ("adam", {"weight_decay": 0.0, "eps": 1e-3}),
    "adam_decay": ("adam", {"weight_decay": 0.02, "eps": 1e-3}),
    "adam_one": ("adam", {"weight_decay": 0.02, "eps": 1e-3, "pi_prime": "one"}),
}
STRATEGIES: dict[str, dict[str, Any]] = {"retain": {}, "slim": {"seed": 5}, "recompute": {"chunk": 7}}
# `tabulate` is exact for another function, the interpolated one (test_tabulate.py); the rest holds for it too
ALL_STRATEGIES: dict[str, dict[str, Any]] = {**STRATEGIES, "tabulate": {"check_every": 2}}
RATES = [0.05, 0.08, 0.03, 0.06, 0.05]


def randomised(name: str, form: str, dtype: torch.dtype, **options: Any) -> nn.Module:
    """A hypernetwork away from its special starting point."""
    torch.manual_seed(11)
    hypernet = build_hypernet(name, hidden=5, form=form, **options).to(dtype)
    for param in hypernet.parameters():
        nn.init.normal_(param, std=0.4)
    return hypernet


def build(
    plain: SimpleNamespace,
    problem: SimpleNamespace,
    hypernet: nn.Module,
    strategy: str = "recompute",
    optimizer: str = "momentum",
    arguments: dict[str, Any] | None = None,
    **options: Any,
) -> DelayedUpdate:
    params = [nn.Parameter(weight.clone()) for weight in problem.weights]
    name, settings = OPTIMIZERS[optimizer]
    return DelayedUpdate(
        params,
        optimizer=build_optimizer(name, params, lr=0.0, **settings),
        hypernet=hypernet,
        strategy=build_strategy(strategy, **(ALL_STRATEGIES[strategy] if arguments is None else arguments)),
        quantize=lambda g: plain.uniform(g, 4),
        **options,
    )


def iterate(update: DelayedUpdate, problem: SimpleNamespace, t: int, lr: float) -> Tensor:
    """One iteration as a training loop runs it; answers the loss."""
    update.preview(lr)
    loss = problem.loss(update.params, t)
    loss.backward()
    update.meta_step()
    update.commit()
    return loss.detach()


def meta_grads(update: DelayedUpdate) -> list[Tensor]:
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in update.hypernet.parameters()]


def assert_close(ours: list[Tensor], theirs: list[Tensor], relative: float) -> None:
    for one, other in zip(ours, theirs, strict=True):
        error = (one - other).abs().max()
        assert error <= relative * other.abs().max(), f"off by {error:.2e} of {other.abs().max():.2e}"
