from __future__ import annotations

import copy
from decimal import Decimal, getcontext

import pytest
import torch
from torch import Tensor, nn

from bench.errors import ConfigError
from bench.optim import Adam
from bench.optim.adam import adam_derivative


def make_param() -> nn.Parameter:
    return nn.Parameter(torch.randn(20, generator=torch.Generator().manual_seed(1), dtype=torch.float64))


def gradient(seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(20, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_step_equals_torch(weight_decay: float) -> None:
    ours, theirs = make_param(), make_param()
    optimizer = Adam([ours], lr=0.01, weight_decay=weight_decay)
    reference = torch.optim.Adam([theirs], lr=0.01, weight_decay=weight_decay)
    for t in range(5):
        theirs.grad = gradient(t)
        optimizer.step([gradient(t)])
        reference.step()
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_direction_is_the_step(weight_decay: float) -> None:
    stepped, kept = make_param(), make_param()
    stepping = Adam([stepped], lr=0.01, weight_decay=weight_decay)
    directing = Adam([kept], lr=0.01, weight_decay=weight_decay)
    for t in range(3):
        stepping.step([gradient(t)])
        with torch.no_grad():
            kept -= 0.01 * directing.direction([gradient(t)]).pi[0]
        torch.testing.assert_close(kept, stepped, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_derivative_equals_autograd(weight_decay: float) -> None:
    param = make_param()
    optimizer = Adam([param], lr=0.01, weight_decay=weight_decay)
    for t in range(1, 6):
        grad = gradient(t).requires_grad_()
        m0, v0 = optimizer.firsts[0].clone(), optimizer.seconds[0].clone()
        g = grad + weight_decay * param.detach()
        m, v = 0.9 * m0 + 0.1 * g, 0.999 * v0 + 0.001 * g * g
        pi = (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
        (expected,) = torch.autograd.grad(pi.sum(), grad)
        direction = optimizer.direction([grad.detach()])
        torch.testing.assert_close(direction.pi[0], pi.detach(), rtol=1e-12, atol=1e-13)
        assert isinstance(direction.pi_prime, list)
        # autograd's two terms cancel at t = 1 and leave its rounding
        torch.testing.assert_close(direction.pi_prime[0], expected, rtol=1e-10, atol=1e-14)


def exact_derivative(g: float, m0: float, v0: float, t: int) -> float:
    """pi' by a central difference in 60 digits."""
    getcontext().prec = 60

    def pi(x: Decimal) -> Decimal:
        one, beta1, beta2 = Decimal(1), Decimal("0.9"), Decimal("0.999")
        m = (beta1 * Decimal(m0) + (one - beta1) * x) / (one - beta1**t)
        v = (beta2 * Decimal(v0) + (one - beta2) * x * x) / (one - beta2**t)
        return m / (v.sqrt() + Decimal("1e-8"))

    h = Decimal("1e-25")
    return float((pi(Decimal(g) + h) - pi(Decimal(g) - h)) / (2 * h))


@pytest.mark.parametrize(("dtype", "relative"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize(("m0", "v0", "t"), [(0.0, 0.0, 1), (2e-4, 3e-7, 2), (-1e-3, 4e-6, 50)])
def test_derivative_keeps_its_digits_where_its_terms_cancel(
    m0: float, v0: float, t: int, dtype: torch.dtype, relative: float
) -> None:
    for g in (1e-3, -2e-2, 0.5):
        tensors = [torch.tensor([x], dtype=dtype) for x in (g, m0, v0)]
        ours = adam_derivative(*tensors, t, betas=(0.9, 0.999), eps=1e-8)
        assert float(ours) == pytest.approx(exact_derivative(g, m0, v0, t), rel=relative)


def test_derivative_is_zero_where_the_second_moment_is_zero() -> None:
    zeros = torch.zeros(3)
    assert torch.equal(adam_derivative(zeros, zeros, zeros, 1, betas=(0.9, 0.999), eps=1e-8), zeros)
    direction = Adam([nn.Parameter(torch.ones(3))], lr=0.1).direction([zeros])
    assert torch.equal(direction.pi[0], zeros)


def test_pi_prime_one_is_metaquants() -> None:
    assert Adam([make_param()], lr=0.1, pi_prime="one").direction([gradient(0)]).pi_prime == 1.0
    with pytest.raises(ConfigError, match="choose one of: analytic, one"):
        Adam([make_param()], lr=0.1, pi_prime="two")


def test_resume_is_bitwise() -> None:
    param = make_param()
    optimizer = Adam([param], lr=0.1)
    optimizer.step([gradient(0)])
    saved = copy.deepcopy((optimizer.state_dict(), param.detach()))
    optimizer.step([gradient(1)])
    resumed_param = nn.Parameter(saved[1])
    resumed = Adam([resumed_param], lr=0.1)
    resumed.load_state_dict(saved[0])
    resumed.step([gradient(1)])
    assert torch.equal(param, resumed_param)
