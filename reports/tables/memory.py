"""Memory: every peak side by side, the strategies against the retained graph, and what was alive by category."""

from __future__ import annotations

from bench.records.schema import MEMORY_CATEGORIES, MemoryPhase
from bench.units import Absent
from reports.rows import Row, Section
from reports.tables.cells import bytes_cell, hypernet_bytes_cell, label_cell, retain_cells
from reports.tables.model import Cell, Column, Table, build_table

#: The papers' words for the strategies that they have.
STRATEGY_WORDS = {"retain": "non-slim, the papers’", "slim": "MetaQuant 7.1", "recompute": "ours", "tabulate": "ours"}


def memory_table(section: Section) -> Table:
    """Every memory number side by side."""
    columns = (
        Column(key="method", header="Method", numeric=False),
        Column(key="allocated", header="Peak allocated", best="low"),
        Column(key="reserved", header="Peak reserved"),
        Column(key="process", header="Peak process", unit="memory pass"),
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
    caption = (
        "Peaks of a few training steps in the memory pass’s own process, which holds this cell’s model alone; a timing "
        "process holds the FP32 model besides, so what Time shows of its memory is another figure."
    )
    return build_table("memory", "Memory", caption, columns, rows)


def strategy_table(section: Section) -> Table:
    """Non-slim, slim, recompute and tabulate side by side: memory, time and accuracy against the retained graph."""
    columns = (
        Column(key="method", header="Method", numeric=False),
        Column(key="strategy", header="Strategy", numeric=False),
        Column(key="adds", header="Hypernetwork adds", unit="allocated", best="low"),
        Column(key="retain_memory", header="Added vs retain", unit="ratio, allocated", best="low"),
        Column(key="adds_process", header="Hypernetwork adds", unit="process", best="low"),
        Column(key="retain_process", header="Added vs retain", unit="ratio, process"),
        Column(key="retain_peak", header="Peak vs retain", unit="ratio", best="low"),
        Column(key="retain_time", header="Step vs retain", unit="ratio [95 %]", best="low"),
        Column(key="retain_accuracy", header="Accuracy vs retain", unit="points"),
        Column(key="code", header="Code and caches", unit="process"),
        Column(key="bound", header="Bound", unit="estimated from shapes"),
    )
    rows = []
    for row in section.rows:
        if row.has_hypernet and any(record.memory is not None for record in row.records):
            time, allocated, process, peak, accuracy = retain_cells(row)
            cells = (
                label_cell(row),
                Cell(text=row.method.strategy, detail=STRATEGY_WORDS.get(row.method.strategy, "")),
                hypernet_bytes_cell(row, row.hypernet_extra_allocated_bytes, "memory.hypernet_extra_allocated_bytes"),
                allocated,
                hypernet_bytes_cell(row, row.hypernet_extra_process_bytes, "memory.hypernet_extra_process_bytes"),
                process,
                peak,
                time,
                accuracy,
                hypernet_bytes_cell(row, row.hypernet_code_bytes, "memory.hypernet_code_bytes"),
                hypernet_bytes_cell(row, row.hypernet_bound_bytes, "memory.hypernet_bound_bytes"),
            )
            rows.append((row, cells))
    caption = (
        "Retain keeps the whole graph (the papers’ non-slim form); slim keeps one random layer’s; recompute and "
        "tabulate none. Retain and slim run an LSTM as the published nn.LSTM, recompute and tabulate as our reduced "
        "cell. The bound is computed from tensor shapes: the most that the hypernetwork can add to any peak. Processes "
        "are compared after both have run both cells; what a fresh one grows by beside that is code, and caches of "
        "libraries."
    )
    return build_table("strategies", "Slim, non-slim, recompute, tabulate", caption, columns, rows)


def category_table(section: Section) -> Table:
    """What each row held, by category, when its step held most."""
    columns = (
        Column(key="method", header="Method", numeric=False),
        Column(key="phase", header="Most in", numeric=False),
        *(
            Column(key=name, header=name.replace("_", " ").replace("hypernet", "hypernetwork"))
            for name in MEMORY_CATEGORIES
        ),
    )
    rows = []
    for row in section.rows:
        highest = _highest_phase(row)
        if highest is None:
            continue
        index, phase = highest
        cells = (
            label_cell(row),
            Cell(text=phase.phase, detail=phase.layer),
            *(
                bytes_cell(phase.categories[name], source=f"memory.phases[{index}].categories.{name}")
                for name in MEMORY_CATEGORIES
            ),
        )
        rows.append((row, cells))
    caption = "Live tensors at the moment in which the step held most; the categories add up to that peak."
    known = [record.memory for row in section.rows for record in row.records if record.memory is not None]
    reasons = {memory.phases_missing["data"] for memory in known if "data" in memory.phases_missing}
    caption += "".join(f" Phase data: n/a ({reason})." for reason in sorted(reasons))
    return build_table("memory_categories", "Memory by category", caption, columns, rows)


def _highest_phase(row: Row) -> tuple[int, MemoryPhase] | None:
    """The phase that held most over all seeds, and its position in its record."""
    known = [record.memory.phases for record in row.records if record.memory is not None]
    peaks = [pair for phases in known if not isinstance(phases, Absent) for pair in enumerate(phases)]
    return max(peaks, key=lambda pair: pair[1].peak_bytes, default=None)
