"""A convolution cut into dense products for the compiled pieces: worked out once per shape, a step only runs them.

Shapes: N images, C input channels, H×W input, O output channels, R×S kernel, P×Q output, channels last.

With few output channels a patch of 3×3×16 codes makes a product of 16 columns, and copying patches costs more than
multiplying them. So neighbouring outputs of a row share one wider patch (``pack`` of them), and two rows a taller one:
2×4 outputs read 4×6×16 codes instead of 8 times 3×3×16, and the weights stand in 8 shifted copies, zero elsewhere. The
integers are the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch

from bench.hardware.capability import CUDA_LIMITS
from bench.kernels import workspace
from bench.kernels.conv_plan import Block, ConvPlan, Pair, Phase, blocks_of, phases_of
from bench.kernels.im2col import Axis
from bench.kernels.int_mm import CheckedProduct, max_reduction, round_up
from bench.native import Geometry, Landing

_CPU = torch.device("cpu")
# Columns of a product up to which neighbouring outputs of a row share a patch, and up to which those of two rows do.
_PACKED_COLUMNS, _PACKED_ROWS_COLUMNS = 64, 128
# Patches and sums of one piece of work, a thread's share: what lies in a core's second cache is read from there again.
_SHARE_BYTES = 2**20
_WGRAD_SHARE_BYTES = 3 * 2**19


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """One dense product of fprop or dgrad: a block of groups, in dgrad at one phase of the stride."""

    block: Block
    phase: Phase | None
    row: Axis
    column: Axis
    outputs: Pair
    pack: int  # outputs of a row that share a patch
    rows: int  # and of how many rows
    depth: int  # codes of a patch, rounded up
    lines: int  # columns of the product, rounded up
    terms: int  # of one sum; the other codes of a patch meet zeros
    per_image: int  # rows of the product
    is_source: bool  # whether the source is its own patches
    geometry: Geometry
    landing_sizes: tuple[int, ...]
    offset: int  # of the first value that lands, in the output

    def landing(self, factor: int, row_weight: int) -> Landing:
        """Where the sums land, and how they are weighted."""
        return _landing(*self.landing_sizes, factor, row_weight)

    def macs(self, images: int) -> int:
        """Multiplications that the layer asks for in a product of so many images."""
        outputs = (self.outputs[1] - self.outputs[0]) * self.pack * self.rows
        return images * self.per_image * outputs * self.terms


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WgradPart:
    """One block of groups of wgrad.

    The row taps shift either the input's lines or, where the stride allows it, the error's (``shifts_error``): then
    both are laid out over the rows of the padded input, zeros where an output's error is shifted out.
    """

    block: Block
    row: Axis
    column: Axis
    pack: int
    width: int
    shifts_error: bool
    length: int  # rows that are summed over
    per_row: int  # terms of one of them
    input_lines: int
    error_lines: int

    @property
    def tap(self) -> int:
        """How far apart in the product the numbers of neighbouring row taps lie."""
        if self.shifts_error:
            return self.pack * (self.block.o1 - self.block.o0)
        return self.width * (self.block.c1 - self.block.c0) * round_up(self.error_lines, CUDA_LIMITS.multiple)


@lru_cache(maxsize=1024)
def axes_of(plan: ConvPlan) -> tuple[Axis, Axis]:
    """What an output reads, along the rows and along the columns of the input."""
    return (
        Axis(-plan.padding[0][0], plan.dilation[0], plan.r, plan.stride[0], plan.p),
        Axis(-plan.padding[1][0], plan.dilation[1], plan.s, plan.stride[1], plan.q),
    )


@lru_cache(maxsize=1024)
def fprop_parts(plan: ConvPlan) -> tuple[Part, ...]:
    """The dense products of fprop, one a block."""
    row, column = axes_of(plan)
    strides = (plan.p * plan.q * plan.o, plan.q * plan.o, plan.o)
    return tuple(
        _part(
            (plan.n, plan.h, plan.w, plan.c), plan.groups, block, None, row, column, (block.c0, block.c1),
            (block.o0, block.o1), 0, strides,
        )
        for block in blocks_of(plan)
    )  # fmt: skip


@lru_cache(maxsize=1024)
def dgrad_parts(plan: ConvPlan) -> tuple[Part, ...]:
    """The dense products of dgrad, one a block and phase that any tap reaches."""
    line = plan.w * plan.c
    strides = (plan.h * line, plan.stride[0] * line, plan.stride[1] * plan.c)
    return tuple(
        _part(
            (plan.n, plan.p, plan.q, plan.o), plan.groups, block, phase, phase.row, phase.column,
            (block.o0, block.o1), (block.c0, block.c1), phase.row_phase * line + phase.column_phase * plan.c, strides,
        )
        for block in blocks_of(plan)
        for phase in phases_of(plan)
        if not phase.empty
    )  # fmt: skip


def _part(
    sizes: tuple[int, int, int, int], groups: int, block: Block, phase: Phase | None, row: Axis, column: Axis,
    channels: Pair, outputs: Pair, offset: int, strides: tuple[int, int, int],
) -> Part:  # fmt: skip
    n, h, w, c = sizes
    num_outputs, num_channels = outputs[1] - outputs[0], channels[1] - channels[0]
    pack, rows = 1, 1
    if block.groups == groups == 1:
        pack = pack_of(num_outputs, row, column)
        rows = rows_of(pack * num_outputs, row)
    taps = span_of(row, rows) * span_of(column, pack) * num_channels
    depth = round_up(taps, CUDA_LIMITS.multiple)
    lines = round_up(rows * pack * num_outputs, CUDA_LIMITS.multiple)
    plain = all((axis.start, axis.stride, axis.count) == (0, 1, 1) for axis in (row, column))
    return Part(
        block=block, phase=phase, row=row, column=column, outputs=outputs, pack=pack, rows=rows,
        depth=depth, lines=lines, terms=row.count * column.count * num_channels // block.groups,
        per_image=row.length * column.length // (rows * pack),
        is_source=plain and taps == depth == c and (row.length, column.length) == (h, w),
        geometry=geometry(n, h, w, c, channels[0], num_channels, row, column, pack, rows),
        landing_sizes=(n, row.length, column.length, rows, pack, num_outputs, lines, block.groups, groups, *strides),
        offset=offset + outputs[0],
    )  # fmt: skip


@lru_cache(maxsize=1024)
def wgrad_parts(plan: ConvPlan) -> tuple[WgradPart, ...]:
    """The dense products of wgrad, one a block."""
    row, column = axes_of(plan)
    parts = []
    for block in blocks_of(plan):
        inputs, outputs = block.c1 - block.c0, block.o1 - block.o0
        pack = pack_of(outputs, row, column)
        width = span_of(column, pack)
        # bytes to lay out for one row of codes of each operand
        reach = (plan.r - 1) * row.step
        shifted = (width * inputs + plan.r * pack * outputs) * (plan.p + reach)
        shifts_error = row.stride == 1 and shifted < (plan.r * width * inputs + pack * outputs) * plan.p
        taps = (1, plan.r) if shifts_error else (plan.r, 1)
        parts.append(
            WgradPart(
                block=block, row=row, column=column, pack=pack, width=width, shifts_error=shifts_error,
                length=plan.p + reach if shifts_error else plan.p, per_row=plan.q // pack * plan.n,
                input_lines=taps[0] * width * inputs, error_lines=taps[1] * pack * outputs,
            )
        )  # fmt: skip
    return tuple(parts)


Piece = tuple[CheckedProduct, int, int]  # first image, images


def pieces_of(part: Part, a_max: int, b_max: int) -> tuple[Piece, ...]:
    """The part's products on reused buffers, as many images at a time as the caches hold."""
    images = images_of(part)

    def make() -> tuple[Piece, ...]:
        weight = workspace.scratch("weight lines", (part.lines, part.depth), torch.int8, _CPU)
        pieces = []
        for start in range(0, part.geometry.n, images):
            count = min(images, part.geometry.n - start)
            rows = max(count * part.per_image, CUDA_LIMITS.min_rows)  # rows beyond the patches are never read again
            product = CheckedProduct(
                workspace.scratch("patches", (rows, part.depth), torch.int8, _CPU), weight.t(),
                workspace.scratch("acc", (rows, part.lines), torch.int32, _CPU), a_max=a_max, b_max=b_max,
                terms=part.terms, rows=count * part.per_image, macs=part.macs(count),
            )  # fmt: skip
            pieces.append((product, start, count))
        return tuple(pieces)

    return workspace.derived((part, images, a_max, b_max), make)


def source_buffers(part: Part) -> tuple[torch.Tensor, torch.Tensor]:
    """Room for the weight's lines and for the sums, where the source is its own patches."""
    rows = max(images_of(part) * part.per_image, CUDA_LIMITS.min_rows)
    return (
        workspace.scratch("weight lines", (part.lines, part.depth), torch.int8, _CPU),
        workspace.scratch("acc", (rows, part.lines), torch.int32, _CPU),
    )


def images_of(part: Part) -> int:
    """How many images to multiply at a time."""
    patches = 0 if part.is_source else part.depth
    share = _SHARE_BYTES * torch.get_num_threads() // (part.per_image * (patches + 4 * part.lines))
    return max(1, min(part.geometry.n, share))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WgradPiece:
    """Some rows of one block of wgrad, on reused buffers."""

    product: CheckedProduct
    turned: torch.Tensor  # rows that are read, images innermost
    input_geometry: Geometry
    error_geometry: Geometry
    depth: int


def wgrad_pieces(plan: ConvPlan, part: WgradPart, a_max: int, b_max: int) -> tuple[WgradPiece, ...]:
    """The part's products, as many rows at a time as the caches and the accumulator hold."""
    threads = torch.get_num_threads()

    def make() -> tuple[WgradPiece, ...]:
        lines = part.input_lines + part.error_lines
        longest = max(1, max_reduction(a_max, b_max) // part.per_row)
        # a piece whose sums weigh as much as its operands saves nothing
        least = max(1, math.ceil(4 * part.input_lines * part.error_lines / (lines * part.per_row)))
        pieces = max(1, round(lines * part.per_row * part.length / (_WGRAD_SHARE_BYTES * threads)))
        step = min(part.length, longest, max(least, math.ceil(part.length / pieces)))
        starts = range(0, part.length, step)
        return tuple(_wgrad_piece(plan, part, start, min(step, part.length - start), a_max, b_max) for start in starts)

    return workspace.derived((part, threads, a_max, b_max), make)


def _wgrad_piece(plan: ConvPlan, part: WgradPart, start: int, count: int, a_max: int, b_max: int) -> WgradPiece:
    """Rows [start, start + count) of those that are summed over."""
    block, row = part.block, part.row
    inputs, outputs = block.c1 - block.c0, block.o1 - block.o0
    if part.shifts_error:
        over = Axis(row.start + start, row.step, 1, 1, count)
        own = Axis(start, -row.step, plan.r, 1, count)
        # pairs of an output row and a row tap that meet here
        pairs = sum(0 <= i - t * row.step < plan.p for i in range(start, start + count) for t in range(plan.r))
    else:
        over = Axis(row.start + start * row.stride, row.step, row.count, row.stride, count)
        own = Axis(start, 1, 1, 1, count)
        pairs = count * plan.r
    read = [(count - 1) * axis.stride + (axis.count - 1) * abs(axis.step) + 1 for axis in (over, own)]
    turned = max(min(read[0], plan.h) * plan.w * inputs, min(read[1], plan.p) * plan.q * outputs) * plan.n
    depth = round_up(count * part.per_row, CUDA_LIMITS.multiple)
    # lines beyond the operands' are never read again
    sizes = max(part.input_lines, CUDA_LIMITS.min_rows), round_up(part.error_lines, CUDA_LIMITS.multiple)
    product = CheckedProduct(
        workspace.scratch("input lines", (sizes[0], depth), torch.int8, _CPU),
        workspace.scratch("error lines", (sizes[1], depth), torch.int8, _CPU).t(),
        workspace.scratch("acc", sizes, torch.int32, _CPU), a_max=a_max, b_max=b_max, terms=count * part.per_row,
        rows=part.input_lines, macs=pairs * plan.q * plan.n * plan.s * inputs * outputs // block.groups,
    )  # fmt: skip
    return WgradPiece(
        product=product, turned=workspace.scratch("turned", (turned,), torch.int8, _CPU), depth=depth,
        input_geometry=geometry(plan.n, plan.h, plan.w, plan.c, block.c0, inputs, over, part.column, part.pack),
        error_geometry=geometry(
            plan.n, plan.p, plan.q, plan.o, block.o0, outputs, own, Axis(0, 1, 1, 1, plan.q), part.pack
        ),
    )  # fmt: skip


def pack_of(outputs: int, row: Axis, column: Axis) -> int:
    """How many neighbouring outputs share a patch: up to 64 columns of the product, where it saves copied bytes."""
    pack = 1
    while 2 * pack * outputs <= _PACKED_COLUMNS and column.length % (2 * pack) == 0:
        pack *= 2
    if pack > 1 and span_of(column, pack) / pack > 0.75 * column.count:
        return 1
    return pack


def rows_of(columns: int, row: Axis) -> int:
    """Whether the outputs of two rows share a patch, which makes a product of twice as many columns: 1 or 2."""
    saves = span_of(row, 2) / 2 <= 0.75 * row.count
    return 2 if saves and 2 * columns <= _PACKED_ROWS_COLUMNS and row.length % 2 == 0 else 1


def span_of(axis: Axis, pack: int) -> int:
    """Columns, or rows, that a patch of ``pack`` outputs holds (``span_of`` of pieces.c)."""
    return axis.count if pack == 1 else (axis.count - 1) * axis.step + (pack - 1) * axis.stride + 1


@lru_cache(maxsize=4096)
def geometry(
    n: int, h: int, w: int, c: int, c0: int, cb: int, row: Axis, column: Axis, pack: int, rows: int = 1
) -> Geometry:
    """What is read of a source of (n, h, w, c), channels [c0, c0 + cb)."""
    return Geometry(
        n, h, w, c, c0, cb, row.start, row.step, row.count, row.stride, row.length,
        column.start, column.step, column.count, column.stride, column.length, pack, rows,
    )  # fmt: skip


@lru_cache(maxsize=4096)
def _landing(*sizes: int) -> Landing:
    return Landing(*sizes)
