from __future__ import annotations

import dataclasses
from collections.abc import Callable

from bench.records.schema import RunRecord
from reports.sections import build_sections
from reports.tables.convergence import convergence_table
from reports.tables.model import Cell

Make = Callable[..., list[RunRecord]]


def trained(record: RunRecord, start: float, *accuracies: float) -> RunRecord:
    """The record with another course of test accuracy, an epoch a value."""
    assert record.accuracy is not None
    curve = tuple(
        dataclasses.replace(record.accuracy.curve[0], epoch=n, step=11 * n, seconds=0.5 * n, test_accuracy_pct=value)
        for n, value in enumerate(accuracies, start=1)
    )
    accuracy = dataclasses.replace(
        record.accuracy, pretrained_accuracy_pct=start, test_accuracy_pct=accuracies[-1], curve=curve
    )
    return dataclasses.replace(record, accuracy=accuracy)


def reaches(records: list[RunRecord]) -> dict[str, Cell]:
    (section,) = build_sections(records)
    return {row.row.label: row.cells[-1] for row in convergence_table(section).rows}


def test_only_a_row_that_was_below_stes_end_reaches_it(demo_records: Make) -> None:
    fp32, ste, low, never = demo_records(["fp32", "ste_w4a4", "uint8_int8", "uint8_int4"])
    cells = reaches(
        [
            trained(fp32, 98.5, 98.4, 98.5), trained(ste, 98.5, 90.0, 97.0), trained(low, 98.5, 91.0, 97.5),
            trained(never, 98.5, 80.0, 96.0),
        ]
    )  # fmt: skip
    assert (cells["fp32"].text, cells["fp32"].detail) == ("starts above it", "98.50 %")
    assert cells["fp32"].value is None, "nothing to sort or to mark as the best"
    assert (cells["uint8_int8"].text, cells["uint8_int8"].detail) == ("22", "1.0 s")
    assert cells["uint8_int4"].text == "not reached"
    assert cells["ste_w4a4"].text == "reference"


def test_a_row_that_starts_above_and_ends_below_says_both(demo_records: Make) -> None:
    fp32, ste = demo_records(["fp32", "ste_w4a4"])
    cells = reaches([trained(fp32, 98.5, 98.4, 96.0), trained(ste, 98.5, 90.0, 97.0)])
    assert cells["fp32"].detail == "98.50 %, ends below it"


def test_of_several_seeds_those_that_start_above_are_counted(demo_records: Make) -> None:
    ste = [trained(record, 98.5, 90.0, 97.0) for record in demo_records(["ste_w4a4"], seeds=(0, 1))]
    one, two = demo_records(["uint8_int8"], seeds=(0, 1))
    cells = reaches([*ste, trained(one, 98.5, 97.5, 97.6), trained(two, 98.5, 90.0, 97.6)])
    assert (cells["uint8_int8"].text, cells["uint8_int8"].detail) == ("starts above it", "1 of n = 2")
