"""Hypernetworks: size, work, and what they do to the gradient."""

from __future__ import annotations

import dataclasses
from typing import Any

from bench.units import Absent
from reports.rows import Row, Section
from reports.tables.cells import hidden_text, label_cell, phase_cell
from reports.tables.model import Cell, Column, Table, absent_cell, build_table


def hypernet_table(section: Section) -> Table:
    """Hypernetworks: size, time, and what they do to the gradient."""
    columns: tuple[Column, ...] = (
        Column(key="method", header="Method", numeric=False),
        Column(key="hypernet", header="Hypernetwork", numeric=False),
        Column(key="strategy", header="Strategy", numeric=False),
        Column(key="parameters", header="Parameters"),
        Column(key="meta_ms", header="Meta phase", unit="ms; % of step", best="low"),
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
            Column(key="meta_angle", header="Angle to exact", unit="degrees"),
        )
    rows = [
        (
            row,
            (
                label_cell(row),
                Cell(text=f"{row.method.hypernet}{hidden_text(row.method)}", detail=f"{row.method.hypernet_form} form"),
                Cell(text=row.method.strategy),
                _hypernet_number(row, "num_parameters", ",.0f"),
                phase_cell(row, "meta"),
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
    caption = "At the last observed training step. What each adds to memory stands under Memory."
    return build_table("hypernetwork", "Hypernetwork", caption, columns, rows)


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
