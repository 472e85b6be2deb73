"""`tabulate` (ours): f_ψ's core on a grid, interpolated at the weights; its gradient by the adjoint scatter.

With zero state the core is a smooth function of one or two numbers, shared by all weights. It is evaluated on a grid
over the layers' range and interpolated (bi)linearly; for ∇ψ, −μ·π'·∇W⁺ is scattered onto the grid with the same
weights, followed by one backward through f_ψ on the grid. Cost: a gather and a scatter per weight, whatever H is.
Keeps O(grid), and O(N) as `recompute` does.

The network's weights are walked through as one sequence, a group of them at a time in buffers that stay in the cache;
in float32 on a CPU with a compiler one compiled pass reads the table and one scatters.
The gradient is exact for the interpolated function. How far that is from f_ψ is measured at the middle of every cell,
in units of the function's own maximum, every few iterations; while it exceeds the bound the grid is halved.
Source: docs/method.md section 4.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.errors import ConfigError
from bench.hypernets import Evaluation, Hypernet, Scales, layer_scales
from bench.layout import flat, unflat
from bench.update.base import Parts
from bench.update.grid import (
    evaluate_nodes,
    grid_nodes,
    interpolate,
    interpolation_error,
    scatter_,
    table_shape,
)
from bench.update.grid_native import Scattering, can_read, cells_of, read
from bench.update.groups import group_limit, groups, places_buffer
from bench.update.recompute import Recompute, parts, suitable_chunk

FIRST_POINTS = {1: 129, 2: 17}  # per axis, by the core's number of inputs; odd, so that 0 is a node (ReLU's kink)


@dataclass(frozen=True, slots=True)
class TabulationSample:
    """One iteration held against the exact strategy; tensors stay on the device.

    Attributes:
        points: grid points per axis.
        error: the interpolation error of this iteration's grid, as a share of the function's maximum.
        same_codes: (layers,) share of weights whose code, nearest rounding at `bits`, is the exact one's; None where
            the outputs are not rounded.
        bits: of these codes.
        meta_angle_deg: () angle between ∇ψ and the exact ∇ψ, degrees.
        meta_error: () |∇ψ − exact ∇ψ|/|exact ∇ψ|.
    """

    points: int
    error: float
    same_codes: Tensor | None
    bits: int | None
    meta_angle_deg: Tensor
    meta_error: Tensor


class Tabulate:
    """The strategy whose cost per weight does not depend on H."""

    can_carry = False
    keeps_weight = True

    def __init__(
        self,
        *,
        bound: float = 1e-6,
        max_nodes: int = 300_000,
        check_every: int = 10,
        sample_bits: int | None = 4,
    ) -> None:
        """Start with the coarsest grid.

        Args:
            bound: largest interpolation error allowed, as a share of the function's maximum; one INT8 step is 8e-3.
            max_nodes: the grid grows no further than this many nodes; `error` then says how far the bound is missed.
            check_every: iterations between two measurements of the error, each of which waits for the device.
            sample_bits: of the codes that a sample compares; None where nothing is rounded after f_ψ.

        Raises:
            ConfigError: for a number out of range.
        """
        if bound <= 0 or max_nodes < 2 or check_every < 1 or (sample_bits is not None and sample_bits < 2):
            raise ConfigError("tabulate needs bound > 0, max_nodes >= 2, check_every >= 1 and sample_bits >= 2.")
        self.bound = bound
        self.max_nodes = max_nodes
        self.check_every = check_every
        self.sample_bits = sample_bits
        self.take_sample = False  # hold the next iteration against the exact strategy, at its full cost
        self.sample: TabulationSample | None = None  # of the last iteration
        self.sampling_s = 0.0  # what all samples took
        self.points = 0  # per axis; 0 before the first iteration
        self.iterations = 0
        self.error: float | None = None  # at the last measurement
        self.sample_error = math.nan
        self.same_codes: Tensor | None = None
        self.exact: Recompute | None = None
        self.scales: list[Scales] = []
        self.half = torch.empty(0)
        self.slopes: list[tuple[Tensor, ...]] = []

    @torch.no_grad()
    def outputs(self, hypernet: Hypernet, grads: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
        """See `Strategy.outputs`."""
        self.scales = [layer_scales(grad, weight) for grad, weight in zip(grads, weights, strict=True)]
        self.half = hypernet.half_widths(widest(self.scales))
        self.slopes = [(torch.stack(hypernet.slopes(s)) / self.half).unbind() for s in self.scales]
        evaluation = hypernet.evaluation()
        if not self.points:
            self.points = FIRST_POINTS[hypernet.inputs]
        if self.iterations % self.check_every == 0:
            self._refine(hypernet, evaluation)
        self.iterations += 1
        table = evaluate_nodes(hypernet, evaluation, self.half, self.points)
        poisons = self._poisons(grads[0].device)
        flat_grads, flat_weights = [flat(grad) for grad in grads], [flat(weight) for weight in weights]
        results = [grad.new_empty(grad.numel()) for grad in grads]
        by_table = self._read_compiled if can_read([table, *flat_grads, *flat_weights]) else self._read
        by_table(hypernet, table, flat_grads, flat_weights, poisons, results)
        outputs = [unflat(result, grad) for result, grad in zip(results, grads, strict=True)]
        self.sample = self.exact = None
        if self.take_sample:
            self._sample_outputs(hypernet, evaluation, grads, weights, outputs)
        return outputs

    @torch.no_grad()
    def meta_gradient(self, hypernet: Hypernet, grads: Sequence[Tensor], weights: Parts, cotangents: Parts) -> None:
        """See `Strategy.meta_gradient`."""
        flat_grads = [flat(grad) for grad in grads]
        by_weight = self._scatter_compiled if can_read([self.half, *flat_grads]) else self._scatter
        scattered = by_weight(hypernet, flat_grads, weights, cotangents)
        evaluation = hypernet.evaluation()
        nodes = grid_nodes(hypernet, self.half, self.points)
        by_node = scattered.reshape(-1)
        for part in parts(by_node.numel(), suitable_chunk(hypernet.hidden, self.half.device)):
            evaluation.accumulate(nodes[:, part].contiguous(), by_node[part])
        evaluation.finish()
        self.scales, self.slopes = [], []
        if self.exact is not None:
            self._sample_gradient(hypernet, grads, weights, cotangents)

    def _read(
        self,
        hypernet: Hypernet,
        table: Tensor,
        grads: Sequence[Tensor],
        weights: Sequence[Tensor],
        poisons: Sequence[Tensor] | None,
        results: Sequence[Tensor],
    ) -> None:
        """f_ψ of all weights into `results`; all (n,) by layer."""
        buffer = places_buffer(grads)
        for count, pieces in groups(grads):
            for piece in pieces:
                grad, weight = grads[piece.layer][piece.part], weights[piece.layer][piece.part]
                self._place(hypernet, buffer[piece.place], grad, weight, piece.layer)
            places = buffer[:count] if poisons is None else buffer[:count].nan_to_num_(nan=0.0)
            core = interpolate(table, places)
            for piece in pieces:
                part = core[piece.place] if poisons is None else core[piece.place].add_(poisons[piece.layer])
                grad, out = grads[piece.layer][piece.part], results[piece.layer][piece.part]
                hypernet.combine(grad, part, self.scales[piece.layer], out=out)

    def _read_compiled(
        self,
        hypernet: Hypernet,
        table: Tensor,
        grads: Sequence[Tensor],
        weights: Sequence[Tensor],
        poisons: Sequence[Tensor] | None,
        results: Sequence[Tensor],
    ) -> None:
        """`_read` in one pass over the weights."""
        cells, shape = cells_of(table), table_shape(hypernet, self.points)
        for layer, grad in enumerate(grads):
            slopes = [float(slope) for slope in self.slopes[layer]]
            poison = 0.0 if poisons is None else float(poisons[layer])
            for part in parts(grad.numel(), group_limit(grad.device)):
                read(
                    cells, shape, hypernet.sources(grad[part], weights[layer][part]), slopes, grad[part],
                    hypernet.gain(grad[part], self.scales[layer]), added=hypernet.form == "residual", poison=poison,
                    out=results[layer][part],
                )  # fmt: skip

    def _scatter(self, hypernet: Hypernet, grads: Sequence[Tensor], weights: Parts, cotangents: Parts) -> Tensor:
        """The cotangents of the core, brought to the table's nodes."""
        scattered = grads[0].new_zeros(table_shape(hypernet, self.points))
        careful = self._poisons(grads[0].device) is not None
        buffer = places_buffer(grads)
        values = buffer.new_empty(buffer.shape[0])
        for count, pieces in groups(grads):
            for piece in pieces:
                grad = grads[piece.layer][piece.part]
                self._place(hypernet, buffer[piece.place], grad, weights(piece.layer, piece.part), piece.layer)
                gain = hypernet.gain(grad, self.scales[piece.layer])
                torch.mul(cotangents(piece.layer, piece.part), gain, out=values[piece.place])
            values[pieces[-1].place.stop : count] = 0.0
            places = buffer[:count].nan_to_num_(nan=0.0) if careful else buffer[:count]
            scatter_(scattered, places, values[:count])
        return scattered

    def _scatter_compiled(
        self, hypernet: Hypernet, grads: Sequence[Tensor], weights: Parts, cotangents: Parts
    ) -> Tensor:
        """`_scatter` in one pass over the weights."""
        scattering = Scattering(table_shape(hypernet, self.points))
        for layer, grad in enumerate(grads):
            slopes = [float(slope) for slope in self.slopes[layer]]
            for part in parts(grad.numel(), group_limit(grad.device)):
                scattering.add(
                    hypernet.sources(grad[part], weights(layer, part)), slopes, cotangents(layer, part),
                    hypernet.gain(grad[part], self.scales[layer]),
                )  # fmt: skip
        return scattering.by_node()

    def _place(self, hypernet: Hypernet, places: Tensor, grad: Tensor, weight: Tensor, layer: int) -> None:
        """Write some weights' places on the grid into (n, 2)."""
        sources = hypernet.sources(grad, weight)
        for axis, (source, slope) in enumerate(zip(sources, self.slopes[layer], strict=True)):
            torch.mul(source, slope, out=places[:, axis])

    def _poisons(self, device: torch.device) -> list[Tensor] | None:
        """0 per layer, NaN where the layer is not finite; None where none is, on a CPU, where asking costs no wait.

        The sampler reads anywhere at a place that is NaN, so such places are moved; the poison brings the NaN back.
        """
        sums = [scales.gradient + scales.weight for scales in self.scales]
        if device.type == "cpu" and bool(torch.stack(sums).isfinite().all()):
            return None
        return [0.0 * total for total in sums]

    def _refine(self, hypernet: Hypernet, evaluation: Evaluation) -> None:
        """Measure the error, and halve the grid until it keeps the bound or would have too many nodes."""
        error = float(interpolation_error(hypernet, evaluation, self.half, self.points))
        # a function that is not finite cannot be refined; it reaches the weights and the loss
        while self.bound < error < math.inf and (2 * self.points - 1) ** hypernet.inputs <= self.max_nodes:
            self.points = 2 * self.points - 1
            error = float(interpolation_error(hypernet, evaluation, self.half, self.points))
        self.error = error

    def _sample_outputs(
        self,
        hypernet: Hypernet,
        evaluation: Evaluation,
        grads: Sequence[Tensor],
        weights: Sequence[Tensor],
        outputs: Sequence[Tensor],
    ) -> None:
        """Measure this iteration's error and compare the outputs' codes with the exact ones."""
        start = self._now(grads[0].device)
        self.sample_error = float(interpolation_error(hypernet, evaluation, self.half, self.points))
        self.exact = Recompute()
        exact = self.exact.outputs(hypernet, grads, weights)
        if self.sample_bits is not None:
            self.same_codes = shares_of_same_codes(outputs, exact, self.sample_bits)
        self.sampling_s += self._now(grads[0].device) - start

    def _sample_gradient(self, hypernet: Hypernet, grads: Sequence[Tensor], weights: Parts, cotangents: Parts) -> None:
        """Compare ∇ψ, which is in the parameters' ``.grad``, with the exact one, and leave it there."""
        assert self.exact is not None, "a sample needs its exact strategy"
        start = self._now(grads[0].device)
        params = list(hypernet.parameters())
        ours = [param.grad for param in params]
        for param in params:
            param.grad = None
        self.exact.meta_gradient(hypernet, grads, weights, cotangents)
        pairs = [(one, param.grad) for one, param in zip(ours, params, strict=True)]
        mine = torch.cat([one.reshape(-1) for one, other in pairs if one is not None and other is not None]).double()
        exact = torch.cat([other.reshape(-1) for one, other in pairs if one is not None and other is not None]).double()
        for param, one in zip(params, ours, strict=True):
            param.grad = one
        self.sample = TabulationSample(
            points=self.points,
            error=self.sample_error,
            same_codes=self.same_codes,
            bits=self.sample_bits,
            meta_angle_deg=angle_deg(mine, exact),
            meta_error=(mine - exact).norm() / exact.norm(),
        )
        self.exact = self.same_codes = None
        self.sampling_s += self._now(grads[0].device) - start

    @staticmethod
    def _now(device: torch.device) -> float:
        """Seconds, once the device has done what it was given: a sample's cost is its own."""
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

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


def shares_of_same_codes(ours: Sequence[Tensor], exact: Sequence[Tensor], bits: int) -> Tensor:
    """(layers,) share of elements with the same nearest uniform code (MetaGrad Eq. 1, clip at the layer's maximum)."""
    top = 2 ** (bits - 1) - 1

    def codes(x: Tensor) -> Tensor:
        clip = x.abs().amax()
        return torch.round(x * top / torch.where(clip == 0, torch.ones_like(clip), clip))

    return torch.stack([(codes(one) == codes(other)).double().mean() for one, other in zip(ours, exact, strict=True)])


def angle_deg(one: Tensor, other: Tensor) -> Tensor:
    """() angle between two vectors in degrees, sharp also where it is tiny (Kahan); NaN where one is zero."""
    one, other = one / one.norm(), other / other.norm()
    return torch.rad2deg(2 * torch.atan2((one - other).norm(), (one + other).norm()))
