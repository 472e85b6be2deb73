from __future__ import annotations

import csv
import dataclasses
import errno
import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from bench.errors import ExitCode, NothingMeasuredError, RecordError
from bench.records.schema import RunRecord
from bench.records.text import sealed
from reports.build import build_report
from reports.csv_files import DEVICE, _device
from tools.cli import main as call

Make = Callable[..., list[RunRecord]]
Write = Callable[[Sequence[RunRecord]], Path]


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw nothing: what a test does not look at costs seconds."""
    monkeypatch.setattr("reports.build.MAX_FIGURE_SECTIONS", 0)


def _digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_report_is_html_markdown_figures_and_tables_and_the_same_twice(
    demo_records: Make, write_runs: Write, tmp_path: Path
) -> None:
    runs = write_runs(demo_records(["fp32", "uint8_int8", "metagrad_int4_slim"]))
    result = build_report([runs], tmp_path / "one")
    build_report([runs], tmp_path / "two")
    files = _digests(tmp_path / "one")
    names = ("accuracy", "phases", "memory", "steps", "convergence")
    assert {f"figures/{name}.{ending}" for name in names for ending in ("svg", "png")} <= set(files)
    assert {f"tables/{name}.csv" for name in ("rows", "cells", "samples", "curves", "layers")} <= set(files)
    assert files == _digests(tmp_path / "two")
    assert len(result.headlines) == 3
    assert result.html.read_text(encoding="utf-8").count("<svg") == len(names)
    assert result.problems == ()


@pytest.mark.usefixtures("no_figures")
def test_tables_carry_the_records_numbers_and_quote_formulas(
    demo_records: Make, write_runs: Write, tmp_path: Path
) -> None:
    (record,) = demo_records(["uint8_int8"], variant="=HYPERLINK(1)")
    build_report([write_runs([record])], tmp_path / "out")
    with (tmp_path / "out" / "tables" / "cells.csv").open(encoding="utf-8", newline="") as stream:
        (row,) = csv.DictReader(stream)
    assert row["variant"] == "'=HYPERLINK(1)"
    assert record.timing is not None
    assert float(row["timing.step_ms.median"]) == record.timing.step_ms.median
    assert row["memory.peak_reserved_bytes"] == ""
    assert row["memory.peak_reserved_bytes.reason"] == "only CUDA's allocator reserves"
    with (tmp_path / "out" / "tables" / "samples.csv").open(encoding="utf-8", newline="") as stream:
        samples = [float(line["step_ms"]) for line in csv.DictReader(stream) if line["of"] == "cell"]
    assert samples == [step for repeat in record.timing.repeats for step in repeat.step_ms]


@pytest.mark.usefixtures("no_figures")
def test_tables_give_no_interval_of_one_process(
    demo_records: Make, write_runs: Write, one_process: Callable[[RunRecord], RunRecord], tmp_path: Path
) -> None:
    (record,) = demo_records(["uint8_int8"])
    build_report([write_runs([one_process(record)])], tmp_path / "out")
    for name, low, high in (
        ("cells", "timing.time_vs_fp32.low", "timing.time_vs_fp32.high"),
        ("rows", "time_vs_fp32_low95", "time_vs_fp32_high95"),
    ):
        with (tmp_path / "out" / "tables" / f"{name}.csv").open(encoding="utf-8", newline="") as stream:
            (row,) = csv.DictReader(stream)
        for end in (low, high):
            assert row[end] == ""
            assert row[f"{end}.reason"] == "one process, no interval"


@pytest.mark.usefixtures("no_figures")
def test_corrupt_and_foreign_files_are_named_and_the_rest_is_shown(
    demo_records: Make, write_runs: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = write_runs(demo_records(["fp32"]))
    for name, text in (("cut", '{"schema_version": 1, "key'), ("foreign", json.dumps({"name": "something else"}))):
        (runs / name).mkdir()
        (runs / name / "record.json").write_text(text)
    assert call(["report", str(runs), "-o", str(tmp_path / "out")]) == ExitCode.OK
    said = capsys.readouterr()
    for text in (
        (tmp_path / "out" / "report.html").read_text(),
        (tmp_path / "out" / "report.md").read_text(),
        said.err,
    ):
        assert "cut/record.json" in text
        assert "foreign/record.json" in text
        assert str(tmp_path) not in text
    assert "report.html" in said.out


@pytest.mark.usefixtures("no_figures")
def test_a_record_whose_profile_nothing_wrote_is_named_and_the_rest_is_shown(
    demo_records: Make, write_runs: Write, profiled: Callable[[RunRecord], RunRecord], tmp_path: Path
) -> None:
    runs = write_runs([profiled(record) for record in demo_records(["fp32", "uint8_int8"])])
    path = runs / "run-1" / "record.json"
    content = json.loads(path.read_text())
    del content["sha256"], content["profile"]["fp32"]
    path.write_bytes(sealed(json.dumps(content, indent=2).encode() + b"\n"))  # so its SHA-256 is right
    result = build_report([runs], tmp_path / "out")
    assert [problem.name for problem in result.problems] == ["run-1/record.json"]
    assert "missing required field `fp32`" in result.problems[0].reason
    assert result.html.read_text(encoding="utf-8").count('<details class="cell"') == 1


def test_an_empty_folder_is_one_sentence_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs").mkdir()
    with pytest.raises(NothingMeasuredError, match="no run record was found"):
        build_report([tmp_path / "runs"], tmp_path / "out")
    assert call(["report", str(tmp_path / "runs"), "-o", str(tmp_path / "out")]) == ExitCode.NOTHING_MEASURED
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_figures")
def test_an_output_folder_that_cannot_be_is_one_sentence(
    demo_records: Make, write_runs: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = write_runs(demo_records(["fp32"]))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RecordError, match="name another folder"):
        build_report([runs], tmp_path / "file" / "out")
    assert call(["report", str(runs), "-o", str(tmp_path / "file" / "out")]) == ExitCode.USAGE
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_more_records_than_a_page_shows_are_refused_before_any_is_read(
    demo_records: Make, write_runs: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = write_runs(demo_records(["fp32", "uint8_int8"]))
    monkeypatch.setattr("reports.load.MOST_RECORDS", 1)
    with pytest.raises(RecordError, match="there are 2 records, and one report shows up to 1: name some of the fold"):
        build_report([runs], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_figures")
def test_a_disk_that_is_full_leaves_the_earlier_report_whole(
    demo_records: Make, write_runs: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    build_report([write_runs(demo_records(["fp32"]))], tmp_path / "out")
    files = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    (tmp_path / "runs").rename(tmp_path / "earlier")
    runs = write_runs(demo_records(["fp32", "uint8_int8"]))
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RecordError, match="No space left on device; name another folder"):
        build_report([runs], tmp_path / "out")
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == files


@pytest.mark.usefixtures("no_figures")
def test_what_is_printed_obeys_no_name_and_holds_whatever_the_output_is(
    demo_records: Make,
    write_runs: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    runs = write_runs([dataclasses.replace(record, suite="s\n::error::x") for record in demo_records(["fp32"])])
    odd = runs / "a\n::error::y\x1b[31m"
    odd.mkdir()
    (odd / "record.json").write_text("no record")
    for encoding in ("utf-8", "ascii"):
        printed = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr(sys, "stdout", printed)
        assert call(["report", str(runs), "-o", str(tmp_path / "out")]) == ExitCode.OK
        printed.seek(0)
        lines = [*printed.read().splitlines(), *capsys.readouterr().err.splitlines()]
        assert any("error::y" in line for line in lines)
        assert not [line for line in lines if line.startswith("::") or "\x1b" in line]


def test_samples_of_the_device_that_end_early_leave_fields_empty(
    demo_records: Make, with_device: Callable[..., RunRecord]
) -> None:
    (record,) = demo_records(["fp32"])
    cut = with_device(record, power_w=(70.0,))
    assert [line[-1 - len(DEVICE) + DEVICE.index("power_w") - 1] for line in _device([cut])][:3] == [70.0, None, None]


def test_a_path_that_is_not_there_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["report", str(tmp_path / "nowhere"), "-o", str(tmp_path / "out")]) == ExitCode.USAGE
    assert "nowhere" in capsys.readouterr().err


@pytest.mark.usefixtures("no_figures")
def test_records_without_any_measurement_still_give_a_report(
    demo_records: Make, write_runs: Write, tmp_path: Path
) -> None:
    nothing = dict.fromkeys(("accuracy", "timing", "memory", "hypernet", "gemms", "data", "model"))
    records = demo_records(["fp32", "uint8_int8"], status="failed", reason="the self-check failed", **nothing)
    result = build_report([write_runs(records)], tmp_path / "out")
    assert "the self-check failed" in result.html.read_text(encoding="utf-8")
    assert result.headlines[-1] == "Of 2 cells, 2 failed (fp32 and uint8_int8): their rows give the reason."


def test_many_sections_have_figures_for_the_largest_only_and_say_so(
    demo_records: Make, write_runs: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reports.build.MAX_FIGURE_ROWS", 2)
    records = [*demo_records(["fp32", "uint8_int8"]), *demo_records(["fp32"], machine="cpu-other")]
    result = build_report([write_runs(records)], tmp_path / "out")
    assert (tmp_path / "out" / "figures" / "1-steps.svg").exists()
    assert not (tmp_path / "out" / "figures" / "2-steps.svg").exists()
    assert "Figures are drawn for the" in result.html.read_text(encoding="utf-8")


def test_figures_of_an_earlier_report_do_not_stay_and_a_missing_one_says_why(
    demo_records: Make, write_runs: Write, tmp_path: Path
) -> None:
    (tmp_path / "out" / "figures").mkdir(parents=True)
    old = tmp_path / "out" / "figures" / "surface.svg"
    old.write_text("<svg/>")
    result = build_report([write_runs(demo_records(["fp32"]))], tmp_path / "out")
    assert not old.exists()
    assert "(no row has a hypernetwork)" in result.html.read_text(encoding="utf-8")


@pytest.mark.usefixtures("no_figures")
def test_a_newer_record_of_one_key_is_the_one_shown(demo_records: Make, write_runs: Write, tmp_path: Path) -> None:
    (old,) = demo_records(["fp32"])
    new = dataclasses.replace(old, started_at="2026-11-30T00:00:00+00:00")
    result = build_report([write_runs([old, new])], tmp_path / "out")
    assert "2026-11-30" in result.markdown.read_text(encoding="utf-8")
    assert [problem.name for problem in result.problems] == ["run-0/record.json"]


def test_the_help_is_complete_and_importing_the_verb_draws_nothing() -> None:
    code = (
        "import sys, reports.build, tools.report as b; "
        "heavy = {'matplotlib', 'seaborn', 'pandas', 'torch', 'jinja2'} & set(sys.modules); "
        "print(sorted(heavy)); b.main(['--help'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.startswith("[]\n")
    assert "example:\n  metagrad-bench report out/demo -o out/demo" in done.stdout
