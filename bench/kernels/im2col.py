"""Patches of an image batch as rows of a matrix, gathered by strided copies into reused buffers.

Shapes: N images, H×W positions, C channels (last, contiguous), T taps of a kernel. A gather reads, for output position
(i, j) and tap (t, u), the source at row ``i·stride + row_start + t·row_step``, likewise for columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.kernels import workspace
from bench.kernels.int_mm import round_up

# From this row length on one copy of everything beats one copy per kernel row (128×16×16×32: 0.32 against 0.54 ms).
_ONE_COPY_BYTES = 96


@dataclass(frozen=True, slots=True)
class Axis:
    """Taps along one spatial axis: ``count`` of them, from ``start`` in steps of ``step``, for ``length`` outputs."""

    start: int
    step: int
    count: int
    stride: int
    length: int

    @property
    def reach(self) -> int:
        """One past the last source position that is read."""
        return (self.length - 1) * self.stride + self.start + (self.count - 1) * self.step + 1


def channel_multiple(channels: int) -> int:
    """Channels a gather stores per pixel: padded so that a copy moves 4 or 8 bytes at a time."""
    return round_up(channels, 4 if channels <= 4 else 8)


def pad_images(
    codes_NHWC: Tensor,
    before: tuple[int, int],
    shape: tuple[int, int],
    channels: int,
    value: int,
    name: str,
) -> Tensor:
    """Copy images into a reused frame of ``value``; rows and columns beyond the frame are cut off.

    Args:
        codes_NHWC: (N, H, W, C) int8, any strides.
        before: rows above and columns left of the image.
        shape: (rows, columns) of the frame.
        channels: channels of the frame, at least C.
        value: code of the frame, the one that stands for zero.
        name: which buffer.

    Returns:
        (N, rows, columns, channels) int8, contiguous, valid until the next call with these arguments.
    """
    n, h, w, c = codes_NHWC.shape
    top, left = before
    rows, columns = max(0, min(h, shape[0] - top)), max(0, min(w, shape[1] - left))
    key = (name, top, left, rows, columns, c)
    frame = workspace.bordered(key, (n, *shape, channels), value, codes_NHWC.device)
    frame[:, top : top + rows, left : left + columns, :c].copy_(codes_NHWC[:, :rows, :columns])
    return frame


def gather_patches(source_NHWC: Tensor, row: Axis, column: Axis, name: str) -> Tensor:
    """Rows of patches for an integer product.

    Args:
        source_NHWC: (N, H, W, C) int8, contiguous, with its frame; C a multiple of 4.
        row: taps along H.
        column: taps along W.
        name: which buffer to reuse.

    Returns:
        (N·row.length·column.length, K) int8, contiguous, K = row.count·column.count·C rounded up to 8 (the rest zero);
        tap rows outermost, channels innermost.
    """
    n, height, width, c = source_NHWC.shape
    assert row.reach <= height, "the frame must hold every tap"
    assert column.reach <= width, "the frame must hold every tap"
    taps = row.count * column.count * c
    depth = round_up(taps, 8)
    rows = n * row.length * column.length
    if taps == c == depth and rows == n * height * width:
        return source_NHWC.view(rows, c)
    patches = workspace.scratch(name, (rows, depth), torch.int8, source_NHWC.device)
    if depth > taps:
        patches[:, taps:] = 0
    wide = torch.int64 if c % 8 == 0 else torch.int32
    # a contiguous tensor may carry any stride where a size is 1; flat and back gives the plain ones
    source, target = source_NHWC.view(-1).view(n, height, width, c).view(wide), patches.view(wide)
    per_image, per_row, per_pixel, _ = source.stride()
    lanes = source.shape[3]
    run = column.count * lanes
    sizes = (n, row.length, column.length, row.count, column.count, lanes)
    read = source.as_strided(
        sizes,
        (per_image, row.stride * per_row, column.stride * per_pixel, row.step * per_row, column.step * per_pixel, 1),
        source.storage_offset() + row.start * per_row + column.start * per_pixel,
    )
    pitch = target.shape[1]
    write = target.as_strided(
        sizes,
        (row.length * column.length * pitch, column.length * pitch, pitch, run, lanes, 1),
        target.storage_offset(),
    )
    if column.step == 1 and run * target.element_size() < _ONE_COPY_BYTES:
        for tap in range(row.count):
            write[:, :, :, tap].copy_(read[:, :, :, tap])
    else:
        write.copy_(read)
    return patches
