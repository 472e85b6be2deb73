"""What follows a landing while its block lies in the first cache: residuals, flags, sums for a batch-norm."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from bench import native
from bench.kernels import workspace
from bench.native import Sequel, pointer

# Values of one block that is summed up as soon as it has landed: they lie in the first cache.
_BLOCK_VALUES = 4096


@dataclass(slots=True, kw_only=True)
class After:
    """What an output is wanted for next, done block by block as it lands; ``done`` says that it was.

    ``residual`` is added to it; then ``gate``'s packed flags say which values stay, the others become 0. ``sums``
    (2, channels) float64 takes per channel the mean and the sum of squared deviations, or, with a ``norm_input`` (the
    output's shape, float32 or bfloat16) and its ``mean`` (channels,), Σg and Σg·(x − mean).
    """

    residual: Tensor | None = None
    gate: Tensor | None = None
    norm_input: Tensor | None = None
    mean: Tensor | None = None
    sums: Tensor | None = None
    done: bool = False


def open_sequel(after: After | None, shape: torch.Size) -> Sequel | None:
    """What the compiled landing shall do with each block of a dense output; None for nothing, or if it cannot."""
    if after is None:
        return None
    n, rows, columns, channels = shape
    block_rows = _block_rows(rows, columns * channels)
    if block_rows * columns * channels % 8:  # a block's flags would not start at a byte
        return None
    means = squares = sums = dots = None
    if after.sums is not None:
        blocks = n * rows // block_rows
        both = workspace.scratch("sums of blocks", (2, blocks, channels), torch.float32, after.sums.device)
        first, second = pointer(both), pointer(both, blocks * channels)
        means, squares = (first, second) if after.norm_input is None else (None, None)
        sums, dots = (None, None) if after.norm_input is None else (first, second)
    x = after.norm_input
    whole, halves = (x, None) if x is None or x.dtype == torch.float32 else (None, x)
    return Sequel(
        block_rows, pointer(after.residual), pointer(after.gate), means, squares, pointer(whole), pointer(halves),
        pointer(after.mean), sums, dots, n * rows * columns * channels,
    )  # fmt: skip


def close_sequel(after: After | None, sequel: Sequel | None, shape: torch.Size) -> None:
    """Join the blocks' sums."""
    if after is None or sequel is None:
        return
    if after.sums is not None:
        n, rows, columns, channels = shape
        lib, mean, square = native.compiled(), pointer(after.sums), pointer(after.sums, channels)
        if after.norm_input is None:
            block = sequel.block_rows * columns
            lib.join_stats(sequel.means, sequel.squares, block, n * rows * columns, channels, mean, square)
        else:
            lib.join_sums(sequel.sums, sequel.dots, n * rows // sequel.block_rows, channels, mean, square)
    after.done = True


@lru_cache(maxsize=1024)
def _block_rows(rows: int, row_values: int) -> int:
    """How many whole rows of an image a block has; it divides their number."""
    most = max(1, _BLOCK_VALUES // row_values)
    return max(count for count in range(1, min(rows, most) + 1) if rows % count == 0)
