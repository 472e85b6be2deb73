"""SBM's and CPT's forward quantizers, worked by hand."""

from __future__ import annotations

import pytest
import torch

from bench.quantizers import build_activation_quantizer, build_weight_quantizer
from bench.quantizers.base import dequantize
from bench.quantizers.minmax import mean_of_maxima, unsigned_codes


def test_weights_are_symmetric_about_zero_with_their_largest_magnitude():
    weight = torch.tensor([[0.5, -1.0], [0.2, 0.0]])
    q, mask = build_weight_quantizer("minmax", 4).quantize(weight)
    assert q.codes.tolist() == [[4, -7], [1, 0]]  # 3.5 to even
    assert q.scale.item() == pytest.approx(1 / 7)
    assert mask is None
    assert build_weight_quantizer("minmax", 4).backward(weight, weight) is weight


def test_the_range_of_activations_is_the_mean_of_the_samples_maxima():
    x = torch.tensor([[0.0, 3.0], [1.0, 0.5], [0.0, 0.0]])
    assert mean_of_maxima(x).item() == pytest.approx(4 / 3)


@pytest.mark.parametrize(("bits", "stored"), [(2, 0), (3, 0), (4, 8), (8, 128)])
def test_activations_take_every_code_from_zero_up(bits, stored):
    n = 2**bits - 1
    x = torch.tensor([0.0, 1.0, 2.0, 0.5])
    q = unsigned_codes(x, torch.tensor(1.0), bits)
    assert (q.codes.int() + stored).tolist() == [0, n, n, round(n / 2)]
    assert (q.offset, q.mult, q.zero_code) == (stored, 1, -stored)
    assert dequantize(q)[:3].tolist() == pytest.approx([0, 1, 1])


def test_all_of_the_gradient_passes_and_a_zero_input_is_zero():
    quantizer = build_activation_quantizer("minmax", 8)
    q, mask = quantizer.quantize(torch.zeros(2, 3))
    assert mask is None
    assert dequantize(q).eq(0).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_an_input_that_is_not_finite_shows(bad):
    q, _ = build_activation_quantizer("minmax", 8).quantize(torch.tensor([[1.0, bad], [2.0, 3.0]]))
    assert not q.scale.isfinite()
