from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.errors import ExitCode
from bench.gating import THRESHOLDS, Verdict
from bench.records.entry import entry_of
from tests.tools.gate_runs import Bench, larger, slower
from tools.gate_output import LEGEND

ROOT = Path(__file__).parents[2]


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
    assert lines[0].split() == ["verdict", "cell", "metric", "baseline", "candidate", "change", "change", "of", "why"]
    regressed = next(line for line in lines if line.startswith("regressed"))
    for part in ("step_ms", "100 ms", "130 ms", "+30.0 %   time / FP32 step   ", "worse: +30 %"):
        assert part in regressed
    (improved,) = (line for line in lines if line.startswith("improved"))
    assert "-25.0 %   as shown " in improved
    assert [line for line in lines if line.startswith("time / FP32 step: ")] == [LEGEND]
    assert lines[-1] == (
        "Gate failed: step_ms of demo/a resnet20 digits seed 0 regressed "
        "(1 regressed, 1 missing, 1 not comparable, 1 new, 1 improved, 12 ok; 4 cells)."
    )


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
        "per_fp32_step": False,
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
    assert [line.count("|") for line in table] == [9] * 4
    assert "demo/a\\|b &lt;b&gt;\\*\\[x\\]\\\\n\\\\x1b\\[31m resnet20" in lines[4]


def test_text_shows_odd_names_without_obeying_them(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    odd = bench.record("[bold]x\x1b[31m")
    bench.accept(odd)
    bench.measure(odd)
    assert bench.gate() == 0
    out = capsys.readouterr().out
    assert "demo/[bold]x\\x1b[31m" in out
    assert "\x1b" not in out


def test_a_log_that_knows_only_ascii_gets_its_verdicts(bench: Bench) -> None:
    bench.accept(bench.record())
    bench.measure(slower(bench.record(), 1.3))
    done = subprocess.run(
        [sys.executable, "-B", "-m", "tools.cli", "gate", str(bench.runs), "--baseline", str(bench.baseline)],
        cwd=ROOT, env=os.environ | {"PYTHONIOENCODING": "ascii"}, capture_output=True, timeout=300, check=False,
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
    closed = subprocess.run(command, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, timeout=300, check=False)
    os.close(writer)
    assert (closed.returncode, closed.stderr) == (1, b"")
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, timeout=300, check=False)
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
