from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from bench.errors import ConfigError
from bench.hypernets import FORMS, HYPERNETS, Hypernet, build_hypernet, layer_scales
from bench.update import Strategy, Tabulate, build_strategy
from bench.update.grid import grid_nodes, interpolate, scatter_
from bench.update.tabulate import widest


def make_layers(dtype: torch.dtype = torch.float64) -> SimpleNamespace:
    generator = torch.Generator().manual_seed(4)

    def normal(*sizes: float) -> list[Tensor]:
        shapes = [(16, 8, 3, 3), (30, 5), (40_000,)]
        tensors = [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]
        return [(tensor * size).to(dtype) for tensor, size in zip(tensors, sizes, strict=True)]

    return SimpleNamespace(
        grads=normal(1e-2, 1e-3, 5e-3), weights=normal(0.2, 0.4, 0.1), cotangents=normal(1.0, 1.0, 1.0)
    )


def make_hypernet(name: str, form: str = "residual", dtype: torch.dtype = torch.float64) -> Hypernet:
    torch.manual_seed(6)
    hypernet = build_hypernet(name, hidden=8, form=form).to(dtype)
    for param in hypernet.parameters():
        nn.init.normal_(param, std=0.3)
    return hypernet


def meta_gradient(strategy: Strategy, hypernet: Hypernet, layers: SimpleNamespace) -> list[Tensor]:
    for param in hypernet.parameters():
        param.grad = None
    strategy.meta_gradient(
        hypernet,
        layers.grads,
        lambda index, part: layers.weights[index].view(-1)[part],
        lambda index, part: layers.cotangents[index].view(-1)[part].clone(),
    )
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in hypernet.parameters()]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", HYPERNETS)
def test_outputs_keep_the_bound_and_the_meta_gradient_follows(name: str, form: str) -> None:
    hypernet, layers = make_hypernet(name, form), make_layers()
    tabulate, exact = Tabulate(bound=1e-5), build_strategy("recompute")
    ours = tabulate.outputs(hypernet, layers.grads, layers.weights)
    theirs = exact.outputs(hypernet, layers.grads, layers.weights)
    assert tabulate.error is not None
    assert tabulate.error <= tabulate.bound
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() <= 3e-5 * max(float(x.abs().max()) for x in theirs)
    pairs = zip(meta_gradient(tabulate, hypernet, layers), meta_gradient(exact, hypernet, layers), strict=True)
    for one, other in pairs:
        assert (one - other).abs().max() <= 1e-3 * other.abs().max()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", HYPERNETS)
def test_meta_gradient_is_exactly_that_of_the_interpolated_function(name: str, form: str) -> None:
    hypernet, layers = make_hypernet(name, form), make_layers()
    tabulate = Tabulate(check_every=1, max_nodes=2)  # stays at its first, coarse grid
    tabulate.outputs(hypernet, layers.grads, layers.weights)
    scales = [layer_scales(grad, weight) for grad, weight in zip(layers.grads, layers.weights, strict=True)]
    half = hypernet.half_widths(widest(scales))
    nodes = grid_nodes(hypernet, half, tabulate.points)
    table = hypernet.core(nodes).view(-1, tabulate.points)  # with a graph, as published
    total = torch.zeros((), dtype=torch.float64)
    for grad, weight, cotangent, scale in zip(layers.grads, layers.weights, layers.cotangents, scales, strict=True):
        features = (hypernet.features(grad.view(-1), weight.view(-1), scale) - hypernet.centre) / half[:, None]
        rows = list(features) if len(features) == 2 else [features[0], torch.zeros_like(features[0])]
        core = bilinear(table, rows[0], rows[1])
        total = total + (cotangent.view(-1) * hypernet.combine(grad.view(-1), core, scale)).sum()
    params = list(hypernet.parameters())
    expected = torch.autograd.grad(total, params, allow_unused=True)
    for one, other in zip(meta_gradient(tabulate, hypernet, layers), expected, strict=True):
        assert (one - other).abs().max() <= 1e-9 * other.abs().max() + 1e-18


def bilinear(table: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Bilinear interpolation written out, x along columns, both in -1..1."""
    rows, columns = table.shape
    i = ((x + 1) / 2 * (columns - 1)).clamp(0, columns - 1)
    j = ((y + 1) / 2 * (rows - 1)).clamp(0, rows - 1)
    i0, j0 = i.floor().long().clamp(max=columns - 2), j.floor().long().clamp(max=max(rows - 2, 0))
    j1 = (j0 + 1).clamp(max=rows - 1)
    p, q = i - i0, j - j0
    low = table[j0, i0] * (1 - p) + table[j0, i0 + 1] * p
    high = table[j1, i0] * (1 - p) + table[j1, i0 + 1] * p
    return low * (1 - q) + high * q


@pytest.mark.parametrize("count", [25, 4 * 5000])  # the second is shared among threads
@pytest.mark.parametrize("shape", [(1, 9), (9, 9)])
def test_scatter_is_the_adjoint_of_interpolate(shape: tuple[int, int], count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(shape, generator=generator, dtype=torch.float64)
    places = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 2 - 1
    values = torch.randn(count, generator=generator, dtype=torch.float64)
    adjoint = torch.zeros_like(table)
    scatter_(adjoint, places, values)
    assert float((adjoint * table).sum()) == pytest.approx(float((values * interpolate(table, places)).sum()))


def test_the_grid_is_refined_when_the_function_outgrows_it() -> None:
    hypernet, layers = make_hypernet("dual_lstm_fc"), make_layers()
    tabulate = Tabulate(bound=2e-5, check_every=2)
    tabulate.outputs(hypernet, layers.grads, layers.weights)
    first = tabulate.points
    assert first < 129
    assert tabulate.error is not None
    assert tabulate.error <= tabulate.bound
    with torch.no_grad():
        for param in hypernet.parameters():
            param *= 6
    tabulate.outputs(hypernet, layers.grads, layers.weights)
    assert tabulate.points == first  # not measured in this iteration
    tabulate.outputs(hypernet, layers.grads, layers.weights)
    assert tabulate.points > first
    assert tabulate.error is not None
    assert tabulate.error <= tabulate.bound


def test_a_bound_out_of_reach_is_said() -> None:
    hypernet, layers = make_hypernet("dual_lstm_fc"), make_layers()
    tabulate = Tabulate(bound=1e-12, max_nodes=20_000)
    assert tabulate.error is None  # nothing measured yet
    tabulate.outputs(hypernet, layers.grads, layers.weights)
    assert tabulate.points == 129
    assert tabulate.error is not None
    assert 1e-12 < tabulate.error < 1e-3


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["grads", "weights"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["lstm_fc", "dual_lstm_fc"])
def test_what_is_not_finite_reaches_the_outputs(name: str, form: str, where: str, value: float) -> None:
    hypernet, layers = make_hypernet(name, form, torch.float32), make_layers(torch.float32)
    getattr(layers, where)[2][123] = value  # in a layer large enough to be shared among threads
    tabulate = Tabulate()
    outputs = tabulate.outputs(hypernet, layers.grads, layers.weights)
    assert not torch.isfinite(outputs[2][123])
    meta_gradient(tabulate, hypernet, layers)  # reads and writes inside the table all the same


@pytest.mark.parametrize("form", FORMS)
def test_zero_layers_give_finite_outputs_and_gradients(form: str) -> None:
    for name in HYPERNETS:
        hypernet, layers = make_hypernet(name, form, torch.float32), make_layers(torch.float32)
        layers.grads = [torch.zeros_like(grad) for grad in layers.grads]
        layers.weights = [torch.zeros_like(weight) for weight in layers.weights]
        tabulate = Tabulate()
        outputs = tabulate.outputs(hypernet, layers.grads, layers.weights)
        for tensor in [*outputs, *meta_gradient(tabulate, hypernet, layers)]:
            assert torch.isfinite(tensor).all()


def test_float32_codes_and_gradient_are_those_of_the_exact_strategy() -> None:
    hypernet, layers = make_hypernet("dual_lstm_fc", dtype=torch.float32), make_layers(torch.float32)
    for bits, share in ((4, 0.9999), (8, 0.998)):
        tabulate = Tabulate(sample_bits=bits)
        for iteration in range(4):
            tabulate.take_sample = iteration % 2 == 0
            tabulate.outputs(hypernet, layers.grads, layers.weights)
            before = [grad.clone() for grad in meta_gradient(tabulate, hypernet, layers)]
            assert (tabulate.sample is not None) == (iteration % 2 == 0)
            if tabulate.sample is not None:
                assert tabulate.sample.bits == bits
                assert tabulate.sample.same_codes is not None
                assert tabulate.sample.same_codes.shape == (3,)
                assert float(tabulate.sample.same_codes.min()) >= share
                assert 0 < float(tabulate.sample.meta_angle_deg) < 0.05
                assert 0 < float(tabulate.sample.meta_error) < 1e-3
                assert tabulate.sample.error <= tabulate.bound
    tabulate = Tabulate()
    tabulate.outputs(hypernet, layers.grads, layers.weights)
    for one, other in zip(before, meta_gradient(tabulate, hypernet, layers), strict=True):
        assert torch.equal(one, other)  # sampling changes nothing


def test_threads_change_nothing() -> None:
    hypernet, layers = make_hypernet("dual_lstm_fc", dtype=torch.float32), make_layers(torch.float32)
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        tabulate = Tabulate()
        outputs = tabulate.outputs(hypernet, layers.grads, layers.weights)
        found.append([*outputs, *(grad.clone() for grad in meta_gradient(tabulate, hypernet, layers))])
    torch.set_num_threads(1)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6 * float(other.abs().max()))


def test_mistakes_are_named() -> None:
    for options in ({"bound": 0.0}, {"max_nodes": 1}, {"check_every": 0}, {"sample_bits": 1}):
        with pytest.raises(ConfigError, match="tabulate needs bound > 0"):
            build_strategy("tabulate", **options)
