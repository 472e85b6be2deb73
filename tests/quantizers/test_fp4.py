"""FP4's radix-4 numbers, two-phase rounding and gradient scale, worked by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bench.errors import ConfigError
from bench.quantizers import Fp4Quantizer
from bench.quantizers.base import Grids, dequantize
from bench.quantizers.fp4 import magnitude_index, next_scale, radix4_grids

ONE = torch.ones(())
MAGNITUDES = [4.0**k for k in range(7)]


def values(grids: Grids) -> Tensor:
    return sum(dequantize(grid) for grid in grids)


def test_the_seven_magnitudes_and_zero_are_kept_exactly():
    exact = torch.tensor([0.0, *MAGNITUDES, *(-m for m in MAGNITUDES)])
    assert torch.equal(values(radix4_grids(exact, ONE)), exact)


def test_the_middle_between_two_magnitudes_is_the_arithmetic_one():
    x = torch.tensor([0.49, 0.5, 2.49, 2.5, 9.99, 10.0, 39.9, 40.0, 159.9, 160.0, 2559.0, 2560.0, 1e6])
    expected = [0.0, 1, 1, 4, 4, 16, 16, 64, 64, 256, 1024, 4096, 4096]
    assert values(radix4_grids(x, ONE)).tolist() == expected
    assert values(radix4_grids(-x, ONE)).tolist() == [-v for v in expected]


def test_every_float_beside_a_middle_falls_on_its_side():
    middles = torch.tensor([0.5, *(2.5 * 4.0**k for k in range(6))])
    below, above = (torch.nextafter(middles, torch.tensor(end)) for end in (0.0, 1e9))
    assert magnitude_index(below.clone()).tolist() == [0, 1, 2, 3, 4, 5, 6]
    for x in (middles, above):
        assert magnitude_index(x.clone()).tolist() == [1, 2, 3, 4, 5, 6, 7]
    x = torch.exp(torch.linspace(-3, 12, 200_001))
    assert torch.equal(magnitude_index(x.clone()), torch.bucketize(x, middles, right=True, out_int32=True))


def test_a_value_lies_on_one_of_two_int8_grids():
    high, low = radix4_grids(torch.tensor([1.0, -16.0, 64.0, -4096.0]), ONE)
    assert high.codes.tolist() == [0, 0, 1, -64]
    assert low.codes.tolist() == [1, -16, 0, 0]
    assert (high.scale, low.scale, high.code_max, low.code_max) == (64, 1, 64, 16)


def test_the_scale_starts_at_the_largest_power_of_two_that_fits():
    zero = torch.zeros(())
    for largest, scale in ((64.0, 1), (64.1, 0.5), (32.1, 1), (32.0, 2), (1e-3, 2**15), (0.0, 1)):
        assert next_scale(zero, torch.tensor(largest)).item() == scale


def test_the_scale_then_moves_by_at_most_a_factor_of_two():
    one = torch.ones(())
    for largest, scale in ((64.0, 1), (65.0, 0.5), (1e9, 0.5), (32.0, 2), (33.0, 1), (1e-9, 2), (0.0, 1)):
        assert next_scale(one, torch.tensor(largest)).item() == scale


def test_dgrad_sees_powers_of_two_with_even_exponents_and_wgrad_odd_ones():
    quantizer = Fp4Quantizer()
    gradient = torch.tensor([64.0, 30.0, 10.0, 3.0, -0.9, 0.001])
    # even: …, 1, 4, 16, 64 with middles 2.5, 10, 40; odd: …, ½, 2, 8, 32 with middles 1.25, 5, 20
    assert values(quantizer.quantize(gradient)).tolist() == [64, 16, 16, 4, -1, 0]
    assert values(quantizer.quantize_for_wgrad(gradient)).tolist() == [32, 32, 8, 2, -0.5, 0]
    assert quantizer.grad_scale == 1


def test_the_phases_errors_point_in_opposite_directions():
    quantizer = Fp4Quantizer()
    gradient = torch.cat([torch.tensor([64.0]), torch.full((9,), 6.0)])
    even, odd = values(quantizer.quantize(gradient)), values(quantizer.quantize_for_wgrad(gradient))
    assert even[1] < 6 < odd[1]


def test_a_zero_gradient_is_zero_and_one_that_is_not_finite_shows():
    assert values(Fp4Quantizer().quantize(torch.zeros(4))).eq(0).all()
    for bad in (float("nan"), float("inf")):
        assert not values(Fp4Quantizer().quantize(torch.tensor([1.0, bad]))).isfinite().any()


def test_the_scale_travels_in_the_state_dict():
    quantizer, restored = Fp4Quantizer(), Fp4Quantizer()
    quantizer.quantize(torch.tensor([1e-6]))
    restored.load_state_dict(quantizer.state_dict())
    step = torch.tensor([3e-3])
    assert torch.equal(values(restored.quantize(step)), values(quantizer.quantize(step)))
    assert restored.grad_scale == quantizer.grad_scale == 2.0**24  # 64/1e-6 lies above 2^25, halved once


@pytest.mark.parametrize(
    ("options", "words"),
    [({"bits": 8}, "set error_bits=4, or take error=uniform"), ({"rounding": "stochastic"}, "in two phases")],
)
def test_other_choices_are_refused_with_the_valid_ones(options, words):
    with pytest.raises(ConfigError, match=words):
        Fp4Quantizer(**options)
