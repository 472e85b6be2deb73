"""A convolution's three integer products with compiled gathering and landing: the CPU's fast path.

Codes in, dequantized float32 out; ``conv.py`` and ``affine.py`` are the plain torch twins, equal bit for bit. Shapes: N
images, C input channels, H×W input, O output channels, R×S kernel, P×Q output, channels last.

With few output channels a patch of 3×3×16 codes makes a product of 16 columns, and copying patches costs more than
multiplying them. So neighbouring outputs of a row share one wider patch (``pack`` of them): 4 outputs read 3×6×16 codes
instead of 4 times 3×3×16, and the weights stand in 4 shifted copies, zero elsewhere. The integers are the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from bench import native
from bench.kernels import workspace
from bench.kernels.conv_plan import Block, ConvPlan, Phase, blocks_of, phases_of
from bench.kernels.im2col import Axis
from bench.kernels.int_mm import CUDA_RULES, INT32_MAX, int_mm, log_product, max_reduction, round_up
from bench.kernels.spans import span
from bench.native import Geometry, Landing, Sequel, pointer

DIRECT = "direct"  # the path of sums without a matrix product
# Columns of a product up to which neighbouring outputs share a patch, and the most of them.
_PACKED_COLUMNS = 64
# Patches and sums of one piece of work; larger ones fall out of the caches before they are read again, smaller ones
# cost calls. Those of fprop and dgrad are a thread's share.
_PIECE_BYTES = 6 * 2**20
_SHARE_BYTES = 3 * 2**20
# Sums of a depthwise convolution that wait to land: about a core's second cache.
_DIRECT_BYTES = 2**20
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
        columns: (O,) int64 that each output channel's total adds; None for nothing.
        scale: () or (O,) float32.
        bias: (O,) float32, or None.
        layer: name for the GEMM log and the spans.
        after: what the output is wanted for; done where it has one block.
    """
    row, column = _axes(plan)
    y = torch.empty(plan.n, plan.p, plan.q, plan.o, device=a_NHWC.device)
    blocks = blocks_of(plan)
    product = _Product(
        source=a_NHWC, sizes=(plan.n, plan.h, plan.w, plan.c), grids=grids, pad=pad_value, gemm="fprop", layer=layer,
        columns=None if columns is None else columns.to(torch.int32), scale=scale, bias=bias, bits=None, places=None,
        groups=plan.groups, sequel=_open(after if len(blocks) == 1 else None, y.shape),
    )  # fmt: skip
    for block in blocks:
        product.run(
            weight=block.dense_weight(w_ORSC).contiguous(), block=block, channels=(block.c0, block.c1),
            outputs=(block.o0, block.o1), row=row, column=column, out=y, out_offset=0,
            out_strides=(plan.p * plan.q * plan.o, plan.q * plan.o, plan.o),
        )  # fmt: skip
    _close(after, product.sequel, y.shape)
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
    phases, blocks = phases_of(plan), blocks_of(plan)
    make = torch.zeros if any(phase.empty for phase in phases) else torch.empty
    dx = make(plan.n, plan.h, plan.w, plan.c, device=err_NPQO.device)
    product = _Product(
        source=err_NPQO, sizes=(plan.n, plan.p, plan.q, plan.o), grids=grids, pad=0, gemm="dgrad", layer=layer,
        columns=None, scale=scale, bias=None, bits=bits, groups=plan.groups,
        places=None if places is None else places.to(torch.int32).contiguous(),
        sequel=_open(after if len(blocks) == len(phases) == 1 and not phases[0].empty else None, dx.shape),
    )  # fmt: skip
    line = plan.w * plan.c
    for block in blocks:
        weight = block.dense_weight(w_ORSC).contiguous()
        for phase in phases:
            if phase.empty:
                continue
            product.run(
                weight=_turned_weight(weight, phase), block=block, channels=(block.o0, block.o1),
                outputs=(block.c0, block.c1), row=phase.row, column=phase.column, out=dx,
                out_offset=phase.row_phase * line + phase.column_phase * plan.c,
                out_strides=(plan.h * line, plan.stride[0] * line, plan.stride[1] * plan.c),
            )  # fmt: skip
    _close(after, product.sequel, dx.shape)
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
    lib = native.compiled()
    device = a_NHWC.device
    with span("im2col", layer=layer, gemm="wgrad"):
        a_turned = workspace.scratch("turned input", (plan.h, plan.w, plan.c, plan.n), torch.int8, device)
        err_turned = workspace.scratch("turned error", (plan.p, plan.q, plan.o, plan.n), torch.int8, device)
        lib.turn(pointer(a_NHWC), pointer(a_turned), plan.n, plan.h * plan.w * plan.c)
        lib.turn(pointer(err_NPQO), pointer(err_turned), plan.n, plan.p * plan.q * plan.o)
    result = torch.empty(plan.o, plan.r, plan.s, plan.c // plan.groups, dtype=torch.int64, device=device)
    for block in blocks_of(plan):
        totals = _wgrad_block(a_turned, err_turned, plan, block, grids, pad_value, layer)
        if block.groups == 1:
            result[block.o0 : block.o1] = totals
        else:
            block.take_diagonal(totals, result)
    out = torch.empty(result.shape, device=device)
    with span("dequantize", layer=layer, gemm="wgrad"):
        lib.land_wgrad(
            pointer(result), pointer(out), plan.o, result[0].numel(), grids.factor, pointer(rows), pointer(columns),
            pointer(scale), int(scale.dim() > 0),
        )  # fmt: skip
    return out


def is_depthwise(plan: ConvPlan) -> bool:
    """Whether every channel has a filter of its own, whose sums of one image fit int32."""
    return plan.groups == plan.c == plan.o > 1 and plan.p * plan.q <= max_reduction(128, 128)


def depthwise_fprop(
    a_NHWC: Tensor, w_RSC: Tensor, plan: ConvPlan, *, pad_value: int, columns: Tensor | None, scale: Tensor,
    bias: Tensor | None, layer: str, after: After | None = None,
) -> Tensor:  # fmt: skip
    """``fprop`` of a depthwise convolution by direct integer sums, no matrix product.

    Args:
        a_NHWC: as there.
        w_RSC: (R, S, C) int16 integers mult·code + offset of the weight.
        plan: the sizes.
        pad_value: as there.
        columns: as there.
        scale: as there.
        bias: as there.
        layer: as there.
        after: as there.
    """
    y = torch.empty(plan.n, plan.p, plan.q, plan.o, device=a_NHWC.device)
    row, column = _axes(plan)
    strides = (plan.p * plan.q * plan.o, plan.q * plan.o, plan.o)
    sequel = _open(after, y.shape)
    _direct(
        a_NHWC, w_RSC, (plan.h, plan.w), row, column, y, 0, strides, factor=1, pad=pad_value, columns=columns,
        places=None, scale=scale, bias=bias, bits=None, gemm="fprop", layer=layer, sequel=sequel,
    )  # fmt: skip
    _close(after, sequel, y.shape)
    return y


def depthwise_dgrad(
    err_NPQO: Tensor, w_RSC: Tensor, plan: ConvPlan, *, factor: int, places: Tensor | None, scale: Tensor,
    bits: Tensor | None, layer: str, after: After | None = None,
) -> Tensor:  # fmt: skip
    """``dgrad`` of a depthwise convolution by direct integer sums; ``factor`` is the error grid's mult."""
    phases = phases_of(plan)
    make = torch.zeros if any(phase.empty for phase in phases) else torch.empty
    dx = make(plan.n, plan.h, plan.w, plan.c, device=err_NPQO.device)
    sequel = _open(after if len(phases) == 1 and not phases[0].empty else None, dx.shape)
    line = plan.w * plan.c
    for phase in phases:
        if phase.empty:
            continue
        taps = w_RSC[phase.row_taps, phase.column_taps].flip(0, 1).contiguous()
        _direct(
            err_NPQO, taps, (plan.p, plan.q), phase.row, phase.column, dx,
            phase.row_phase * line + phase.column_phase * plan.c,
            (plan.h * line, plan.stride[0] * line, plan.stride[1] * plan.c), factor=factor, pad=0, columns=None,
            places=places, scale=scale, bias=None, bits=bits, gemm="dgrad", layer=layer, sequel=sequel,
        )  # fmt: skip
    _close(after, sequel, dx.shape)
    return dx


def depthwise_wgrad(
    a_NHWC: Tensor, err_NPQO: Tensor, plan: ConvPlan, *, factor: int, pad_value: int, rows: Tensor | None,
    columns: Tensor | None, scale: Tensor, layer: str,
) -> Tensor:  # fmt: skip
    """``wgrad`` of a depthwise convolution by direct integer sums; ``factor`` is the error grid's mult."""
    lib = native.compiled()
    row, column = _axes(plan)
    sums = torch.empty(plan.r, plan.s, plan.c, dtype=torch.int64)
    with span("gemm", layer=layer, gemm="wgrad"):
        geometry = _geometry(plan.n, plan.h, plan.w, plan.c, 0, plan.c, row, column, 1)
        lib.depthwise_wgrad(pointer(a_NHWC), pointer(err_NPQO), pointer(sums), geometry, pad_value)
    log_product("wgrad", layer, DIRECT, plan.r * plan.s, plan.rows, plan.c)
    totals, out = sums.permute(2, 0, 1).contiguous(), torch.empty(plan.c, plan.r, plan.s, 1)
    with span("dequantize", layer=layer, gemm="wgrad"):
        lib.land_wgrad(
            pointer(totals), pointer(out), plan.c, plan.r * plan.s, factor, pointer(rows), pointer(columns),
            pointer(scale), int(scale.dim() > 0),
        )  # fmt: skip
    return out


def _direct(
    source: Tensor, w_RSC: Tensor, size: tuple[int, int], row: Axis, column: Axis, out: Tensor, out_offset: int,
    out_strides: tuple[int, int, int], *, factor: int, pad: int, columns: Tensor | None, places: Tensor | None,
    scale: Tensor, bias: Tensor | None, bits: Tensor | None, gemm: str, layer: str, sequel: Sequel | None,
) -> None:  # fmt: skip
    """Sums of one phase and their landing, both in one span: few images at a time go through both."""
    lib = native.compiled()
    n, c = source.shape[0], source.shape[3]
    per_image = row.length * column.length * c
    images = max(1, min(n, _DIRECT_BYTES // (4 * per_image)))
    columns = None if columns is None else columns.to(torch.int32)
    places = None if places is None else places.to(torch.int32).contiguous()
    with span("gemm", layer=layer, gemm=gemm):
        acc = workspace.scratch("acc", (images * per_image,), torch.int32, source.device)
        geometry = _geometry(n, *size, c, 0, c, row, column, 1)
        landing = _landing(n, row.length, column.length, 1, c, c, 1, 1, out_strides, factor, 0)
        lib.depthwise_land(
            pointer(source), pointer(w_RSC), pointer(acc), geometry, pad, images, _at(out, out_offset), landing,
            pointer(columns), _at(places, out_offset), pointer(scale), int(scale.dim() > 0), pointer(bias),
            pointer(bits), out_offset, sequel,
        )  # fmt: skip
    log_product(gemm, layer, DIRECT, n * row.length * column.length, row.count * column.count, c)


def _open(after: After | None, shape: torch.Size) -> Sequel | None:
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
        first, second = workspace.scratch("sums of blocks", (2, blocks, channels), torch.float32, after.sums.device)
        means, squares = (pointer(first), pointer(second)) if after.norm_input is None else (None, None)
        sums, dots = (None, None) if after.norm_input is None else (pointer(first), pointer(second))
    x = after.norm_input
    whole, halves = (x, None) if x is None or x.dtype == torch.float32 else (None, x)
    return Sequel(
        block_rows, pointer(after.residual), pointer(after.gate), means, squares, pointer(whole), pointer(halves),
        pointer(after.mean), sums, dots,
    )  # fmt: skip


def _close(after: After | None, sequel: Sequel | None, shape: torch.Size) -> None:
    """Join the blocks' sums."""
    if after is None or sequel is None:
        return
    if after.sums is not None:
        n, rows, columns, channels = shape
        lib, mean, square = native.compiled(), pointer(after.sums[0]), pointer(after.sums[1])
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


def check_wgrad(plan: ConvPlan, grids: Grids) -> bool:
    """Whether one row of outputs, the least that a product may reduce over, fits int32."""
    return plan.n * plan.q <= max_reduction(grids.a_max, grids.b_max)


def channel_sums(codes: Tensor) -> Tensor:
    """Σ of the codes per channel (last axis), int64."""
    channels = codes.shape[-1]
    sums = torch.empty(channels, dtype=torch.int64, device=codes.device)
    native.compiled().channel_sums(pointer(codes), pointer(sums), codes.numel() // channels, channels)
    return sums


def pack_of(outputs: int, row: Axis, column: Axis) -> int:
    """How many neighbouring outputs share a patch: up to 64 columns of the product, where it saves copied bytes."""
    pack = 1
    while 2 * pack * outputs <= _PACKED_COLUMNS and column.length % (2 * pack) == 0:
        pack *= 2
    if pack > 1 and _span(column, pack) / pack > 0.75 * column.count:
        return 1
    return pack


@dataclass(slots=True, kw_only=True)
class _Product:
    """What fprop and dgrad have in common: gather, multiply by the weight, land."""

    source: Tensor
    sizes: tuple[int, int, int, int]
    grids: Grids
    pad: int
    gemm: str
    layer: str
    columns: Tensor | None
    places: Tensor | None
    scale: Tensor
    bias: Tensor | None
    bits: Tensor | None
    groups: int
    sequel: Sequel | None
    known_sums: dict[tuple[Axis, Axis], Tensor] = field(default_factory=dict)

    def sums_of(self, row: Axis, column: Axis) -> Tensor | None:
        """(outputs, groups) int32 sums of the codes that each output meets; blocks of one convolution share them."""
        if not self.grids.row_weight:
            return None
        if (row, column) not in self.known_sums:
            n, h, w, c = self.sizes
            size = (n * row.length * column.length, self.groups)
            sums = workspace.scratch(f"patch sums {len(self.known_sums)}", size, torch.int32, self.source.device)
            geometry = _geometry(n, h, w, c, 0, c, row, column, 1)
            native.compiled().patch_sums(pointer(self.source), pointer(sums), geometry, self.groups, self.pad)
            self.known_sums[row, column] = sums
        return self.known_sums[row, column]

    def run(
        self,
        *,
        weight: Tensor,
        block: Block,
        channels: tuple[int, int],
        outputs: tuple[int, int],
        row: Axis,
        column: Axis,
        out: Tensor,
        out_offset: int,
        out_strides: tuple[int, int, int],
    ) -> None:
        """One dense product: ``weight`` is (outputs, row taps, column taps, channels)."""
        lib, layer, gemm = native.compiled(), self.layer, self.gemm
        n, h, w, c = self.sizes
        first, last = channels
        num_outputs, per_output = outputs[1] - outputs[0], last - first
        pack = pack_of(num_outputs, row, column) if block.groups == self.groups == 1 else 1
        width = _span(column, pack)
        taps = row.count * width * per_output
        depth, lines = round_up(taps, CUDA_RULES.multiple), round_up(pack * num_outputs, CUDA_RULES.multiple)
        device = self.source.device
        with span("im2col", layer=layer, gemm=gemm):
            w_lines = workspace.scratch("weight lines", (lines, depth), torch.int8, device)
            lib.weight_lines(
                pointer(weight), pointer(w_lines), num_outputs, row.count, column.count, per_output, pack, width,
                column.step, column.stride, depth,
            )  # fmt: skip
            if lines > pack * num_outputs:
                w_lines[pack * num_outputs :] = 0
        with span("dequantize", layer=layer, gemm=gemm):
            sums = self.sums_of(row, column)
        identity = taps == depth == c and (row.length, column.length) == (h, w) and _is_plain(row, column)
        per_image = row.length * column.length // pack
        piece = _SHARE_BYTES * torch.get_num_threads()
        images = n if identity else max(1, min(n, piece // max(1, per_image * (depth + 4 * lines))))
        for start in range(0, n, images):
            count = min(images, n - start)
            part = self.source[start : start + count]
            geometry = _geometry(count, h, w, c, first, per_output, row, column, pack)
            rows = count * per_image
            if identity:
                patches = part.view(rows, depth)
            else:
                with span("im2col", layer=layer, gemm=gemm):
                    patches = workspace.scratch("patches", (rows, depth), torch.int8, device)
                    lib.gather(pointer(part), pointer(patches), geometry, depth, self.pad)
            with span("gemm", layer=layer, gemm=gemm):
                shape = (max(rows, CUDA_RULES.min_rows), lines)
                acc = int_mm(
                    patches, w_lines.t(), a_max=self.grids.a_max, b_max=self.grids.b_max,
                    terms=row.count * column.count * per_output // block.groups,  # zeros off the diagonal
                    out=workspace.scratch("acc", shape, torch.int32, device), gemm=gemm, layer=layer,
                    macs=rows * pack * row.count * column.count * per_output * num_outputs // block.groups,
                )  # fmt: skip
            with span("dequantize", layer=layer, gemm=gemm):
                landing = _landing(
                    count, row.length, column.length, pack, num_outputs, acc.stride(0), block.groups, self.groups,
                    out_strides, self.grids.factor, self.grids.row_weight,
                )  # fmt: skip
                offset = start * out_strides[0] + out_offset + outputs[0]
                per_channel = self.scale.dim() > 0
                first_sum = start * row.length * column.length * self.groups + block.g0
                lib.land(
                    pointer(acc), _at(out, offset), landing, _at(sums, first_sum), _at(self.columns, outputs[0]),
                    _at(self.places, out_offset + outputs[0]), _at(self.scale, outputs[0] if per_channel else 0),
                    int(per_channel), _at(self.bias, outputs[0]), pointer(self.bits), offset, self.sequel,
                )  # fmt: skip


def _wgrad_block(
    a_turned: Tensor, err_turned: Tensor, plan: ConvPlan, block: Block, grids: Grids, pad_value: int, layer: str
) -> Tensor:
    """(Ob, R, S, Cb) int64 sums of one block."""
    lib, device = native.compiled(), a_turned.device
    inputs, outputs = block.c1 - block.c0, block.o1 - block.o0
    row, column = _axes(plan)
    pack = pack_of(outputs, row, column)
    width = _span(column, pack)
    num_lines = plan.r * width * inputs
    per_row = plan.q // pack * plan.n
    totals = torch.empty(outputs, plan.r, plan.s, inputs, dtype=torch.int64, device=device)
    err_lines = round_up(pack * outputs, CUDA_RULES.multiple)
    longest = max(1, max_reduction(grids.a_max, grids.b_max) // per_row)
    # a piece whose sums weigh as much as its patches saves nothing
    least = max(1, math.ceil(4 * err_lines / per_row))
    pieces = max(1, num_lines * per_row * plan.p // _PIECE_BYTES)
    step = min(plan.p, longest, max(least, math.ceil(plan.p / pieces)))
    for start in range(0, plan.p, step):
        count = min(step, plan.p - start)
        depth = round_up(count * per_row, CUDA_RULES.multiple)
        with span("im2col", layer=layer, gemm="wgrad"):
            patches = workspace.scratch("patches", (max(num_lines, CUDA_RULES.min_rows), depth), torch.int8, device)
            error = workspace.scratch("error lines", (err_lines, depth), torch.int8, device)
            piece = Axis(row.start + start * row.stride, row.step, row.count, row.stride, count)
            over = _geometry(plan.n, plan.h, plan.w, plan.c, block.c0, inputs, piece, column, pack)
            lib.gather_turned(pointer(a_turned), pointer(patches), over, depth, pad_value, 0)
            own = _geometry(
                plan.n, plan.p, plan.q, plan.o, block.o0, outputs, Axis(start, 1, 1, 1, count),
                Axis(0, 1, 1, 1, plan.q), pack,
            )  # fmt: skip
            lib.gather_turned(pointer(err_turned), pointer(error), own, depth, 0, 1)
            if err_lines > pack * outputs:
                error[pack * outputs :] = 0
            if num_lines < CUDA_RULES.min_rows:
                patches[num_lines:] = 0
        with span("gemm", layer=layer, gemm="wgrad"):
            out = workspace.scratch("acc", (max(num_lines, CUDA_RULES.min_rows), err_lines), torch.int32, device)
            acc = int_mm(
                patches, error.t(), a_max=grids.a_max, b_max=grids.b_max, terms=count * per_row, out=out, gemm="wgrad",
                layer=layer, macs=count * plan.q * plan.n * plan.r * plan.s * inputs * outputs // block.groups,
            )  # fmt: skip
        with span("dequantize", layer=layer, gemm="wgrad"):
            lib.fold_wgrad(
                pointer(acc), pointer(totals), plan.r, plan.s, width, inputs, outputs, pack, acc.stride(0),
                column.step, column.stride, int(start > 0),
            )  # fmt: skip
    return totals


def _turned_weight(weight: Tensor, phase: Phase) -> Tensor:
    """(O, R, S, C) codes as (C, rows, columns, O), the phase's taps turned round."""
    o, r, s, c = weight.shape
    rows = len(range(*phase.row_taps.indices(r)))
    columns = len(range(*phase.column_taps.indices(s)))
    turned = torch.empty(c, rows, columns, o, dtype=torch.int8, device=weight.device)
    native.compiled().turn_weight(
        pointer(weight), pointer(turned), o, r, s, c, phase.row_taps.start, phase.row_taps.step or 1, rows,
        phase.column_taps.start, phase.column_taps.step or 1, columns,
    )  # fmt: skip
    return turned


@lru_cache(maxsize=1024)
def _axes(plan: ConvPlan) -> tuple[Axis, Axis]:
    """What an output reads, along the rows and along the columns of the input."""
    return (
        Axis(-plan.padding[0][0], plan.dilation[0], plan.r, plan.stride[0], plan.p),
        Axis(-plan.padding[1][0], plan.dilation[1], plan.s, plan.stride[1], plan.q),
    )


def _is_plain(row: Axis, column: Axis) -> bool:
    return all((axis.start, axis.stride, axis.count) == (0, 1, 1) for axis in (row, column))


def _span(column: Axis, pack: int) -> int:
    """Columns of one kernel row that a patch holds (``span_of`` of pieces.c)."""
    return column.count if pack == 1 else (column.count - 1) * column.step + (pack - 1) * column.stride + 1


def _at(tensor: Tensor | None, index: int) -> int | None:
    start = pointer(tensor)
    return None if tensor is None or start is None else start + index * tensor.element_size()


@lru_cache(maxsize=4096)
def _geometry(n: int, h: int, w: int, c: int, c0: int, cb: int, row: Axis, column: Axis, pack: int) -> Geometry:
    return Geometry(
        n, h, w, c, c0, cb, row.start, row.step, row.count, row.stride, row.length,
        column.start, column.step, column.count, column.stride, column.length, pack,
    )  # fmt: skip


@lru_cache(maxsize=4096)
def _landing(
    n: int, rows: int, cols: int, pack: int, c: int, pitch: int, groups: int, sums_pitch: int,
    out_strides: tuple[int, int, int], factor: int, row_weight: int,
) -> Landing:  # fmt: skip
    return Landing(n, rows, cols, pack, c, pitch, groups, sums_pitch, *out_strides, factor, row_weight)
