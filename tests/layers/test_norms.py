"""Range batch-norm and fixed-point batch-norm: statistics, gradients, replacement."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from bench.errors import ConfigError
from bench.layers.fixed_point_norm import FixedPointBatchNorm2d, shift_values
from bench.layers.norms import NORMS, replace_norms
from bench.layers.range_norm import RangeBatchNorm2d, range_deviation, range_factor


def source(channels: int = 3) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.uniform_(-0.5, 0.5)
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
    return norm


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_the_deviation_is_the_mean_range_of_the_chunks_times_its_factor():
    rows = torch.zeros(32, 2)
    rows[0, 0], rows[31, 0], rows[:, 1] = 3.0, -1.0, 5.0
    # two chunks of 16 rows: ranges 3 and 1, mean 2; a constant channel has none
    expected = 2 * 0.175 * (1 + math.sqrt(math.pi * math.log(4))) / math.sqrt(2 * math.log(16))
    assert range_deviation(rows).tolist() == pytest.approx([expected, 0])
    assert range_factor(16) == pytest.approx(expected / 2)


def test_rows_left_over_by_the_chunks_are_left_out():
    rows = torch.zeros(33, 1)
    rows[32] = 100.0
    assert range_deviation(rows).item() == 0


@pytest.mark.parametrize("values", [16, 128, 2048])
def test_gaussian_values_have_nearly_their_standard_deviation(values):
    rows = torch.randn(values * 16, 64) * 3
    assert range_deviation(rows).mean().item() == pytest.approx(3, rel=0.2)


def test_range_batch_norm_is_its_formula_with_gradients_of_autograd():
    norm = RangeBatchNorm2d(source())
    x = torch.randn(4, 3, 6, 6, dtype=torch.float64, requires_grad=True)
    norm.double()

    def formula(x: Tensor) -> Tensor:
        rows = x.permute(0, 2, 3, 1).reshape(-1, 3)
        parts = rows.view(9, 16, 3)  # 144 values: 9 chunks of 16
        spread = (parts.max(1).values - parts.min(1).values).mean(0) * range_factor(16)
        return (rows - rows.mean(0)) / (spread + norm.eps) * norm.weight + norm.bias

    y = norm(x)
    expected = formula(x).view(4, 6, 6, 3).permute(0, 3, 1, 2)
    torch.testing.assert_close(y, expected)
    upstream = torch.randn_like(y)
    ours = torch.autograd.grad(y, [x, norm.weight, norm.bias], upstream)
    theirs = torch.autograd.grad(expected, [x, norm.weight, norm.bias], upstream)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_range_batch_norm_starts_at_the_function_of_batch_norm_in_evaluation():
    norm = source().eval()
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(RangeBatchNorm2d(norm).eval()(x), norm(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [RangeBatchNorm2d, FixedPointBatchNorm2d])
def test_training_moves_the_running_statistics_and_evaluation_uses_them(kind):
    norm = kind(source())
    x = torch.randn(8, 3, 8, 8) * 2 + 5
    for _ in range(100):
        norm(x)
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    evaluated = norm.eval()(x)
    torch.testing.assert_close(evaluated, norm.train()(x), rtol=0.05, atol=0.05)
    assert torch.allclose(before["running_mean"], x.mean((0, 2, 3)), atol=1e-3)


@pytest.mark.parametrize("kind", [RangeBatchNorm2d, FixedPointBatchNorm2d])
def test_the_memory_format_is_kept_and_an_activation_may_follow_in_place(kind):
    norm = nn.Sequential(kind(source()), nn.ReLU(inplace=True))
    x = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last).requires_grad_()
    y = norm(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_the_quantities_of_fixed_point_batch_norm_lie_on_their_grids():
    norm = FixedPointBatchNorm2d(source())
    x = torch.randn(4, 3, 5, 5)
    with torch.no_grad():
        y = norm(x)

    def on_grid(x: Tensor, bits: int) -> Tensor:
        return torch.round(x * 2.0 ** (bits - 1)) / 2.0 ** (bits - 1)

    per_channel = (1, -1, 1, 1)
    mean = on_grid(x.mean((0, 2, 3)), 16).view(per_channel)
    deviation = on_grid(x.var((0, 2, 3), correction=0).sqrt(), 16).view(per_channel) + 2.0**-15
    x_hat = on_grid((x - mean) / deviation, 16)
    gamma, beta = on_grid(norm.weight, 8).view(per_channel), on_grid(norm.bias, 8).view(per_channel)
    torch.testing.assert_close(y, gamma * x_hat + beta, rtol=0, atol=1e-4)
    torch.testing.assert_close(y, nn.functional.batch_norm(x, None, None, norm.weight, norm.bias, True), atol=0.05, rtol=0.05)  # fmt: skip  # noqa: E501


def test_error_signals_are_quantized_by_a_shift():
    # R = 1 for a largest of 1.2: steps of 1/128, saturated just below 1
    assert shift_values(torch.tensor([1.2, -0.3, 0.001]), 8).tolist() == [127 / 128, -38 / 128, 0]
    assert not shift_values(torch.tensor([1.0, float("nan")]), 8).isfinite().any()
    norm = FixedPointBatchNorm2d(source(1))
    norm(torch.randn(2, 1, 1, 2)).backward(torch.tensor([1.2, -0.3, 0.001, 0.0]).view(2, 1, 1, 2))
    assert norm.bias.grad.item() == (127 - 38) / 128


def test_a_constant_channel_gives_finite_gradients():
    for kind in NORMS.values():
        x = torch.ones(4, 3, 4, 4, requires_grad=True)
        kind(source())(x).sum().backward()
        assert x.grad is not None
        assert x.grad.isfinite().all()


def test_every_batch_norm_is_replaced_with_its_own_parameters(small_resnet):
    for name, kind in NORMS.items():
        model = small_resnet()
        before = dict(model.named_parameters())
        assert replace_norms(model, name) == ("bn", "block1.bn1", "block1.bn2", "block2.bn1", "block2.bn2")
        assert sum(isinstance(layer, kind) for layer in model.modules()) == 5
        after = dict(model.named_parameters())
        assert before.keys() == after.keys()
        assert all(after[key] is before[key] for key in before)
    assert replace_norms(small_resnet(), "batch") == ()
    assert replace_norms(nn.Sequential(nn.ReLU()), "range") == ()


def test_a_norm_used_in_two_places_stays_one():
    shared = nn.BatchNorm2d(2)
    model = nn.Sequential(shared, nn.Sequential(shared))
    replace_norms(model, "range")
    assert isinstance(model[0], RangeBatchNorm2d)
    assert model[0] is model[1][0]


@pytest.mark.parametrize(
    ("model", "name", "words"),
    [
        (nn.Sequential(nn.BatchNorm2d(2, affine=False)), "range", "layer 0 lacks one of them: give it all"),
        (nn.Sequential(nn.BatchNorm2d(2)), "rage", "did you mean 'range'"),
    ],
)
def test_what_cannot_be_replaced_is_refused_in_a_sentence(model, name, words):
    with pytest.raises(ConfigError, match=words):
        replace_norms(model, name)
