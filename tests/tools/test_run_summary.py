from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.app import parse_arguments, plan_cells
from bench.cell import locate_all
from bench.config import CellConfig
from bench.errors import ExitCode
from bench.records.schema import Ceilings, ProfileResult, RunRecord, SideProfile
from bench.records.write import write_record
from bench.units import Absent, format_span_overhead, format_stopping
from tools.run import main, sum_up

MakeRecord = Callable[..., RunRecord]


def _profiled(record: RunRecord, overhead_pct: float) -> RunRecord:
    side = SideProfile(
        plain_step_ms=(20.0,), spanned_step_ms=(21.0,), span_overhead_pct=overhead_pct, unattributed_pct=1.0,
        phases_ms={}, spans=(), products=(), work=(), trace=None,
    )  # fmt: skip
    none = Absent("not measured")
    ceilings = Ceilings(int8_gops=none, fp32_gflops=none, bf16_gflops=none, copy_gb_s=none)
    fp32 = dataclasses.replace(side, span_overhead_pct=30.0)
    return dataclasses.replace(record, profile=ProfileResult(ceilings=ceilings, cell=side, fp32=fp32))


def test_the_summary_says_what_spans_cost_where_there_was_a_profile_pass(
    make_record: MakeRecord, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [tmp_path / "suite" / name for name in ("a", "b", "c")]
    records = [_profiled(make_record(), 4.9), _profiled(make_record(), 12.2), make_record()]
    for folder, record in zip(folders, records, strict=True):
        write_record(folder, record, config_yaml="")
    assert sum_up(folders) == ExitCode.OK
    assert (
        "Profile: Spans change a step’s time by +5 to +12 %, that of FP32 beside it by +30 %" in capsys.readouterr().out
    )
    assert sum_up(folders[2:]) == ExitCode.OK
    assert "Profile" not in capsys.readouterr().out


def test_what_spans_cost_is_one_number_where_all_agree_and_signed() -> None:
    same = format_span_overhead([4.9, 5.2], [30.1, 29.9])
    assert same.startswith("Spans change a step’s time by +5 %, that of FP32 beside it by +30 %;")
    both = format_span_overhead([-0.8, 2.0], [0.1, 36.6])
    assert both.startswith("Spans change a step’s time by −1 to +2 %, that of FP32 beside it by 0 to +37 %;")


def test_processes_that_ran_out_of_budget_are_one_line(
    make_record: MakeRecord, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = make_record()
    assert record.timing is not None
    (first, *others) = record.timing.repeats
    ends = [dataclasses.replace(first, stopped_by="budget", half_width_pct=4.25)]
    ends += [dataclasses.replace(repeat, stopped_by="interval", half_width_pct=1.9) for repeat in others]
    record = dataclasses.replace(record, timing=dataclasses.replace(record.timing, repeats=tuple(ends)))
    write_record(tmp_path / "suite" / "a", record, config_yaml="")
    assert sum_up([tmp_path / "suite" / "a"]) == ExitCode.OK
    told = f"Timing: 1 of {len(ends)} timing processes ended with protocol.timing_budget_s before "
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(told)]
    assert len(lines) == 1
    assert lines[0].endswith("asks; the 95 % interval of a median within one process reaches ±4.2 % at the widest.")
    assert format_stopping([("interval", 1.0), ("blocks", 29.3)]) == "", "a protocol without a budget asks for no more"
    assert format_stopping([("budget", Absent("few"))]).endswith("timing_interval_pct asks.")


def test_a_sweep_starts_only_cells_that_have_no_record(
    make_record: MakeRecord, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["-m", "seed=1,2,3", "variant=fp32", "device=cpu", f"output_dir={tmp_path}"]
    folders = locate_all(plan_cells(parse_arguments(argv)).cells)
    started = []

    def measure(cell: CellConfig) -> RunRecord:
        started.append(cell.seed)
        (folder,) = locate_all([cell])
        record = make_record(key=folder.name[-10:])
        shutil.rmtree(folder, ignore_errors=True)
        write_record(folder, record, config_yaml="")
        return record

    monkeypatch.setattr("bench.cell.run_cell", measure)
    write_record(folders[1], make_record(key=folders[1].name[-10:]), config_yaml="")
    assert main(argv) == ExitCode.OK
    assert started == [1, 3]
    assert main(argv) == ExitCode.OK
    assert started == [1, 3]
    said = capsys.readouterr()
    assert said.err.count("already measured") == 1 + 3
    assert said.out.count("3 cells: 3 ok.") == 2
    folders[2].with_name(f".{folders[2].name}.resume").mkdir()
    assert main(argv) == ExitCode.OK
    assert main([*argv, "fresh=true"]) == ExitCode.OK
    assert started == [1, 3, 3, 1, 2, 3], "what waits to be cleaned up is looked at, and --fresh starts all"
    assert sorted(path.name for path in folders[0].parent.glob("*.yaml")) == []
