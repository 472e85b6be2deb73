"""CPT's schedule, worked by hand, and quantizers that follow it."""

from __future__ import annotations

import pytest
import torch

from bench.errors import ConfigError
from bench.quantizers import (
    CyclicActivation,
    CyclicPrecision,
    CyclicWeight,
    build_activation_quantizer,
    build_weight_quantizer,
)
from bench.quantizers.cyclic import cyclic_bits


def test_bits_rise_along_half_a_cosine_and_start_again():
    # 3 + 2.5·(1 − cos(π·t/8)): 3, 3.19, 3.73, 4.54, 5.5, 6.46, 7.27, 7.81
    bits = [cyclic_bits(step, cycle_steps=8, low=3, high=8) for step in range(10)]
    assert bits == [3, 3, 4, 5, 6, 6, 7, 8, 3, 3]
    assert {cyclic_bits(step, cycle_steps=1, low=3, high=8) for step in range(5)} == {3}


def precise(low: int = 3) -> CyclicPrecision:
    return CyclicPrecision(low, 8)


def test_a_step_sets_the_bits_and_evaluation_takes_the_upper_bound():
    precision = precise()
    assert precision.bits(8) == 3
    for _ in range(5):
        precision.advance()
    assert precision.bits(8) == 6
    precision.eval()
    assert precision.bits(8) == 8
    precision.train()
    assert precision.bits(8) == 6


def test_weights_and_activations_take_the_quantizer_of_the_steps_bits():
    precision = precise()
    weight = CyclicWeight(8, precision, lambda bits: build_weight_quantizer("minmax", bits))
    activation = CyclicActivation(6, precision, lambda bits: build_activation_quantizer("minmax", bits))
    x = torch.rand(4, 5)
    for step in range(8):
        precision.advance()
        w, a = weight.quantize(x)[0], activation.quantize(x)[0]
        expected = [cyclic_bits(step, cycle_steps=8, low=3, high=high) for high in (8, 6)]
        assert [w.bits, a.bits] == expected
        assert torch.equal(w.codes, build_weight_quantizer("minmax", expected[0]).quantize(x)[0].codes)
    assert weight.backward(x, x) is x
    assert weight.factor(x) is None
    assert weight.describe() == "cyclic from 3: minmax, 8 bits, nearest, per tensor"
    assert (weight.bits, activation.bits) == (8, 6)


def test_dorefas_factor_is_that_of_every_width():
    weight = CyclicWeight(8, precise(2), lambda bits: build_weight_quantizer("dorefa", bits))
    x = torch.randn(6)
    assert torch.equal(weight.factor(x), build_weight_quantizer("dorefa", 3).factor(x))


def test_the_count_travels_in_the_state_dict():
    precision, restored = precise(), precise()
    for _ in range(6):
        precision.advance()
    restored.load_state_dict(precision.state_dict())
    assert restored.bits(8) == precision.bits(8) == 6


@pytest.mark.parametrize(("arguments", "words"), [((1, 8), "take 2 bits or more"), ((3, 0), "take 1 or more")])
def test_a_schedule_that_is_none_is_refused(arguments, words):
    with pytest.raises(ConfigError, match=words):
        CyclicPrecision(*arguments)


def test_an_upper_bound_below_the_lower_is_refused():
    with pytest.raises(ConfigError, match="from 5 to 4 bits"):
        CyclicWeight(4, precise(5), lambda bits: build_weight_quantizer("minmax", bits))
