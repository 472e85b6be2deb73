"""A convolution's three integer products: fprop, dgrad, wgrad, for any stride, padding, dilation and groups.

Shapes: N images, C input channels, H×W input, O output channels, R×S kernel, P×Q output, G groups. Channels are last
everywhere, so a patch is a few contiguous runs. Groups are packed side by side into block-diagonal products of at least
16 channels, which keeps a depthwise convolution on the integer units at the price of multiplying zeros.

Source: docs/method.md section 2. dgrad of a strided convolution is cut by the input position modulo the stride: each
part is a dense product over just the taps that reach it, so no zeros are inserted and nothing is scattered.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from bench.errors import ShapeError
from bench.kernels import workspace
from bench.kernels.im2col import (
    Axis,
    channel_multiple,
    gather_patches,
    pad_images,
    shift_rows,
    sum_patches,
)
from bench.kernels.int_mm import int_mm, round_up

_BLOCK_CHANNELS = 16

Pair = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvPlan:
    """Sizes of one convolution; ``padding`` holds (before, after) along H and along W."""

    n: int
    c: int
    h: int
    w: int
    o: int
    r: int
    s: int
    stride: Pair
    padding: tuple[Pair, Pair]
    dilation: Pair
    groups: int

    @property
    def p(self) -> int:
        """Output height."""
        return _output_size(self.h, self.r, self.stride[0], self.padding[0], self.dilation[0])

    @property
    def q(self) -> int:
        """Output width."""
        return _output_size(self.w, self.s, self.stride[1], self.padding[1], self.dilation[1])

    @property
    def rows(self) -> int:
        """Output positions N·P·Q: the rows of fprop's product and the reduced axis of wgrad's."""
        return self.n * self.p * self.q

    @property
    def reduction(self) -> int:
        """Terms of one fprop sum: R·S·C/groups."""
        return self.r * self.s * self.c // self.groups


@lru_cache(maxsize=1024)
def plan_conv(
    x_shape: tuple[int, ...],
    w_shape: tuple[int, ...],
    stride: Pair,
    padding: tuple[Pair, Pair],
    dilation: Pair,
    groups: int,
) -> ConvPlan:
    """Check the sizes of a convolution once per shape.

    Args:
        x_shape: (N, C, H, W).
        w_shape: (O, C/groups, R, S).
        stride: along H and W.
        padding: (before, after) along H and W.
        dilation: along H and W.
        groups: divides C and O.

    Raises:
        ShapeError: if the sizes do not fit each other or leave no output.
    """
    if len(x_shape) != 4:
        raise ShapeError(f"convolution: the input has {len(x_shape)} dimensions; give (N, C, H, W)")
    (n, c, h, w), (o, c_group, r, s) = x_shape, w_shape
    if c != c_group * groups:
        raise ShapeError(
            f"convolution: the input has {c} channels and the weight wants {c_group * groups}; make them equal"
        )
    plan = ConvPlan(n=n, c=c, h=h, w=w, o=o, r=r, s=s, stride=stride, padding=padding, dilation=dilation, groups=groups)
    if n == 0 or plan.p < 1 or plan.q < 1:
        raise ShapeError(
            f"convolution: an input of {n}×{c}×{h}×{w} leaves no output for a {r}×{s} kernel; give larger images"
        )
    return plan


def fprop(
    a_NHWC: Tensor,
    w_ORSC: Tensor,
    plan: ConvPlan,
    *,
    pad_value: int = 0,
    a_max: int = 128,
    w_max: int = 128,
    layer: str = "",
) -> Tensor:
    """Sums Σ a·w of a convolution.

    Args:
        a_NHWC: (N, H, W, C) int8 codes of the input.
        w_ORSC: (O, R, S, C/groups) int8 codes of the weight.
        plan: the sizes.
        pad_value: the input code that stands for zero; fills the spatial padding.
        a_max: declared largest |code| of the input.
        w_max: declared largest |code| of the weight.
        layer: name for the GEMM log.

    Returns:
        (N·P·Q, O) int32, valid until the next kernel call (int64 and fresh where the reduction had to be split).
    """
    row = Axis(0, plan.dilation[0], plan.r, plan.stride[0], plan.p)
    column = Axis(0, plan.dilation[1], plan.s, plan.stride[1], plan.q)
    blocks = list(_blocks(plan))
    total: Tensor | None = None
    for block in blocks:
        source = _framed_input(a_NHWC, block, plan, row, column, pad_value)
        patches = gather_patches(source, row, column, "patches")
        w_dense = block.dense_weight(w_ORSC)
        w_rows = _rows_of_taps(w_dense, source.shape[3], patches.shape[1])
        whole = len(blocks) == 1
        out = workspace.scratch("acc", (plan.rows, plan.o), torch.int32, a_NHWC.device) if whole else None
        acc = int_mm(patches, w_rows.t(), a_max=a_max, b_max=w_max, out=out, gemm="fprop", layer=layer)
        if whole:
            return acc
        if total is None:
            total = torch.empty(plan.rows, plan.o, dtype=acc.dtype, device=acc.device)
        total[:, block.o0 : block.o1] = acc
    assert total is not None, "a convolution has at least one group"
    return total


def dgrad(
    err_NPQO: Tensor,
    w_ORSC: Tensor,
    plan: ConvPlan,
    *,
    err_max: int = 128,
    w_max: int = 128,
    layer: str = "",
) -> Tensor:
    """Sums Σ err·w over the output positions and channels that each input position reached.

    Args:
        err_NPQO: (N, P, Q, O) int8 codes of the output's error signal; code 0 stands for zero.
        w_ORSC: (O, R, S, C/groups) int8 codes of the weight.
        plan: the sizes.
        err_max: declared largest |code| of the error signal.
        w_max: declared largest |code| of the weight.
        layer: name for the GEMM log.

    Returns:
        (N, H, W, C) int32, valid until the next kernel call (int64 where a reduction had to be split).
    """
    phases = _phases(plan)
    frame = _error_frame(phases, plan)
    blocks = list(_blocks(plan))
    single = len(blocks) == 1 and len(phases) == 1
    total: Tensor | None = None
    for block in blocks:
        errors = err_NPQO[..., block.o0 : block.o1]
        channels = channel_multiple(block.o1 - block.o0)
        source = _framed_error(errors, frame, channels)
        w_dense = block.dense_weight(w_ORSC)
        for phase in phases:
            shape = (plan.n, phase.row.length, phase.column.length, block.c1 - block.c0)
            if phase.empty:
                acc = torch.zeros(shape, dtype=torch.int32, device=err_NPQO.device)
            else:
                row, column = frame.shifted(phase)
                patches = gather_patches(source, row, column, "patches")
                taps = w_dense[:, phase.row_taps, phase.column_taps].flip(1, 2).permute(3, 1, 2, 0)
                w_rows = _rows_of_taps(taps, channels, patches.shape[1])
                out = (
                    workspace.scratch("acc", (patches.shape[0], plan.c), torch.int32, patches.device)
                    if single
                    else None
                )
                product = int_mm(patches, w_rows.t(), a_max=err_max, b_max=w_max, out=out, gemm="dgrad", layer=layer)
                acc = product.view(shape) if product.is_contiguous() else product.reshape(shape)
            if single:
                return acc
            if total is None:
                total = torch.zeros(plan.n, plan.h, plan.w, plan.c, dtype=acc.dtype, device=acc.device)
            elif acc.dtype == torch.int64:
                total = total.to(torch.int64)
            total[
                :,
                phase.row_phase :: plan.stride[0],
                phase.column_phase :: plan.stride[1],
                block.c0 : block.c1,
            ] = acc
    assert total is not None, "a convolution has at least one group"
    return total


def wgrad(
    a_NHWC: Tensor,
    err_NPQO: Tensor,
    plan: ConvPlan,
    *,
    pad_value: int = 0,
    a_max: int = 128,
    err_max: int = 128,
    layer: str = "",
) -> Tensor:
    """Sums Σ err·a over all images and positions.

    Both operands are laid out with positions innermost (docs/method.md section 2). On a flat frame of the padded images
    each tap is the same rows moved by a constant, so patches are T long copies instead of N·P·Q short ones; positions
    between the images hold error code 0.

    Args:
        a_NHWC: (N, H, W, C) int8 codes of the input.
        err_NPQO: (N, P, Q, O) int8 codes of the output's error signal; code 0 stands for zero.
        plan: the sizes.
        pad_value: the input code that stands for zero.
        a_max: declared largest |code| of the input.
        err_max: declared largest |code| of the error signal.
        layer: name for the GEMM log.

    Returns:
        (O, R, S, C/groups) int32, or int64 where N·P·Q·a_max·err_max > 2³¹ − 1 made the reduction split.
    """
    (sh, sw), (dh, dw) = plan.stride, plan.dilation
    device = a_NHWC.device
    # Frame of one image in units of the stride: rows_needed × columns_needed positions per phase.
    rows = plan.p + (plan.r - 1) * dh // sh
    columns = plan.q + (plan.s - 1) * dw // sw
    length = plan.n * rows * columns
    depth = round_up(length, 8)
    taps = [(r * dh, s * dw) for r in range(plan.r) for s in range(plan.s)]
    phases = sorted({(r % sh, s % sw) for r, s in taps})
    shifts = [(r // sh) * columns + s // sw for r, s in taps]
    result: Tensor | None = None
    for block in _blocks(plan):
        cb, ob = block.c1 - block.c0, block.o1 - block.o0
        flat = {
            phase: _transposed_phase(a_NHWC[..., block.c0 : block.c1], plan, phase, (rows, columns), pad_value)
            for phase in phases
        }
        err_rows = _transposed_error(err_NPQO[..., block.o0 : block.o1], (rows, columns), depth)
        if len(taps) == 1 and depth == length:
            patches = flat[phases[0]].view(1, cb, length)
        else:
            patches = workspace.scratch("patches", (len(taps), cb, depth), torch.int8, device)
            for phase, source in flat.items():
                chosen = [i for i, (r, s) in enumerate(taps) if (r % sh, s % sw) == phase]
                for i in chosen:
                    shift_rows(source, [shifts[i]], patches[i : i + 1])
        acc = int_mm(
            patches.view(len(taps) * cb, depth),
            err_rows.t(),
            a_max=a_max,
            b_max=err_max,
            terms=plan.rows,
            gemm="wgrad",
            layer=layer,
        )
        dense = acc[:, :ob].view(plan.r, plan.s, cb, ob).permute(3, 0, 1, 2)
        if block.groups == plan.groups == 1:
            return dense
        if result is None:
            result = torch.empty(plan.o, plan.r, plan.s, plan.c // plan.groups, dtype=acc.dtype, device=device)
        block.take_diagonal(dense, result)
    assert result is not None, "a convolution has at least one group"
    return result


def sum_inputs(a_NHWC: Tensor, plan: ConvPlan, *, offset: int) -> Tensor:
    """Σ (code + offset) over each patch and group: what the weight's offset multiplies in fprop.

    Args:
        a_NHWC: (N, H, W, C) int8 codes.
        plan: the sizes.
        offset: added to every code; the padding's code plus offset is zero.

    Returns:
        (N·P·Q, groups) int32.

    Raises:
        ShapeError: if the sums could leave int32.
    """
    if plan.reduction * (128 + abs(offset)) >= 2**31:
        raise ShapeError(f"convolution: {plan.reduction} terms per sum overflow int32; split the channels")
    row = Axis(0, plan.dilation[0], plan.r, plan.stride[0], plan.p)
    column = Axis(0, plan.dilation[1], plan.s, plan.stride[1], plan.q)
    sums = _channel_sums(a_NHWC, plan.groups)
    if offset:
        sums.add_(offset * (plan.c // plan.groups))
    (top, left) = (plan.padding[0][0], plan.padding[1][0])
    framed = sums
    if (top, left) != (0, 0) or row.reach > plan.h or column.reach > plan.w:
        height, width = max(row.reach, plan.h + top), max(column.reach, plan.w + left)
        framed = torch.zeros(plan.n, height, width, plan.groups, dtype=torch.int32, device=sums.device)
        framed[:, top : top + plan.h, left : left + plan.w] = sums
    return sum_patches(framed, row, column).reshape(plan.rows, plan.groups)


def sum_errors(err_NPQO: Tensor, plan: ConvPlan) -> Tensor:
    """Σ err over the output positions and channels that each input position reached, per group.

    Args:
        err_NPQO: (N, P, Q, O) int8 codes; code 0 stands for zero.
        plan: the sizes.

    Returns:
        (N, H, W, groups) int32: what the weight's offset multiplies in dgrad.
    """
    phases = _phases(plan)
    frame = _error_frame(phases, plan)
    sums = _channel_sums(err_NPQO, plan.groups)
    framed = sums
    if frame.shape != (plan.p, plan.q):
        framed = torch.zeros(plan.n, *frame.shape, plan.groups, dtype=torch.int32, device=sums.device)
        framed[:, frame.top : frame.top + plan.p, frame.left : frame.left + plan.q] = sums
    if len(phases) == 1 and not phases[0].empty:
        return sum_patches(framed, *frame.shifted(phases[0]))
    total = torch.zeros(plan.n, plan.h, plan.w, plan.groups, dtype=torch.int32, device=sums.device)
    for phase in phases:
        if not phase.empty:
            part = sum_patches(framed, *frame.shifted(phase))
            total[:, phase.row_phase :: plan.stride[0], phase.column_phase :: plan.stride[1]] = part
    return total


@dataclass(frozen=True, slots=True)
class _Block:
    """Some neighbouring groups, computed as one dense product with zeros off the diagonal."""

    c0: int
    c1: int
    o0: int
    o1: int
    groups: int

    def dense_weight(self, w_ORSC: Tensor) -> Tensor:
        """(Ob, R, S, Cb) weight of the block, zero between different groups."""
        w_block = w_ORSC[self.o0 : self.o1]
        if self.groups == 1:
            return w_block
        o, r, s, c = w_block.shape
        per_group = o // self.groups
        dense = w_block.new_zeros(self.groups, per_group, r, s, self.groups, c)
        diagonal = torch.diagonal(dense, dim1=0, dim2=4)  # (per_group, R, S, C, groups)
        diagonal.copy_(w_block.view(self.groups, per_group, r, s, c).permute(1, 2, 3, 4, 0))
        return dense.view(o, r, s, self.groups * c)

    def take_diagonal(self, dense_ORSC: Tensor, out_ORSC: Tensor) -> None:
        """Write each group's own part of a block's weight gradient into the whole one."""
        o, r, s, c = dense_ORSC.shape
        grouped = dense_ORSC.reshape(self.groups, o // self.groups, r, s, self.groups, c // self.groups)
        diagonal = torch.diagonal(grouped, dim1=0, dim2=4).permute(4, 0, 1, 2, 3)
        out_ORSC[self.o0 : self.o1] = diagonal.reshape(o, r, s, c // self.groups)


def _blocks(plan: ConvPlan) -> Iterator[_Block]:
    c, o = plan.c // plan.groups, plan.o // plan.groups
    packed = max(1, min(plan.groups, _BLOCK_CHANNELS // min(c, o)))
    for first in range(0, plan.groups, packed):
        last = min(first + packed, plan.groups)
        yield _Block(first * c, last * c, first * o, last * o, last - first)


@dataclass(frozen=True, slots=True)
class _Phase:
    """Input positions of one remainder modulo the stride, and the taps that reach them."""

    row_phase: int
    column_phase: int
    row: Axis
    column: Axis
    row_taps: slice
    column_taps: slice

    @property
    def empty(self) -> bool:
        return self.row.count == 0 or self.column.count == 0


@dataclass(frozen=True, slots=True)
class _Frame:
    """Zeros around the error signal, so that every tap of every phase stays inside."""

    top: int
    left: int
    shape: Pair

    def shifted(self, phase: _Phase) -> tuple[Axis, Axis]:
        row, column = phase.row, phase.column
        return (
            Axis(row.start + self.top, row.step, row.count, row.stride, row.length),
            Axis(column.start + self.left, column.step, column.count, column.stride, column.length),
        )


@lru_cache(maxsize=1024)
def _phases(plan: ConvPlan) -> tuple[_Phase, ...]:
    def along(axis: int, size: int, taps: int) -> list[tuple[int, Axis, slice]]:
        stride, dilation, before = plan.stride[axis], plan.dilation[axis], plan.padding[axis][0]
        period = stride // math.gcd(stride, dilation)  # taps of one phase are this far apart
        found = []
        for phase in range(min(stride, size)):
            # Tap t reaches position phase + stride·i from output i + (phase + before − t·dilation)/stride.
            chosen = [t for t in range(taps) if (phase + before - t * dilation) % stride == 0]
            length = len(range(phase, size, stride))
            if not chosen:
                found.append((phase, Axis(0, 1, 0, 1, length), slice(0, 0)))
                continue
            start = (phase + before - chosen[-1] * dilation) // stride
            axis_taps = Axis(start, period * dilation // stride, len(chosen), 1, length)
            found.append((phase, axis_taps, slice(chosen[0], chosen[-1] + 1, period)))
        return found

    return tuple(
        _Phase(row_phase, column_phase, row, column, row_taps, column_taps)
        for row_phase, row, row_taps in along(0, plan.h, plan.r)
        for column_phase, column, column_taps in along(1, plan.w, plan.s)
    )


@lru_cache(maxsize=1024)
def _error_frame_of(phases: tuple[tuple[Axis, Axis], ...], p: int, q: int) -> _Frame:
    if not phases:
        return _Frame(0, 0, (p, q))
    top = max(0, -min(row.start for row, _ in phases))
    left = max(0, -min(column.start for _, column in phases))
    height = max(p, max(row.reach for row, _ in phases)) + top
    width = max(q, max(column.reach for _, column in phases)) + left
    return _Frame(top, left, (height, width))


def _error_frame(phases: tuple[_Phase, ...], plan: ConvPlan) -> _Frame:
    return _error_frame_of(tuple((x.row, x.column) for x in phases if not x.empty), plan.p, plan.q)


def _framed_input(a_NHWC: Tensor, block: _Block, plan: ConvPlan, row: Axis, column: Axis, pad_value: int) -> Tensor:
    channels = channel_multiple(block.c1 - block.c0)
    part = a_NHWC[..., block.c0 : block.c1]
    before = (plan.padding[0][0], plan.padding[1][0])
    fits = before == (0, 0) and row.reach <= plan.h and column.reach <= plan.w
    if fits and channels == part.shape[3] and _is_aligned(part):
        return part
    return pad_images(part, before, (row.reach, column.reach), channels, pad_value, "input frame")


def _framed_error(errors: Tensor, frame: _Frame, channels: int) -> Tensor:
    if frame.shape == tuple(errors.shape[1:3]) and channels == errors.shape[3] and _is_aligned(errors):
        return errors
    return pad_images(errors, (frame.top, frame.left), frame.shape, channels, 0, "error frame")


def _is_aligned(codes: Tensor) -> bool:
    """Whether 8 codes at a time can be read in place."""
    return codes.is_contiguous() and codes.storage_offset() % 8 == 0


def _output_size(size: int, taps: int, stride: int, padding: Pair, dilation: int) -> int:
    return (size + sum(padding) - dilation * (taps - 1) - 1) // stride + 1


def _rows_of_taps(w_ORSC: Tensor, channels: int, depth: int) -> Tensor:
    """(rows, depth) weights in the order of the patches; channels and tail beyond the weight's own are zero."""
    o, r, s, c = w_ORSC.shape
    if channels == c and depth == r * s * c:
        return w_ORSC.reshape(o, depth).contiguous()
    rows = w_ORSC.new_zeros(o, depth)
    rows[:, : r * s * channels].view(o, r, s, channels)[..., :c] = w_ORSC
    return rows


def _transposed_phase(a_NHWC: Tensor, plan: ConvPlan, phase: Pair, frame: Pair, pad_value: int) -> Tensor:
    """(Cb, N·rows·columns) codes at padded positions ≡ phase modulo the stride, positions innermost."""
    n, _, _, c = a_NHWC.shape
    spans = []
    for axis in (0, 1):
        size, stride = a_NHWC.shape[1 + axis], plan.stride[axis]
        # padded position stride·i + phase is image position stride·i + phase − before
        first = max(0, math.ceil((plan.padding[axis][0] - phase[axis]) / stride))
        start = stride * first + phase[axis] - plan.padding[axis][0]
        count = max(0, min(len(range(start, size, stride)), frame[axis] - first))
        spans.append((first, start, count))
    (i, h, rows), (j, w, columns) = spans
    key = ("transposed input", phase, i, rows, j, columns)
    target = workspace.bordered(key, (c, n, *frame), pad_value, a_NHWC.device)
    sh, sw = plan.stride
    if rows and columns:
        part = a_NHWC[:, h : h + sh * (rows - 1) + 1 : sh, w : w + sw * (columns - 1) + 1 : sw]
        target[:, :, i : i + rows, j : j + columns].copy_(part.permute(3, 0, 1, 2))
    return target.view(c, -1)


def _transposed_error(err_NPQO: Tensor, frame: Pair, depth: int) -> Tensor:
    """(O rounded up to 8, depth) codes with positions innermost, zero outside P×Q and past the last image."""
    n, p, q, o = err_NPQO.shape
    target = workspace.bordered(("transposed error", n, p, q, o, frame), (round_up(o, 8), depth), 0, err_NPQO.device)
    inner = target[:o, : n * frame[0] * frame[1]].unflatten(1, (n, *frame))
    inner[:, :, :p, :q].copy_(err_NPQO.permute(3, 0, 1, 2))
    return target


def _channel_sums(codes_NHWC: Tensor, groups: int) -> Tensor:
    """(N, H, W, groups) int32 sums over each group's channels."""
    n, h, w, c = codes_NHWC.shape
    return codes_NHWC.reshape(n, h, w, groups, c // groups).sum(4, dtype=torch.int32)
