from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pandas as pd

from bench.records.schema import MemoryPhase, RunRecord
from bench.records.table import flat_row
from bench.units import Absent

MakeRecord = Callable[..., RunRecord]


def test_a_row_holds_the_figures_under_names_with_units(make_record: MakeRecord) -> None:
    row = flat_row(make_record())
    assert row["variant"] == "metagrad_int4_recompute"
    assert (row["method"], row["hypernet"], row["hidden"]) == ("metagrad", "dual_lstm_fc", 4)
    assert row["test_accuracy_pct"] == 95.0
    assert (row["step_ms"], row["step_q1_ms"], row["step_q3_ms"], row["fp32_step_ms"]) == (100.0, 99.0, 101.0, 20.0)
    assert (row["time_vs_fp32"], row["time_vs_fp32_low"], row["time_vs_fp32_high"]) == (5.0, 4.9, 5.1)
    assert (row["forward_ms"], row["forward_share_pct"]) == (30.0, 30.0)
    assert row["peak_allocated_bytes"] == 40 * 1024**2
    assert row["hypernet_extra_allocated_bytes"] == 3 * 1024**2
    assert row["hypernet_num_parameters"] == 133
    assert (row["integer_wgrad_calls"], row["float_wgrad_calls"], row["gemm_label"]) == (2, 0, "emulated")
    assert row["timing_repeats"] == 3


def test_what_is_absent_is_none_and_never_a_number(make_record: MakeRecord) -> None:
    record = make_record()
    row = flat_row(record)
    assert row["peak_reserved_bytes"] is None
    failed = dataclasses.replace(
        record, status="failed", accuracy=None, timing=None, memory=None, hypernet=None, gemms=None, model=None,
        data=None, method=dataclasses.replace(record.method, hidden=Absent(reason="no hypernetwork")),
    )  # fmt: skip
    empty = flat_row(failed)
    phases = {name for name in row if name not in empty}
    assert phases == {
        f"{phase}_{unit}"
        for phase in ("data", "forward", "backward", "meta", "optimizer", "unattributed")
        for unit in ("ms", "share_pct")
    }
    unknown = ("test_accuracy_pct", "step_ms", "time_vs_fp32", "peak_allocated_bytes", "num_parameters", "hidden",
               "synthetic", "integer_fprop_calls", "integer_share_pct", "epochs", "timing_repeats")  # fmt: skip
    assert {name: empty[name] for name in unknown} == dict.fromkeys(unknown)


def test_a_row_holds_what_there_was_by_category_when_the_step_held_most(make_record: MakeRecord) -> None:
    record = make_record()
    assert record.memory is not None
    phases = tuple(
        MemoryPhase(
            phase=name, peak_bytes=2 * held, categories={"weights": held, "gradients": held}, layer="",
            allocator_bytes=Absent(reason="no GPU"),
        )
        for name, held in (("forward", 10), ("backward", 30), ("optimizer", 20))
    )  # fmt: skip
    row = flat_row(make_record(memory=dataclasses.replace(record.memory, phases=phases)))
    assert (row["peak_weights_bytes"], row["peak_gradients_bytes"]) == (30, 30)
    assert flat_row(record)["peak_weights_bytes"] is None


def test_rows_make_a_data_frame_with_one_column_order(make_record: MakeRecord) -> None:
    frame = pd.DataFrame([flat_row(make_record(seed=seed)) for seed in (0, 1)])
    assert list(frame["seed"]) == [0, 1]
    assert list(frame.columns) == list(flat_row(make_record()))
    assert frame["step_ms"].dtype == float
