"""MetaQuant's order of the update: f_ψ reads ∇Ŵ, its output is multiplied by ∂Ŵ/∂W, nothing is rounded after it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from bench.hypernets import build_hypernet
from bench.optim import build_optimizer
from bench.update import DelayedUpdate, build_strategy

RATES = [0.05, 0.08, 0.03, 0.06]
OPTIMIZERS = {"sgd": {}, "momentum": {"momentum": 0.9}, "adam": {"eps": 1e-3}}
STRATEGIES = {"retain": {}, "slim": {"seed": 5}, "recompute": {"chunk": 7}, "tabulate": {"max_nodes": 2}}
POINTS = 129  # of tabulate's first grid


def squashed(weight: Tensor, bits: int) -> Tensor:
    """What the estimator differentiates: W for one bit, else tanh W over its maximum, held constant."""
    return weight if bits == 1 else torch.tanh(weight) / torch.tanh(weight).abs().max().detach()


def quantized(weight: Tensor, bits: int) -> Tensor:
    """Ŵ with the straight-through estimator's graph: BWN for one bit, else DoReFa."""
    n = 2**bits - 1
    smooth = squashed(weight, bits)
    if bits == 1:
        values = weight.abs().mean() * torch.where(weight < 0, -1.0, 1.0).to(weight)
    else:
        values = 2 * torch.round(n * (smooth / 2 + 0.5)) / n - 1
    return smooth + (values - smooth).detach()


def ste_factor(weight: Tensor, bits: int) -> Tensor:
    """∂Ŵ/∂W by autograd."""
    with torch.enable_grad():
        leaf = weight.detach().clone().requires_grad_()
        (factor,) = torch.autograd.grad(squashed(leaf, bits).sum(), leaf)
    return factor


class PlainMetaQuant:
    """The update as one graph per iteration: ψ → W⁺ → Ŵ⁺ → loss."""

    def __init__(self, plain, name, activation, psi, problem, optimizer, weight_decay, bits, points=None):
        self.points = points
        self.plain, self.name, self.activation, self.loss, self.bits = plain, name, activation, problem.loss, bits
        self.psi = {key: value.detach().clone().requires_grad_() for key, value in psi.items()}
        self.weights = [weight.clone() for weight in problem.weights]
        self.optimizers = [plain.PlainOptimizer(optimizer, weight_decay) for _ in self.weights]
        self.meta = torch.optim.Adam(list(self.psi.values()), lr=1e-3)
        self.pending: list[Tensor] = []
        self.pending_lr = 0.0

    def f_of(self, grad: Tensor, weight: Tensor) -> Tensor:
        if self.points is None:
            return self.plain.plain_hypernet(self.name, "residual", self.psi, grad, weight, self.activation)
        tops = self.plain.largest(self.pending), self.plain.largest(self.weights)
        arguments = (self.name, "residual", self.psi, grad, weight, self.activation, self.points, tops)
        return self.plain.plain_tabulated(*arguments)

    def iterate(self, t: int, lr: float, only: int | None = None) -> list[Tensor]:
        """One iteration; `only` lets a single layer's output reach psi."""
        news = self.weights
        if self.pending:
            news = []
            layers = zip(self.pending, self.weights, self.optimizers, strict=True)
            for index, (grad, weight, optimizer) in enumerate(layers):
                f = self.f_of(grad, weight)
                f = f if only is None or only == index else f.detach()
                step = optimizer.pi(f * ste_factor(weight, self.bits), weight)
                news.append(weight - self.pending_lr * step)
        hats = [quantized(new, self.bits) for new in news]
        leaves = [hat if hat.requires_grad else hat.requires_grad_() for hat in hats]
        loss = self.loss(leaves, t)
        first = not self.pending
        self.pending = [g.detach() for g in torch.autograd.grad(loss, leaves, retain_graph=True)]
        self.weights, self.pending_lr = [new.detach() for new in news], lr
        if first:
            return []
        found = torch.autograd.grad(loss, list(self.psi.values()), allow_unused=True)
        meta = [torch.zeros_like(v) if g is None else g for v, g in zip(self.psi.values(), found, strict=True)]
        for value, grad in zip(self.psi.values(), meta, strict=True):
            value.grad = grad.clone()
        self.meta.step()
        return meta


@pytest.mark.parametrize(("dtype", "relative"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize("bits", [1, 3])
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("fc_grad", {}),
        ("fc_grad", {"depth": 3, "activation": "tanh"}),
        ("multi_fc", {}),
        ("multi_fc", {"depth": 4, "activation": "relu"}),
        ("lstm_fc", {}),
    ],
)
def test_the_meta_gradient_equals_autograd_through_the_restated_update(
    plain: SimpleNamespace,
    name: str,
    options: dict[str, object],
    optimizer: str,
    strategy: str,
    bits: int,
    dtype: torch.dtype,
    relative: float,
) -> None:
    problem = plain.make_problem(dtype)
    torch.manual_seed(11)
    hypernet = build_hypernet(name, hidden=5, **options).to(dtype)
    for param in hypernet.parameters():
        nn.init.normal_(param, std=0.4)
    params = [nn.Parameter(weight.clone()) for weight in problem.weights]
    update = DelayedUpdate(
        params,
        optimizer=build_optimizer(
            "adam" if optimizer == "adam" else "sgd", params, lr=0.0, weight_decay=0.02, **OPTIMIZERS[optimizer]
        ),
        hypernet=hypernet,
        strategy=build_strategy(strategy, **STRATEGIES[strategy]),
        quantize=lambda output: output,
        factors=lambda index, weight: None if bits == 1 else ste_factor(weight, bits),
    )
    activation = str(options.get("activation", "none"))
    psi = dict(hypernet.named_parameters())
    other = PlainMetaQuant(
        plain, name, activation, psi, problem, optimizer, 0.02, bits, POINTS if strategy == "tabulate" else None
    )
    draws = torch.Generator().manual_seed(5)
    for t, lr in enumerate(RATES):
        only = int(torch.randint(2, (), generator=draws)) if strategy == "slim" and t > 0 else None
        expected = other.iterate(t, lr, only)
        update.preview(lr)
        hats = [quantized(param.detach(), bits).requires_grad_() for param in params]
        problem.loss(hats, t).backward()
        for param, hat in zip(params, hats, strict=True):
            param.grad = hat.grad
        update.meta_step()
        update.commit()
        for grad, param in zip(expected, hypernet.parameters(), strict=False):
            found = torch.zeros_like(param) if param.grad is None else param.grad  # an unused hidden-to-hidden product
            assert (found - grad).abs().max() <= relative * grad.abs().max()
        for ours, theirs in zip(params, other.weights, strict=True):
            torch.testing.assert_close(ours.detach(), theirs, rtol=relative, atol=1e-4 * relative)
        for ours, value in zip(hypernet.parameters(), other.psi.values(), strict=True):
            torch.testing.assert_close(ours.detach(), value.detach(), rtol=10 * relative, atol=1e-4 * relative)
