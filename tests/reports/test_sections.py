from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from statistics import median
from typing import Any

import pytest

from bench.records.schema import Interval, RunRecord, Summary
from bench.units import Absent
from reports.aggregate import ratio_of_ratios
from reports.rows import AgainstRetain, Estimate, Ratio, machine_name
from reports.sections import build_sections

Make = Callable[..., list[RunRecord]]


def pooled_phase(records: tuple[RunRecord, ...], name: str) -> list[float]:
    """A phase's samples of all processes of all seeds."""
    timings = [record.timing for record in records if record.timing is not None]
    return [value for timing in timings for repeat in timing.repeats for value in repeat.phases_ms[name]]


def test_one_seed_shows_the_records_own_figures(demo_records: Make) -> None:
    (record,) = demo_records(["uint8_int8"])
    (row,) = build_sections([record])[0].rows
    assert record.timing is not None
    assert row.step_ms == record.timing.step_ms
    ratio = record.timing.time_vs_fp32
    assert row.time_vs_fp32 == Ratio(value=ratio.value, interval=ratio)
    assert row.accuracy == Estimate(value=98.06, interval=Absent(reason="one seed"), n=1)


def test_seeds_are_aggregated_with_mean_interval_and_all_samples(demo_records: Make) -> None:
    records = demo_records(["fp32", "uint8_int4"], seeds=(0, 1, 2))
    (section,) = build_sections(records)
    row = section.rows[1]
    accuracies = [r.accuracy.test_accuracy_pct for r in row.records if r.accuracy is not None]
    assert isinstance(row.accuracy, Estimate)
    assert row.accuracy.n == 3
    assert row.accuracy.value == pytest.approx(sum(float(a) for a in accuracies if not isinstance(a, Absent)) / 3)
    assert isinstance(row.accuracy.interval, Interval)
    assert isinstance(row.step_ms, Summary)
    assert row.step_ms.n == 3 * 24
    forward, backward = (pooled_phase(row.records, name) for name in ("forward", "backward"))
    assert isinstance(row.phases_ms, dict)
    assert row.phases_ms["forward"] == median(forward), "the median of all samples, not a mean of the seeds' medians"
    assert row.phases_ms["backward"] == median(backward)
    assert isinstance(row.phase_share_pct, dict)
    assert sum(row.phase_share_pct.values()) == pytest.approx(100)
    assert row.phase_share_pct["forward"] / row.phase_share_pct["backward"] == pytest.approx(
        sum(forward) / sum(backward)
    )
    assert isinstance(row.time_vs_fp32, Ratio)
    assert isinstance(row.time_vs_fp32.interval, Interval)
    assert row.time_vs_fp32.interval.low < row.time_vs_fp32.value < row.time_vs_fp32.interval.high


def test_one_process_gives_a_ratio_without_an_interval_and_two_give_one(demo_records: Make, one_process: Any) -> None:
    records = [one_process(record) for record in demo_records(["metagrad_int4_slim"], seeds=(0, 1))]
    alone = build_sections(records[:1])[0].rows[0]
    assert records[0].timing is not None
    expected = Ratio(value=records[0].timing.time_vs_fp32.value, interval=Absent(reason="one process, no interval"))
    assert alone.time_vs_fp32 == expected
    assert alone.timed_once
    both = build_sections(records)[0].rows[0]
    assert isinstance(both.time_vs_fp32, Ratio)
    assert isinstance(both.time_vs_fp32.interval, Interval)
    assert not both.timed_once


def test_a_strategy_or_its_retain_timed_in_one_process_is_compared_without_an_interval(
    demo_records: Make, one_process: Any
) -> None:
    retain, slim = demo_records(["metagrad_int4_retain", "metagrad_int4_slim"])
    for records in ([one_process(retain), slim], [retain, one_process(slim)]):
        against = build_sections(records)[0].rows[1].against_retain
        assert isinstance(against, AgainstRetain)
        assert isinstance(against.time, Ratio)
        assert against.time.interval == Absent(reason="one process, no interval")


def test_differences_to_fp32_pair_equal_seeds_only(demo_records: Make) -> None:
    records = [*demo_records(["fp32"], seeds=(0, 1)), *demo_records(["uint8_int4"], seeds=(1, 2))]
    row = build_sections(records)[0].rows[1]
    by_seed = {(r.variant, r.seed): r.accuracy.test_accuracy_pct for r in records if r.accuracy is not None}
    assert isinstance(row.accuracy_vs_fp32, Estimate)
    assert row.accuracy_vs_fp32.n == 1
    expected = float(by_seed["uint8_int4", 1]) - float(by_seed["fp32", 1])  # type: ignore[arg-type]
    assert row.accuracy_vs_fp32.value == pytest.approx(expected)


def test_no_difference_is_shown_without_a_common_seed_or_after_other_epochs(demo_records: Make) -> None:
    apart = [*demo_records(["fp32"], seeds=(0,)), *demo_records(["uint8_int4"], seeds=(1,))]
    assert build_sections(apart)[0].rows[1].accuracy_vs_fp32 == Absent(reason="no seed in common with FP32")
    fp32, uint8 = demo_records(["fp32", "uint8_int4"])
    assert uint8.accuracy is not None
    longer = dataclasses.replace(uint8, accuracy=dataclasses.replace(uint8.accuracy, epochs=9))
    delta = build_sections([fp32, longer])[0].rows[1].accuracy_vs_fp32
    assert delta == Absent(reason="FP32 trained for 4 epochs, this row for 9")


def test_machines_code_versions_and_batches_are_never_averaged(demo_records: Make) -> None:
    records = [
        *demo_records(["fp32"]),
        *demo_records(["fp32"], machine="cpu-other"),
        *demo_records(["fp32"], key="x", code_version="0.2.0"),
    ]
    records += demo_records(["fp32"], key="y", cell={"protocol": {"batch_size": 256}})
    sections = build_sections(records)
    assert len(sections) == 4
    assert all(len(row.records) == 1 for section in sections for row in section.rows)


def test_the_same_cell_and_seed_measured_again_counts_once_and_is_said(demo_records: Make) -> None:
    (old,) = demo_records(["fp32"])
    new = dataclasses.replace(old, key="again", started_at="2026-11-22T00:00:00+00:00")
    (section,) = build_sections([new, old])
    assert section.rows[0].records == (new,)
    assert section.superseded == (old,)


def test_configurations_that_share_a_variant_are_told_apart_by_what_differs(demo_records: Make) -> None:
    (one,) = demo_records(["metagrad_int4_slim"])
    other = dataclasses.replace(one, key="other", cell={**one.cell, "protocol": {"epochs": 9, "batch_size": 64}})
    labels = [row.label for row in build_sections([one, other])[0].rows]
    assert labels == ["metagrad_int4_slim (protocol.epochs=4)", "metagrad_int4_slim (protocol.epochs=9)"]


def test_a_seed_that_failed_before_its_data_was_read_stays_in_its_row(
    demo_records: Make, without_results: dict[str, Any]
) -> None:
    good = demo_records(["uint8_int8"], seeds=(0, 1))
    bad = demo_records(["uint8_int8"], seeds=(2,), status="failed", reason="killed", data=None, **without_results)
    (row,) = build_sections([*good, *bad])[0].rows
    assert row.seeds == (0, 1, 2)
    assert [record.seed for record in row.troubles] == [2]
    assert isinstance(row.accuracy, Estimate)
    assert row.accuracy.n == 2


def test_different_contents_under_one_data_name_are_not_averaged(demo_records: Make) -> None:
    one, other = demo_records(["fp32"], seeds=(0, 1))
    assert other.data is not None
    other = dataclasses.replace(other, data=dataclasses.replace(other.data, fingerprint="else"))
    assert len(build_sections([one, other])[0].rows) == 2


def test_strategies_are_compared_with_retain_of_the_same_setting(demo_records: Make) -> None:
    (section,) = build_sections(demo_records())
    by_label = {row.label: row for row in section.rows}
    slim = by_label["metagrad_int4_slim"].against_retain
    assert isinstance(slim, AgainstRetain)
    assert slim.hypernet_extra_allocated == pytest.approx(21 / 98)
    assert slim.hypernet_extra_process == pytest.approx((21 * 0.8 + 2) / (98 * 0.8 + 2))
    assert slim.peak_allocated == pytest.approx(82 / 161)
    assert isinstance(slim.time, Ratio)
    assert isinstance(slim.time.interval, Interval)
    assert slim.time.interval.low < slim.time.value < slim.time.interval.high
    assert by_label["metagrad_int8_recompute"].against_retain == Absent(reason="no retain row of the same setting")
    assert by_label["uint8_int8"].against_retain is None


def test_memory_that_shrinks_with_the_hypernetwork_gives_no_ratio(demo_records: Make) -> None:
    retain, slim = demo_records(["metagrad_int4_retain", "metagrad_int4_slim"])
    assert slim.memory is not None
    slim = dataclasses.replace(slim, memory=dataclasses.replace(slim.memory, hypernet_extra_process_bytes=-4096))
    against = build_sections([retain, slim])[0].rows[1].against_retain
    assert isinstance(against, AgainstRetain)
    assert against.hypernet_extra_process == Absent(reason="no measurable memory added")
    assert against.hypernet_extra_allocated == pytest.approx(21 / 98)


def test_the_interval_of_a_ratio_of_ratios_adds_on_the_log_scale() -> None:
    one, other = Interval(value=2.0, low=1.0, high=4.0), Interval(value=4.0, low=2.0, high=8.0)
    divided = ratio_of_ratios(Ratio(value=2.0, interval=one), Ratio(value=4.0, interval=other))
    assert isinstance(divided, Ratio)
    ratio = divided.interval
    assert isinstance(ratio, Interval)
    assert ratio.value == 0.5
    assert math.log(ratio.high / ratio.value) == pytest.approx(math.hypot(math.log(2), math.log(2)))
    assert math.log(ratio.value / ratio.low) == pytest.approx(math.hypot(math.log(2), math.log(2)))


def test_synthetic_data_and_missing_results_give_reasons_instead_of_numbers(
    demo_records: Make, without_results: dict[str, Any]
) -> None:
    (record,) = demo_records(["fp32"])
    assert record.data is not None
    synthetic = dataclasses.replace(record, data=dataclasses.replace(record.data, synthetic=True))
    assert build_sections([synthetic])[0].rows[0].accuracy == Absent(reason="synthetic data")
    failed = demo_records(["fp32"], status="out_of_memory", reason="needs 3 GiB", **without_results)
    row = build_sections(failed)[0].rows[0]
    assert row.accuracy == row.step_ms == row.peak_allocated_bytes == Absent(reason="out of memory")


def test_the_machine_is_named_by_its_device_and_else_by_its_fingerprint(make_record: Callable[..., RunRecord]) -> None:
    assert machine_name(make_record()) == "Example CPU"
    assert machine_name(make_record(environment={"device": {"name": "Example GPU"}})) == "Example GPU"
    assert machine_name(make_record(environment={})) == "machine cpu-89abcdef"
