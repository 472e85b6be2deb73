from __future__ import annotations

import csv
import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.records.schema import LayerMemory, RunRecord
from bench.units import Absent
from reports.csv_files import write_tables
from reports.sections import build_sections

Make = Callable[..., list[RunRecord]]
Table = list[dict[str, str]]


@pytest.fixture
def tables(tmp_path: Path) -> Callable[..., dict[str, Table]]:
    """Write the tables of some records and read them back."""

    def write(records: list[RunRecord], **folders: Path) -> dict[str, Table]:
        write_tables(build_sections(records), records, folders, tmp_path)
        found = {}
        for path in tmp_path.glob("*.csv"):
            with path.open(encoding="utf-8", newline="") as stream:
                found[path.stem] = list(csv.DictReader(stream))
        return found

    return write


def test_every_sample_stands_with_its_phases(demo_records: Make, tables: Callable[..., dict[str, Table]]) -> None:
    records = demo_records(["fp32", "metagrad_int4_slim"])
    lines = iter(tables(records)["samples"])
    for record in records:
        assert record.timing is not None
        for number, repeat in enumerate(record.timing.repeats):
            for index, step in enumerate(repeat.step_ms):
                line = next(lines)
                assert (line["key"], line["of"]) == (record.key, "cell")
                assert (int(line["repeat"]), int(line["sample"]), float(line["step_ms"])) == (number, index, step)
                for name in ("forward", "meta"):
                    known = repeat.phases_ms.get(name)
                    assert line[f"{name}_ms"] == ("" if known is None else repr(known[index]))
            for step in repeat.fp32_step_ms:
                line = next(lines)
                assert (line["of"], float(line["step_ms"]), line["forward_ms"]) == ("fp32", step, "")
    assert next(lines, None) is None


def test_curves_layers_and_reasons_stand_as_in_the_record(
    demo_records: Make, tables: Callable[..., dict[str, Table]]
) -> None:
    (record,) = demo_records(["uint8_int8"])
    assert record.accuracy is not None
    assert record.model is not None
    found = tables([record])
    curve = record.accuracy.curve
    assert [float(line["train_loss"]) for line in found["curves"]] == [point.train_loss for point in curve]
    assert [float(line["seconds"]) for line in found["curves"]] == [point.seconds for point in curve]
    first, second = found["layers"]
    assert (first["name"], first["weight_shape"], first["dgrad"]) == ("conv1", "16x1x3x3", "")
    assert first["dgrad.reason"] == "its input needs no gradient"
    assert (second["dgrad"], second["dgrad.reason"]) == ("emulated", "")


def test_synthetic_data_has_no_accuracy_in_any_table(
    demo_records: Make, tables: Callable[..., dict[str, Table]]
) -> None:
    (record,) = demo_records(["uint8_int8"])
    assert record.data is not None
    found = tables([dataclasses.replace(record, data=dataclasses.replace(record.data, synthetic=True))])
    assert {line["test_accuracy_pct"] for line in found["curves"]} == {""}
    assert {line["test_accuracy_pct.reason"] for line in found["curves"]} == {"synthetic data"}
    assert found["rows"][0]["accuracy_pct"] == ""
    assert found["cells"][0]["accuracy.test_accuracy_pct"] == ""


def test_long_tables_hold_the_largest_sections_whole_and_none_of_an_earlier_report(
    demo_records: Make,
    tables: Callable[..., dict[str, Table]],
    monkeypatch: pytest.MonkeyPatch,
    profiled: Callable[[RunRecord], RunRecord],
) -> None:
    monkeypatch.setattr("reports.csv_files.DETAILED_RECORDS", 2)
    largest = demo_records(["fp32", "uint8_int8", "uint8_int4"], machine="a")
    found = tables([*demo_records(["fp32"], machine="b"), *largest])
    assert {line["fingerprint"] for line in found["samples"]} == {"a"}
    assert len({line["key"] for line in found["samples"]}) == 3
    assert {line["fingerprint"] for line in found["curves"]} == {"a", "b"}
    monkeypatch.setattr("reports.csv_files.PROFILED_RECORDS", 1)
    found = tables([profiled(record) for record in (*demo_records(["fp32"], machine="b"), *largest)])
    assert {line["fingerprint"] for name in ("spans", "products") for line in found[name]} == {"a"}
    (record,) = demo_records(["uint8_int8"])
    assert record.memory is not None
    layer = LayerMemory(name="conv1", kept_bytes=5, forward_extra_bytes=6, backward_extra_bytes=7)
    record = dataclasses.replace(record, memory=dataclasses.replace(record.memory, layers=(layer,)))
    (line,) = tables([record])["memory_layers"]
    assert (line["name"], line["kept_bytes"], line["backward_extra_bytes"]) == ("conv1", "5", "7")
    assert "memory_layers" not in tables(largest)


def test_what_a_spreadsheet_would_run_is_quoted_in_every_table(
    demo_records: Make, tables: Callable[..., dict[str, Table]]
) -> None:
    hostile = "=cmd|' /C calc'!A0"
    (record,) = demo_records(["uint8_int8"], variant=hostile, environment={"@x": "+1", "y": Absent("-1")})
    found = tables([record])
    for name in ("rows", "cells", "samples", "curves", "layers"):
        assert found[name][0]["row" if name == "rows" else "variant"] == f"'{hostile}", name
    environment = [(line["path"], line["value"]) for line in found["environment"]]
    assert environment == [("'@x", "'+1"), ("y", "n/a (-1)")]
    for table in found.values():
        for line in table:
            for value in (*line, *line.values()):
                assert not value.startswith(("=", "+", "@")), value
                assert not value.startswith("-") or float(value) < 0


def test_published_rows_stand_with_ours_in_columns_of_their_own(
    demo_records: Make, tables: Callable[..., dict[str, Table]]
) -> None:
    lines = tables(demo_records(["uint8_int8"]))["papers"]
    ours = [line for line in lines if line["row"]]
    assert ours, "MetaGrad's table has a UINT8 row of ResNet-20"
    assert {float(line["accuracy_pct"]) for line in ours} == {98.06}
    assert all(line["setting"] == "differs" for line in ours)
    assert all(not line["accuracy_pct"] for line in lines if not line["row"])


def test_failed_cells_leave_their_status_and_no_empty_table(
    demo_records: Make, tables: Callable[..., dict[str, Table]]
) -> None:
    nothing = dict.fromkeys(("accuracy", "timing", "memory", "hypernet", "gemms", "data", "model"))
    found = tables(demo_records(["uint8_int8"], status="failed", reason="the self-check failed", **nothing))
    assert found["cells"][0]["reason"] == "the self-check failed"
    assert set(found) == {"rows", "cells", "papers", "environment"}


def test_profiles_device_samples_and_hypernetwork_steps_have_tables(
    demo_records: Make,
    tables: Callable[..., dict[str, Table]],
    profiled: Callable[..., RunRecord],
    with_device: Callable[..., RunRecord],
    with_categories: Callable[..., RunRecord],
    write_beside: Callable[..., Path],
) -> None:
    (record,) = demo_records(["metagrad_int4_slim"])
    power = (50.0, Absent("late"), 55.0)
    record = profiled(with_device(with_categories(record, weights=2, activations=5), power_w=power))
    assert record.profile is not None
    found = tables([record], **{record.key: write_beside("slim")})
    products = found["products"]
    assert len(found["spans"]) == len(record.profile.cell.spans) + len(record.profile.fp32.spans) > 0
    for line, product in zip(products, (*record.profile.cell.products, *record.profile.fp32.products), strict=True):
        assert (line["layer"], line["gemm"], float(line["all_ms"])) == (product.layer, product.gemm, product.all_ms)
        assert line["of"] == ("fp32" if any(product is one for one in record.profile.fp32.products) else "cell")
    device = found["device"]
    assert [line["power_w"] for line in device] == ["50.0", "", "55.0"] * 3
    assert [line["repeat"] for line in device] == ["0"] * 3 + ["1"] * 3 + ["2"] * 3
    assert found["memory_phases"][1]["activations_bytes"] == str(5 * 1024**2)
    steps = found["hypernet_steps"]
    assert [(line["step"], float(line["amplification_median"])) for line in steps] == [("11", 22.0), ("22", 44.0)]
