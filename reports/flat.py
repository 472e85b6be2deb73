"""Rows and records flat, for CSV files: units in the headers, a reason beside what is not there."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from bench.records.schema import Interval, RunRecord, Summary
from bench.units import Absent
from reports.rows import Estimate, Ratio, Row, Section
from reports.tables.cells import error_cell, forward_cell, grad_cell
from reports.tables.model import Cell
from reports.values import leaves, shown_value


def flat_rows(sections: Sequence[Section]) -> list[dict[str, Any]]:
    """Every row of every section with its aggregated numbers, units in the names."""
    return [_flat_row(section, row) for section in sections for row in section.rows]


def flat_cells(records: Iterable[RunRecord]) -> list[dict[str, Any]]:
    """One row per record, one column per single value; ``<column>.reason`` says why a value is not there."""
    return [_record_row(record) for record in records]


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


def _record_row(record: RunRecord) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for path, value in leaves(_without_lists(record)):
        if "[" in path:
            continue
        shown = shown_value(record, path, value)
        row[path] = None if isinstance(shown, Absent) else shown
        if isinstance(shown, Absent):
            row[f"{path}.reason"] = shown.reason
    return row


def _without_lists(record: RunRecord) -> RunRecord:
    """The record without what has one value per step, layer or epoch, and without its nested config."""
    model, accuracy, timing = record.model, record.accuracy, record.timing
    return dataclasses.replace(
        record,
        model=None if model is None else dataclasses.replace(model, layers=()),
        accuracy=None if accuracy is None else dataclasses.replace(accuracy, curve=()),
        timing=None if timing is None else dataclasses.replace(timing, repeats=()),
        memory=None if record.memory is None else dataclasses.replace(record.memory, phases=(), layers=()),
        profile=None,
        cell={},
        environment={},
        notices=(),
    )
