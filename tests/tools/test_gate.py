from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.errors import ConfigError, ExitCode, NoBaselineError, NothingMeasuredError, RecordError, UserError
from bench.gating import THRESHOLDS, Verdict
from bench.records.baseline import entry_of, write_baseline
from bench.records.schema import RunRecord
from bench.records.store import write_record
from bench.units import Absent
from tools.gate import main

MakeRecord = Callable[..., RunRecord]
ROOT = Path(__file__).parents[2]


class Bench:
    """A folder with recorded runs and a baseline."""

    def __init__(self, folder: Path, make_record: MakeRecord) -> None:
        self.folder = folder
        self.make_record = make_record
        self.baseline = folder / "baseline.json"
        self.runs = folder / "runs"
        self.runs.mkdir()

    def record(self, variant: str = "a", **changes: Any) -> RunRecord:
        defaults = {"variant": variant, "key": f"key-{variant}", "cell": {"variant_name": variant, "hidden": 4}}
        return self.make_record(**(defaults | changes))

    def accept(self, *records: RunRecord) -> None:
        write_baseline(self.baseline, map(entry_of, records))

    def measure(self, *records: RunRecord) -> None:
        for number, record in enumerate(records):
            write_record(self.runs / f"run-{number}", record, config_yaml="")

    def gate(self, *arguments: str) -> int:
        return main([str(self.runs), "--baseline", str(self.baseline), *arguments])


@pytest.fixture
def bench(tmp_path: Path, make_record: MakeRecord) -> Bench:
    return Bench(tmp_path, make_record)


def slower(record: RunRecord, factor: float) -> RunRecord:
    assert record.timing is not None
    repeats = tuple(
        dataclasses.replace(repeat, step_ms=tuple(value * factor for value in repeat.step_ms))
        for repeat in record.timing.repeats
    )
    return dataclasses.replace(record, timing=dataclasses.replace(record.timing, repeats=repeats))


def unsteady(record: RunRecord) -> RunRecord:
    """Slower by a tenth and more, with processes further apart than that."""
    assert record.timing is not None
    repeats = tuple(
        dataclasses.replace(repeat, step_ms=tuple(value * factor for value in repeat.step_ms))
        for repeat, factor in zip(record.timing.repeats, (1.0, 1.12, 1.3), strict=True)
    )
    return dataclasses.replace(record, timing=dataclasses.replace(record.timing, repeats=repeats))


def larger(record: RunRecord, **fields: Any) -> RunRecord:
    assert record.memory is not None
    return dataclasses.replace(record, memory=dataclasses.replace(record.memory, **fields))


def failed(record: RunRecord, status: Any = "failed") -> RunRecord:
    missing = dict.fromkeys(("timing", "memory", "accuracy", "gemms", "hypernet"), "the cell failed")
    return dataclasses.replace(
        record, status=status, reason="killed by signal 9", timing=None, memory=None, accuracy=None, gemms=None,
        hypernet=None, missing=missing,
    )  # fmt: skip


def test_identical_records_pass(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.accept(bench.record("a"), bench.record("b"))
    bench.measure(bench.record("a"), bench.record("b"))
    assert bench.gate() == 0
    assert capsys.readouterr().out.splitlines()[-1] == "Gate passed (28 ok; 2 cells)."


def test_the_table_is_worst_first_and_ends_in_one_line(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.accept(bench.record("a"), bench.record("b"), bench.record("c"))
    bench.measure(
        larger(slower(bench.record("a"), 1.3), peak_allocated_bytes=30 * 1024**2),
        bench.record("b", cell={"variant_name": "b", "hidden": 8}),
        bench.record("d"),
    )
    assert bench.gate() == 1
    lines = capsys.readouterr().out.splitlines()
    verdicts = [line.split("demo/")[0].strip() for line in lines[:-1] if "demo/" in line]
    assert verdicts == ["regressed", "missing", "not comparable", "new", "improved", "ok"]
    assert lines[0].split() == ["verdict", "cell", "metric", "baseline", "candidate", "change", "why"]
    regressed = next(line for line in lines if line.startswith("regressed"))
    for part in ("step_ms", "100 ms", "130 ms", "+30.0 %", "worse: +30 %"):
        assert part in regressed
    assert lines[-1] == (
        "Gate failed: step_ms of demo/a resnet20 digits seed 0 regressed "
        "(1 regressed, 1 missing, 1 not comparable, 1 new, 1 improved, 12 ok; 4 cells)."
    )


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "one of the arguments --baseline --against is required"),
        (("--baseline", "b"), "give folders of runs to compare, or with --against what to run"),
        (("runs",), "one of the arguments --baseline --against is required"),
        (("suite=demo", "--against", "main", "--in-turn"), "--against measures in turn anyway"),
        (("runs", "--baseline", "b", "--format", "html"), "invalid choice: 'html'"),
        (("runs", "--baseline", "b", "--nonsense"), "unrecognized arguments: --nonsense"),
        (("runs", "--baseline", "b", "--thresholds", "step=3"), "no metric 'step'; did you mean step_ms?"),
        (("runs", "--baseline", "b", "--thresholds", "zzz=3"), "no metric 'zzz'; known are step_ms, fp32_step_ms"),
        (("runs", "--baseline", "b", "--thresholds", "step_ms"), "takes METRIC=VALUE, not 'step_ms'"),
        (("runs", "--baseline", "b", "--thresholds", "step_ms=fast"), "takes a number of 0 or more, not 'fast'"),
        (("runs", "--baseline", "b", "--thresholds", "step_ms=-1"), "takes a number of 0 or more"),
        (("runs", "--baseline", "b", "--thresholds", "step_ms=nan"), "takes a number of 0 or more"),
        (("runs", "--baseline", "b", "--treat", "inconclusive"), "takes VERDICT=OUTCOME, not 'inconclusive'"),
        (("runs", "--baseline", "b", "--treat", "unsure=ok"), "no verdict 'unsure'; known are failed, regressed"),
        (("runs", "--baseline", "b", "--treat", "new=bad"), "no outcome for new 'bad'; known are fail,"),
        (("runs", "--baseline", "b", "--write", "pdf=x"), "no format 'pdf'; known are text, markdown, json, junit"),
        (("runs", "--baseline", "b", "--write", "junit="), "takes FORMAT=FILE, not 'junit='"),
    ],
)
def test_wrong_arguments_exit_2_by_name(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_thresholds_can_be_given(bench: Bench) -> None:
    bench.accept(bench.record())
    bench.measure(larger(slower(bench.record(), 1.3), peak_allocated_bytes=41 * 1024**2))
    assert bench.gate() == 1
    assert bench.gate("--thresholds", "peak_allocated_bytes=3", "--thresholds", "step_ms=31", "data_ms=5") == 0


def test_runs_measured_in_turn_are_told_so_and_judged_more_tightly(bench: Bench) -> None:
    bench.accept(bench.record())
    bench.measure(slower(bench.record(), 1.08))
    assert bench.gate() == 0
    assert bench.gate("--in-turn") == 1
    for other in (("--confirm", "1"), ("--release-baseline", str(bench.baseline))):
        with pytest.raises(SystemExit) as caught:
            bench.gate("--in-turn", *other)
        assert caught.value.code == 2


def test_a_policy_file_says_the_same_and_the_command_line_has_the_last_word(bench: Bench) -> None:
    bench.accept(bench.record())
    bench.measure(larger(unsteady(bench.record()), peak_allocated_bytes=41 * 1024**2))
    policy = bench.folder / "gate.yaml"
    policy.write_text("thresholds:\n  peak_allocated_bytes: {limit: 3}\ntreat:\n  inconclusive: ok\n")
    assert bench.gate() == 1
    assert bench.gate("--policy", str(policy)) == 0
    assert bench.gate("--policy", str(policy), "--treat", "inconclusive=fail") == 1
    assert bench.gate("--policy", str(policy), "--treat", "inconclusive=inconclusive") == 3
    policy.write_text("thresholds:\n  peak_allocated_bytes: 1\n")
    assert bench.gate("--policy", str(policy), "--thresholds", "peak_allocated_bytes=3") == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("[", "is not valid YAML"),
        ("- 1", "is no mapping"),
        ("treshold: {}", "there is no key 'treshold'; did you mean thresholds?"),
        ("thresholds: 3", "thresholds takes a mapping, not 3"),
        ("thresholds: {step: 3}", "there is no metric 'step'; did you mean step_ms?"),
        ("thresholds: {step_ms: {lmit: 3}}", "there is no setting of step_ms 'lmit'; did you mean limit?"),
        ("thresholds: {step_ms: true}", "step_ms takes a number of 0 or more, not True"),
        ("thresholds: {step_ms: {limit: x}}", "step_ms.limit takes a number of 0 or more, not 'x'"),
        ("treat: {odd: ok}", "there is no verdict 'odd'"),
        ("since: 2026-13-01", "is not valid YAML: month must be in 1..12"),
        ("[" * 2000, "is not valid YAML"),
        ("thresholds: {step_ms: {floor_of: steps, floor_pct: 1}}", "there is no metric 'steps'; did you mean step_ms?"),
        ("thresholds: {step_ms: {floor_pct: 1}}", "step_ms.floor_pct needs floor_of"),
        ("thresholds: {peak_process_bytes: {process_shift_pct: 1}}", "there is no setting of peak_process_bytes"),
        ("thresholds: {test_accuracy_pct: {floor_of: step_ms}}", "there is no setting of test_accuracy_pct 'floor_of'"),
        ("alpha: 0.7", "alpha takes a chance between 0 and 0.5, not 0.7"),
        ("prior_df: 0", "prior_df takes 1 or more, not 0"),
        ("resamples: 3", "resamples takes 100 or more, not 3"),
        (
            "thresholds:\n  step_ms: {limit: 8}\n  step_ms: 80",
            "is not valid YAML: the key 'step_ms' stands twice, again in line 3",
        ),
        ("alpha: 0.01\nalpha: 0.4", "the key 'alpha' stands twice, again in line 2"),
        ("treat: {not comparable: fail, not_comparable: ok}", "treat names a verdict twice"),
    ],
)
def test_a_policy_file_with_a_mistake_exits_2_and_says_which(bench: Bench, content: str, message: str) -> None:
    bench.accept(bench.record())
    bench.measure(bench.record())
    (bench.folder / "gate.yaml").write_text(content)
    with pytest.raises((ConfigError, RecordError)) as caught:
        bench.gate("--policy", str(bench.folder / "gate.yaml"))
    assert caught.value.exit_code == 2
    assert message in str(caught.value)


def test_a_verdict_may_count_as_another_outcome(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.accept(bench.record("a"))
    bench.measure(bench.record("a"), bench.record("b"))
    assert bench.gate() == 0
    assert bench.gate("--treat", "new=fail") == 1
    assert "Gate failed: demo/b resnet20 digits seed 0 is new (1 new, 14 ok; 2 cells)." in capsys.readouterr().out
    assert bench.gate("--treat", "new=not_comparable", "ok=inconclusive") == 5


def test_json_holds_every_row_and_the_thresholds(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.accept(bench.record())
    bench.measure(larger(bench.record(), peak_allocated_bytes=44 * 1024**2))
    assert bench.gate("--json", "--thresholds", "step_ms=50") == 1
    content = json.loads(capsys.readouterr().out)
    assert content["schema_version"] == 2
    assert content["exit_code"] == 1
    assert content["conclusion"].startswith("Gate failed: peak_allocated_bytes ")
    assert list(content["counts"]) == [verdict.value for verdict in Verdict]
    assert content["counts"]["ok"] == len(THRESHOLDS) - 1
    assert content["thresholds"]["step_ms"]["limit"] == 50
    assert content["rows"][0] == {
        "verdict": "regressed",
        "cell": "demo/a resnet20 digits seed 0",
        "metric": "peak_allocated_bytes",
        "reference": "baseline",
        "baseline": 40 * 1024**2,
        "candidate": 44 * 1024**2,
        "change_pct": pytest.approx(10.0),
        "low_pct": None,
        "high_pct": None,
        "threshold_pct": 0.5,
        "p_value": None,
        "corrected_p": None,
        "reason": "worse by 10 %, more than 0.5 %.",
        "explanation": [],
        "config_digest": entry_of(bench.record()).config_digest,
        "fingerprint": "cpu-89abcdef",
    }


def test_markdown_is_a_table_that_names_cannot_break(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    odd = bench.record("a|b <b>*[x]\n\x1b[31m")
    bench.accept(odd)
    bench.measure(slower(odd, 1.3))
    assert bench.gate("--format", "markdown") == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("**Gate failed: ")
    table = [line.replace("\\|", "") for line in lines if line.startswith("|")]
    assert [line.count("|") for line in table] == [8] * 4
    assert "demo/a\\|b &lt;b&gt;\\*\\[x\\]\\\\n\\\\x1b\\[31m resnet20" in lines[4]


def test_text_shows_odd_names_without_obeying_them(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    odd = bench.record("[bold]x\x1b[31m")
    bench.accept(odd)
    bench.measure(odd)
    assert bench.gate() == 0
    out = capsys.readouterr().out
    assert "demo/[bold]x\\x1b[31m" in out
    assert "\x1b" not in out


def test_older_runs_of_a_cell_are_left_aside_and_said(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.accept(bench.record())
    bench.measure(
        slower(bench.record(key="1", code_version="1", started_at="2026-11-20T00:00:00+00:00"), 3),
        bench.record(key="2", code_version="2", started_at="2026-11-22T00:00:00+00:00"),
    )
    assert bench.gate() == 0
    assert "Left aside, since their cells were run again on the same machine: 1 older run." in capsys.readouterr().out


def test_the_help_lists_thresholds_exit_codes_and_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    for name in THRESHOLDS:
        assert f"  {name} " in out
    for code in (2, 4, 6, 1, 5, 3, 0):
        assert f"\n  {code}  " in out
    assert "metagrad-bench gate out/new/demo --baseline baseline.json" in out


def test_a_log_that_knows_only_ascii_gets_its_verdicts(bench: Bench) -> None:
    bench.accept(bench.record())
    bench.measure(slower(bench.record(), 1.3))
    done = subprocess.run(
        [sys.executable, "-B", "-m", "tools.cli", "gate", str(bench.runs), "--baseline", str(bench.baseline)],
        cwd=ROOT, env=os.environ | {"PYTHONIOENCODING": "ascii"}, capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, b"")
    assert b"regressed" in done.stdout


def test_a_change_below_the_noise_floor_is_not_shown_as_the_closest(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.accept(bench.record())
    bench.measure(larger(slower(bench.record(), 1.09), hypernet_extra_process_bytes=10 * 1024**2))
    assert bench.gate() == 0
    (row,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("ok "))
    assert "step_ms" in row
    assert "+9.0 %" in row


def test_the_command_answers_with_the_exit_code_though_its_reader_went_away(bench: Bench) -> None:
    bench.accept(bench.record())
    bench.measure(slower(bench.record(), 2))
    command = [sys.executable, "-B", "-m", "tools.cli", "gate", str(bench.runs), "--baseline", str(bench.baseline)]
    reader, writer = os.pipe()
    os.close(reader)
    closed = subprocess.run(command, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, timeout=60, check=False)
    os.close(writer)
    assert (closed.returncode, closed.stderr) == (1, b"")
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, timeout=60, check=False)
    assert done.returncode == 2
    assert b"cannot be written: No space left on device" in done.stderr


def test_of_many_cells_the_worst_are_listed_and_the_rest_counted(
    bench: Bench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tools.gate_output.MOST_LINES", 3)
    records = [bench.record(name) for name in "abcde"]
    bench.accept(*records)
    bench.measure(*records[:4], slower(records[4], 1.5))
    assert (
        bench.gate("--write", f"markdown={tmp_path / 'gate.md'}", f"json={tmp_path / 'gate.json'}") == ExitCode.FAILED
    )
    text = capsys.readouterr().out
    rest = "And 3 more lines, 3 of them ok: --write json=FILE holds every row."
    assert text.splitlines()[2].startswith("regressed")
    assert rest in text
    assert rest in (tmp_path / "gate.md").read_text(encoding="utf-8")
    rows = json.loads((tmp_path / "gate.json").read_text(encoding="utf-8"))["rows"]
    assert {row["cell"].split()[0] for row in rows} == {f"demo/{name}" for name in "abcde"}
