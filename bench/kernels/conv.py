"""A convolution's three integer products: fprop, dgrad, wgrad, for any stride, padding, dilation and groups.

Shapes: N images, C input channels, H×W input, O output channels, R×S kernel, P×Q output, G groups. Channels are last
everywhere, so a patch is a few contiguous runs. Groups are packed side by side into block-diagonal products of at least
16 channels, which keeps a depthwise convolution on the integer units at the price of multiplying zeros.

Source: docs/method.md section 2. dgrad of a strided convolution is cut by the input position modulo the stride: each
part is a dense product over just the taps that reach it, so no zeros are inserted and nothing is scattered.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench.hardware.capability import CUDA_LIMITS
from bench.kernels import workspace
from bench.kernels.conv_plan import (
    Block,
    ConvPlan,
    Frame,
    Pair,
    blocks_of,
    error_frame,
    phases_of,
    spans_of,
    split_images,
)
from bench.kernels.im2col import (
    Axis,
    channel_multiple,
    gather_patches,
    pad_images,
)
from bench.kernels.int_mm import int_mm, max_reduction, round_up

# wgrad's product is quicker with the patches as its rows (0.29 against 0.47 ms for 64 channels of 8×8), but comes out
# transposed then, and turning more values than these costs more than it saves (29 ms for 512 channels).
_TURN_LIMIT = 2**18


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
    blocks = blocks_of(plan)
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
    phases = phases_of(plan)
    frame = error_frame(plan)
    blocks = blocks_of(plan)
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
    blocks = blocks_of(plan)
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


def _framed_input(a_NHWC: Tensor, block: Block, plan: ConvPlan, row: Axis, column: Axis, pad_value: int) -> Tensor:
    channels = channel_multiple(block.c1 - block.c0)
    part = a_NHWC[..., block.c0 : block.c1]
    before = (plan.padding[0][0], plan.padding[1][0])
    fits = before == (0, 0) and row.reach <= plan.h and column.reach <= plan.w
    if fits and channels == part.shape[3] and _is_aligned(part):
        return part
    return pad_images(part, before, (row.reach, column.reach), channels, pad_value, "input frame")


def _framed_error(errors: Tensor, frame: Frame, channels: int) -> Tensor:
    if frame.shape == tuple(errors.shape[1:3]) and channels == errors.shape[3] and _is_aligned(errors):
        return errors
    return pad_images(errors, (frame.top, frame.left), frame.shape, channels, 0, "error frame")


def _is_aligned(codes: Tensor) -> bool:
    """Whether 8 codes at a time can be read in place."""
    return codes.is_contiguous() and codes.storage_offset() % 8 == 0


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
    shape = (max(patches.shape[0], CUDA_LIMITS.min_rows), round_up(w_rows.shape[0], CUDA_LIMITS.multiple))
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
    for row_phase, row_frame, (i, h, rows) in spans_of(plan, 0, height):
        for column_phase, column_frame, (j, w, columns) in spans_of(plan, 1, width):
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
