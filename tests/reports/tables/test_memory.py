from __future__ import annotations

import dataclasses
from collections.abc import Callable

from bench.records.schema import MEMORY_CATEGORIES, MemoryPhase, RunRecord
from bench.units import MEBIBYTE, Absent
from reports.sections import build_sections
from reports.tables.memory import category_table, strategy_table

MakeRecord = Callable[..., RunRecord]


def test_the_table_shows_the_phase_that_held_most(make_record: MakeRecord) -> None:
    record = make_record()
    assert record.memory is not None
    phases = tuple(
        MemoryPhase(
            phase=name, peak_bytes=num * MEBIBYTE,
            categories=dict.fromkeys(MEMORY_CATEGORIES, 0) | {"weights": MEBIBYTE, "activations": (num - 1) * MEBIBYTE},
            layer="conv1", allocator_bytes=Absent(reason="no GPU"),
        )
        for name, num in (("forward", 3), ("backward", 9), ("optimizer", 2))
    )  # fmt: skip
    measured = make_record(memory=dataclasses.replace(record.memory, phases=phases, hypernet_bound_bytes=MEBIBYTE))
    (section,) = build_sections([measured])
    table = category_table(section)
    (row,) = table.rows
    texts = {column.key: cell.text for column, cell in zip(table.columns, row.cells, strict=True)}
    assert (texts["phase"], texts["weights"], texts["activations"]) == ("backward", "1.00 MiB", "8.00 MiB")
    assert row.cells[-1].source == f"memory.phases[1].categories.{list(MEMORY_CATEGORIES)[-1]}"
    assert [column.key for column in table.columns[2:]] == list(MEMORY_CATEGORIES)
    bound = strategy_table(section).rows[0].cells[-1]
    assert (bound.text, bound.source) == ("1.00 MiB", "memory.hypernet_bound_bytes")


def test_a_record_of_an_older_version_has_no_such_table(make_record: MakeRecord) -> None:
    (section,) = build_sections([make_record()])
    assert not category_table(section).rows
