"""A convolution's three integer products with compiled gathering and landing: the CPU's fast path.

Codes in, dequantized float32 out; ``conv.py`` and ``affine.py`` are the plain torch twins, equal bit for bit. Shapes: N
images, C input channels, H×W input, O output channels, R×S kernel, P×Q output, channels last. How a convolution is cut
into products is worked out once, in ``conv_parts.py``: what runs in every step is one call between two products.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from bench import native
from bench.hardware.capability import CUDA_LIMITS
from bench.kernels import workspace
from bench.kernels.conv_parts import (
    Part,
    Piece,
    WgradPart,
    dgrad_parts,
    fprop_parts,
    images_of,
    pieces_of,
    source_buffers,
    wgrad_parts,
    wgrad_pieces,
)
from bench.kernels.conv_plan import ConvPlan, blocks_of, phases_of
from bench.kernels.im2col import Axis
from bench.kernels.int_mm import INT32_MAX, int_mm, max_reduction
from bench.kernels.landing import After, close_sequel, open_sequel
from bench.kernels.spans import recording, span
from bench.native import Job, Sequel, pointer


@dataclass(frozen=True, slots=True, kw_only=True)
class Grids:
    """What the codes of a product's operands stand for: value = scale · (mult·code + offset), here its integers.

    ``factor`` multiplies Σ a·b, ``row_weight`` the sum of the gathered operand's codes.
    """

    a_max: int
    b_max: int
    factor: int
    row_weight: int
    bound: int  # largest possible |total|


def fits(grids: Grids) -> bool:
    """Whether totals stay inside int32, as the compiled landing wants."""
    return grids.bound <= INT32_MAX


def fprop(
    a_NHWC: Tensor,
    w_ORSC: Tensor,
    plan: ConvPlan,
    grids: Grids,
    *,
    pad_value: int,
    columns: Tensor | None,
    scale: Tensor,
    bias: Tensor | None,
    layer: str,
    after: After | None = None,
) -> Tensor:
    """Dequantized output (N, P, Q, O).

    Args:
        a_NHWC: (N, H, W, C) int8 codes, contiguous.
        w_ORSC: (O, R, S, C/groups) int8 codes, contiguous.
        plan: the sizes.
        grids: of input and weight.
        pad_value: the input code that stands for zero.
        columns: (O,) integers that each output channel's total adds; None for nothing.
        scale: () or (O,) float32.
        bias: (O,) float32, or None.
        layer: name for the GEMM log and the spans.
        after: what the output is wanted for; done where it has one block.
    """
    y = torch.empty(plan.n, plan.p, plan.q, plan.o, device=a_NHWC.device)
    parts = fprop_parts(plan)
    sequel = open_sequel(after if len(parts) == 1 else None, y.shape)
    run = _Run(
        source=a_NHWC, grids=grids, pad=pad_value, gemm="fprop", layer=layer, scale=scale, bias=bias, bits=None,
        columns=None if columns is None else columns.to(torch.int32), places=None, out=y, sequel=sequel,
    )  # fmt: skip
    for part in parts:
        weight = w_ORSC if len(parts) == part.block.groups == 1 else part.block.dense_weight(w_ORSC).contiguous()
        run.multiply(part, weight, plan.groups)
    close_sequel(after, sequel, y.shape)
    return y


def dgrad(
    err_NPQO: Tensor,
    w_ORSC: Tensor,
    plan: ConvPlan,
    grids: Grids,
    *,
    places: Tensor | None,
    scale: Tensor,
    bits: Tensor | None,
    layer: str,
    after: After | None = None,
) -> Tensor:
    """Dequantized error signal of the input (N, H, W, C).

    Args:
        err_NPQO: (N, P, Q, O) int8 codes, contiguous.
        w_ORSC: (O, R, S, C/groups) int8 codes, contiguous.
        plan: the sizes.
        grids: of error and weight.
        places: (H, W, C) int64 that each position's total adds (an offset of the error's grid); None for nothing.
        scale: () float32.
        bits: packed flags of the input's positions that pass a gradient; None if all do.
        layer: name for the GEMM log and the spans.
        after: what the error signal is wanted for; done where it has one block and one phase.
    """
    parts, blocks = dgrad_parts(plan), len(blocks_of(plan))
    full = len(parts) == blocks * len(phases_of(plan))  # else some positions are reached by no tap
    make = torch.empty if full else torch.zeros
    dx = make(plan.n, plan.h, plan.w, plan.c, device=err_NPQO.device)
    sequel = open_sequel(after if len(parts) == 1 and full else None, dx.shape)
    run = _Run(
        source=err_NPQO, grids=grids, pad=0, gemm="dgrad", layer=layer, scale=scale, bias=None, bits=bits,
        columns=None, places=None if places is None else places.to(torch.int32).contiguous(), out=dx, sequel=sequel,
    )  # fmt: skip
    for part in parts:
        weight = w_ORSC if blocks == part.block.groups == 1 else part.block.dense_weight(w_ORSC).contiguous()
        run.multiply(part, _turned_weight(weight, part), plan.groups)
    close_sequel(after, sequel, dx.shape)
    return dx


def wgrad(
    a_NHWC: Tensor,
    err_NPQO: Tensor,
    plan: ConvPlan,
    grids: Grids,
    *,
    pad_value: int,
    rows: Tensor | None,
    columns: Tensor | None,
    scale: Tensor,
    layer: str,
) -> Tensor:
    """Dequantized gradient of Ŵ (O, R, S, C/groups).

    Args:
        a_NHWC: (N, H, W, C) int8 codes, contiguous.
        err_NPQO: (N, P, Q, O) int8 codes, contiguous.
        plan: the sizes.
        grids: of input and error; totals are joined in int64, whatever the bound.
        pad_value: the input code that stands for zero.
        rows: (O,) int64 that each output channel adds; None for nothing.
        columns: (O, R, S, C/groups) int64, contiguous; None for nothing.
        scale: () or (O,) float32.
        layer: name for the GEMM log and the spans.
    """
    device = a_NHWC.device
    parts = wgrad_parts(plan)
    result = torch.empty(plan.o, plan.r, plan.s, plan.c // plan.groups, dtype=torch.int64, device=device)
    for part in parts:
        if len(parts) == part.block.groups == 1:
            _wgrad_block(a_NHWC, err_NPQO, plan, part, grids, pad_value, layer, result)
            continue
        block = part.block
        totals = result.new_empty(block.o1 - block.o0, plan.r, plan.s, block.c1 - block.c0)
        _wgrad_block(a_NHWC, err_NPQO, plan, part, grids, pad_value, layer, totals)
        if block.groups == 1:
            result[block.o0 : block.o1] = totals
        else:
            block.take_diagonal(totals, result)
    out = torch.empty(result.shape, device=device)
    with span("dequantize", layer=layer, gemm="wgrad"):
        native.compiled().land_wgrad(
            pointer(result), pointer(out), plan.o, out.numel() // plan.o, grids.factor, pointer(rows),
            pointer(columns), pointer(scale), int(scale.dim() > 0),
        )  # fmt: skip
    return out


def check_wgrad(plan: ConvPlan, grids: Grids) -> bool:
    """Whether one row of outputs, the least that a product may reduce over, fits int32."""
    return plan.n * plan.q <= max_reduction(grids.a_max, grids.b_max)


def code_columns(w_ORSC: Tensor, *, other: int, mult: int, more: int) -> Tensor:
    """What an offset of the other operand's grid adds to each output, (O,) int32: other · (mult·Σ codes + more).

    Args:
        w_ORSC: (O, ...) int8 codes, contiguous.
        other: that offset.
        mult: of the codes' grid.
        more: the codes' own offset, once for each of them.
    """
    outputs = w_ORSC.shape[0]
    columns = torch.empty(outputs, dtype=torch.int32, device=w_ORSC.device)
    native.compiled().code_columns(
        pointer(w_ORSC), pointer(columns), outputs, w_ORSC.numel() // outputs, other, mult, more
    )
    return columns


def channel_sums(codes: Tensor) -> Tensor:
    """Σ of the codes per channel (last axis), int64."""
    channels = codes.shape[-1]
    sums = torch.empty(channels, dtype=torch.int64, device=codes.device)
    native.compiled().channel_sums(pointer(codes), pointer(sums), codes.numel() // channels, channels)
    return sums


@dataclass(slots=True, kw_only=True)
class _Run:
    """What fprop and dgrad have in common: gather, multiply by the weight, land."""

    source: Tensor
    grids: Grids
    pad: int
    gemm: str
    layer: str
    columns: Tensor | None
    places: Tensor | None
    scale: Tensor
    bias: Tensor | None
    bits: Tensor | None
    out: Tensor
    sequel: Sequel | None
    known_sums: dict[tuple[Axis, Axis], Tensor] | None = None

    def multiply(self, part: Part, weight: Tensor, groups: int) -> None:
        """One dense product: ``weight`` is (outputs, row taps, column taps, channels), contiguous."""
        lib, layer, gemm, grids = native.compiled(), self.layer, self.gemm, self.grids
        pieces: tuple[Piece, ...] = ()
        patches: Tensor | None = None
        if part.is_source:
            w_lines, acc = source_buffers(part)
        else:
            pieces = pieces_of(part, grids.a_max, grids.b_max)
            patches, w_lines, acc = pieces[0][0].operands
        with span("im2col", layer=layer, gemm=gemm):
            lib.weight_lines(pointer(weight), pointer(w_lines), *weight.shape[:3], part.geometry, part.depth)
        with span("dequantize", layer=layer, gemm=gemm):
            sums = self._sums_of(part, groups)
        first = part.outputs[0]
        per_channel = self.scale.dim() > 0
        job = Job(
            part.geometry, part.landing(grids.factor, grids.row_weight), pointer(self.source), pointer(patches),
            part.depth, self.pad, pointer(acc), pointer(sums, part.block.g0), pointer(self.columns, first),
            pointer(self.places, part.offset), pointer(self.out, part.offset),
            pointer(self.scale, first if per_channel else 0), pointer(self.bias, first), pointer(self.bits),
            per_channel, part.offset, None if self.sequel is None else ctypes.addressof(self.sequel),
        )  # fmt: skip
        if part.is_source:
            self._multiply_source(part, job, w_lines, acc)
        elif recording():
            for product, start, count in pieces:
                with span("im2col", layer=layer, gemm=gemm):
                    lib.gather_images(job, start, count)
                with span("gemm", layer=layer, gemm=gemm):
                    product(gemm=gemm, layer=layer)
                with span("dequantize", layer=layer, gemm=gemm):
                    lib.land_images(job, start, count)
        else:
            self._multiply_pieces(job, pieces)

    def _multiply_pieces(self, job: Job, pieces: tuple[Piece, ...]) -> None:
        """The same with one call between two products."""
        lib = native.compiled()
        landed = landed_count = 0
        for product, start, count in pieces:
            lib.next_images(job, landed, landed_count, start, count)
            product(gemm=self.gemm, layer=self.layer)
            landed, landed_count = start, count
        lib.land_images(job, landed, landed_count)

    def _multiply_source(self, part: Part, job: Job, w_lines: Tensor, acc: Tensor) -> None:
        """The codes themselves are the patches."""
        images = images_of(part)
        flat = self.source.view(-1, part.depth)
        for start in range(0, part.geometry.n, images):
            count = min(images, part.geometry.n - start)
            rows = slice(start * part.per_image, (start + count) * part.per_image)
            with span("gemm", layer=self.layer, gemm=self.gemm):
                patches = flat[rows]
                int_mm(
                    patches, w_lines.t(), a_max=self.grids.a_max, b_max=self.grids.b_max, terms=part.terms,
                    out=acc[: max(len(patches), CUDA_LIMITS.min_rows)], gemm=self.gemm, layer=self.layer,
                    macs=part.macs(count),
                )  # fmt: skip
            with span("dequantize", layer=self.layer, gemm=self.gemm):
                native.compiled().land_images(job, start, count)

    def _sums_of(self, part: Part, groups: int) -> Tensor | None:
        """(outputs, groups) int32 sums of the codes that each output meets; blocks of one convolution share them."""
        if not self.grids.row_weight:
            return None
        if self.known_sums is None:
            self.known_sums = {}
        found = self.known_sums.get((part.row, part.column))
        if found is None:
            n = self.source.shape[0]
            size = (n * part.row.length * part.column.length, groups)
            name = f"patch sums {len(self.known_sums)}"
            found = workspace.scratch(name, size, torch.int32, self.source.device)
            native.compiled().patch_sums(pointer(self.source), pointer(found), part.geometry, groups, self.pad)
            self.known_sums[part.row, part.column] = found
        return found


def _wgrad_block(
    a_NHWC: Tensor,
    err_NPQO: Tensor,
    plan: ConvPlan,
    part: WgradPart,
    grids: Grids,
    pad_value: int,
    layer: str,
    totals: Tensor,
) -> None:
    """Writes the (Ob, R, S, Cb) int64 sums of one block to ``totals``."""
    lib = native.compiled()
    outputs, _, _, inputs = totals.shape
    pieces = wgrad_pieces(plan, part, grids.a_max, grids.b_max)
    lines, error_lines, acc = pieces[0].product.operands  # the buffers of all
    source, errors, sums, turned = pointer(a_NHWC), pointer(err_NPQO), pointer(totals), pointer(pieces[0].turned)
    to, error_to, acc_from, pitch = pointer(lines), pointer(error_lines), pointer(acc), acc.shape[1]
    for index, piece in enumerate(pieces):
        with span("im2col", layer=layer, gemm="wgrad"):
            lib.wgrad_lines(source, turned, to, piece.input_geometry, piece.depth, pad_value, 0)
            lib.wgrad_lines(errors, turned, error_to, piece.error_geometry, piece.depth, 0, 1)
        with span("gemm", layer=layer, gemm="wgrad"):
            piece.product(gemm="wgrad", layer=layer)
        with span("dequantize", layer=layer, gemm="wgrad"):
            lib.fold_wgrad(
                acc_from, sums, plan.r, plan.s, part.tap, inputs, outputs, part.pack, pitch, part.column.step,
                part.column.stride, int(index > 0),
            )  # fmt: skip


def _turned_weight(weight: Tensor, part: Part) -> Tensor:
    """(O, R, S, C) codes as (C, rows, columns, O), the taps of the part's phase turned round."""
    assert part.phase is not None, "a part of dgrad"
    o, r, s, c = weight.shape
    row, column = part.phase.row_taps, part.phase.column_taps
    shape = (c, part.row.count, part.column.count, o)
    turned = workspace.scratch("turned weight", shape, torch.int8, weight.device)
    native.compiled().turn_weight(
        pointer(weight), pointer(turned), o, r, s, c, row.start, row.step or 1, part.row.count,
        column.start, column.step or 1, part.column.count,
    )  # fmt: skip
    return turned
