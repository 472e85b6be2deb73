"""Sections laid out as table models: order, unit, precision, best mark, label; HTML and markdown print these cells."""

from __future__ import annotations

from reports.rows import Section
from reports.tables.hypernetwork import hypernet_table
from reports.tables.kernels import gemm_table
from reports.tables.main import main_table
from reports.tables.memory import category_table, memory_table
from reports.tables.model import Table
from reports.tables.timing import time_table


def section_tables(section: Section) -> tuple[Table, ...]:
    """All tables of a section that have rows; the main one first."""
    tables = (build(section) for build in _TABLES)
    return tuple(table for table in tables if table.rows)


_TABLES = (main_table, time_table, memory_table, category_table, hypernet_table, gemm_table)
