"""A table before it is printed: columns with units, cells with their source, rows, and the mark for the best value."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from bench.units import Absent
from reports.rows import Row


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
    detail_sources: tuple[str, ...] = ()  # the same of the numbers in the second line, in their order
    chips: tuple[str, ...] = ()  # labels that belong to the value or, in the first cell, to the row: emulated, failed
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
    unknown: tuple[str, ...] = ()  # columns that no row has a value in, with the reason, said once
    links: bool = True  # whether the first cell names the row and leads to its details


def absent_cell(value: Absent) -> Cell:
    """An unknown value with its reason, never an empty cell."""
    return Cell(text="n/a", detail=f"({value.reason})")


def build_table(
    key: str, title: str, caption: str, columns: tuple[Column, ...], rows: Sequence[tuple[Row, tuple[Cell, ...]]]
) -> Table:
    """Mark the best value of each column that has a better end, where at least two rows have a value.

    Rows with seeds that did not finish are not ranked: their figures are of the seeds that did.
    A column that is unknown for one reason in every row becomes a sentence, and one that applies to no row is left out.
    """
    columns, cells_of_rows, unknown = _fewer_columns(columns, [cells for _, cells in rows])
    marked = [list(cells) for cells in cells_of_rows]
    for index, column in enumerate(columns):
        ranked = [cells[index] for cells, (row, _) in zip(marked, rows, strict=True) if not row.unfinished]
        values = [cell.value for cell in ranked if cell.value is not None and not cell.unranked]
        pick: Callable[..., float] = min if column.best == "low" else max
        if not column.best or len(values) < 2 or len(set(values)) < 2:
            continue
        best = pick(values)
        for cells, (row, _) in zip(marked, rows, strict=True):
            cell = cells[index]
            if cell.value == best and not cell.unranked and not row.unfinished and cell.text != "reference":
                cells[index] = dataclasses.replace(cell, best=True)
    table_rows = tuple(TableRow(cells=tuple(cells), row=row) for (row, _), cells in zip(rows, marked, strict=True))
    return Table(key=key, title=title, caption=caption, columns=columns, rows=table_rows, unknown=unknown)


def _fewer_columns(
    columns: tuple[Column, ...], rows: Sequence[tuple[Cell, ...]]
) -> tuple[tuple[Column, ...], list[tuple[Cell, ...]], tuple[str, ...]]:
    unknown, kept = [], []
    for index, column in enumerate(columns):
        cells = [row[index] for row in rows]
        reasons = {cell.detail for cell in cells if not cell.empty}
        if index == 0 or not rows or any(cell.text != "n/a" and not cell.empty for cell in cells) or len(reasons) > 1:
            kept.append(index)
        elif reasons:
            unit = f" ({column.unit})" if column.unit else ""
            unknown.append(f"{column.header}{unit}: n/a {reasons.pop()}")
    fewer = [tuple(row[index] for index in kept) for row in rows]
    return tuple(columns[index] for index in kept), fewer, tuple(unknown)
