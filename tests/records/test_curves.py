from __future__ import annotations

import csv
import dataclasses
from collections.abc import Callable
from pathlib import Path

from bench.records.curves import write_curves
from bench.records.schema import DeviceSeries, HypernetPoint, RunRecord
from bench.units import Absent

MakeRecord = Callable[..., RunRecord]


def test_hypernet_csv_has_a_row_per_step_and_layer_and_leaves_the_undefined_empty(
    tmp_path: Path, make_record: MakeRecord
) -> None:
    undefined = Absent("the layer's gradient is zero")
    undefined_row = HypernetPoint(
        step=3, layer="fc", amplification=undefined, cosine=undefined, zero_share_pct=100.0, meta_grad_norm=0.1
    )
    sampled = {"interpolation_error": 3e-7, "same_codes_pct": 99.5, "meta_angle_deg": 0.01}
    known = {"amplification": 1.5, "cosine": 0.9, "zero_share_pct": 60.0, "meta_grad_norm": 0.1}
    points = [HypernetPoint(step=3, layer="conv1", **known, **sampled), undefined_row]
    write_curves(tmp_path, make_record(), [0.5, 0.25], points)
    with (tmp_path / "hypernet.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {
        "step": "3", "layer": "conv1", "amplification": "1.5", "cosine": "0.9", "zero_share_pct": "60.0",
        "meta_grad_norm": "0.1", "interpolation_error": "3e-07", "same_codes_pct": "99.5", "meta_angle_deg": "0.01",
    }  # fmt: skip
    assert (rows[1]["interpolation_error"], rows[1]["same_codes_pct"], rows[1]["meta_angle_deg"]) == ("", "", "")
    assert (rows[1]["layer"], rows[1]["amplification"], rows[1]["cosine"]) == ("fc", "", "")
    assert (tmp_path / "training.csv").read_text(encoding="utf-8") == "step,loss\n1,0.5\n2,0.25\n"


def test_a_run_without_a_hypernetwork_leaves_no_table_of_it(tmp_path: Path, make_record: MakeRecord) -> None:
    write_curves(tmp_path, make_record(), [0.5])
    assert not (tmp_path / "hypernet.csv").exists()


def test_device_csv_has_a_row_per_process_and_sample(tmp_path: Path, make_record: MakeRecord) -> None:
    record, none = make_record(), Absent("not reported")
    assert record.timing is not None
    first, *others = record.timing.repeats
    series = DeviceSeries(
        time_s=(0.0, 0.5), power_w=(70.5, none), clock_mhz=none, memory_clock_mhz=none, temperature_c=(40.0, 41.0),
        utilisation_pct=none, process_bytes=none, throttled=(False, True), throttle_reasons=("hw_slowdown",),
        num_throttled=1, energy_j=none,
    )  # fmt: skip
    timing = dataclasses.replace(record.timing, repeats=(*others, dataclasses.replace(first, device=series)))
    write_curves(tmp_path, dataclasses.replace(record, timing=timing), [0.5])
    header, *rows = (tmp_path / "device.csv").read_text(encoding="utf-8").splitlines()
    assert header.startswith("repeat,time_s,power_w,clock_mhz")
    assert rows == ["2,0.0,70.5,,,40.0,,,False", "2,0.5,,,,41.0,,,True"]


def test_a_run_that_nobody_watched_leaves_no_table_of_the_device(tmp_path: Path, make_record: MakeRecord) -> None:
    write_curves(tmp_path, make_record(), [0.5])
    assert not (tmp_path / "device.csv").exists()
