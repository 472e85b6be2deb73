"""Stochastic rounding: unbiased, never outside the grid, repeatable from its generator."""

from __future__ import annotations

import pytest
import torch

from bench.errors import ConfigError
from bench.quantizers.rounding import draw_uniform, round_
from bench.quantizers.uniform import UniformQuantizer, uniform_codes


def test_uniform_draws_fill_the_unit_interval_evenly():
    u = draw_uniform(torch.Size((400, 501)), torch.Generator().manual_seed(0))
    assert u.min() >= 0
    assert u.max() < 1
    counts = torch.histc(u, bins=20, min=0, max=1)
    assert (counts / u.numel() - 0.05).abs().max() < 0.002
    # neighbours come from one 64-bit word and must not be related
    assert torch.corrcoef(torch.stack([u.flatten()[:-1], u.flatten()[1:]]))[0, 1].abs() < 0.01


def test_the_mean_of_many_roundings_is_the_value():
    x = torch.tensor([-1.9, -0.25, 0.0, 0.1, 0.5, 3.0, 6.75])
    rounded = round_(x.repeat(40_000, 1), "stochastic", torch.Generator().manual_seed(1))
    assert torch.allclose(rounded.mean(0), x, atol=0.012)
    assert ((rounded == x.floor()) | (rounded == x.ceil())).all()


def test_the_largest_value_never_wraps_around():
    x = torch.tensor([1.0, -1.0]).repeat(50_000)
    codes = uniform_codes(
        x * 1.000001, torch.tensor(1.0), 8, rounding="stochastic", generator=torch.Generator().manual_seed(0)
    ).codes
    assert codes[0::2].eq(127).all()
    assert codes[1::2].min() == -127


def test_the_same_generator_state_draws_the_same_codes():
    generator = torch.Generator().manual_seed(5)
    quantizer = UniformQuantizer(8, rounding="stochastic", generator=generator)
    x = torch.randn(100, generator=torch.Generator().manual_seed(2))
    state = generator.get_state()
    first, second = quantizer.quantize(x).codes, quantizer.quantize(x).codes
    generator.set_state(state)
    assert torch.equal(quantizer.quantize(x).codes, first)
    assert not torch.equal(first, second)


def test_nearest_rounds_half_to_even():
    assert round_(torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5]), "nearest", None).tolist() == [0, 2, 2, 0, -2]


def test_stochastic_rounding_without_a_generator_is_refused():
    with pytest.raises(ConfigError, match="needs an explicit generator"):
        round_(torch.zeros(3), "stochastic", None)
    with pytest.raises(ConfigError, match="rounding 'up' is unknown"):
        round_(torch.zeros(3), "up", None)
