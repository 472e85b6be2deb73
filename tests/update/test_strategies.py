from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from bench.errors import ConfigError
from bench.hypernets import HYPERNETS, Hypernet, build_hypernet
from bench.layout import flat
from bench.update import Slim, Strategy, build_strategy


def make_layers(dtype: torch.dtype) -> SimpleNamespace:
    """Four layers of different sizes and ranges."""
    generator = torch.Generator().manual_seed(4)
    shapes = [(5, 3, 3, 3), (7, 5), (40,), (3, 11)]

    def normal(scale: float) -> list[Tensor]:
        tensors = [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]
        return [(tensor * scale * 10.0**-k).to(dtype) for k, tensor in enumerate(tensors)]

    return SimpleNamespace(grads=normal(1e-2), weights=normal(0.3), cotangents=normal(1.0))


def make_hypernet(name: str, form: str, dtype: torch.dtype) -> Hypernet:
    torch.manual_seed(6)
    hypernet = build_hypernet(name, hidden=8, form=form).to(dtype)
    for param in hypernet.parameters():
        nn.init.normal_(param, std=0.5)
    return hypernet


def run(strategy: Strategy, hypernet: Hypernet, layers: SimpleNamespace) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs and meta-gradient of one iteration."""
    for param in hypernet.parameters():
        param.grad = None
    outputs = strategy.outputs(hypernet, layers.grads, layers.weights)
    strategy.meta_gradient(
        hypernet,
        layers.grads,
        lambda index, part: flat(layers.weights[index])[part],
        lambda index, part: flat(layers.cotangents[index])[part].clone(),
    )
    return outputs, [torch.zeros_like(p) if p.grad is None else p.grad for p in hypernet.parameters()]


@pytest.mark.parametrize(("dtype", "relative"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
@pytest.mark.parametrize("chunk", [1, 16, 1000])
@pytest.mark.parametrize("form", ["residual", "literal"])
@pytest.mark.parametrize("name", HYPERNETS)
def test_recompute_equals_retain(name: str, form: str, chunk: int, dtype: torch.dtype, relative: float) -> None:
    hypernet, layers = make_hypernet(name, form, dtype), make_layers(dtype)
    outputs, grads = run(build_strategy("recompute", chunk=chunk), hypernet, layers)
    expected_outputs, expected = run(build_strategy("retain"), hypernet, layers)
    for one, other in zip([*outputs, *grads], [*expected_outputs, *expected], strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() <= relative * other.abs().max()


@pytest.mark.parametrize("name", HYPERNETS)
def test_slims_gradient_averages_to_retains_over_the_number_of_layers(name: str) -> None:
    hypernet, layers = make_hypernet(name, "residual", torch.float64), make_layers(torch.float64)
    _, expected = run(build_strategy("retain"), hypernet, layers)
    shares: dict[int, list[Tensor]] = {}
    slim = Slim(seed=0)
    for _ in range(60):
        _, grads = run(slim, hypernet, layers)
        shares[slim.chosen] = grads
    assert sorted(shares) == [0, 1, 2, 3]  # each equally likely, so the expectation is the plain mean
    for index, grad in enumerate(expected):
        mean = sum(share[index] for share in shares.values()) / 4
        torch.testing.assert_close(mean, grad / 4, rtol=1e-10, atol=1e-16)


@pytest.mark.parametrize("strategy", ["retain", "slim", "recompute", "tabulate"])
@pytest.mark.parametrize("name", HYPERNETS)
def test_the_order_of_the_weights_in_memory_changes_nothing(name: str, strategy: str) -> None:
    layers, hypernet = make_layers(torch.float64), make_hypernet(name, "residual", torch.float64)
    expected, expected_grads = run(build_strategy(strategy), hypernet, layers)
    last = torch.channels_last
    for values in (layers.grads, layers.weights, layers.cotangents):
        values[0] = values[0].to(memory_format=last)
        values[1] = values[1].t().contiguous().t()
    outputs, grads = run(build_strategy(strategy), hypernet, layers)
    assert outputs[0].is_contiguous(memory_format=last)
    for one, other in zip([*outputs, *grads], [*expected, *expected_grads], strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-16)


def test_slim_draws_layers_evenly_and_reproducibly() -> None:
    hypernet, layers = make_hypernet("fc_grad", "residual", torch.float64), make_layers(torch.float64)

    def draws(slim: Slim, count: int) -> list[int]:
        chosen = []
        for _ in range(count):
            run(slim, hypernet, layers)
            chosen.append(slim.chosen)
        return chosen

    slim = Slim(seed=1)
    counts = torch.tensor(draws(slim, 400)).bincount(minlength=4)
    assert ((counts - 100).abs() < 35).all()  # 4 standard deviations of a fair draw
    resumed = Slim(seed=2)
    resumed.load_state_dict(slim.state_dict())
    assert draws(resumed, 20) == draws(slim, 20)


def test_retain_gives_its_graph_back() -> None:
    hypernet, layers = make_hypernet("dual_lstm_fc", "residual", torch.float32), make_layers(torch.float32)
    retain = build_strategy("retain")
    run(retain, hypernet, layers)
    assert retain.graphs == []  # type: ignore[attr-defined]


def test_mistakes_are_named() -> None:
    with pytest.raises(ConfigError, match="unknown strategy 'keep'; choose one of: retain, slim, recompute"):
        build_strategy("keep")
    with pytest.raises(ConfigError, match="retain has no option 'chunk'; it takes: none"):
        build_strategy("retain", chunk=3)
    with pytest.raises(ConfigError, match="chunk"):
        build_strategy("recompute", chunk=0)
