"""A convolution's three integer products: fprop, dgrad, wgrad, for any stride, padding, dilation and groups.

Shapes: N images, C input channels, H×W input, O output channels, R×S kernel, P×Q output, G groups. Channels are last
everywhere, so a patch is a few contiguous runs. Groups are packed side by side into block-diagonal products of at least
16 channels, which keeps a depthwise convolution on the integer units at the price of multiplying zeros.

Source: docs/method.md section 2. dgrad of a strided convolution is cut by the input position modulo the stride: each
part is a dense product over just the taps that reach it, so no zeros are inserted and nothing is scattered.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
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
)
from bench.kernels.int_mm import CUDA_RULES, int_mm, max_reduction, round_up

_BLOCK_CHANNELS = 16

# Patches that are gathered before they are multiplied. On a CPU they then stay in its caches: 64 channels of 32×32,
# batch 128, one core, fprop and wgrad: 100 and 111 ms in one piece of 75 MB, 45 and 53 ms in pieces of 5 MB.
_CPU_PATCH_BYTES = 4 * 2**20

# wgrad's product is quicker with the patches as its rows (0.29 against 0.47 ms for 64 channels of 8×8), but comes out
# transposed then, and turning more values than these costs more than it saves (29 ms for 512 channels).
_TURN_LIMIT = 2**18

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


@lru_cache(maxsize=1024)
def split_images(plan: ConvPlan, device_type: str) -> tuple[tuple[slice, ConvPlan], ...]:
    """Images to run at a time, each with its plan: all on a GPU, as many as the caches hold on a CPU.

    Args:
        plan: the sizes of the whole batch.
        device_type: "cpu", "cuda".

    Returns:
        Slices of the batch, in order, with the plan of each.
    """
    positions = max(plan.p * plan.q * plan.c, plan.h * plan.w * plan.o)
    patch_bytes = plan.n * plan.r * plan.s * positions * min(plan.groups, _BLOCK_CHANNELS) // plan.groups
    pieces = min(plan.n, -(-patch_bytes // _CPU_PATCH_BYTES)) if device_type == "cpu" else 1
    count = -(-plan.n // max(1, pieces))
    return tuple(
        (slice(first, min(first + count, plan.n)), replace(plan, n=min(count, plan.n - first)))
        for first in range(0, plan.n, count)
    )


def fprop(
    a_NHWC: Tensor,
    w_ORSC: Tensor,
    plan: ConvPlan,
    *,
    pad_value: int = 0,
    a_max: int = 128,
    w_max: int = 128,
    layer: str = "",
) -> tuple[Tensor, Tensor]:
    """Sums Σ a·w of a convolution, and Σ a beside them.

    Args:
        a_NHWC: (N, H, W, C) int8 codes of the input.
        w_ORSC: (O, R, S, C/groups) int8 codes of the weight.
        plan: the sizes.
        pad_value: the input code that stands for zero; fills the spatial padding.
        a_max: declared largest |code| of the input.
        w_max: declared largest |code| of the weight.
        layer: name for the GEMM log.

    Returns:
        (N·P·Q, O) and (N·P·Q, groups), int32 views of one buffer that is valid until the next kernel call (int64 where
        the reduction had to be split). The second sums each patch's codes, padding included: what an offset in the
        weight's grid multiplies. It comes from rows of ones below the weight, at 8 more columns of the product.
    """
    row = Axis(0, plan.dilation[0], plan.r, plan.stride[0], plan.p)
    column = Axis(0, plan.dilation[1], plan.s, plan.stride[1], plan.q)
    blocks = _blocks(plan)
    total: Tensor | None = None
    for block in blocks:
        source = _framed_input(a_NHWC, block, plan, row, column, pad_value)
        patches = gather_patches(source, row, column, "patches")
        w_rows = _rows_of_taps(block.dense_weight(w_ORSC), source.shape[3], patches.shape[1], block.groups)
        out = _product_buffer(patches, w_rows)
        acc = int_mm(patches, w_rows.t(), a_max=a_max, b_max=w_max, out=out, gemm="fprop", layer=layer)
        if len(blocks) == 1:
            return acc[:, : plan.o], acc[:, plan.o :]
        if total is None:
            total = torch.empty(plan.rows, plan.o + plan.groups, dtype=acc.dtype, device=acc.device)
        outputs = block.o1 - block.o0
        total[:, block.o0 : block.o1] = acc[:, :outputs]
        total[:, plan.o + block.g0 : plan.o + block.g0 + block.groups] = acc[:, outputs:]
    assert total is not None, "a convolution has at least one group"
    return total[:, : plan.o], total[:, plan.o :]


def dgrad(
    err_NPQO: Tensor,
    w_ORSC: Tensor,
    plan: ConvPlan,
    *,
    err_max: int = 128,
    w_max: int = 128,
    layer: str = "",
) -> tuple[Tensor, Tensor]:
    """Sums Σ err·w over the output positions and channels that each input position reached, and Σ err beside them.

    Args:
        err_NPQO: (N, P, Q, O) int8 codes of the output's error signal; code 0 stands for zero.
        w_ORSC: (O, R, S, C/groups) int8 codes of the weight.
        plan: the sizes.
        err_max: declared largest |code| of the error signal.
        w_max: declared largest |code| of the weight.
        layer: name for the GEMM log.

    Returns:
        (N, H, W, C) and (N, H, W, groups), int32 views of one buffer that is valid until the next kernel call (int64
        where a reduction had to be split); the second is what an offset in the weight's grid multiplies.
    """
    phases = _phases(plan)
    frame = _error_frame(phases, plan)
    blocks = _blocks(plan)
    single = len(blocks) == 1 and len(phases) == 1
    total: Tensor | None = None
    for block in blocks:
        channels = channel_multiple(block.o1 - block.o0)
        source = _framed_error(err_NPQO[..., block.o0 : block.o1], frame, channels)
        w_dense = block.dense_weight(w_ORSC)
        for phase in phases:
            if phase.empty:
                continue
            row, column = frame.shifted(phase)
            patches = gather_patches(source, row, column, "patches")
            taps = w_dense[:, phase.row_taps, phase.column_taps].flip(1, 2).permute(3, 1, 2, 0)
            w_rows = _rows_of_taps(taps, channels, patches.shape[1], block.groups)
            out = _product_buffer(patches, w_rows)
            acc = int_mm(patches, w_rows.t(), a_max=err_max, b_max=w_max, out=out, gemm="dgrad", layer=layer)
            acc = acc.unflatten(0, (plan.n, phase.row.length, phase.column.length))
            if single:
                return acc[..., : plan.c], acc[..., plan.c :]
            if total is None or total.dtype != acc.dtype:
                total = _widened(total, (plan.n, plan.h, plan.w, plan.c + plan.groups), acc)
            part = total[:, phase.row_phase :: plan.stride[0], phase.column_phase :: plan.stride[1]]
            inputs = block.c1 - block.c0
            part[..., block.c0 : block.c1] = acc[..., :inputs]
            part[..., plan.c + block.g0 : plan.c + block.g0 + block.groups] = acc[..., inputs:]
    if total is None:  # a stride past the image: no tap reaches it
        total = torch.zeros(plan.n, plan.h, plan.w, plan.c + plan.groups, dtype=torch.int32, device=err_NPQO.device)
    return total[..., : plan.c], total[..., plan.c :]


def wgrad(
    a_NHWC: Tensor,
    err_NPQO: Tensor,
    plan: ConvPlan,
    *,
    pad_value: int = 0,
    a_max: int = 128,
    err_max: int = 128,
    layer: str = "",
) -> tuple[Tensor, Tensor]:
    """Sums Σ err·a over all images and positions, and Σ err beside them.

    Both operands are laid out with the reduced axis innermost (docs/method.md section 2), images innermost of all: then
    a tap's patches are P runs of Q·N bytes, long ones for small images too (512 channels of 4×4: the product takes half
    the time of one over padded images).

    Args:
        a_NHWC: (N, H, W, C) int8 codes of the input.
        err_NPQO: (N, P, Q, O) int8 codes of the output's error signal.
        plan: the sizes.
        pad_value: the input code that stands for zero.
        a_max: declared largest |code| of the input.
        err_max: declared largest |code| of the error signal.
        layer: name for the GEMM log.

    Returns:
        (O, R, S, C/groups) and (O,), int32, or int64 where N·P·Q·a_max·err_max > 2³¹ − 1; long reductions are split by
        images, for the caches' and the accumulator's sake. The second sums each channel's error codes, from a row of
        ones below the patches: what an offset in the input's grid multiplies, and the bias's gradient.
    """
    total: tuple[Tensor, Tensor] | None = None
    wide = plan.rows > max_reduction(a_max, err_max)
    for images, part in split_images(plan, a_NHWC.device.type):
        acc, sums = _wgrad_at_once(
            a_NHWC[images], err_NPQO[images], part, pad_value=pad_value, a_max=a_max, err_max=err_max, layer=layer
        )
        if wide:
            acc, sums = acc.to(torch.int64), sums.to(torch.int64)
        total = (acc, sums) if total is None else (total[0].add_(acc), total[1].add_(sums))
    assert total is not None, "a batch has at least one image"
    return total


def _wgrad_at_once(
    a_NHWC: Tensor, err_NPQO: Tensor, plan: ConvPlan, *, pad_value: int, a_max: int, err_max: int, layer: str
) -> tuple[Tensor, Tensor]:
    (sh, sw), (dh, dw) = plan.stride, plan.dilation
    taps = [(r * dh, s * dw) for r in range(plan.r) for s in range(plan.s)]
    depth = round_up(plan.rows, 8)
    blocks = _blocks(plan)
    result = sums = None
    for block in blocks:
        cb, ob = block.c1 - block.c0, block.o1 - block.o0
        frames = _turned_frames(a_NHWC[..., block.c0 : block.c1], plan, pad_value)
        height = len(taps) * cb
        patches = workspace.scratch("patches", (round_up(height + 1, 8), depth), torch.int8, a_NHWC.device)
        for i, (r, s) in enumerate(taps):
            rows, columns = slice(r // sh, r // sh + plan.p), slice(s // sw, s // sw + plan.q)
            target = patches[i * cb : (i + 1) * cb, : plan.rows].unflatten(1, (plan.p, plan.q, plan.n))
            target.copy_(frames[r % sh, s % sw][:, rows, columns])
        patches[height:] = 1
        err_rows = _turned_error(err_NPQO[..., block.o0 : block.o1], depth)
        if height * ob > _TURN_LIMIT:
            acc_OK = int_mm(
                err_rows, patches.t(), a_max=err_max, b_max=a_max, terms=plan.rows, gemm="wgrad", layer=layer
            )
        else:
            acc_OK = int_mm(
                patches, err_rows.t(), a_max=a_max, b_max=err_max, terms=plan.rows, gemm="wgrad", layer=layer
            ).t()
        dense = acc_OK[:ob, :height].unflatten(1, (plan.r, plan.s, cb))
        of_ones = acc_OK[:ob, height]
        if len(blocks) == block.groups == 1:
            return dense, of_ones
        if result is None or sums is None:
            result = dense.new_empty(plan.o, plan.r, plan.s, plan.c // plan.groups)
            sums = dense.new_empty(plan.o)
        block.take_diagonal(dense, result)
        sums[block.o0 : block.o1] = of_ones
    assert result is not None, "a convolution has at least one group"
    assert sums is not None, "a convolution has at least one group"
    return result, sums


@dataclass(frozen=True, slots=True)
class _Block:
    """Some neighbouring groups, computed as one dense product with zeros off the diagonal."""

    c0: int
    c1: int
    o0: int
    o1: int
    g0: int
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


@lru_cache(maxsize=1024)
def _blocks(plan: ConvPlan) -> tuple[_Block, ...]:
    c, o = plan.c // plan.groups, plan.o // plan.groups
    packed = max(1, min(plan.groups, _BLOCK_CHANNELS // min(c, o)))
    return tuple(
        _Block(first * c, last * c, first * o, last * o, first, last - first)
        for first in range(0, plan.groups, packed)
        for last in [min(first + packed, plan.groups)]
    )


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


def _rows_of_taps(w_ORSC: Tensor, channels: int, depth: int, groups: int) -> Tensor:
    """(O + groups, depth) weights in the order of the patches, below them a row of ones per group of input channels.

    Channels and tail beyond the weight's own are zero.
    """
    o, r, s, c = w_ORSC.shape
    per_group = c // groups
    rows = w_ORSC.new_zeros(o + groups, depth)
    taps = rows[:, : r * s * channels].view(o + groups, r, s, channels)
    taps[:o, ..., :c] = w_ORSC
    for group in range(groups):
        taps[o + group, ..., group * per_group : (group + 1) * per_group] = 1
    return rows


def _product_buffer(patches: Tensor, w_rows: Tensor) -> Tensor:
    """Room for a padded product."""
    shape = (max(patches.shape[0], CUDA_RULES.min_rows), round_up(w_rows.shape[0], CUDA_RULES.multiple))
    return workspace.scratch("acc", shape, torch.int32, patches.device)


def _widened(total: Tensor | None, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Zeros of the product's type, or what was gathered so far in int64."""
    if total is None:
        return torch.zeros(shape, dtype=like.dtype, device=like.device)
    return total.to(torch.int64)


def _turned_frames(a_NHWC: Tensor, plan: ConvPlan, pad_value: int) -> dict[Pair, Tensor]:
    """Padded codes with images innermost, (Cb, rows, columns, N), one frame per position modulo the stride.

    A frame holds the padded positions stride·i + phase; only phases that a tap starts from are built.
    """
    n, height, width, c = a_NHWC.shape
    turned = _images_innermost(a_NHWC)
    frames = {}
    for row_phase, row_frame, (i, h, rows) in _spans(plan, 0, height):
        for column_phase, column_frame, (j, w, columns) in _spans(plan, 1, width):
            part = turned[h :: plan.stride[0], w :: plan.stride[1]][:rows, :columns].permute(2, 0, 1, 3)
            if (rows, columns) == (row_frame, column_frame):
                frames[row_phase, column_phase] = part
                continue
            key = ("turned", row_phase, column_phase, i, rows, j, columns)
            shape = (c, row_frame, column_frame, n)
            frame = workspace.bordered(key, shape, pad_value, a_NHWC.device)
            frame[:, i : i + rows, j : j + columns].copy_(part)
            frames[row_phase, column_phase] = frame
    return frames


def _spans(plan: ConvPlan, axis: int, size: int) -> list[tuple[int, int, tuple[int, int, int]]]:
    """Per phase along an axis: phase, frame size, (first position in the frame, in the image, count)."""
    stride, dilation, before = plan.stride[axis], plan.dilation[axis], plan.padding[axis][0]
    taps, outputs = (plan.r, plan.p) if axis == 0 else (plan.s, plan.q)
    spans = []
    for phase in sorted({tap * dilation % stride for tap in range(taps)}):
        last = max(tap * dilation // stride for tap in range(taps) if tap * dilation % stride == phase)
        frame = outputs + last
        first = max(0, math.ceil((before - phase) / stride))
        start = stride * first + phase - before
        count = max(0, min(len(range(start, size, stride)), frame - first))
        spans.append((phase, frame, (first, start, count)))
    return spans


def _turned_error(err_NPQO: Tensor, depth: int) -> Tensor:
    """(O rounded up to 8, depth) codes with images innermost; zero in the rows and the tail beyond the codes' own."""
    n, p, q, o = err_NPQO.shape
    key = ("turned error", n, p, q, o)
    target = workspace.bordered(key, (round_up(o, 8), depth), 0, err_NPQO.device)
    inner = target[:o, : n * p * q].unflatten(1, (p, q, n))
    inner.copy_(_images_innermost(err_NPQO).permute(2, 0, 1, 3))
    return target


def _images_innermost(codes_NHWC: Tensor) -> Tensor:
    """(H, W, C, N) copy in a reused buffer: half way to channels outermost, and faster than going there at once."""
    n, h, w, c = codes_NHWC.shape
    turned = workspace.scratch("images innermost", (h, w, c, n), torch.int8, codes_NHWC.device)
    return turned.copy_(codes_NHWC.permute(1, 2, 3, 0))
