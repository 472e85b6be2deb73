from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bench.errors import ConfigError
from bench.hypernets import FORMS, HYPERNETS, Hypernet, build_hypernet, count_parameters, layer_scales
from bench.hypernets.base import AutogradEvaluation, Evaluation, unit_weight


def make(name: str, form: str = "residual", hidden: int = 6, dtype: torch.dtype = torch.float64) -> Hypernet:
    torch.manual_seed(2)
    hypernet = build_hypernet(name, hidden=hidden, form=form).to(dtype)
    for param in hypernet.parameters():
        nn.init.normal_(param, std=0.5)
    return hypernet


def layer(count: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(count)
    grad = torch.randn(count, generator=generator, dtype=torch.float64) * 1e-3
    weight = torch.randn(count, generator=generator, dtype=torch.float64) * 0.2
    return grad.to(dtype), weight.to(dtype)


@pytest.mark.parametrize("hidden", [1, 11, 100, 150])
def test_parameter_counts_are_those_of_the_papers(hidden: int) -> None:
    lstm = 4 * hidden * (1 + hidden) + 8 * hidden + hidden + 1
    expected = {"fc_grad": 2 * hidden, "multi_fc": 2 * hidden, "lstm_fc": lstm, "dual_lstm_fc": lstm + 4 * hidden}
    for name, count in expected.items():
        assert count_parameters(build_hypernet(name, hidden=hidden)) == count


def test_dual_lstm_fc_of_100_has_41701_parameters() -> None:
    assert count_parameters(build_hypernet("dual_lstm_fc", hidden=100)) == 41_701


def test_metaquants_code_has_three_layers() -> None:
    assert count_parameters(build_hypernet("multi_fc", hidden=100, depth=3)) == 100**2 + 2 * 100


@pytest.mark.parametrize("name", HYPERNETS)
def test_residual_form_starts_at_the_gradient_itself(name: str) -> None:
    grad, weight = layer(50, torch.float32)
    assert torch.equal(build_hypernet(name, hidden=9)(grad, weight), grad)


@pytest.mark.parametrize("name", HYPERNETS)
def test_residual_form_scales_with_the_gradient(name: str) -> None:
    grad, weight = layer(50)
    hypernet = make(name)
    torch.testing.assert_close(hypernet(grad * 1e-4, weight), hypernet(grad, weight) * 1e-4)


def test_fc_grad_is_one_number_times_the_gradient() -> None:
    grad, weight = layer(50)
    for form, base in (("residual", 1.0), ("literal", 0.0)):
        hypernet = make("fc_grad", form)
        first, second = hypernet.parameters()
        torch.testing.assert_close(hypernet(grad, weight), grad * (base + (second @ first).view(())))


def test_unit_weight_is_dorefas() -> None:
    weight = torch.tensor([-0.5, 0.0, 0.25, 1.0], dtype=torch.float64)
    expected = torch.tanh(weight) / (2 * torch.tanh(weight).abs().max()) + 0.5
    torch.testing.assert_close(unit_weight(weight, layer_scales(weight, weight)), expected)
    zeros = torch.zeros(3)
    assert torch.equal(unit_weight(zeros, layer_scales(zeros, zeros)), torch.full((3,), 0.5))


def run_evaluation(
    hypernet: Hypernet, evaluation: Evaluation, grad: Tensor, weight: Tensor, cotangent: Tensor, cuts: list[int]
) -> tuple[Tensor, list[Tensor]]:
    """f and the gradient of sum(cotangent * f) by psi, part by part."""
    scales = layer_scales(grad, weight)
    edges = [0, *cuts, grad.numel()]
    slices = [slice(a, b) for a, b in itertools.pairwise(edges) if b > a]
    values = []
    for part in slices:
        core = evaluation.values(hypernet.features(grad[part], weight[part], scales))
        values.append(hypernet.combine(grad[part], core, scales))
    for param in hypernet.parameters():
        param.grad = None
    for part in slices:
        features = hypernet.features(grad[part], weight[part], scales)
        evaluation.accumulate(features, cotangent[part] * hypernet.gain(grad[part], scales))
    evaluation.finish()
    return torch.cat(values), [torch.zeros_like(p) if p.grad is None else p.grad for p in hypernet.parameters()]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", HYPERNETS)
@settings(max_examples=12, deadline=None)
@given(count=st.integers(1, 60), share=st.floats(0, 1), hidden=st.integers(1, 9))
def test_parts_with_layer_wide_maxima_equal_the_whole_layer_as_published(
    name: str, form: str, count: int, share: float, hidden: int
) -> None:
    hypernet = make(name, form, hidden)
    grad, weight = layer(count)
    cotangent = torch.linspace(0.1, 1, count, dtype=torch.float64)
    whole = hypernet(grad, weight)
    expected = torch.autograd.grad(whole, list(hypernet.parameters()), cotangent)
    for evaluation in (hypernet.evaluation(), AutogradEvaluation(hypernet)):
        values, grads = run_evaluation(hypernet, evaluation, grad, weight, cotangent, [int(share * count)])
        torch.testing.assert_close(values, whole.detach(), rtol=1e-12, atol=1e-15)
        for one, other in zip(grads, expected, strict=True):
            assert (one - other).abs().max() <= 1e-10 * other.abs().max() + 1e-16


@pytest.mark.parametrize("name", HYPERNETS)
def test_float32_evaluation_is_close_to_the_published_one(name: str) -> None:
    hypernet = make(name, hidden=20, dtype=torch.float32)
    grad, weight = layer(3000, torch.float32)
    cotangent = torch.linspace(-0.5, 1, 3000)
    whole = hypernet(grad, weight)
    expected = torch.autograd.grad(whole, list(hypernet.parameters()), cotangent)
    values, grads = run_evaluation(hypernet, hypernet.evaluation(), grad, weight, cotangent, [1000])
    torch.testing.assert_close(values, whole.detach(), rtol=1e-5, atol=1e-8)
    for one, other in zip(grads, expected, strict=True):
        assert (one - other).abs().max() <= 1e-4 * other.abs().max()


@pytest.mark.parametrize("name", HYPERNETS)
def test_zero_gradients_and_weights_give_no_nan(name: str) -> None:
    hypernet, zeros = make(name), torch.zeros(5, dtype=torch.float64)
    assert torch.equal(hypernet(zeros, zeros), zeros)


def test_mistakes_are_named() -> None:
    with pytest.raises(ConfigError, match="choose one of: fc_grad, multi_fc, lstm_fc, dual_lstm_fc"):
        build_hypernet("gru", hidden=3)
    with pytest.raises(ConfigError, match="choose one of: residual, literal"):
        build_hypernet("lstm_fc", hidden=3, form="raw")
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        build_hypernet("lstm_fc", hidden=0)
    with pytest.raises(ConfigError, match="lstm_fc has no option 'depth'"):
        build_hypernet("lstm_fc", hidden=3, depth=2)
    with pytest.raises(ConfigError, match="choose one of: zero, carry"):
        build_hypernet("lstm_fc", hidden=3, state="random")
    with pytest.raises(ConfigError, match="at least 2 layers"):
        build_hypernet("multi_fc", hidden=3, depth=1)
    with pytest.raises(ConfigError, match="choose one of: none, relu, tanh"):
        build_hypernet("multi_fc", hidden=3, activation="gelu")
