"""f_ψ as a surface: what it answers over the whole range of its inputs, to be drawn before and after training.

Each axis is one input of the core over its layer's range; the answer is given per max|∇W| (or per ∇W, where the core is
a factor of it), so that in the `residual` form axes and answer have no unit. An LSTM starts from a zero state.
Source: docs/method.md section 3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench.hypernets import Hypernet, Scales
from bench.update.grid import grid_nodes, table_shape

SURFACE_POINTS = {1: 201, 2: 41}  # per axis, by the core's number of inputs; odd, so that 0 is a point


def surface_axes(hypernet: Hypernet, half: Tensor) -> list[tuple[str, list[float]]]:
    """Name and values of each axis, the core's first input first.

    Args:
        hypernet: f_ψ.
        half: (inputs,) half the width of each input's range, as ``Hypernet.half_widths`` gives it.
    """
    unit = torch.linspace(-1.0, 1.0, SURFACE_POINTS[hypernet.inputs], dtype=half.dtype, device=half.device)
    values = [(unit * width + hypernet.centre).tolist() for width in half]
    return list(zip(hypernet.row_names(), values, strict=True))


@torch.no_grad()
def surface_values(hypernet: Hypernet, half: Tensor) -> Tensor:
    """f_ψ on the grid of `surface_axes`; rows are the core's second input, one row where it has one input.

    Args:
        hypernet: f_ψ, evaluated as published.
        half: as for `surface_axes`.

    Returns:
        (rows, columns): f_ψ/max|∇W| or, where the core is a factor, f_ψ/∇W; in the `literal` form f_ψ or f_ψ/∇W.
    """
    points = SURFACE_POINTS[hypernet.inputs]
    nodes = grid_nodes(hypernet, half, points)
    one = torch.ones((), dtype=half.dtype, device=half.device)
    gradient = torch.ones_like(nodes[0]) if hypernet.multiplicative else nodes[-1]
    answer = hypernet.combine(gradient, hypernet.core(nodes), Scales(gradient=one, weight=one))
    return answer.view(table_shape(hypernet, points))


def surface_output(hypernet: Hypernet) -> str:
    """What `surface_values` are, in words."""
    if hypernet.multiplicative:
        return "f/∇W"
    return "f/max|∇W|" if hypernet.form == "residual" else "f"
