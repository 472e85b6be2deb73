from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from bench.errors import ConfigError
from bench.optim import build_optimizer
from bench.optim.sgd import sgd_derivative, sgd_direction

SETTINGS: list[dict[str, Any]] = [
    {},
    {"weight_decay": 0.1},
    {"momentum": 0.9},
    {"momentum": 0.9, "weight_decay": 0.1},
    {"momentum": 0.9, "nesterov": True},
    {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
]


def make_params(count: int = 3) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(4, k + 1, generator=generator, dtype=torch.float64)) for k in range(count)]


def set_grads(params: list[nn.Parameter], seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator, dtype=param.dtype)
    return [param.grad for param in params if param.grad is not None]


@pytest.mark.parametrize("settings", SETTINGS)
def test_step_equals_torch(settings: dict[str, Any]) -> None:
    ours, theirs = make_params(), make_params()
    optimizer = build_optimizer("sgd", ours, lr=0.1, **settings)
    reference = torch.optim.SGD(theirs, lr=0.1, **settings)
    for t in range(4):
        optimizer.lr = reference.param_groups[0]["lr"] = 0.1 / (t + 1)
        set_grads(ours, t)
        set_grads(theirs, t)
        optimizer.step()
        reference.step()
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-14)


def test_momentum_by_hand() -> None:
    param, buffer = torch.tensor([2.0]), torch.tensor([10.0])
    options: dict[str, Any] = {"momentum": 0.5, "weight_decay": 0.1}
    (pi,) = sgd_direction([torch.tensor([1.0])], [param], [buffer], nesterov=False, **options)
    assert pi.item() == pytest.approx(0.5 * 10 + 1 + 0.1 * 2)
    (pi,) = sgd_direction([torch.tensor([1.0])], [param], [torch.tensor([10.0])], nesterov=True, **options)
    assert pi.item() == pytest.approx(1.2 + 0.5 * 6.2)


@pytest.mark.parametrize("settings", SETTINGS)
def test_direction_is_the_step_and_its_derivative_that_of_finite_differences(settings: dict[str, Any]) -> None:
    params = make_params(1)
    optimizer = build_optimizer("sgd", params, lr=0.1, **settings)
    first = set_grads(params, 0)
    optimizer.direction(first)
    saved, grads = copy.deepcopy(optimizer.state_dict()), set_grads(params, 1)
    before = params[0].detach().clone()
    low = optimizer.direction(grads)
    low_pi = low.pi[0].clone()
    assert torch.equal(params[0], before)
    optimizer.load_state_dict(saved)
    high_pi = optimizer.direction([grads[0] + 0.25]).pi[0]
    assert low.pi_prime == sgd_derivative(momentum=settings.get("momentum", 0.0), nesterov="nesterov" in settings)
    torch.testing.assert_close((high_pi - low_pi) / 0.25, torch.full_like(low_pi, low.pi_prime))
    optimizer.load_state_dict(saved)
    optimizer.step(grads)
    torch.testing.assert_close(params[0].detach(), before - 0.1 * low_pi)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_learning_rate_factors_scale_each_parameters_step(name: str) -> None:
    plain, scaled = make_params(), make_params()
    factors = [torch.tensor(f, dtype=torch.float64) for f in (1.0, 0.5, 0.1)]
    before = [param.detach().clone() for param in plain]
    build_optimizer(name, plain, lr=0.1).step(set_grads(plain, 0))
    build_optimizer(name, scaled, lr=0.1).step(set_grads(scaled, 0), lr_factors=factors)
    for old, one, other, factor in zip(before, plain, scaled, factors, strict=True):
        torch.testing.assert_close(other - old, factor * (one - old))


def test_gradients_are_left_as_they_are() -> None:
    for settings in SETTINGS:
        params = make_params()
        grads = set_grads(params, 0)
        copies = [grad.clone() for grad in grads]
        optimizer = build_optimizer("sgd", params, lr=0.1, **settings)
        optimizer.step()
        optimizer.direction(grads)
        assert all(torch.equal(grad, copied) for grad, copied in zip(grads, copies, strict=True))


def test_resume_is_bitwise() -> None:
    params = make_params()
    optimizer = build_optimizer("sgd", params, lr=0.1, momentum=0.9)
    optimizer.step(set_grads(params, 0))
    saved = copy.deepcopy((optimizer.state_dict(), [param.detach() for param in params]))
    optimizer.step(set_grads(params, 1))
    resumed_params = [nn.Parameter(value) for value in saved[1]]
    resumed = build_optimizer("sgd", resumed_params, lr=0.1, momentum=0.9)
    resumed.load_state_dict(saved[0])
    resumed.step(set_grads(resumed_params, 1))
    assert all(torch.equal(one, other) for one, other in zip(params, resumed_params, strict=True))


def test_missing_gradients_are_named() -> None:
    params = make_params()
    set_grads(params, 0)
    params[1].grad = None
    with pytest.raises(AssertionError, match=r"parameters \[1\] have no gradient"):
        build_optimizer("sgd", params, lr=0.1).step()


def test_mistakes_are_named() -> None:
    with pytest.raises(ConfigError, match="choose one of: sgd, adam"):
        build_optimizer("lion", [], lr=0.1)
    with pytest.raises(ConfigError, match="adam has no option 'momentum'; it takes: betas, eps, pi_prime"):
        build_optimizer("adam", [], lr=0.1, momentum=0.9)
    with pytest.raises(ConfigError, match="needs a momentum above 0"):
        build_optimizer("sgd", [], lr=0.1, nesterov=True)
