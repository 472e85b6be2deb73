"""DAINT8: which distribution, which clip, and two quantizations of one error signal; values worked by hand."""

from __future__ import annotations

import pytest
import torch

from bench.errors import ConfigError
from bench.quantizers import build_error_quantizer
from bench.quantizers.base import dequantize
from bench.quantizers.daint8 import AdaptiveClip, Daint8Quantizer, is_gaussian

# σ of (4, 0, 0, 0, −4, 0, 0, 0) is 2: a share of 2/8 lies beyond it. σ of (1, −1, 1, −1, 0, 0, 0, 0) is √½: 4/8 do.
SPIKY = [4.0, 0.0, 0.0, 0.0, -4.0, 0.0, 0.0, 0.0]
BROAD = [1.0, -1.0, 1.0, -1.0, 0.0, 0.0, 0.0, 0.0]


def test_the_share_beyond_sigma_tells_the_distributions_apart():
    assert not is_gaussian(torch.tensor(SPIKY), per_channel=False)
    assert is_gaussian(torch.tensor(BROAD), per_channel=False)
    both = torch.tensor([SPIKY, BROAD]).t()  # channels last
    assert is_gaussian(both, per_channel=True).tolist() == [False, True]
    normal = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    assert is_gaussian(normal, per_channel=False)
    assert not is_gaussian(normal.pow(3), per_channel=False)


def test_a_gaussian_is_clipped_at_its_maximum_whatever_came_before():
    clip = AdaptiveClip(None)
    assert [clip.update(torch.tensor(BROAD) * scale).item() for scale in (1.0, 8.0, 0.5)] == [1.0, 8.0, 0.5]


def test_an_inverted_t_follows_the_moving_maximum():
    clip = AdaptiveClip(None)
    spiky = torch.tensor(SPIKY)
    # s_0 = 4, s_1 = 0.2·4 + 0.8·8 = 7.2, s_2 = 0.2·7.2 + 0.8·2 = 3.04
    found = [clip.update(spiky * scale).item() for scale in (1.0, 2.0, 0.5)]
    assert found == pytest.approx([4.0, 7.2, 3.04], rel=1e-6)


def test_the_moving_maximum_follows_the_gaussian_steps_too():
    clip = AdaptiveClip(None)
    clip.update(torch.tensor(BROAD) * 10)
    assert clip.update(torch.tensor(SPIKY)).item() == pytest.approx(0.2 * 10 + 0.8 * 4, rel=1e-6)


def test_one_signal_is_quantized_per_tensor_and_per_channel():
    quantizer = Daint8Quantizer(4, channels=2)
    gradient = torch.tensor([[7.0, 0.7], [-7.0, -0.3], [3.4, 0.1], [3.6, 0.2]])
    for_dgrad, for_wgrad = quantizer.quantize(gradient), quantizer.quantize_for_wgrad(gradient)
    # per tensor c = 7, so a step is 1; per channel c = 7 and 0.7, so steps are 1 and 0.1
    assert for_dgrad.codes.tolist() == [[7, 1], [-7, 0], [3, 0], [4, 0]]
    assert for_wgrad.codes.tolist() == [[7, 7], [-7, -3], [3, 1], [4, 2]]
    assert for_dgrad.scale.shape == ()
    assert for_wgrad.scale.tolist() == pytest.approx([1.0, 0.1], rel=1e-6)
    assert (for_dgrad.mult, for_dgrad.offset, for_wgrad.value_max) == (1, 0, 7)


def test_values_beyond_an_inverted_ts_clip_saturate():
    quantizer = Daint8Quantizer(8, channels=1)
    quantizer.quantize(torch.tensor([SPIKY]).t() * 0.01)
    q = quantizer.quantize(torch.tensor([SPIKY]).t())  # the clip is 0.2·0.04 + 0.8·4, below the maximum
    assert q.codes.max() == 127
    assert q.codes.min() == -127
    assert dequantize(q).max().item() == pytest.approx(3.208, rel=1e-6)


def test_zero_gradients_give_zero_codes():
    quantizer = Daint8Quantizer(8, channels=3, rounding="stochastic", generator=torch.Generator().manual_seed(0))
    for codes in (quantizer.quantize(torch.zeros(5, 3)), quantizer.quantize_for_wgrad(torch.zeros(5, 3))):
        assert codes.codes.eq(0).all()
        assert dequantize(codes).eq(0).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_shows_in_every_channel(bad):
    quantizer = Daint8Quantizer(8, channels=2)
    gradient = torch.tensor([[1.0, bad], [0.5, 0.25]])
    assert not dequantize(quantizer.quantize(gradient)).isfinite().any()
    assert not dequantize(quantizer.quantize_for_wgrad(gradient)).isfinite().any()


def test_a_checkpoint_continues_the_moving_maxima():
    gradients = torch.randn(8, 40, 3, generator=torch.Generator().manual_seed(1)).pow(3)
    quantizer = Daint8Quantizer(6, channels=3)
    for gradient in gradients[:4]:
        quantizer.quantize(gradient)
        quantizer.quantize_for_wgrad(gradient)
    saved = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in quantizer.state_dict().items()}
    restored = Daint8Quantizer(6, channels=3)
    restored.load_state_dict(saved)
    for gradient in gradients[4:]:
        for ours, theirs in (
            (quantizer.quantize(gradient), restored.quantize(gradient)),
            (quantizer.quantize_for_wgrad(gradient), restored.quantize_for_wgrad(gradient)),
        ):
            assert torch.equal(ours.codes, theirs.codes)
            assert torch.equal(ours.scale, theirs.scale)


def test_a_scale_per_channel_on_dgrad_is_refused_with_the_valid_choices():
    with pytest.raises(ConfigError, match=r"error_granularity=tensor, or take method=uniform with dispatch=simulate"):
        build_error_quantizer("daint8", 8, granularity="channel", channels=4)
