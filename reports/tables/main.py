"""The table that a reader needs first: accuracy and cost of every row."""

from __future__ import annotations

from reports.rows import Estimate, Section
from reports.tables.cells import (
    difference_cell,
    error_cell,
    estimate_cell,
    forward_cell,
    grad_cell,
    hypernet_bytes_cell,
    interval_cell,
    label_cell,
    peak_cell,
    step_cell,
)
from reports.tables.model import Cell, Column, Table, build_table


def main_table(section: Section) -> Table:
    """Accuracy and cost of every row; ten columns, so that it needs no scrolling on a laptop.

    What was measured comes first: on a phone two columns beside the name are seen.
    """
    columns = (
        Column(key="method", header="Method", numeric=False),
        Column(key="accuracy", header="Accuracy", unit="%", best="high"),
        Column(key="accuracy_vs_fp32", header="Δ to FP32", unit="points", best="high"),
        Column(key="step", header="Step", unit="median [quartiles]", best="low"),
        Column(key="time_vs_fp32", header="Step vs FP32", unit="ratio [95 %]", best="low"),
        Column(key="peak", header="Peak memory", unit="allocated", best="low"),
        Column(key="hypernet_memory", header="Hypernetwork adds", unit="allocated"),
        Column(key="forward", header="Weights, activations", numeric=False),
        Column(key="error", header="Error signal ∇y", numeric=False),
        Column(key="grad", header="Weight gradient ∇W", numeric=False),
    )
    rows = [
        (
            row,
            (
                label_cell(row),
                estimate_cell(row.accuracy, source="accuracy.test_accuracy_pct"),
                Cell(text="reference", value=0.0)
                if row.is_fp32 and isinstance(row.accuracy, Estimate)
                else difference_cell(row.accuracy_vs_fp32),
                step_cell(row),
                interval_cell(row.time_vs_fp32, source="timing.time_vs_fp32"),
                peak_cell(row),
                hypernet_bytes_cell(row, row.hypernet_extra_allocated_bytes, "memory.hypernet_extra_allocated_bytes"),
                forward_cell(row.method),
                error_cell(row.method),
                grad_cell(row.method),
            ),
        )
        for row in section.rows
    ]
    return build_table("main", "Accuracy and cost", "", columns, rows)
