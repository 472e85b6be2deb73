"""`tabulate` (ours): f_ψ's core on a grid, interpolated at the weights; its gradient by the adjoint scatter.

With zero state the core is a smooth function of one or two numbers, shared by all weights. It is evaluated on a grid
over the layers' range and interpolated (bi)linearly; for ∇ψ, −μ·π'·∇W⁺ is scattered onto the grid with the same
weights, followed by one backward through f_ψ on the grid. Cost: a gather and a scatter per weight, whatever H is.
Keeps O(grid), and O(N) as `recompute` does.

The gradient is exact for the interpolated function. How far that is from f_ψ is measured at the middle of every cell,
in units of the function's own maximum, every few iterations; while it exceeds the bound the grid is halved.
Source: docs/method.md section 4.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.errors import ConfigError
from bench.hypernets import Evaluation, Hypernet, Scales, layer_scales
from bench.update.recompute import Recompute, parts, suitable_chunk

FIRST_POINTS = {1: 1025, 2: 129}  # per axis, by the core's number of inputs; odd, so that 0 is a node (ReLU's kink)
BILINEAR, BORDER = 0, 1  # torch's codes in the backward of grid_sample


@dataclass(frozen=True, slots=True)
class TabulationSample:
    """One iteration held against the exact strategy; tensors stay on the device.

    Attributes:
        points: grid points per axis.
        same_codes: () share of weights whose code, nearest rounding at `bits`, is the exact one's.
        bits: of these codes.
        meta_cosine: () cosine between ∇ψ and the exact ∇ψ.
        meta_error: () |∇ψ − exact ∇ψ|/|exact ∇ψ|.
    """

    points: int
    same_codes: Tensor
    bits: int
    meta_cosine: Tensor
    meta_error: Tensor


class Tabulate:
    """The strategy whose cost per weight does not depend on H."""

    can_carry = False
    keeps_weight = True

    def __init__(
        self,
        *,
        bound: float = 1e-5,
        max_nodes: int = 300_000,
        check_every: int = 10,
        sample_every: int = 0,
        sample_bits: int = 4,
    ) -> None:
        """Start with the coarsest grid.

        Args:
            bound: largest interpolation error allowed, as a share of the function's maximum; one INT8 step is 8e-3.
            max_nodes: the grid grows no further than this many nodes; `bound_met` then says that the bound is missed.
            check_every: iterations between two measurements of the error, each of which waits for the device.
            sample_every: iterations between two samples against the exact strategy, at its full cost; 0 takes none.
            sample_bits: of the codes that a sample compares.

        Raises:
            ConfigError: for a number out of range.
        """
        if bound <= 0 or max_nodes < 2 or check_every < 1 or sample_every < 0 or sample_bits < 2:
            raise ConfigError(
                "tabulate needs bound > 0, max_nodes >= 2, check_every >= 1, sample_every >= 0 and sample_bits >= 2."
            )
        self.bound = bound
        self.max_nodes = max_nodes
        self.check_every = check_every
        self.sample_every = sample_every
        self.sample_bits = sample_bits
        self.points = 0  # per axis; 0 before the first iteration
        self.iterations = 0
        self.error: float | None = None  # at the last measurement
        self.sample: TabulationSample | None = None
        self.same_codes: Tensor | None = None
        self.exact: Recompute | None = None
        self.scales: list[Scales] = []

    @property
    def bound_met(self) -> bool:
        """Whether the last measured error kept the bound."""
        return self.error is not None and self.error <= self.bound

    @torch.no_grad()
    def outputs(self, hypernet: Hypernet, grads: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
        """See `Strategy.outputs`."""
        self.scales = [layer_scales(grad, weight) for grad, weight in zip(grads, weights, strict=True)]
        half = hypernet.half_widths(widest(self.scales))
        evaluation = hypernet.evaluation()
        if not self.points:
            self.points = FIRST_POINTS[hypernet.inputs]
        if self.iterations % self.check_every == 0:
            self._refine(hypernet, evaluation, half)
        table = evaluate_nodes(hypernet, evaluation, half, self.points)
        results = []
        for index, scales in enumerate(self.scales):
            output = torch.empty_like(grads[index], memory_format=torch.contiguous_format)
            flat = output.view(-1)
            layer_table = table + 0.0 * (scales.gradient + scales.weight)  # NaN where the layer is not finite
            for part, grad, places in self._places(hypernet, grads[index], weights[index], scales, half):
                flat[part] = hypernet.combine(grad, interpolate(layer_table, places), scales)
            results.append(output)
        self.sample = self.exact = None
        if self.sample_every and self.iterations % self.sample_every == 0:
            self.exact = Recompute()
            exact = self.exact.outputs(hypernet, grads, weights)
            self.same_codes = share_of_same_codes(results, exact, self.sample_bits)
        self.iterations += 1
        return results

    @torch.no_grad()
    def meta_gradient(
        self,
        hypernet: Hypernet,
        grads: Sequence[Tensor],
        weights: Callable[[int], Tensor],
        cotangents: Callable[[int], Tensor],
    ) -> None:
        """See `Strategy.meta_gradient`."""
        half = hypernet.half_widths(widest(self.scales))
        scattered = grads[0].new_zeros(table_shape(hypernet, self.points))
        for index, scales in enumerate(self.scales):
            cotangent = cotangents(index).reshape(-1)
            for part, grad, places in self._places(hypernet, grads[index], weights(index), scales, half):
                scatter_(scattered, places, cotangent[part] * hypernet.gain(grad, scales))
        evaluation = hypernet.evaluation()
        nodes = grid_nodes(hypernet, half, self.points)
        by_node = scattered.view(-1)
        for part in parts(by_node.numel(), suitable_chunk(hypernet.hidden, half.device)):
            evaluation.accumulate(nodes[:, part].contiguous(), by_node[part])
        evaluation.finish()
        self.scales = []
        if self.exact is not None:
            self._sample_gradient(hypernet, grads, weights, cotangents)

    def _places(
        self, hypernet: Hypernet, grad: Tensor, weight: Tensor, scales: Scales, half: Tensor
    ) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Parts of a layer: the slice, its gradients (n,) and its places on the grid (copies, 1, n/copies, 2)."""
        flat_grad, flat_weight = grad.reshape(-1), weight.reshape(-1)
        chunk = 2**16 if grad.device.type == "cpu" else 2**22
        for part in parts(flat_grad.numel(), chunk):
            rows = hypernet.rows(flat_grad[part], flat_weight[part], scales)
            if hypernet.centre:
                rows = [row - hypernet.centre for row in rows]
            if hypernet.centre or hypernet.form == "literal":
                rows = [row / width for row, width in zip(rows, half.unbind(), strict=True)]
            if hypernet.inputs == 1:
                rows.append(torch.zeros_like(rows[0]))
            count = rows[0].numel()
            # torch shares this work among threads by batch, and the scatter's collisions among copies of the table
            copies = 4 if count % 4 == 0 and count >= 16_384 else 1
            places = torch.stack(rows, dim=1).nan_to_num_(nan=0.0)  # grid_sample reads anywhere at a NaN
            yield part, flat_grad[part], places.view(copies, 1, count // copies, 2)

    def _refine(self, hypernet: Hypernet, evaluation: Evaluation, half: Tensor) -> None:
        """Measure the error, and halve the grid until it keeps the bound or would have too many nodes."""
        error = float(interpolation_error(hypernet, evaluation, half, self.points))
        # a function that is not finite cannot be refined; it reaches the weights and the loss
        while self.bound < error < math.inf and (2 * self.points - 1) ** hypernet.inputs <= self.max_nodes:
            self.points = 2 * self.points - 1
            error = float(interpolation_error(hypernet, evaluation, half, self.points))
        self.error = error

    def _sample_gradient(
        self,
        hypernet: Hypernet,
        grads: Sequence[Tensor],
        weights: Callable[[int], Tensor],
        cotangents: Callable[[int], Tensor],
    ) -> None:
        """Compare ∇ψ, which is in the parameters' ``.grad``, with the exact one, and leave it there."""
        assert self.exact is not None, "a sample needs its exact strategy"
        assert self.same_codes is not None, "a sample needs its codes"
        params = list(hypernet.parameters())
        ours = [param.grad for param in params]
        for param in params:
            param.grad = None
        self.exact.meta_gradient(hypernet, grads, weights, cotangents)
        pairs = [(one, param.grad) for one, param in zip(ours, params, strict=True)]
        mine = torch.cat([one.reshape(-1) for one, other in pairs if one is not None and other is not None])
        exact = torch.cat([other.reshape(-1) for one, other in pairs if one is not None and other is not None])
        for param, one in zip(params, ours, strict=True):
            param.grad = one
        self.sample = TabulationSample(
            points=self.points,
            same_codes=self.same_codes,
            bits=self.sample_bits,
            meta_cosine=torch.dot(mine, exact) / mine.norm() / exact.norm(),
            meta_error=(mine - exact).norm() / exact.norm(),
        )
        self.exact = self.same_codes = None

    def state_dict(self) -> dict[str, Any]:
        """The grid's size, its last error and the count that decides when it is measured again."""
        return {"points": self.points, "iterations": self.iterations, "error": self.error}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the grid's size, error and count."""
        self.points, self.iterations, self.error = int(state["points"]), int(state["iterations"]), state["error"]


def widest(scales: Sequence[Scales]) -> Scales:
    """The largest maxima of all layers: the range that one grid for all must cover."""
    return Scales(
        gradient=torch.stack([s.gradient for s in scales]).amax(), weight=torch.stack([s.weight for s in scales]).amax()
    )


def table_shape(hypernet: Hypernet, points: int) -> tuple[int, int]:
    """Rows are the second input, columns the first; a core of one input has one row."""
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
    """The table, (bi)linearly, at `places` (copies, 1, n, 2) in −1..1; (copies·n,)."""
    copies = places.shape[0]
    source = table.expand(copies, 1, *table.shape)
    return F.grid_sample(source, places, mode="bilinear", padding_mode="border", align_corners=True).view(-1)


def scatter_(table: Tensor, places: Tensor, values: Tensor) -> None:
    """Add `values` (n,) to the table's nodes with the weights of `interpolate`: its adjoint."""
    copies = places.shape[0]
    source = table.expand(copies, 1, *table.shape)
    by_place = values.reshape(copies, 1, 1, -1)
    part, _ = torch.ops.aten.grid_sampler_2d_backward(
        by_place, source, places, BILINEAR, BORDER, True, [True, False]
    )  # autograd's own backward of grid_sample, without the graph
    table += part.sum(dim=(0, 1))


def share_of_same_codes(ours: Sequence[Tensor], exact: Sequence[Tensor], bits: int) -> Tensor:
    """Share of elements with the same nearest uniform code (MetaGrad Eq. 1, clip at the layer's maximum)."""
    top = 2 ** (bits - 1) - 1

    def codes(x: Tensor) -> Tensor:
        clip = x.abs().amax()
        return torch.round(x * top / torch.where(clip == 0, torch.ones_like(clip), clip))

    same = [(codes(one) == codes(other)).sum() for one, other in zip(ours, exact, strict=True)]
    return torch.stack(same).sum() / sum(x.numel() for x in ours)
