"""The table that a reader needs first: accuracy and cost of every row."""

from __future__ import annotations

from reports.rows import Estimate, Section
from reports.tables.cells import (
    bytes_cell,
    difference_cell,
    error_cell,
    estimate_cell,
    forward_cell,
    grad_cell,
    hypernet_bytes_cell,
    interval_cell,
    label_cell,
    retain_cells,
    share_cell,
    step_cell,
)
from reports.tables.model import Cell, Column, Table, build_table

_SHARES = ("forward", "backward", "meta", "optimizer")


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
    return build_table("main", "Accuracy and cost", "", columns, rows)
