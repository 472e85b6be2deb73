from __future__ import annotations

import pytest
import torch
from torch import nn

from bench.hypernets import FORMS, HYPERNETS, build_hypernet, layer_scales
from bench.update import surface_axes, surface_output, surface_values


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", HYPERNETS)
def test_a_surface_is_the_published_function_at_its_axes_values(name: str, form: str) -> None:
    torch.manual_seed(3)
    hypernet = build_hypernet(name, hidden=5, form=form).double()
    for param in hypernet.parameters():
        nn.init.normal_(param, std=0.4)
    weight = torch.linspace(-0.3, 0.3, 61, dtype=torch.float64)
    grad = torch.linspace(-2e-3, 2e-3, 61, dtype=torch.float64).flip(0)
    scales = layer_scales(grad, weight)
    half = hypernet.half_widths(scales)
    axes, table = surface_axes(hypernet, half), surface_values(hypernet, half)
    assert list(table.shape) == [len(axes[1][1]) if len(axes) == 2 else 1, len(axes[0][1])]
    row, column = (30, 10) if len(axes) == 2 else (0, 10)
    places = torch.tensor(
        [[values[index]] for (_, values), index in zip(axes, (column, row), strict=False)], dtype=torch.float64
    )
    # weights and gradients whose inputs these values are
    weights = {"W": places[0], "W/max|W|": places[0] * scales.weight, "W̃": _weight_of(places[0], scales.weight)}
    w = weights.get(axes[0][0], weight[:1])
    last_name, g = axes[-1][0], grad[:1].clone()
    if last_name.startswith("∇W"):
        g = places[-1] * (scales.gradient if last_name == "∇W/max|∇W|" else 1.0)
    answer = hypernet(g, w, scales)
    unit = {"f/∇W": g, "f/max|∇W|": scales.gradient, "f": torch.ones(())}[surface_output(hypernet)]
    assert torch.allclose(table[row, column], (answer / unit).squeeze(), rtol=1e-9)


def _weight_of(unit: torch.Tensor, top: torch.Tensor) -> torch.Tensor:
    """W of a given W̃, docs/method.md section 1."""
    return torch.atanh((unit - 0.5) * 2 * torch.tanh(top))


def test_an_untrained_residual_hypernetwork_answers_the_gradient_itself() -> None:
    torch.manual_seed(0)
    hypernet = build_hypernet("dual_lstm_fc", hidden=4)
    half = torch.ones(2)
    (_, weights), (_, gradients) = surface_axes(hypernet, half)
    assert (len(weights), weights[0], weights[-1]) == (41, -1.0, 1.0)
    assert abs(weights[20]) < 1e-6
    assert torch.equal(surface_values(hypernet, half), torch.tensor(gradients)[:, None].expand(41, 41))
    factor = build_hypernet("multi_fc", hidden=4)
    assert torch.equal(surface_values(factor, torch.full((1,), 0.5)), torch.ones(1, 201))
