"""Sections laid out as table models: order, unit, precision, best mark, label; HTML and markdown print these cells."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from bench.profilers.memory_categories import CATEGORIES
from bench.records.schema import Interval, MethodFacts, Summary
from bench.units import Absent, format_bytes, format_ms, format_percent
from reports.rows import PHASES, Estimate, Ratio, Row, Section, status_text
from reports.text import ratio_text, signed

FLOAT_BITS = 32
_SHARES = ("forward", "backward", "meta", "optimizer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column: its header with the unit, what it means, and which end of it is better."""

    key: str
    header: str
    unit: str = ""
    numeric: bool = True
    best: Literal["low", "high", ""] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One cell: the text, a second line (spread, interval or reason), and where the number comes from."""

    text: str
    detail: str = ""
    value: float | None = None  # raw value, for sorting and for checking against the record
    source: str = ""  # path in the record, where one record gives the value as it stands
    chip: str = ""  # a label that belongs to the value: integer, emulated, failed, ...
    best: bool = False
    unranked: bool = False  # of one seed or one process: never marked as the best
    empty: bool = False  # does not apply: read as "does not apply", printed as a dash


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRow:
    """Cells of one row and the row of the section it shows."""

    cells: tuple[Cell, ...]
    row: Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A titled table."""

    key: str
    title: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[TableRow, ...]


def main_table(section: Section) -> Table:
    """Accuracy and cost of every row: the table that a reader needs first."""
    columns = (
        Column(key="method", header="Method", numeric=False),
        Column(key="forward", header="Weights, activations", numeric=False),
        Column(key="error", header="Error signal ∇y", numeric=False),
        Column(key="grad", header="Weight gradient ∇W", numeric=False),
        Column(key="accuracy", header="Accuracy", unit="%", best="high"),
        Column(key="accuracy_vs_fp32", header="Δ to FP32", unit="points", best="high"),
        Column(key="step", header="Step", unit="median [quartiles]", best="low"),
        Column(key="time_vs_fp32", header="Step vs FP32", unit="ratio [95 %]", best="low"),
        *(Column(key=f"share_{name}", header=name.capitalize(), unit="% of step") for name in _SHARES),
        Column(key="peak", header="Peak memory", unit="allocated", best="low"),
        Column(key="hypernet_memory", header="Hypernetwork adds", unit="allocated"),
        Column(key="retain_time", header="Step vs retain", unit="ratio [95 %]"),
        Column(key="retain_memory", header="Added memory vs retain", unit="ratio, allocated"),
        Column(key="retain_process", header="Added memory vs retain", unit="ratio, process"),
    )
    rows = [
        (
            row,
            (
                label_cell(row),
                forward_cell(row.method),
                error_cell(row.method),
                grad_cell(row.method),
                estimate_cell(row.accuracy, source="accuracy.test_accuracy_pct"),
                Cell(text="reference", detail="", value=0.0)
                if row.is_fp32 and isinstance(row.accuracy, Estimate)
                else difference_cell(row.accuracy_vs_fp32),
                step_cell(row),
                interval_cell(row.time_vs_fp32, source="timing.time_vs_fp32.value"),
                *(share_cell(row, name) for name in _SHARES),
                bytes_cell(row.peak_allocated_bytes, source="memory.peak_allocated_bytes"),
                hypernet_bytes_cell(row, row.hypernet_extra_allocated_bytes, "memory.hypernet_extra_allocated_bytes"),
                *retain_cells(row)[:3],
            ),
        )
        for row in section.rows
    ]
    return _table("main", "Accuracy and cost", "", columns, rows)


def time_table(section: Section) -> Table:
    """Step time with its samples and every phase in milliseconds."""
    names = _phase_names(section.rows)
    columns = (
        Column(key="method", header="Method", numeric=False),
        Column(key="step", header="Step", unit="median [quartiles]", best="low"),
        Column(key="samples", header="Samples", unit="steps"),
        Column(key="fp32_step", header="FP32 step beside it", unit="median [quartiles]"),
        Column(key="time_vs_fp32", header="Step vs FP32", unit="ratio [95 %]", best="low"),
        *(Column(key=f"{name}_ms", header=name.capitalize(), unit="ms, median") for name in names),
    )
    rows = [
        (
            row,
            (
                label_cell(row),
                step_cell(row),
                _count_cell(row.step_ms),
                summary_cell(row.fp32_step_ms, source="timing.fp32_step_ms.median"),
                interval_cell(row.time_vs_fp32, source="timing.time_vs_fp32.value"),
                *(phase_cell(row, name) for name in names),
            ),
        )
        for row in section.rows
        if isinstance(row.step_ms, Summary)
    ]
    return _table(
        "time", "Step time and phases", "The FP32 step ran in alternating blocks in the same processes.", columns, rows
    )


def memory_table(section: Section) -> Table:
    """Every memory number side by side."""
    columns = (
        Column(key="method", header="Method", numeric=False),
        Column(key="allocated", header="Peak allocated", best="low"),
        Column(key="reserved", header="Peak reserved"),
        Column(key="process", header="Peak process"),
        Column(key="device", header="Peak device"),
        Column(key="fp32_allocated", header="FP32 peak allocated"),
        Column(key="hypernet_allocated", header="Hypernetwork adds", unit="allocated"),
        Column(key="hypernet_process", header="Hypernetwork adds", unit="process"),
    )
    rows = [
        (
            row,
            (
                label_cell(row),
                bytes_cell(row.peak_allocated_bytes, source="memory.peak_allocated_bytes"),
                bytes_cell(row.peak_reserved_bytes, source="memory.peak_reserved_bytes"),
                bytes_cell(row.peak_process_bytes, source="memory.peak_process_bytes"),
                bytes_cell(row.peak_device_bytes, source="memory.peak_device_bytes"),
                bytes_cell(row.fp32_peak_allocated_bytes, source="memory.fp32_peak_allocated_bytes"),
                hypernet_bytes_cell(row, row.hypernet_extra_allocated_bytes, "memory.hypernet_extra_allocated_bytes"),
                hypernet_bytes_cell(row, row.hypernet_extra_process_bytes, "memory.hypernet_extra_process_bytes"),
            ),
        )
        for row in section.rows
        if any(record.memory is not None for record in row.records)
    ]
    return _table("memory", "Memory", "Peaks of a few training steps in a fresh process.", columns, rows)


def hypernet_table(section: Section) -> Table:
    """Hypernetworks: size, cost against the retained graph, and what they do to the gradient."""
    columns: tuple[Column, ...] = (
        Column(key="method", header="Method", numeric=False),
        Column(key="hypernet", header="Hypernetwork", numeric=False),
        Column(key="strategy", header="Strategy", numeric=False),
        Column(key="parameters", header="Parameters"),
        Column(key="meta_ms", header="Meta phase", unit="ms, median", best="low"),
        Column(key="adds", header="Adds", unit="allocated", best="low"),
        Column(key="retain_time", header="Step vs retain", unit="ratio [95 %]", best="low"),
        Column(key="retain_memory", header="Added memory vs retain", unit="ratio, allocated", best="low"),
        Column(key="retain_process", header="Added memory vs retain", unit="ratio, process"),
        Column(key="retain_peak", header="Peak vs retain", unit="ratio", best="low"),
        Column(key="retain_accuracy", header="Accuracy vs retain", unit="points"),
        Column(key="amplification", header="Amplification", unit="mean |g̃|/|g|"),
        Column(key="cosine", header="Cosine", unit="g̃ and g"),
        Column(key="zeros", header="Zero codes", unit="%"),
        Column(key="meta_grad", header="Meta-gradient norm"),
    )
    sampled = any(_was_sampled(row) for row in section.rows)
    if sampled:
        columns += (
            Column(key="interpolation_error", header="Interpolation error", unit="share of the maximum"),
            Column(key="same_codes", header="Same codes as exact", unit="%"),
            Column(key="meta_angle", header="Meta-gradient, angle to exact", unit="degrees"),
        )
    rows = [
        (
            row,
            (
                label_cell(row),
                Cell(text=f"{row.method.hypernet}, {row.method.hypernet_form}{_hidden(row.method)}"),
                Cell(text=row.method.strategy),
                _hypernet_number(row, "num_parameters", ",.0f"),
                phase_cell(row, "meta"),
                hypernet_bytes_cell(row, row.hypernet_extra_allocated_bytes, "memory.hypernet_extra_allocated_bytes"),
                *retain_cells(row),
                _hypernet_number(row, "amplification", ".4g"),
                _hypernet_number(row, "cosine", ".4f"),
                _hypernet_number(row, "zero_share_pct", ".1f"),
                _meta_grad_cell(row),
                *(_tabulation_cells(row) if sampled else ()),
            ),
        )
        for row in section.rows
        if row.has_hypernet
    ]
    caption = (
        "Retain keeps the whole graph (the papers' non-slim form); slim keeps one random layer's; recompute none. "
        "Retain and slim run an LSTM as the published nn.LSTM, recompute and tabulate as our reduced cell."
    )
    return _table("hypernetwork", "Hypernetwork", caption, columns, rows)


def gemm_table(section: Section) -> Table:
    """Matrix products of one training step: how many were integer, and as what they ran."""
    kinds = ("fprop", "dgrad", "wgrad")
    columns = (
        Column(key="method", header="Method", numeric=False),
        Column(key="ran_as", header="Ran as", numeric=False),
        *(Column(key=f"integer_{kind}", header=f"Integer {kind}", unit="calls") for kind in kinds),
        *(Column(key=f"float_{kind}", header=f"Float {kind}", unit="calls") for kind in kinds),
        Column(key="share", header="Integer share", unit="% of the layers' multiply-adds", best="high"),
        Column(key="hypernet_macs", header="Hypernetwork", unit="million float multiply-adds"),
    )
    rows = []
    for row in section.rows:
        record = next((record for record in row.records if record.gemms is not None), None)
        if record is None or record.gemms is None:
            continue
        counts = [("integer_calls", record.gemms.integer_calls), ("float_calls", record.gemms.float_calls)]
        calls = [
            Cell(
                text=f"{of.get(kind, 0):,}", value=of.get(kind, 0), source=f"gemms.{name}.{kind}" if kind in of else ""
            )
            for name, of in counts
            for kind in kinds
        ]
        share = record.gemms.integer_share_pct
        share_of_layers = Cell(text=f"{share:.1f}", value=share, source="gemms.integer_share_pct")
        hypernet = _hypernet_macs_cell(row, record.gemms.hypernet_float_macs)
        rows.append((row, (label_cell(row), ran_as_cell(row), *calls, share_of_layers, hypernet)))
    caption = (
        "Counted in the second training step, the first in which a hypernetwork runs; integer products went through "
        "torch._int_mm"
    )
    by_choice = any(row.method.dispatch == "auto" for row in section.rows if row.method is not None)
    caption += ", or are direct integer sums where dispatch=auto found those faster." if by_choice else "."
    return _table("gemms", "Integer products", caption, columns, rows)


def category_table(section: Section) -> Table:
    """What each row held, by category, when its step held most."""
    columns = (
        Column(key="method", header="Method", numeric=False),
        Column(key="phase", header="Most in", numeric=False),
        *(Column(key=name, header=name.replace("_", " ").replace("hypernet", "hypernetwork")) for name in CATEGORIES),
        Column(key="hypernet_bound", header="Hypernetwork's bound", unit="computed"),
    )
    rows = []
    for row in section.rows:
        known = [record.memory.phases for record in row.records if record.memory is not None]
        peaks = [phase for phases in known if not isinstance(phases, Absent) for phase in phases]
        if not peaks:
            continue
        highest = max(peaks, key=lambda phase: phase.peak_bytes)
        cells = (
            label_cell(row),
            Cell(text=highest.phase, detail=highest.layer),
            *(bytes_cell(highest.categories[name]) for name in CATEGORIES),
            hypernet_bytes_cell(row, row.hypernet_bound_bytes, "memory.hypernet_bound_bytes"),
        )
        rows.append((row, cells))
    caption = (
        "Live tensors at the moment in which the step held most; the categories add up to that peak. The bound is "
        "computed from tensor shapes: the most that the hypernetwork can add to any peak."
    )
    return _table("memory_categories", "Memory by category", caption, columns, rows)


def section_tables(section: Section) -> tuple[Table, ...]:
    """All tables of a section that have rows; the main one first."""
    tables = (build(section) for build in _TABLES)
    return tuple(table for table in tables if table.rows)


_TABLES = (main_table, time_table, memory_table, category_table, hypernet_table, gemm_table)


def forward_cell(facts: MethodFacts) -> Cell:
    """Bits of weights and activations, and their quantizer."""
    if min(facts.weight_bits, facts.activation_bits) >= FLOAT_BITS:
        return Cell(text=_floating(facts))
    edges = "" if facts.edge_layers == "same" else f", edge layers {facts.edge_layers}"
    low = f"{facts.cycle_min_bits}–" if isinstance(facts.cycle_min_bits, int) else ""  # cyclic precision
    bits = f"W{low}{facts.weight_bits} A{low}{facts.activation_bits}"
    return Cell(text=bits, detail=f"{facts.forward_quantizer}{edges}")


def error_cell(facts: MethodFacts) -> Cell:
    """Bits, quantizer and rounding of the error signals."""
    if facts.error_bits >= FLOAT_BITS:
        return Cell(text=_floating(facts))
    widths = f"{facts.error_bits}–24" if facts.error_quantizer == "afp" else str(facts.error_bits)  # chosen per layer
    return Cell(text=f"{widths} bit", detail=f"{facts.error_quantizer}, {facts.error_rounding}")


def grad_cell(facts: MethodFacts) -> Cell:
    """Bits of the weight gradient and what makes it: a quantizer, or a hypernetwork with its form and strategy."""
    bits = _floating(facts) if facts.grad_bits >= FLOAT_BITS else f"{facts.grad_bits} bit"
    if facts.hypernet != "none":
        return Cell(text=bits, detail=f"{facts.hypernet}{_hidden(facts)}, {facts.hypernet_form}, {facts.strategy}")
    return Cell(text=bits, detail=facts.grad_quantizer if facts.grad_bits < FLOAT_BITS else "")


def label_cell(row: Row) -> Cell:
    """Name of the row, its seeds, and its status where it is not ok."""
    troubles = sorted({status_text(record) for record in row.troubles})
    if len(row.troubles) < len(row.records) and troubles:
        troubles = [f"{len(row.troubles)} of {len(row.records)} {' or '.join(troubles)}"]
    seeds = row.seeds if len(row.seeds) <= 5 else (*row.seeds[:4], "…")
    detail = f"{'seed' if len(row.seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}"
    return Cell(text=row.label, detail=detail, chip=", ".join(troubles))


def trouble_reasons(row: Row) -> tuple[str, ...]:
    """Why cells of the row did not finish, each reason once."""
    return tuple(dict.fromkeys(record.reason for record in row.troubles if record.reason))


def ran_as_cell(row: Row) -> Cell:
    """What the low-bit products ran as."""
    label = row.ran_as
    if isinstance(label, Absent):
        return absent_cell(label)
    return Cell(text="", chip=label)


def estimate_cell(value: Estimate | Absent, *, source: str = "", digits: int = 2) -> Cell:
    """A mean over seeds with its interval and n."""
    if isinstance(value, Absent):
        return absent_cell(value)
    if value.n == 1:
        text = f"{value.value:.{digits}f}"
        return Cell(text=text, detail="n = 1", value=value.value, source=source, unranked=True)
    if isinstance(value.interval, Absent):
        return Cell(text=f"{value.value:.{digits}f}", detail=f"n = {value.n}", value=value.value)
    span = f"[{value.interval.low:.{digits}f}, {value.interval.high:.{digits}f}]"
    return Cell(text=f"{value.value:.{digits}f}", detail=f"{span}, n = {value.n}", value=value.value)


def difference_cell(value: Estimate | Absent, *, digits: int = 2) -> Cell:
    """A difference in points, with its sign."""
    if isinstance(value, Absent):
        return absent_cell(value)
    detail = f"n = {value.n}"
    if isinstance(value.interval, Interval):
        detail = f"[{signed(value.interval.low, digits)}, {signed(value.interval.high, digits)}], {detail}"
    unranked = not isinstance(value.interval, Interval)
    return Cell(text=signed(value.value, digits), detail=detail, value=value.value, unranked=unranked)


def summary_cell(value: Summary | Absent, *, source: str = "", chip: str = "") -> Cell:
    """A median with its quartiles, in milliseconds."""
    if isinstance(value, Absent):
        return absent_cell(value)
    detail = f"[{_bare(format_ms(value.q1))}, {_bare(format_ms(value.q3))}]"
    return Cell(text=format_ms(value.median), detail=detail, value=value.median, source=source, chip=chip)


def step_cell(row: Row) -> Cell:
    """The row's step time with what it ran as."""
    cell = summary_cell(row.step_ms, source="timing.step_ms.median", chip=_label(row))
    return dataclasses.replace(cell, unranked=row.timed_once)


def interval_cell(value: Ratio | Absent, *, source: str = "") -> Cell:
    """A ratio with its 95 % interval, or why it has none."""
    if isinstance(value, Absent):
        return absent_cell(value)
    if isinstance(value.interval, Absent):
        detail = value.interval.reason
        return Cell(text=ratio_text(value.value), detail=detail, value=value.value, source=source, unranked=True)
    detail = f"[{value.interval.low:.2f}, {value.interval.high:.2f}]"
    return Cell(text=ratio_text(value.value), detail=detail, value=value.value, source=source)


def bytes_cell(value: float | Absent, *, source: str = "") -> Cell:
    """Bytes in binary units."""
    if isinstance(value, Absent):
        return absent_cell(value)
    return Cell(text=format_bytes(value), value=value, source=source)


def hypernet_bytes_cell(row: Row, value: float | Absent, source: str) -> Cell:
    """What the hypernetwork adds; a dash where there is none."""
    return bytes_cell(value, source=source) if row.has_hypernet else Cell(text="–", empty=True)


def share_cell(row: Row, name: str) -> Cell:
    """A phase's share of the mean step, in percent."""
    if isinstance(row.phase_share_pct, Absent):
        return absent_cell(row.phase_share_pct)
    if name not in row.phase_share_pct:
        return Cell(text="–", empty=True)
    share = row.phase_share_pct[name]
    return Cell(text=_bare(format_percent(share)), value=share, source=f"timing.phase_share_pct.{name}")


def phase_cell(row: Row, name: str) -> Cell:
    """A phase's median time."""
    if isinstance(row.phases_ms, Absent):
        return absent_cell(row.phases_ms)
    if name not in row.phases_ms:
        return Cell(text="–", empty=True)
    value = row.phases_ms[name]
    source = f"timing.phases_ms.{name}.median"
    return Cell(text=_bare(format_ms(value)), value=value, source=source, unranked=row.timed_once)


def retain_cells(row: Row) -> tuple[Cell, Cell, Cell, Cell, Cell]:
    """Step time, added memory (allocated, process), peak and accuracy against retain of the same setting."""
    against = row.against_retain
    dash = Cell(text="–", empty=True)
    if against is None:
        return (dash,) * 5
    if row.method.strategy == "retain":
        return (Cell(text="reference"),) * 5
    if isinstance(against, Absent):
        return (absent_cell(against), dash, dash, dash, dash)
    return (
        interval_cell(against.time),
        _ratio_cell(against.hypernet_extra_allocated),
        _ratio_cell(against.hypernet_extra_process),
        _ratio_cell(against.peak_allocated),
        difference_cell(against.accuracy_points),
    )


def absent_cell(value: Absent) -> Cell:
    """An unknown value with its reason, never an empty cell."""
    return Cell(text="n/a", detail=f"({value.reason})")


def _ratio_cell(value: float | Absent) -> Cell:
    return absent_cell(value) if isinstance(value, Absent) else Cell(text=ratio_text(value), value=value)


def _count_cell(value: Summary | Absent) -> Cell:
    return (
        absent_cell(value)
        if isinstance(value, Absent)
        else Cell(text=f"{value.n:,}", value=value.n, source="timing.step_ms.n")
    )


def _hypernet_number(row: Row, name: str, form: str) -> Cell:
    """A number of the first seed's hypernetwork; with several seeds that seed stands beside."""
    result = row.first.hypernet
    if result is None:
        return absent_cell(Absent(reason=row.first.missing.get("hypernet", "not measured")))
    value: Any = getattr(result, name)
    if isinstance(value, Absent):
        return absent_cell(value)
    detail = f"seed {row.first.seed}" if len(row.records) > 1 and name != "num_parameters" else ""
    return Cell(text=format(value, form), detail=detail, value=value, source=f"hypernet.{name}")


def _meta_grad_cell(row: Row) -> Cell:
    """The meta-gradient's norm; under slim it is one layer's share, which no other strategy's is."""
    cell = _hypernet_number(row, "meta_grad_norm", ".3g")
    if row.method.strategy != "slim" or cell.value is None:
        return cell
    return dataclasses.replace(cell, detail=", ".join(part for part in (cell.detail, "one layer's share") if part))


def _was_sampled(row: Row) -> bool:
    """Whether a row's `tabulate` was held against the exact strategy."""
    result = row.first.hypernet
    return result is not None and not isinstance(result.interpolation_error, Absent)


def _tabulation_cells(row: Row) -> tuple[Cell, ...]:
    """How `tabulate` compares with the exact strategy at the last sampled step; dashes for exact strategies."""
    if row.method.strategy != "tabulate":
        return (Cell(text="–", empty=True),) * 3
    return (
        _hypernet_number(row, "interpolation_error", ".1e"),
        _hypernet_number(row, "same_codes_pct", ".4f"),
        _hypernet_number(row, "meta_angle_deg", ".2g"),
    )


def _hypernet_macs_cell(row: Row, macs: int) -> Cell:
    if not row.has_hypernet:
        return Cell(text="–", empty=True)
    return Cell(text=f"{macs / 1e6:,.1f}", value=macs, source="gemms.hypernet_float_macs")


def _floating(facts: MethodFacts) -> str:
    return "bf16" if facts.name == "bf16" else "FP32"


def _hidden(facts: MethodFacts) -> str:
    return "" if isinstance(facts.hidden, Absent) else f" H={facts.hidden}"


def _label(row: Row) -> str:
    return "" if isinstance(row.ran_as, Absent) else row.ran_as


def _bare(text: str) -> str:
    """The number without its unit."""
    return text.rsplit(" ", 1)[0]


def _phase_names(rows: Sequence[Row]) -> tuple[str, ...]:
    present = {name for row in rows if not isinstance(row.phases_ms, Absent) for name in row.phases_ms}
    return (*(name for name in PHASES if name in present), *sorted(present - set(PHASES)))


def _table(
    key: str, title: str, caption: str, columns: tuple[Column, ...], rows: Sequence[tuple[Row, tuple[Cell, ...]]]
) -> Table:
    """Mark the best value of each column that has a better end, where at least two rows have a value."""
    marked = [list(cells) for _, cells in rows]
    for index, column in enumerate(columns):
        values = [
            cells[index].value for cells in marked if cells[index].value is not None and not cells[index].unranked
        ]
        pick: Callable[..., float] = min if column.best == "low" else max
        if not column.best or len(values) < 2 or len(set(values)) < 2:
            continue
        best = pick(values)
        for cells in marked:
            if cells[index].value == best and not cells[index].unranked and cells[index].text != "reference":
                cells[index] = dataclasses.replace(cells[index], best=True)
    table_rows = tuple(TableRow(cells=tuple(cells), row=row) for (row, _), cells in zip(rows, marked, strict=True))
    return Table(key=key, title=title, caption=caption, columns=columns, rows=table_rows)


def rows_frame(sections: Sequence[Section]) -> pd.DataFrame:
    """Every row of every section with its aggregated numbers as one flat frame, units in the headers."""
    return pd.DataFrame([_flat_row(section, row) for section in sections for row in section.rows])


def _flat_row(section: Section, row: Row) -> dict[str, Any]:
    flat: dict[str, Any] = {
        "suite": section.suite, "model": section.model_name, "data": section.data_name, "device": section.device,
        "fingerprint": section.fingerprint, "code_version": section.code_version, "row": row.label,
        "seeds": " ".join(map(str, row.seeds)), "status": " ".join(record.status for record in row.records),
        "weights_activations": _whole(forward_cell(row.method)), "error_signal": _whole(error_cell(row.method)),
        "weight_gradient": _whole(grad_cell(row.method)), "ran_as": row.ran_as,
    }  # fmt: skip
    flat |= _spread("accuracy_pct", row.accuracy) | _spread("accuracy_vs_fp32_points", row.accuracy_vs_fp32)
    flat |= _spread("step_ms", row.step_ms) | _spread("time_vs_fp32", row.time_vs_fp32)
    for name, shares in (("share_pct", row.phase_share_pct), ("ms", row.phases_ms)):
        if not isinstance(shares, Absent):
            flat |= {f"{phase}_{name}": value for phase, value in shares.items()}
    for name in (
        "peak_allocated_bytes", "peak_reserved_bytes", "peak_process_bytes", "peak_device_bytes",
        "fp32_peak_allocated_bytes", "hypernet_extra_allocated_bytes", "hypernet_extra_process_bytes",
    ):  # fmt: skip
        flat[name] = getattr(row, name)
    against = row.against_retain
    if against is not None and not isinstance(against, Absent):
        flat |= _spread("time_vs_retain", against.time)
        flat |= {
            "peak_vs_retain": against.peak_allocated,
            "added_allocated_vs_retain": against.hypernet_extra_allocated,
            "added_process_vs_retain": against.hypernet_extra_process,
        }
    reasons = {f"{name}.reason": value.reason for name, value in flat.items() if isinstance(value, Absent)}
    return {name: None if isinstance(value, Absent) else value for name, value in flat.items()} | reasons


def _whole(cell: Cell) -> str:
    return f"{cell.text} {cell.detail}".strip()


def _spread(name: str, value: Estimate | Summary | Ratio | Absent) -> dict[str, Any]:
    if isinstance(value, Absent):
        return {name: value}
    if isinstance(value, Summary):
        return {f"{name}_median": value.median, f"{name}_q1": value.q1, f"{name}_q3": value.q3, f"{name}_n": value.n}
    interval = value.interval
    spread: dict[str, Any] = {name: value.value}
    if isinstance(interval, Interval):
        spread |= {f"{name}_low95": interval.low, f"{name}_high95": interval.high}
    else:
        spread |= {f"{name}_low95": interval, f"{name}_high95": interval}
    if isinstance(value, Estimate):
        spread[f"{name}_n"] = value.n
    return spread
