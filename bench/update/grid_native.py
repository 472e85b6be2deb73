"""The table read and scattered to by compiled pieces: float32 on a CPU, one pass over the weights each.

A cell of the table holds its first node, the rises by either input and by both: four neighbouring numbers for a
place. The sums of the adjoint are of the same four, in float64, and become sums of nodes at the end. The torch twin is
``grid.py``. Source: docs/method.md section 4.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bench.native import compiled, pointer, usable


def can_read(values: Sequence[Tensor]) -> bool:
    """Whether the compiled pieces take these tensors."""
    return all(value.dtype is torch.float32 and value.is_contiguous() and usable(value.device) for value in values)


def cells_of(table: Tensor) -> Tensor:
    """A table (rows, columns) as (cells, 4): first node, rise along a row, rise along a column, rise of the rise."""
    if table.shape[0] == 1:
        table = table.expand(2, -1)
    first, right = table[:-1, :-1], table[:-1, 1:] - table[:-1, :-1]
    below = table[1:, :-1] - first
    return torch.stack([first, right, below, table[1:, 1:] - table[1:, :-1] - right], dim=-1).reshape(-1, 4)


def read(
    cells: Tensor,
    shape: tuple[int, int],
    sources: Sequence[Tensor],
    slopes: Sequence[float],
    grad: Tensor,
    gain: Tensor,
    *,
    added: bool,
    poison: float,
    out: Tensor,
) -> None:
    """f_ψ of some weights of a layer.

    Args:
        cells: of `cells_of`.
        shape: rows and columns of the table.
        sources: one or two (n,) tensors, the first runs along rows.
        slopes: by which a source becomes a place in −1..1.
        grad: (n,) ∇W.
        gain: () or (n,), multiplies the core.
        added: whether ∇W is added to that.
        poison: added to the core: 0, or NaN for a layer that is not finite.
        out: (n,), set whole.
    """
    second = sources[1] if len(sources) == 2 else None
    by_weight = gain.dim() > 0
    compiled().table_read(
        pointer(cells), *shape, pointer(sources[0]), pointer(second), slopes[0], slopes[-1], pointer(grad),
        pointer(gain) if by_weight else None, 0.0 if by_weight else float(gain), int(added), poison, pointer(out),
        out.numel(),
    )  # fmt: skip


class Scattering:
    """The adjoint of `read`, summed over any number of calls."""

    def __init__(self, shape: tuple[int, int]) -> None:
        """Start at zero.

        Args:
            shape: rows and columns of the table.
        """
        self.shape = shape
        self.copies = torch.get_num_threads()
        rows, columns = shape
        self.sums = torch.zeros(self.copies, max(1, rows - 1) * (columns - 1), 4, dtype=torch.float64)

    def add(self, sources: Sequence[Tensor], slopes: Sequence[float], values: Tensor, gain: Tensor) -> None:
        """Add `values` (n,) times `gain`, () or (n,), at the places of `sources`, as `read` takes them."""
        second = sources[1] if len(sources) == 2 else None
        by_weight = gain.dim() > 0
        compiled().table_scatter(
            pointer(self.sums), self.copies, *self.shape, pointer(sources[0]), pointer(second), slopes[0], slopes[-1],
            pointer(values), pointer(gain) if by_weight else None, 0.0 if by_weight else float(gain), values.numel(),
        )  # fmt: skip

    def by_node(self) -> Tensor:
        """The sums at the nodes, (rows, columns), float32."""
        rows, columns = self.shape
        cells = (max(1, rows - 1), columns - 1)
        first, right, below, both = (part.view(cells) for part in self.sums.sum(dim=0).unbind(dim=-1))
        nodes = torch.zeros(max(2, rows), columns, dtype=torch.float64)
        nodes[:-1, :-1] += first - right - below + both
        nodes[:-1, 1:] += right - both
        nodes[1:, :-1] += below - both
        nodes[1:, 1:] += both
        return nodes[:rows].float()
