"""WAGEUBN's update against a plain restatement, and its grids."""

from __future__ import annotations

import pytest
import torch

from bench.errors import ConfigError
from bench.optim.fixed_point import FixedPointSGD, check_momentum, fixed_point_, fixed_point_lr


def test_values_become_multiples_of_the_step():
    values = [torch.tensor([0.3, -0.3, 5.0]), torch.tensor(0.125)]
    fixed_point_(values, 3)  # quarters, half to even
    assert values[0].tolist() == [0.25, -0.25, 5.0]
    assert values[1].item() == 0.0
    fixed_point_(values, 3, clipped=True)
    assert values[0].tolist() == [0.25, -0.25, 0.75]
    fixed_point_([], 3)


def test_learning_rates_have_ten_bits_below_one():
    assert [fixed_point_lr(lr) for lr in (0.03, 1e-4, 7.0)] == [15 / 512, 0, 511 / 512]


@pytest.mark.parametrize("momentum", [0.9, 0.8, 1.0])
def test_a_momentum_that_three_bits_do_not_hold_is_refused(momentum):
    with pytest.raises(ConfigError, match=r"one of 0, 0\.25, 0\.5, 0\.75"):
        check_momentum(momentum)


def test_the_update_is_momentum_sgd_on_fixed_point_grids():
    generator = torch.Generator().manual_seed(0)
    weight, gamma = (torch.randn(20, generator=generator, dtype=torch.float64).float() for _ in range(2))
    optimizer = FixedPointSGD([weight, gamma], lr=0.05, weights=[weight], momentum=0.75, weight_decay=1e-3)
    plain = [weight.double().clone(), gamma.double().clone()]
    buffers = [torch.zeros(20).double(), torch.zeros(20).double()]

    def on_grid(x, bits):
        return torch.round(x * 2.0 ** (bits - 1)) / 2.0 ** (bits - 1)

    for _ in range(4):
        grads = [on_grid(torch.randn(20, generator=generator) * 0.01, 15), torch.randn(20, generator=generator)]
        given = [grads[0].double(), on_grid(grads[1].double(), 15)]
        optimizer.step([grad.clone() for grad in grads])
        for index, grad in enumerate(given):
            buffer = 0.75 * buffers[index] + grad + 1e-3 * plain[index]
            plain[index] = on_grid(plain[index] - on_grid(torch.tensor(0.05), 10).double() * buffer, 24)
            buffers[index] = on_grid(buffer, 13)
        plain[0] = plain[0].clamp(2.0**-23 - 1, 1 - 2.0**-23)
        torch.testing.assert_close(weight.double(), plain[0], rtol=0, atol=1e-4)
        torch.testing.assert_close(gamma.double(), plain[1], rtol=0, atol=1e-4)
        for index in range(2):
            assert torch.equal(optimizer.buffers[index], on_grid(optimizer.buffers[index], 13))
    assert optimizer.lr == 0.05
    assert weight.abs().max() < 1 < gamma.abs().max()
    assert torch.equal(gamma, on_grid(gamma, 24))
