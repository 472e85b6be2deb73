"""What ran in the kernels: matrix products of one step, integer and floating point."""

from __future__ import annotations

from reports.rows import Row, Section
from reports.tables.cells import label_cell, ran_as_cell
from reports.tables.model import Cell, Column, Table, build_table


def gemm_table(section: Section) -> Table:
    """Matrix products of one training step: how many were integer, and as what they ran."""
    kinds = ("fprop", "dgrad", "wgrad")
    columns = (
        Column(key="method", header="Method", numeric=False),
        Column(key="ran_as", header="Ran as", numeric=False),
        *(Column(key=f"integer_{kind}", header=f"Integer {kind}", unit="calls") for kind in kinds),
        *(Column(key=f"float_{kind}", header=f"Float {kind}", unit="calls") for kind in kinds),
        Column(key="share", header="Integer share", unit="% of the layers' multiply-adds"),
        Column(key="hypernet_macs", header="Hypernetwork", unit="million float multiply-adds"),
    )
    rows = []
    for row in section.rows:
        record = next((record for record in row.records if record.gemms is not None), None)
        if record is None or record.gemms is None:
            continue
        counts = [("integer_calls", record.gemms.integer_calls), ("float_calls", record.gemms.float_calls)]
        calls = [
            Cell(
                text=f"{of.get(kind, 0):,}", value=of.get(kind, 0), source=f"gemms.{name}.{kind}" if kind in of else ""
            )
            for name, of in counts
            for kind in kinds
        ]
        share = record.gemms.integer_share_pct
        share_of_layers = Cell(text=f"{share:.1f}", value=share, source="gemms.integer_share_pct")
        hypernet = _hypernet_macs_cell(row, record.gemms.hypernet_float_macs)
        rows.append((row, (label_cell(row), ran_as_cell(row), *calls, share_of_layers, hypernet)))
    caption = (
        "Counted in the second training step, the first in which a hypernetwork runs; integer products went through "
        "torch._int_mm"
    )
    by_choice = any(row.method.dispatch == "auto" for row in section.rows if row.method is not None)
    caption += ", or are direct integer sums where dispatch=auto found those faster." if by_choice else "."
    return build_table("gemms", "Integer products", caption, columns, rows)


def _hypernet_macs_cell(row: Row, macs: int) -> Cell:
    if not row.has_hypernet:
        return Cell(text="–", empty=True)
    return Cell(text=f"{macs / 1e6:,.1f}", value=macs, source="gemms.hypernet_float_macs")
