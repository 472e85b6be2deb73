"""Step time with its samples and every phase."""

from __future__ import annotations

from collections.abc import Sequence

from bench.records.schema import Summary
from bench.units import Absent
from reports.rows import PHASES, Row, Section
from reports.tables.cells import count_cell, interval_cell, label_cell, phase_cell, step_cell, summary_cell
from reports.tables.model import Column, Table, build_table


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
                count_cell(row.step_ms),
                summary_cell(row.fp32_step_ms, source="timing.fp32_step_ms.median"),
                interval_cell(row.time_vs_fp32, source="timing.time_vs_fp32.value"),
                *(phase_cell(row, name) for name in names),
            ),
        )
        for row in section.rows
        if isinstance(row.step_ms, Summary)
    ]
    return build_table(
        "time", "Step time and phases", "The FP32 step ran in alternating blocks in the same processes.", columns, rows
    )


def _phase_names(rows: Sequence[Row]) -> tuple[str, ...]:
    present = {name for row in rows if not isinstance(row.phases_ms, Absent) for name in row.phases_ms}
    return (*(name for name in PHASES if name in present), *sorted(present - set(PHASES)))
