"""AFP's measure of quantization error, its choice of width and its intervals, worked by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bench.errors import ConfigError
from bench.quantizers import AdaptiveQuantizer
from bench.quantizers.afp import fixed_point_integers, mean_change, update_interval
from bench.quantizers.base import Grids, dequantize

PLAIN = torch.linspace(-1, 1, 201)


def peaked(share_of_large: float = 1e-3) -> Tensor:
    """A few large values and many that eight bits would round to zero."""
    x = torch.full((10_000,), 1e-3)
    x[: int(10_000 * share_of_large)] = 1.0
    return x


def values(grids: Grids) -> Tensor:
    return sum(dequantize(grid) for grid in grids)


def test_the_change_of_the_mean_is_a_logarithm_of_its_share():
    x = torch.tensor([1.0, -3.0])
    assert mean_change(x, torch.tensor([1.0, -3.0])).item() == 0
    assert mean_change(x, torch.tensor([0.0, -3.0])).item() == pytest.approx(math.log2(1.25))
    assert mean_change(x, torch.tensor([2.0, 6.0])).item() == pytest.approx(1)
    assert mean_change(torch.zeros(2), torch.zeros(2)).item() == 0


def test_intervals_shrink_with_the_error_and_with_a_moving_range():
    assert update_interval(0.01, 0.0) == 8  # 0.1/(100·1e-4) − 2
    assert update_interval(0.03, 0.0) == 1  # 0.1/0.09 − 2 is negative
    assert update_interval(0.0, 0.5) == 3  # 0.1/(0.04·0.5) − 2
    assert update_interval(0.0, 0.0) == update_interval(1e-4, 0.0) == 100
    assert update_interval(math.nan, 0.0) == 1


def test_codes_saturate_at_the_bytes_largest():
    one = torch.ones(())
    assert fixed_point_integers(torch.tensor([200.0, -1.5, 0.4]), one, 8).tolist() == [127, -2, 0]
    assert fixed_point_integers(torch.tensor([40000.0, -300.0]), one, 16).tolist() == [32639, -300]


def test_a_plain_gradient_keeps_eight_bits():
    quantizer = AdaptiveQuantizer()
    (grid,) = quantizer.quantize(PLAIN)
    assert (quantizer.bits, grid.scale.item()) == (8, 2.0**-6)  # 1/127 rounded up to a power of two
    assert "8 bits" in quantizer.describe()


def test_a_peaked_gradient_takes_sixteen_bits_and_keeps_them():
    quantizer = AdaptiveQuantizer()
    grids = quantizer.quantize(peaked())
    assert (quantizer.bits, len(grids)) == (16, 2)
    torch.testing.assert_close(values(grids), peaked(), rtol=0, atol=2.0**-15)
    assert len(quantizer.quantize(PLAIN)) == 2
    assert quantizer.steps_at_bits == {8: 0, 16: 2, 24: 0}
    assert "16 bits" in quantizer.describe()


def test_a_gradient_with_a_wide_range_takes_twenty_four_bits():
    x = torch.full((100_000,), 1e-6)
    x[0] = 1.0
    quantizer = AdaptiveQuantizer()
    grids = quantizer.quantize(x)
    assert (quantizer.bits, len(grids)) == (24, 3)
    assert mean_change(x, values(grids)) < mean_change(x, values(grids[:2])) == mean_change(x, values(grids[:1]))


def test_between_updates_the_resolution_stands_and_larger_values_saturate():
    quantizer = AdaptiveQuantizer()
    for _ in range(10):
        quantizer.quantize(PLAIN)
    assert quantizer.next_update > quantizer.quantizations
    assert values(quantizer.quantize(4 * PLAIN)).abs().max().item() == 127 * 2.0**-6
    while quantizer.quantizations < quantizer.next_update:
        quantizer.quantize(PLAIN)
    assert values(quantizer.quantize(4 * PLAIN)).abs().max().item() == 4


@pytest.mark.parametrize("calls", [0, 30])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_shows_at_an_update_and_between(calls, bad):
    quantizer = AdaptiveQuantizer()
    for _ in range(calls):
        quantizer.quantize(PLAIN)
    assert not values(quantizer.quantize(torch.tensor([1.0, bad]))).isfinite().any()


def test_a_checkpoint_continues_width_resolution_and_schedule():
    gradients = [peaked(share) for share in torch.linspace(1e-4, 0.5, 40).tolist()]
    quantizer, restored = AdaptiveQuantizer(), AdaptiveQuantizer()
    for gradient in gradients[:15]:
        quantizer.quantize(gradient)
    restored.load_state_dict(quantizer.state_dict())
    for gradient in gradients[15:]:
        assert torch.equal(values(quantizer.quantize(gradient)), values(restored.quantize(gradient)))
    assert restored.get_extra_state() == quantizer.get_extra_state()


@pytest.mark.parametrize(
    ("options", "words"), [({"bits": 4}, "set error_bits=8"), ({"rounding": "stochastic"}, "rounds to the nearest")]
)
def test_other_choices_are_refused_with_the_valid_ones(options, words):
    with pytest.raises(ConfigError, match=words):
        AdaptiveQuantizer(**options)
