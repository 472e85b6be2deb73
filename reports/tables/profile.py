"""What the profile pass saw: pieces of the step, shares of the device's ceilings, operators and layers beside FP32's.

The operators and layers of one row stand in the section; those of every other cell stand in its details.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from bench.records.schema import (
    Ceilings,
    Interval,
    OperatorTime,
    PhaseWork,
    ProductWork,
    ProfileResult,
    RunRecord,
    SideProfile,
)
from bench.units import Absent, format_bytes, format_ms, format_percent, format_span_overhead
from reports.rows import PHASES, Ratio, Row, Section
from reports.tables.cells import label_cell
from reports.tables.model import Cell, Column, Table, TableRow, absent_cell, build_table
from reports.text import clean_text

PIECES = (
    "quantize", "im2col", "gemm", "dequantize", "norm", "activation", "pool", "hypernet_forward", "meta_gradient",
    "rest",
)  # fmt: skip
GEMMS = ("fprop", "dgrad", "wgrad")
OPERATOR_COLUMNS = (
    Column(key="rank", header="Rank", numeric=False),
    *(
        column
        for side, name in (("cell", "This cell"), ("fp32", "FP32"))
        for column in (
            Column(key=f"{side}_operator", header=f"{name}: operator", numeric=False),
            Column(key=f"{side}_calls", header="Calls", unit="a step"),
            Column(key=f"{side}_ms", header="Own time", unit="ms a step, on a GPU its kernels’; share"),
        )
    ),
)
LAYER_COLUMNS = (
    Column(key="layer", header="Layer", numeric=False),
    *(Column(key=gemm, header=gemm, unit="ms; FP32’s") for gemm in GEMMS),
    *(Column(key=f"{gemm}_share", header=f"{gemm}, of the ceiling", unit="%; of copying") for gemm in GEMMS),
)
KERNEL_COLUMNS = (
    Column(key="kernel", header="GPU kernel", numeric=False),
    Column(key="launches", header="Launches", unit="a step"),
    Column(key="total", header="Time", unit="ms a step"),
    Column(key="share", header="Share", unit="% of all kernels"),
    Column(key="tensor_cores", header="Tensor cores", numeric=False),
)
WORK_COLUMNS = (
    Column(key="phase", header="Phase", numeric=False),
    Column(key="time", header="Time", unit="ms"),
    Column(key="integer", header="INT8 operations", unit="10⁹"),
    Column(key="float", header="Floating-point operations", unit="10⁹"),
    Column(key="bytes", header="Moved at least"),
    Column(key="share", header="Of the ceilings", unit="%"),
    Column(key="copy", header="Of copying", unit="%"),
)


def pieces_table(section: Section) -> Table:
    """Quantizing, laying out, multiplying and the rest: where a step with spans goes."""
    profiles = [(row, row.first.profile) for row in section.rows if row.first.profile is not None]
    present = {span.piece for _, profile in profiles for span in profile.cell.spans}
    names = [*(piece for piece in PIECES if piece in present), *sorted(present - set(PIECES))]
    columns = (
        Column(key="method", header="Method", numeric=False),
        *(Column(key=name, header=_piece_words(name), unit="ms") for name in names),
        Column(key="between", header="Between medians", unit="ms"),
        Column(key="unattributed", header="Unattributed", unit="% of a plain step"),
        Column(key="overhead", header="Spans add", unit="% to the step; to FP32’s"),
    )
    rows = []
    for row, profile in profiles:
        sums = {name: math.fsum(span.span_ms for span in profile.cell.spans if span.piece == name) for name in names}
        pieces = [Cell(text=_bare_ms(value), value=value) if value else _DASH for value in sums.values()]
        cells = (
            label_cell(row),
            *pieces,
            _between_cell(profile.cell),
            _percent_cell(profile.cell.unattributed_pct, "profile.cell.unattributed_pct"),
            _overhead_cell(profile),
        )
        rows.append((row, cells))
    caption = (
        "Sums of spans over all layers and both directions; first seed. Each span is a median over steps, and what "
        "these medians leave of the median step with spans stands apart (between medians)."
    )
    drawn = sorted({profile.cell.drawn_layer for _, profile in profiles if profile.cell.drawn_layer})
    if drawn:
        caption += (
            f" Slim took {clean_text(' or '.join(drawn))}, a layer of about mean size, in every step of this pass."
        )
    if profiles:
        sides = [(profile.cell.span_overhead_pct, profile.fp32.span_overhead_pct) for _, profile in profiles]
        caption += f" {format_span_overhead(*zip(*sides, strict=True))}"
    return build_table("pieces", "Pieces of the step", caption, columns, rows)


def ceilings_table(section: Section) -> Table:
    """How far each phase is from the best that the device was seen to do."""
    profiles = [(row, row.first.profile) for row in section.rows if row.first.profile is not None]
    phases = [work for _, profile in profiles for work in profile.cell.work if not work.layer]
    computing = {work.phase for work in phases if _has_products(work)}
    names = [name for name in PHASES if any(work.phase == name for work in phases)]
    units = {name: "% of the ceilings; of copying" if name in computing else "% of copying" for name in names}
    columns = (
        Column(key="method", header="Method", numeric=False),
        *(Column(key=name, header=name.capitalize(), unit=unit) for name, unit in units.items()),
    )
    rows = [
        (row, (label_cell(row), *(_phase_share_cell(profile.cell, name, name in computing) for name in names)))
        for row, profile in profiles
    ]
    caption = (
        "First line: time that the phase's products would take at their ceilings, over the time it takes. Second: "
        "bytes that it moves at least, over what copying would move in that time."
    )
    if idle := [name for name in names if name not in computing]:
        caption += f" Without products, so held against copying alone: {', '.join(idle)}."
    if profiles:
        caption += f" Measured on the spot: {ceilings_text(profiles[0][1].ceilings)}."
    return build_table("ceilings", "Share of the device's ceilings", caption, columns, rows)


def operators_table(section: Section) -> Table:
    """The ten most expensive operators of one row beside FP32's."""
    row = shown_row(section)
    rows = () if row is None else operator_rows(row.first)
    name = "" if row is None else row.named
    caption = (
        f"Of {name}, first seed, and of its FP32 reference, under torch.profiler; own time leaves out what an operator "
        "calls. Those of every other cell stand in its details."
    )
    title = f"Ten most expensive operators: {name} against FP32"
    return _one_rows_table("operators", title, caption, OPERATOR_COLUMNS, row, rows)


def layers_table(section: Section) -> Table:
    """Forward, input-gradient and weight-gradient product of every layer of one row beside FP32's."""
    row = shown_row(section)
    rows = () if row is None else layer_rows(row.first)
    name = "" if row is None else row.named
    caption = (
        f"Of {name}, first seed: each product with quantizing, laying out and dequantizing for it, FP32’s below; then "
        "the product alone against its ceiling. Those of every other cell stand in its details."
    )
    return _one_rows_table("layers", f"Products by layer: {name} against FP32", caption, LAYER_COLUMNS, row, rows)


def shown_row(section: Section) -> Row | None:
    """The row whose operators and layers stand in the section: the fastest with integer products, else the fastest."""
    profiled = [row for row in section.rows if row.first.profile is not None and row.is_low_bit]
    integer = [row for row in profiled if row.ran_as == "integer"]
    return min(integer or profiled, key=_speed, default=None)


def operator_rows(record: RunRecord) -> tuple[tuple[Cell, ...], ...]:
    """Rows under ``OPERATOR_COLUMNS``; none without a trace."""
    if record.profile is None:
        return ()
    sides = {"cell": record.profile.cell.trace, "fp32": record.profile.fp32.trace}
    count = max((len(trace.operators) for trace in sides.values() if trace is not None), default=0)
    rows = []
    for index in range(count):
        cells = [Cell(text=str(index + 1), value=index + 1)]
        for side, trace in sides.items():
            operators = () if trace is None else trace.operators
            path = f"profile.{side}.trace.operators[{index}]"
            cells += _operator_cells(operators[index], path) if index < len(operators) else [_DASH] * 3
        rows.append(tuple(cells))
    return tuple(rows)


def kernel_rows(record: RunRecord) -> tuple[tuple[Cell, ...], ...]:
    """Rows under ``KERNEL_COLUMNS``: the cell's most expensive GPU kernels; none on a CPU."""
    trace = None if record.profile is None else record.profile.cell.trace
    if trace is None or isinstance(trace.kernels, Absent):
        return ()
    rows = []
    for index, kernel in enumerate(trace.kernels):
        path = f"profile.cell.trace.kernels[{index}]"
        cells = (
            Cell(text=kernel.name),
            Cell(text=f"{kernel.calls:.4g}", value=kernel.calls, source=f"{path}.calls"),
            Cell(text=_bare_ms(kernel.total_ms), value=kernel.total_ms, source=f"{path}.total_ms"),
            _percent_cell(kernel.share_pct, f"{path}.share_pct"),
            Cell(text="yes" if kernel.tensor_cores else "no"),
        )
        rows.append(cells)
    return tuple(rows)


def layer_rows(record: RunRecord) -> tuple[tuple[Cell, ...], ...]:
    """Rows under ``LAYER_COLUMNS``."""
    if record.profile is None:
        return ()
    own, fp32 = (_by_layer(side) for side in (record.profile.cell, record.profile.fp32))
    names = list(dict.fromkeys(layer for layer, _ in own))
    return tuple(
        (
            Cell(text=name),
            *(_product_cell(own.get((name, gemm)), fp32.get((name, gemm))) for gemm in GEMMS),
            *(_share_cell(own.get((name, gemm))) for gemm in GEMMS),
        )
        for name in names
    )


def work_rows(record: RunRecord) -> tuple[tuple[Cell, ...], ...]:
    """Rows under ``WORK_COLUMNS``: every phase as a whole."""
    if record.profile is None:
        return ()
    return tuple(
        _work_cells(work, f"profile.cell.work[{index}]")
        for index, work in enumerate(record.profile.cell.work)
        if not work.layer
    )


def ceilings_text(ceilings: Ceilings) -> str:
    """The ceilings in words."""
    rates = (
        ("INT8", ceilings.int8_gops, "GOP/s"), ("FP32", ceilings.fp32_gflops, "GFLOP/s"),
        ("bf16", ceilings.bf16_gflops, "GFLOP/s"), ("copying", ceilings.copy_gb_s, "GB/s"),
    )  # fmt: skip
    return ", ".join(
        f"{name} n/a ({rate.reason})" if isinstance(rate, Absent) else f"{name} {rate:,.4g} {unit}"
        for name, rate, unit in rates
    )


_DASH = Cell(text="–", empty=True)
_NO_PRODUCTS = Absent("no products")


def _piece_words(piece: str) -> str:
    return piece.replace("_", " ").replace("hypernet ", "hypernetwork ")


def _speed(row: Row) -> tuple[bool, float]:
    """Ratios with an interval first; a row without a ratio last."""
    ratio = row.time_vs_fp32
    if not isinstance(ratio, Ratio):
        return True, math.inf
    return not isinstance(ratio.interval, Interval), ratio.value


def _one_rows_table(
    key: str, title: str, caption: str, columns: tuple[Column, ...], row: Row | None, rows: Sequence[tuple[Cell, ...]]
) -> Table:
    lines = () if row is None else tuple(TableRow(cells=cells, row=row) for cells in rows)
    return Table(key=key, title=title, caption=caption, columns=columns, rows=lines, links=False)


def _operator_cells(operator: OperatorTime, path: str) -> list[Cell]:
    calls = Cell(text=f"{operator.calls:.4g}", value=operator.calls, source=f"{path}.calls")
    name, own = ("self_ms", operator.self_ms)
    if not isinstance(operator.device_ms, Absent):
        name, own = ("device_ms", operator.device_ms)
    time = Cell(
        text=_bare_ms(own), detail=format_percent(operator.share_pct), value=own, source=f"{path}.{name}",
        detail_sources=(f"{path}.share_pct",),
    )  # fmt: skip
    return [Cell(text=operator.name), calls, time]


def _by_layer(side: SideProfile) -> Mapping[tuple[str, str], tuple[int, ProductWork]]:
    return {(product.layer, product.gemm): (index, product) for index, product in enumerate(side.products)}


def _product_cell(own: tuple[int, ProductWork] | None, fp32: tuple[int, ProductWork] | None) -> Cell:
    if own is None:
        return _DASH
    index, product = own
    if isinstance(product.all_ms, Absent):
        return absent_cell(product.all_ms)
    detail, sources = "", tuple[str, ...]()
    if fp32 is not None and not isinstance(fp32[1].all_ms, Absent):
        detail, sources = _bare_ms(fp32[1].all_ms), (f"profile.fp32.products[{fp32[0]}].all_ms",)
    return Cell(
        text=_bare_ms(product.all_ms), detail=detail, value=product.all_ms,
        source=f"profile.cell.products[{index}].all_ms", detail_sources=sources,
    )  # fmt: skip


def _share_cell(own: tuple[int, ProductWork] | None) -> Cell:
    if own is None:
        return _DASH
    index, product = own
    path = f"profile.cell.products[{index}]"
    return _of_ceilings(product.ceiling_share_pct, product.copy_share_pct, path)


def _phase_share_cell(side: SideProfile, phase: str, of_ceilings: bool) -> Cell:
    """A phase's share of the ceilings above that of copying, or the latter alone."""
    for index, work in enumerate(side.work):
        if work.phase != phase or work.layer:
            continue
        path = f"profile.cell.work[{index}]"
        if not of_ceilings:
            return _percent_cell(work.copy_share_pct, f"{path}.copy_share_pct")
        return _of_ceilings(_ceiling_share(work), work.copy_share_pct, path)
    return _DASH


def _ceiling_share(work: PhaseWork) -> float | Absent:
    """A phase that computes no product is not at 0 % of a ceiling: there is none to hold it against."""
    return work.ceiling_share_pct if _has_products(work) else _NO_PRODUCTS


def _has_products(work: PhaseWork) -> bool:
    return any(work.operations.values())


def _of_ceilings(share: float | Absent, copy: float | Absent, path: str) -> Cell:
    cell = _percent_cell(share, f"{path}.ceiling_share_pct")
    if isinstance(copy, Absent) or (isinstance(share, Absent) and share != _NO_PRODUCTS):
        return cell
    detail = "; ".join(filter(None, (cell.detail, _percent_text(copy))))
    return dataclasses.replace(cell, detail=detail, detail_sources=(f"{path}.copy_share_pct",))


def _between_cell(side: SideProfile) -> Cell:
    rest = side.span_rest_ms
    if isinstance(rest, Absent):
        return absent_cell(rest)
    return Cell(text=_bare_ms(rest).replace("-", "−"), value=rest, source="profile.cell.span_rest_ms")


def _overhead_cell(profile: ProfileResult) -> Cell:
    cell = _percent_cell(profile.cell.span_overhead_pct, "profile.cell.span_overhead_pct")
    return dataclasses.replace(
        cell, detail=f"{profile.fp32.span_overhead_pct:.1f}", detail_sources=("profile.fp32.span_overhead_pct",)
    )


def _percent_cell(value: float | Absent, source: str) -> Cell:
    if isinstance(value, Absent):
        return absent_cell(value)
    return Cell(text=_percent_text(value), value=value, source=source)


def _percent_text(value: float) -> str:
    """One decimal; a small share keeps a digit instead of rounding to nothing."""
    return f"{value:.1f}" if value == 0 or abs(value) >= 0.05 else f"{value:.1g}"


def _work_cells(work: PhaseWork, path: str) -> tuple[Cell, ...]:
    time = work.time_ms
    floating = sum(count for kind, count in work.operations.items() if kind != "int8")
    integer = work.operations.get("int8", 0)
    return (
        Cell(text=work.phase),
        absent_cell(time)
        if isinstance(time, Absent)
        else Cell(text=_bare_ms(time), value=time, source=f"{path}.time_ms"),
        Cell(text=f"{integer / 1e9:.4g}", value=integer / 1e9),
        Cell(text=f"{floating / 1e9:.4g}", value=floating / 1e9),
        Cell(text=format_bytes(work.num_bytes), value=work.num_bytes, source=f"{path}.num_bytes"),
        _percent_cell(_ceiling_share(work), f"{path}.ceiling_share_pct"),
        _percent_cell(work.copy_share_pct, f"{path}.copy_share_pct"),
    )


def _bare_ms(value: float) -> str:
    return format_ms(value).removesuffix(" ms")
