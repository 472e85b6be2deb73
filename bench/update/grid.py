"""f_ψ's core on a grid over the layers' ranges: its nodes, (bi)linear interpolation, the adjoint, the error between.

Rows of a table are the second input, columns the first; a core of one input has one row. Places are pairs
(first, second) in −1..1, (places, 2). Source: docs/method.md section 4.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.hypernets import Evaluation, Hypernet
from bench.update.recompute import parts, suitable_chunk

BILINEAR, BORDER = 0, 1  # torch's codes in the backward of grid_sample
COPIES = 4  # torch shares the places among threads by batch, and the scatter's collisions among copies of the table
SHARED_FROM = 16_384  # places


def table_shape(hypernet: Hypernet, points: int) -> tuple[int, int]:
    """Rows and columns."""
    return (points if hypernet.inputs == 2 else 1), points


def grid_nodes(hypernet: Hypernet, half: Tensor, points: int, *, middles: bool = False) -> Tensor:
    """The core's inputs (inputs, nodes) at the nodes of the grid, or at the middles of its cells."""
    axis = torch.linspace(-1.0, 1.0, points, dtype=half.dtype, device=half.device)
    if middles:
        axis = (axis[1:] + axis[:-1]) / 2
    axes = torch.meshgrid([axis] * hypernet.inputs, indexing="ij")
    unit = torch.stack([a.reshape(-1) for a in reversed(axes)])  # the first input runs fastest
    return unit * half[:, None] + hypernet.centre


def evaluate_nodes(
    hypernet: Hypernet, evaluation: Evaluation, half: Tensor, points: int, *, middles: bool = False
) -> Tensor:
    """The core at the nodes (or the cells' middles), shaped as a table."""
    nodes = grid_nodes(hypernet, half, points, middles=middles)
    chunk = suitable_chunk(hypernet.hidden, half.device)
    values = torch.cat([evaluation.values(nodes[:, part].contiguous()) for part in parts(nodes.shape[1], chunk)])
    return values.view(table_shape(hypernet, points - 1 if middles else points))


def interpolation_error(hypernet: Hypernet, evaluation: Evaluation, half: Tensor, points: int) -> Tensor:
    """Largest error at the middles of the cells over the largest value of what the core stands for.

    In the residual form that is ∇W/max|∇W| + core, or 1 + core where the core is a factor; in the literal form
    the core alone.
    """
    table = evaluate_nodes(hypernet, evaluation, half, points)
    exact = evaluate_nodes(hypernet, evaluation, half, points, middles=True)
    between = (table[:, 1:] + table[:, :-1]) / 2
    if hypernet.inputs == 2:
        between = (between[1:] + between[:-1]) / 2
    whole = table
    if hypernet.form == "residual":
        nodes = grid_nodes(hypernet, half, points)
        whole = table + (1.0 if hypernet.multiplicative else nodes[-1].view(table.shape))
    top = whole.abs().amax()
    return (between - exact).abs().amax() / torch.where(top == 0, torch.ones_like(top), top)


def interpolate(table: Tensor, places: Tensor) -> Tensor:
    """The table, (bi)linearly, at `places` (n, 2); (n,)."""
    copies, by_copy = _shared(places)
    source = table.expand(copies, 1, *table.shape)
    return F.grid_sample(source, by_copy, mode="bilinear", padding_mode="border", align_corners=True).view(-1)


def scatter_(table: Tensor, places: Tensor, values: Tensor) -> None:
    """Add `values` (n,) to the table's nodes with the weights of `interpolate`: its adjoint."""
    copies, by_copy = _shared(places)
    source = table.expand(copies, 1, *table.shape)
    by_place = values.view(copies, 1, 1, -1)
    part, _ = torch.ops.aten.grid_sampler_2d_backward(
        by_place, source, by_copy, BILINEAR, BORDER, True, [True, False]
    )  # autograd's own backward of grid_sample, without the graph
    table += part.sum(dim=(0, 1))


def _shared(places: Tensor) -> tuple[int, Tensor]:
    """How many threads' worth of places, and these as (copies, 1, n/copies, 2)."""
    count = places.shape[0]
    copies = COPIES if count >= SHARED_FROM and count % COPIES == 0 else 1
    return copies, places.view(copies, 1, count // copies, 2)
