"""Step time with its samples, every phase, and energy where the device tells it."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from bench.records.schema import Summary
from bench.units import Absent, format_joules, format_stopping
from reports.rows import PHASES, Row, Section
from reports.tables.cells import (
    count_cell,
    interval_cell,
    label_cell,
    phase_cell,
    step_cell,
    summary_cell,
)
from reports.tables.model import Cell, Column, Table, absent_cell, build_table


def time_table(section: Section) -> Table:
    """Step time with its samples, every phase in milliseconds and percent, and energy."""
    names = _phase_names(section.rows)
    columns = (
        Column(key="method", header="Method", numeric=False),
        Column(key="step", header="Step", unit="median [quartiles]", best="low"),
        Column(key="samples", header="Samples", unit="steps"),
        Column(key="fp32_step", header="FP32 beside it", unit="median [quartiles]"),
        Column(key="time_vs_fp32", header="Step vs FP32", unit="ratio [95 %]", best="low"),
        *(Column(key=f"{name}_ms", header=name.capitalize(), unit="ms; % of step") for name in names),
        Column(key="energy", header="Energy", unit="a step", best="low"),
        Column(key="fp32_energy", header="FP32’s energy", unit="a step"),
        Column(key="throttled", header="Throttled", unit="steps, both sides"),
    )
    rows = [
        (
            row,
            (
                label_cell(row),
                step_cell(row),
                count_cell(row.step_ms),
                summary_cell(row.fp32_step_ms, source="timing.fp32_step_ms"),
                interval_cell(row.time_vs_fp32, source="timing.time_vs_fp32"),
                *(phase_cell(row, name) for name in names),
                _energy_cell(row, "step"),
                _energy_cell(row, "fp32_step"),
                _throttled_cell(row),
            ),
        )
        for row in section.rows
        if isinstance(row.step_ms, Summary)
    ]
    caption = (
        "The FP32 step ran in alternating blocks in the same processes. Phases: median, and share of the mean step."
    )
    timings = [record.timing for row in section.rows for record in row.records if record.timing is not None]
    stopping = format_stopping([(r.stopped_by, r.half_width_pct) for timing in timings for r in timing.repeats])
    caption += f" {stopping}" if stopping else ""
    return build_table("time", "Step time and phases", caption, columns, rows)


def _phase_names(rows: Sequence[Row]) -> tuple[str, ...]:
    present = {name for row in rows if not isinstance(row.phases_ms, Absent) for name in row.phases_ms}
    return (*(name for name in PHASES if name in present), *sorted(present - set(PHASES)))


def _energy_cell(row: Row, of: str) -> Cell:
    """Joules of one step; over several seeds their median."""
    values = [record.timing.energy_j.get(of) for record in row.records if record.timing is not None]
    known = [value for value in values if isinstance(value, float | int)]
    if not known:
        absent = next((value for value in values if isinstance(value, Absent)), Absent(reason="not recorded"))
        return absent_cell(absent)
    value = median(known)
    detail = f"n = {len(known)}" if len(row.records) > 1 else ""
    return Cell(text=format_joules(value), detail=detail, value=value, source=f"timing.energy_j.{of}")


def _throttled_cell(row: Row) -> Cell:
    counts = [record.timing.throttled_steps for record in row.records if record.timing is not None]
    known = [count for count in counts if not isinstance(count, Absent)]
    if not known:
        return absent_cell(next(count for count in counts if isinstance(count, Absent)))
    return Cell(text=f"{sum(known):,}", value=sum(known), source="timing.throttled_steps")
