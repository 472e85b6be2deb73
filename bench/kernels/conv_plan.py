"""Sizes of a convolution, and how its products are cut: by images, by groups, by position modulo the stride.

Shapes: N images, C input channels, H×W input, O output channels, R×S kernel, P×Q output. No tensor is computed here
save a block's dense weight; everything else is integers, cached per shape.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch
from torch import Tensor

from bench.errors import ShapeError
from bench.kernels.im2col import Axis

_BLOCK_CHANNELS = 16

# Patches that are gathered before they are multiplied. On a CPU they then stay in its caches: 64 channels of 32×32,
# batch 128, one core, fprop and wgrad: 100 and 111 ms in one piece of 75 MB, 45 and 53 ms in pieces of 5 MB.
_CPU_PATCH_BYTES = 4 * 2**20

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
    p: int = field(init=False, compare=False)
    """Output height."""
    q: int = field(init=False, compare=False)
    """Output width."""

    def __post_init__(self) -> None:
        """Work the sizes out once: they are asked for in every call."""
        p = _output_size(self.h, self.r, self.stride[0], self.padding[0], self.dilation[0])
        q = _output_size(self.w, self.s, self.stride[1], self.padding[1], self.dilation[1])
        object.__setattr__(self, "p", p)
        object.__setattr__(self, "q", q)

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


@dataclass(frozen=True, slots=True)
class Block:
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
def blocks_of(plan: ConvPlan) -> tuple[Block, ...]:
    """The convolution's groups, packed into dense products."""
    c, o = plan.c // plan.groups, plan.o // plan.groups
    packed = max(1, min(plan.groups, _BLOCK_CHANNELS // min(c, o)))
    return tuple(
        Block(first * c, last * c, first * o, last * o, first, last - first)
        for first in range(0, plan.groups, packed)
        for last in [min(first + packed, plan.groups)]
    )


@dataclass(frozen=True, slots=True)
class Phase:
    """Input positions of one remainder modulo the stride, and the taps that reach them."""

    row_phase: int
    column_phase: int
    row: Axis
    column: Axis
    row_taps: slice
    column_taps: slice

    @property
    def empty(self) -> bool:
        """Whether no tap reaches these positions."""
        return self.row.count == 0 or self.column.count == 0


@dataclass(frozen=True, slots=True)
class Frame:
    """Zeros around the error signal, so that every tap of every phase stays inside."""

    top: int
    left: int
    shape: Pair

    def shifted(self, phase: Phase) -> tuple[Axis, Axis]:
        """A phase's taps in the frame's coordinates."""
        row, column = phase.row, phase.column
        return (
            Axis(row.start + self.top, row.step, row.count, row.stride, row.length),
            Axis(column.start + self.left, column.step, column.count, column.stride, column.length),
        )


@lru_cache(maxsize=1024)
def phases_of(plan: ConvPlan) -> tuple[Phase, ...]:
    """Input positions by their remainder modulo the stride; the two axes' phases combined."""

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
        Phase(row_phase, column_phase, row, column, row_taps, column_taps)
        for row_phase, row, row_taps in along(0, plan.h, plan.r)
        for column_phase, column, column_taps in along(1, plan.w, plan.s)
    )


@lru_cache(maxsize=1024)
def error_frame(plan: ConvPlan) -> Frame:
    """The frame that holds every tap of every phase."""
    used = [phase for phase in phases_of(plan) if not phase.empty]
    if not used:
        return Frame(0, 0, (plan.p, plan.q))
    top = max(0, -min(phase.row.start for phase in used))
    left = max(0, -min(phase.column.start for phase in used))
    height = max(plan.p, max(phase.row.reach for phase in used)) + top
    width = max(plan.q, max(phase.column.reach for phase in used)) + left
    return Frame(top, left, (height, width))


@lru_cache(maxsize=2048)
def spans_of(plan: ConvPlan, axis: int, size: int) -> list[tuple[int, int, tuple[int, int, int]]]:
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


def _output_size(size: int, taps: int, stride: int, padding: Pair, dilation: int) -> int:
    return (size + sum(padding) - dilation * (taps - 1) - 1) // stride + 1
