from __future__ import annotations

import contextlib

import pytest
import torch
from torch import Tensor, nn

from bench import native
from bench.hypernets import FORMS, HYPERNETS, Hypernet, build_hypernet
from bench.units import Absent
from bench.update import Tabulate
from bench.update.grid import interpolate, scatter_
from bench.update.grid_native import Scattering, cells_of, read

pytestmark = pytest.mark.skipif(isinstance(native.compiled(), Absent), reason="no C compiler")


def make_hypernet(name: str, form: str) -> Hypernet:
    torch.manual_seed(6)
    hypernet = build_hypernet(name, hidden=8, form=form)
    for param in hypernet.parameters():
        nn.init.normal_(param, std=0.3)
    return hypernet


SHAPES = [(1, 9), (9, 9), (33, 33), (2, 2)]


def places(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    drawn = torch.rand(2, count, generator=generator) * 2 - 1
    drawn[:, :4] = torch.tensor([[-1.0, 1.0, 1.0, 0.0], [-1.0, 1.0, -1.0, 0.0]])  # corners and the middle
    return list(drawn)


def table(shape: tuple[int, int]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("count", [5, 1000, 40_000])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_table_is_read_as_torch_interpolates_it(shape: tuple[int, int], count: int) -> None:
    inputs = places(count)[: 1 if shape[0] == 1 else 2]
    both = torch.stack([inputs[0], inputs[1] if len(inputs) == 2 else torch.zeros(count)], dim=1)
    out = torch.empty(count)
    read(
        cells_of(table(shape)), shape, inputs, [1.0] * len(inputs), torch.zeros(count), torch.tensor(1.0),
        added=False, poison=0.0, out=out,
    )  # fmt: skip
    torch.testing.assert_close(out, interpolate(table(shape), both), rtol=0.0, atol=2e-6)


def test_the_gain_and_the_gradient_join_what_was_read() -> None:
    inputs, grad, gains = places(500), torch.randn(500), torch.randn(500)
    core, one, each = torch.empty(500), torch.empty(500), torch.empty(500)
    cells = cells_of(table((9, 9)))
    read(cells, (9, 9), inputs, [1.0, 1.0], grad, torch.tensor(1.0), added=False, poison=0.0, out=core)
    read(cells, (9, 9), inputs, [1.0, 1.0], grad, torch.tensor(0.3), added=True, poison=0.0, out=one)
    read(cells, (9, 9), inputs, [1.0, 1.0], grad, gains, added=False, poison=0.0, out=each)
    assert torch.equal(one, grad + core * torch.tensor(0.3))
    assert torch.equal(each, core * gains)


@pytest.mark.parametrize("count", [5, 40_000])
@pytest.mark.parametrize("shape", SHAPES)
def test_scattering_is_the_adjoint_of_reading(shape: tuple[int, int], count: int) -> None:
    inputs = places(count)[: 1 if shape[0] == 1 else 2]
    both = torch.stack([inputs[0], inputs[1] if len(inputs) == 2 else torch.zeros(count)], dim=1)
    values = torch.randn(count, generator=torch.Generator().manual_seed(2))
    scattering = Scattering(shape)
    half = count // 2
    for part in (slice(0, half), slice(half, count)):
        scattering.add([x[part] for x in inputs], [1.0] * len(inputs), values[part], torch.tensor(0.5))
    expected = torch.zeros(shape, dtype=torch.float64)
    scatter_(expected, both.double(), 0.5 * values.double())
    assert scattering.by_node().shape == shape
    torch.testing.assert_close(
        scattering.by_node().double(), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max())
    )


def test_a_place_outside_counts_as_the_border_and_one_that_is_no_number_stays_none() -> None:
    inputs = [torch.tensor([-3.0, 3.0, float("nan"), float("inf")]), torch.tensor([-3.0, 3.0, 0.0, 0.0])]
    out, values = torch.empty(4), table((3, 3))
    read(
        cells_of(values),
        (3, 3),
        inputs,
        [1.0, 1.0],
        torch.zeros(4),
        torch.tensor(1.0),
        added=False,
        poison=0.0,
        out=out,
    )
    torch.testing.assert_close(out[:2], torch.stack([values[0, 0], values[2, 2]]))
    assert out[2].isnan()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", HYPERNETS)
def test_an_iteration_with_the_compiled_pieces_is_one_without_them(name: str, form: str) -> None:
    generator = torch.Generator().manual_seed(4)
    grads = [torch.randn(30, 70, generator=generator) * 1e-2, torch.randn(70_000, generator=generator) * 1e-3]
    weights = [torch.randn(30, 70, generator=generator) * 0.2, torch.randn(70_000, generator=generator) * 0.1]
    cotangents = [torch.randn(2100, generator=generator), torch.randn(70_000, generator=generator)]

    def weight(layer: int, part: slice) -> Tensor:
        return weights[layer].view(-1)[part]

    def cotangent(layer: int, part: slice) -> Tensor:
        return cotangents[layer][part].clone()

    outputs, gradients = [], []
    for compiled in (True, False):
        hypernet = make_hypernet(name, form)
        strategy = Tabulate(bound=1e-5)
        with contextlib.nullcontext() if compiled else native.disabled():
            outputs.append(strategy.outputs(hypernet, grads, weights))
            strategy.meta_gradient(hypernet, grads, weight, cotangent)
        gradients.append([p.grad for p in hypernet.parameters() if p.grad is not None])
    for one, other in zip(*outputs, strict=True):
        torch.testing.assert_close(one, other, rtol=0.0, atol=2e-6 * float(other.abs().max()))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0.0, atol=2e-5 * float(other.abs().max()) + 1e-12)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("name", HYPERNETS)
def test_a_layer_too_small_to_be_scaled_stays_finite(name: str, compiled: bool) -> None:
    hypernet, strategy = make_hypernet(name, "residual"), Tabulate(bound=1e-4)
    tiny = torch.zeros(3000)
    tiny[::7] = 1e-40
    with contextlib.nullcontext() if compiled else native.disabled():
        for grad, weight in ((tiny, torch.linspace(-1, 1, 3000)), (torch.linspace(-1, 1, 3000), tiny)):
            (output,) = strategy.outputs(hypernet, [grad], [weight])
            strategy.meta_gradient(
                hypernet, [grad], lambda i, part, w=weight: w[part], lambda i, part: torch.ones(3000)[part]
            )
            assert bool(output.isfinite().all())
            assert all(bool(p.grad.isfinite().all()) for p in hypernet.parameters() if p.grad is not None)
