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


def absent_cell(value: Absent) -> Cell:
    """An unknown value with its reason, never an empty cell."""
    return Cell(text="n/a", detail=f"({value.reason})")


def build_table(
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
