"""Prints what ``metagrad-bench kernels`` measured: steps, memory, layers, pieces, and one sentence per width."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from bench.units import Absent, format_absent, format_bytes, format_ms, format_percent, format_ratio

if TYPE_CHECKING:
    from rich.console import Console

    from tools.kernels.layers import LayerRow
    from tools.kernels.results import ModelResult, WidthResult

NAMES = {
    "fp32": "FP32, channels-last",
    "bf16": "bf16 autocast",
    "fp32_compiled": "FP32, compiled",
    "bf16_compiled": "bf16 autocast, compiled",
    "fp32_lean": "FP32, our norm, ReLU, pooling",
    "int8": "INT8",
    "int4": "INT4",
    "int8_compact": "INT8, compact",
    "int4_compact": "INT4, compact",
}
_WORDS = {"int8": "INT8", "int4": "INT4"}
_DASH = "–"


def render(result: ModelResult, console: Console) -> None:
    """Print a network's tables, notices and headlines.

    Args:
        result: what ``measure_model`` answers.
        console: where to print.
    """
    ceilings = result.ceilings
    console.print(
        Text(f"\n{result.model}", style="bold").append(
            f": batch {result.batch}, {result.image_size}×{result.image_size} synthetic images, dispatch="
            f"{result.dispatch}, {result.device}, {result.threads} threads", style="not bold",
        )
    )  # fmt: skip
    console.print(
        f"ceilings: large integer product {_rate(ceilings.int8_gops, 'GOP/s')}, FP32 product "
        f"{_rate(ceilings.fp32_gflops, 'GFLOP/s')}, bf16 product {_rate(ceilings.bf16_gflops, 'GFLOP/s')}, copy "
        f"{_rate(ceilings.copy_gb_s, 'GB/s')}",
        highlight=False,
    )
    console.print(_steps(result))
    console.print(_memory(result))
    for width in _WORDS:
        found: WidthResult = getattr(result, width)
        console.print(_layers(width, found))
        if len({row.why for row in found.detail.layers if row.why}) > 1:  # else one reason holds for all
            console.print(_reasons(width, found))
    console.print(_pieces(result))
    lean = result.fp32_lean
    console.print(
        Text(
            f"{NAMES['fp32_lean']}: {format_ratio(lean.step_vs_fp32)} FP32's time "
            f"({format_ratio(lean.interval.low)} to {format_ratio(lean.interval.high)}). {lean.meaning}."
        )
    )
    for notice in result.notices:
        console.print(Text(notice, style="yellow"))
    for width in _WORDS:
        console.print(Text(headline(result, width)))


def headline(result: ModelResult, width: str) -> str:
    """One sentence per width: the step against all four references, bytes kept and peak.

    Args:
        result: of a network.
        width: int8 or int4.
    """
    found: WidthResult = getattr(result, width)
    label = "" if found.label == "integer" else f" ({found.label})"
    ratios = {
        key: getattr(found, key)
        for key in (
            "step_vs_fp32", "step_vs_fp32_compiled", "step_vs_bf16", "step_vs_bf16_compiled", "saved_vs_fp32",
            "saved_vs_fp32_compact", "peak_vs_fp32",
        )
    }  # fmt: skip
    reasons = dict.fromkeys(value.reason for value in ratios.values() if isinstance(value, Absent))
    why = f" (n/a: {'; '.join(reasons)})" if reasons else ""
    text = {key: "n/a" if isinstance(value, Absent) else format_ratio(value) for key, value in ratios.items()}
    return (
        f"{result.model}, batch {result.batch}, {_WORDS[width]}{label}: the step takes {text['step_vs_fp32']} FP32's "
        f"time ({text['step_vs_fp32_compiled']} compiled FP32's) and {text['step_vs_bf16']} bf16 autocast's "
        f"({text['step_vs_bf16_compiled']} compiled bf16's); it keeps {text['saved_vs_fp32']} FP32's bytes for "
        f"backward ({text['saved_vs_fp32_compact']} with compact), peak {text['peak_vs_fp32']}{why}."
    )


def _steps(result: ModelResult) -> Table:
    table = _table(
        "one training step", "median", "quartiles", "forward", "backward", "optimizer", "/ FP32", "/ bf16",
        "/ FP32 compiled", "/ bf16 compiled", "first step",
    )  # fmt: skip
    medians = {side: times.step_ms.median for side, times in result.steps.items() if not isinstance(times, Absent)}
    for side, times in result.steps.items():
        if isinstance(times, Absent):
            table.add_row(NAMES[side], "n/a")
            continue
        phases = [times.phases_ms.get(phase) for phase in ("forward", "backward", "optimizer")]
        ratios = [
            format_ratio(medians[side] / medians[name]) if name in medians else _DASH
            for name in ("fp32", "bf16", "fp32_compiled", "bf16_compiled")
        ]
        cached = times.from_compile_cache
        first = f"{times.first_step_s:.2f} s" + (" (code from its cache)" if cached is True else "")
        table.add_row(
            NAMES[side],
            format_ms(times.step_ms.median),
            f"{format_ms(times.step_ms.q1)} – {format_ms(times.step_ms.q3)}",
            *(_DASH if phase is None else format_ms(phase.median) for phase in phases),
            *ratios,
            first,
        )
    absent = [f"{NAMES[side]}: {format_absent(why)}" for side, why in result.steps.items() if isinstance(why, Absent)]
    table.caption = Text("\n".join(absent)) if absent else None
    return table


def _memory(result: ModelResult) -> Table:
    table = _table("memory", "kept for backward", "/ FP32", "of it", "peak of a step", "/ FP32")
    whole, peak_of_fp32 = result.saved["fp32"].total_bytes, result.peak_bytes["fp32"]
    for side, saved in result.saved.items():
        peak = result.peak_bytes[side]
        known = not isinstance(peak, Absent) and not isinstance(peak_of_fp32, Absent) and peak_of_fp32 > 0
        table.add_row(
            NAMES[side],
            format_bytes(saved.total_bytes),
            format_ratio(saved.total_bytes / whole),
            ", ".join(f"{dtype} {format_bytes(size)}" for dtype, size in saved.by_dtype.items()),
            format_bytes(peak),
            format_ratio(peak / peak_of_fp32) if known else _DASH,  # type: ignore[operator]
        )
    table.caption = f"peak: {result.peak_meaning}"
    return table


def _layers(width: str, found: WidthResult) -> Table:
    table = _table(
        f"{_WORDS[width]} by layer", "GEMM", "M×K×N", "padded", "path", "product", "with its copies", "useful GOP/s",
        "of ceiling", "of copy", "FP32 alone", "bf16 alone",
    )  # fmt: skip
    last = ""
    for row in found.detail.layers:
        table.add_row(
            Text(row.layer if row.layer != last else ""),
            row.gemm,
            _shape(row),
            _DASH if isinstance(row.padded, Absent) or row.padded == row.shape else "×".join(map(str, row.padded)),
            Text(row.path),
            _ms(row.gemm_ms),
            _ms(row.all_ms),
            _DASH if isinstance(row.useful_gops, Absent) else f"{row.useful_gops:.0f}",
            _percent(row.ceiling_share_pct),
            _percent(row.copy_share_pct),
            _ms(row.fp32_ms),
            _ms(row.bf16_ms),
        )
        last = row.layer
    return table


def _reasons(width: str, found: WidthResult) -> Table:
    table = _table(f"{_WORDS[width]}: why this path", "GEMM", "path", "why")
    last = ""
    for row in found.detail.layers:
        if row.why:
            name = Text(row.layer if row.layer != last else "")
            table.add_row(name, row.gemm, Text(row.path), Text(row.why.removeprefix(f"{row.path}: ")))
            last = row.layer
    return table


def _pieces(result: ModelResult) -> Table:
    details = {word: getattr(result, width).detail for width, word in _WORDS.items()}
    table = _table("where a step's time goes", *(column for word in details for column in (word, "share")))
    for piece in next(iter(details.values())).pieces_ms:
        cells = []
        for detail in details.values():
            value = detail.pieces_ms[piece]
            cells += [_ms(value), _DASH if isinstance(value, Absent) else _percent(100 * value / detail.traced_step_ms)]
        table.add_row(piece, *cells)
    table.caption = "traced steps; tracing adds " + ", ".join(
        f"{format_percent(detail.tracing_overhead_pct)} to {word}'s" for word, detail in details.items()
    )
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(pad_edge=False, caption_justify="left")
    table.add_column(title)
    for column in columns:
        table.add_column(column, justify="left" if column in ("GEMM", "path", "of it", "why") else "right")
    return table


def _shape(row: LayerRow) -> str:
    if isinstance(row.shape, Absent):
        return _DASH
    times = f"{row.calls} × " if row.calls > 1 else ""
    return times + "×".join(map(str, row.shape))


def _ms(value: float | Absent) -> str:
    return _DASH if isinstance(value, Absent) else format_ms(value)


def _percent(value: float | Absent) -> str:
    return _DASH if isinstance(value, Absent) else format_percent(value)


def _rate(value: float | Absent, unit: str) -> str:
    return format_absent(value) if isinstance(value, Absent) else f"{value:,.0f} {unit}"
