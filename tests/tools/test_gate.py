from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest

from bench.errors import ExitCode, NoBaselineError, NothingMeasuredError, RecordError, UserError
from bench.records.schema import RunRecord
from bench.records.write import write_record
from bench.units import Absent
from tests.tools.gate_runs import Bench, failed, larger, slower, unsteady
from tools.gate import main


def test_identical_records_pass(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.accept(bench.record("a"), bench.record("b"))
    bench.measure(bench.record("a"), bench.record("b"))
    assert bench.gate() == 0
    assert capsys.readouterr().out.splitlines()[-1] == "Gate passed (28 ok; 2 cells)."


@pytest.mark.parametrize(
    ("change", "code", "verdict"),
    [
        (lambda record: record, 0, "ok"),
        (lambda record: larger(record, peak_allocated_bytes=1024), 0, "improved"),
        (lambda record: slower(record, 1.3), 1, "regressed"),
        (unsteady, 3, "inconclusive"),
        (lambda record: larger(record, peak_allocated_bytes=41 * 1024**2), 1, "regressed"),
        (lambda record: larger(record, peak_process_bytes=Absent(reason="no permission")), 1, "missing"),
        (failed, 1, "failed"),
        (lambda record: failed(record, "out_of_memory"), 1, "failed"),
        (lambda record: dataclasses.replace(record, status="diverged", reason="nan"), 1, "failed"),
        (lambda record: dataclasses.replace(record, fingerprint="cpu-other"), 5, "not_comparable"),
        (lambda record: dataclasses.replace(record, cell={"variant_name": "a", "hidden": 8}), 5, "not_comparable"),
    ],
)
def test_every_verdict_has_its_exit_code(
    bench: Bench, capsys: pytest.CaptureFixture[str], change: Callable[[RunRecord], RunRecord], code: int, verdict: str
) -> None:
    bench.accept(bench.record())
    bench.measure(change(bench.record()))
    assert bench.gate("--format", "json") == code
    assert json.loads(capsys.readouterr().out)["rows"][0]["verdict"] == verdict


def test_a_vanished_cell_fails_and_an_added_one_passes(bench: Bench) -> None:
    bench.accept(bench.record("a"), bench.record("b"))
    bench.measure(bench.record("a"))
    assert bench.gate() == 1
    bench.accept(bench.record("a"))
    write_record(bench.runs / "more", bench.record("c"), config_yaml="")
    assert bench.gate() == 0


def test_a_regression_outweighs_what_is_not_comparable(bench: Bench) -> None:
    bench.accept(bench.record("a"), bench.record("b"))
    bench.measure(slower(bench.record("a"), 2), bench.record("b", fingerprint="cpu-other"))
    assert bench.gate() == 1


def test_diverged_on_both_sides_passes(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    diverged = failed(bench.record(), "diverged")
    bench.accept(diverged)
    bench.measure(diverged)
    assert bench.gate() == 0
    assert "it diverged (killed by signal 9), as in the baseline." in capsys.readouterr().out


def test_warn_only_prints_the_findings_and_exits_0(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.accept(bench.record())
    bench.measure(slower(bench.record(), 2))
    assert bench.gate("--warn-only") == 0
    out = capsys.readouterr().out
    assert "Warning only: the exit code would be 1." in out
    assert out.splitlines()[-1].startswith("Gate failed: ")


@pytest.mark.parametrize(
    ("change", "code"), [({"fingerprint": "cpu-other"}, 5), ({"cell": {"variant_name": "a", "hidden": 8}}, 5), ({}, 1)]
)
def test_warn_only_does_not_pass_what_was_compared_with_nothing(
    bench: Bench, capsys: pytest.CaptureFixture[str], change: dict[str, Any], code: int
) -> None:
    bench.accept(bench.record())
    bench.measure(bench.record(**change) if change else bench.record("b"))
    assert bench.gate("--warn-only", "--json") == code
    content = json.loads(capsys.readouterr().out)
    assert f"No cell was compared, so --warn-only leaves the exit code at {code}." in content["notes"]
    assert (content["exit_code"], content["warn_only"]) == (code, False)
    write_record(bench.runs / "more", bench.record("c"), config_yaml="")
    bench.accept(bench.record(), bench.record("c"))
    assert bench.gate("--warn-only") == 0


def test_no_baseline_exits_4_and_says_how_to_get_one(bench: Bench) -> None:
    bench.measure(bench.record())
    with pytest.raises(NoBaselineError, match=r"There is no baseline .*metagrad-bench baseline CANDIDATE -o") as caught:
        bench.gate()
    assert caught.value.exit_code == ExitCode.NO_BASELINE == 4


def test_nothing_measured_exits_6(bench: Bench) -> None:
    bench.accept(bench.record())
    with pytest.raises(NothingMeasuredError, match="holds no records") as caught:
        bench.gate()
    assert caught.value.exit_code == ExitCode.NOTHING_MEASURED == 6


def test_a_baseline_without_entries_exits_6(bench: Bench) -> None:
    bench.measure(bench.record())
    bench.baseline.write_text('{"schema_version": 2, "created": "", "entries": []}')
    with pytest.raises(NothingMeasuredError, match="holds no entries"):
        bench.gate()


def test_failures_on_both_sides_measure_nothing(bench: Bench) -> None:
    bench.accept(failed(bench.record()))
    bench.measure(failed(bench.record()))
    with pytest.raises(NothingMeasuredError, match=r"Nothing was compared.*/a .*: it failed \(killed by signal 9"):
        bench.gate("--warn-only")


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"schema_version": 1, "entries": []}', '{"schema_version": 3, "entries": []}']
)
def test_an_unreadable_baseline_exits_2(bench: Bench, content: str) -> None:
    bench.measure(bench.record())
    bench.baseline.write_text(content)
    with pytest.raises(RecordError) as caught:
        bench.gate()
    assert caught.value.exit_code == ExitCode.USAGE == 2


def test_an_unreadable_record_exits_2_even_beside_good_ones_and_without_a_baseline(bench: Bench) -> None:
    bench.measure(bench.record("a"))
    for name in ("bad", "worse"):
        (bench.runs / name).mkdir()
        (bench.runs / name / "record.json").write_text("{")
    with pytest.raises(RecordError, match=r"bad/record\.json is not valid JSON .*1 more cannot be read") as caught:
        bench.gate()
    assert caught.value.exit_code == 2


def test_a_candidate_that_does_not_exist_exits_2(bench: Bench) -> None:
    bench.accept(bench.record())
    with pytest.raises(UserError, match="No such file") as caught:
        main([str(bench.folder / "nowhere"), "--baseline", str(bench.baseline)])
    assert caught.value.exit_code == 2


def test_older_runs_of_a_cell_are_left_aside_and_said(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.accept(bench.record())
    bench.measure(
        slower(bench.record(key="1", code_version="1", started_at="2026-11-20T00:00:00+00:00"), 3),
        bench.record(key="2", code_version="2", started_at="2026-11-22T00:00:00+00:00"),
    )
    assert bench.gate() == 0
    assert "Left aside, since their cells were run again on the same machine: 1 older run." in capsys.readouterr().out
