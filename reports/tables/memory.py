"""Memory: every peak side by side, and what was alive at the highest one by category."""

from __future__ import annotations

from bench.profilers.memory_categories import CATEGORIES
from bench.units import Absent
from reports.rows import Section
from reports.tables.cells import bytes_cell, hypernet_bytes_cell, label_cell
from reports.tables.model import Cell, Column, Table, build_table


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
    return build_table("memory", "Memory", "Peaks of a few training steps in a fresh process.", columns, rows)


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
    return build_table("memory_categories", "Memory by category", caption, columns, rows)
