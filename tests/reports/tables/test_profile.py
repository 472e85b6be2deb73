from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from bench.records.schema import RunRecord
from bench.units import Absent
from reports.sections import build_sections
from reports.tables import topic_tables
from reports.tables.profile import ceilings_table, layers_table, operators_table, pieces_table, shown_row, work_rows

Make = Callable[..., list[RunRecord]]
Profiled = Callable[[RunRecord], RunRecord]


def test_the_ten_most_expensive_operators_stand_beside_fp32s(demo_records: Make, profiled: Profiled) -> None:
    (section,) = build_sections([profiled(record) for record in demo_records()])
    table = operators_table(section)
    assert len(table.rows) == 10
    assert "uint8_int8" in table.title
    first = [cell.text for cell in table.rows[0].cells]
    assert first == ["1", "aten::int8_1", "1", "1.43", "aten::fp32_1", "1", "4.29"]
    assert table.rows[0].cells[-1].source == "profile.fp32.trace.operators[0].self_ms"
    assert table.rows[0].cells[-1].detail == "15.0 %"


def test_the_row_shown_is_the_fastest_with_integer_products(demo_records: Make, profiled: Profiled) -> None:
    records = demo_records(["fp32", "ste_w4a4", "uint8_int4", "metagrad_int8_recompute"])
    row = shown_row(build_sections([profiled(record) for record in records])[0])
    assert row is not None
    assert row.label == "metagrad_int8_recompute"
    emulated = shown_row(build_sections([profiled(record) for record in records[:3]])[0])
    assert emulated is not None
    assert emulated.label == "uint8_int4"
    assert shown_row(build_sections([profiled(records[0])])[0]) is None


def test_products_by_layer_stand_above_fp32s_and_a_missing_one_does_not_apply(
    demo_records: Make, profiled: Profiled
) -> None:
    (section,) = build_sections([profiled(record) for record in demo_records(["fp32", "uint8_int8"])])
    conv1, block, _ = layers_table(section).rows
    assert [cell.empty for cell in conv1.cells] == [False, False, True, False, False, True, False]
    assert (block.cells[1].text, block.cells[1].detail) == ("0.400", "1.20")
    assert block.cells[4].text == "15.0"
    assert block.cells[4].detail == "18.0"


def test_pieces_are_the_sums_of_their_spans(demo_records: Make, profiled: Profiled) -> None:
    (section,) = build_sections([profiled(record) for record in demo_records(["uint8_int8"])])
    (row,) = pieces_table(section).rows
    columns = {column.key: cell for column, cell in zip(pieces_table(section).columns, row.cells, strict=True)}
    assert columns["gemm"].value == pytest.approx((0.4 + 0.7) * 6)
    assert columns["quantize"].value == pytest.approx(0.2 * 6)
    assert columns["overhead"].text == "4.9"
    assert "Spans change a step’s time by +5 %, that of FP32 beside it by +5 %;" in pieces_table(section).caption


def test_ceilings_are_named_with_what_could_not_be_measured(demo_records: Make, profiled: Profiled) -> None:
    (section,) = build_sections([profiled(record) for record in demo_records(["uint8_int8"])])
    table = ceilings_table(section)
    assert "INT8 600 GOP/s, FP32 150 GFLOP/s, bf16 n/a (no bf16 kernel), copying 20 GB/s." in table.caption
    assert [cell.text for cell in table.rows[0].cells[1:3]] == ["2.5", "2.5"]


def test_a_phase_without_products_is_held_against_no_ceiling(demo_records: Make, profiled: Profiled) -> None:
    fp32, other = (profiled(record) for record in demo_records(["fp32", "uint8_int8"]))
    table = ceilings_table(build_sections([fp32, other])[0])
    assert (table.columns[-1].header, table.columns[-1].unit) == ("Optimizer", "% of copying")
    assert "held against copying alone: optimizer." in table.caption
    assert [(row.cells[-1].text, row.cells[-1].source) for row in table.rows] == [
        ("30.0", "profile.cell.work[2].copy_share_pct")
    ] * 2
    assert other.profile is not None
    work = tuple(dataclasses.replace(phase, operations={"fp32": 10}) for phase in other.profile.cell.work)
    computing = dataclasses.replace(other.profile, cell=dataclasses.replace(other.profile.cell, work=work))
    mixed = ceilings_table(build_sections([fp32, dataclasses.replace(other, profile=computing)])[0])
    assert mixed.columns[-1].unit == "% of the ceilings; of copying"
    assert [(row.cells[-1].text, row.cells[-1].detail) for row in mixed.rows] == [
        ("n/a", "(no products); 30.0"),
        ("2.5", "30.0"),
    ]
    assert work_rows(fp32)[2][5].detail == "(no products)"


def test_a_share_that_is_not_known_says_why(demo_records: Make, profiled: Profiled) -> None:
    record = profiled(demo_records(["uint8_int8"])[0])
    assert record.profile is not None
    side = record.profile.cell
    unknown = tuple(
        dataclasses.replace(product, all_ms=Absent(reason="no spans in torch's own")) for product in side.products
    )
    changed = dataclasses.replace(record.profile, cell=dataclasses.replace(side, products=unknown))
    (section,) = build_sections([dataclasses.replace(record, profile=changed)])
    assert layers_table(section).rows[0].cells[1].detail == "(no spans in torch's own)"


def test_records_without_a_profile_have_no_such_tables(demo_records: Make) -> None:
    (section,) = build_sections(demo_records())
    assert [table.key for table in topic_tables(section, "kernels")] == ["gemms"]
