"""One-bit weights, worked by hand."""

from __future__ import annotations

import pytest
import torch

from bench.quantizers import build_weight_quantizer
from bench.quantizers.base import dequantize
from bench.quantizers.bwn import sign_codes

WEIGHT = torch.tensor([[0.5, -1.5, 0.0], [-0.1, 0.2, -0.3]])


def test_one_alpha_per_layer_is_the_mean_magnitude_and_zero_counts_as_positive():
    q = sign_codes(WEIGHT)
    assert q.codes.tolist() == [[1, -1, 1], [-1, 1, -1]]
    assert q.scale.item() == pytest.approx(2.6 / 6)
    assert (q.mult, q.offset, q.code_max, q.value_max, q.bits) == (1, 0, 1, 1, 1)


def test_one_alpha_per_filter():
    q = sign_codes(WEIGHT, per_filter=True)
    assert q.scale.tolist() == [[pytest.approx(2 / 3)], [pytest.approx(0.2)]]
    torch.testing.assert_close(dequantize(q), torch.tensor([[2 / 3, -2 / 3, 2 / 3], [-0.2, 0.2, -0.2]]))


def test_dorefas_one_bit_is_bwn():
    one, other = (build_weight_quantizer(name, 1).quantize(WEIGHT)[0] for name in ("dorefa", "bwn"))
    assert torch.equal(dequantize(one), dequantize(other))


def test_the_gradient_passes_unchanged():
    quantizer = build_weight_quantizer("bwn_f", 1)
    assert quantizer.factor(WEIGHT) is None
    assert torch.equal(quantizer.backward(WEIGHT, WEIGHT), WEIGHT)


def test_zero_weights_give_zero():
    assert dequantize(sign_codes(torch.zeros(2, 2), per_filter=True)).eq(0).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("per_filter", [False, True])
def test_a_weight_that_is_not_finite_shows_everywhere(bad, per_filter):
    assert not dequantize(sign_codes(torch.tensor([[1.0, bad], [1.0, 2.0]]), per_filter=per_filter)).isfinite().any()
