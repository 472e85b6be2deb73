"""Sections laid out as table models: order, unit, precision, best mark, label; HTML and markdown print these cells."""

from __future__ import annotations

from reports.rows import Section
from reports.tables.convergence import convergence_table
from reports.tables.hypernetwork import hypernet_table
from reports.tables.kernels import gemm_table
from reports.tables.main import main_table
from reports.tables.memory import category_table, memory_table, strategy_table
from reports.tables.model import Table
from reports.tables.profile import ceilings_table, layers_table, operators_table, pieces_table
from reports.tables.timing import time_table

#: What a section answers, in a reader's order, and the tables of each.
TOPICS = {
    "accuracy": ("Accuracy against cost", (main_table,)),
    "time": ("Time", (time_table,)),
    "memory": ("Memory", (memory_table, strategy_table, category_table)),
    "hypernetwork": ("Hypernetwork", (hypernet_table,)),
    "kernels": ("Kernels", (gemm_table, pieces_table, ceilings_table, operators_table, layers_table)),
    "convergence": ("Convergence", (convergence_table,)),
}


def topic_tables(section: Section, topic: str) -> tuple[Table, ...]:
    """Tables of a section about one topic that have rows."""
    _, builders = TOPICS[topic]
    tables = (build(section) for build in builders)
    return tuple(table for table in tables if table.rows)
