from __future__ import annotations

import dataclasses
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.errors import ExitCode, NothingMeasuredError, RecordError
from bench.records.baseline import read_baseline
from bench.records.schema import RunRecord
from bench.records.write import write_record
from tools.baseline import main
from tools.gate import main as gate

MakeRecord = Callable[..., RunRecord]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def measure(tmp_path: Path, make_record: MakeRecord) -> Callable[..., Path]:
    def write(folder: str, variant: str = "a", **changes: Any) -> Path:
        defaults = {"variant": variant, "key": f"{folder}-{variant}", "cell": {"variant_name": variant}}
        record = make_record(**(defaults | changes))
        write_record(tmp_path / folder / variant, record, config_yaml="")
        return tmp_path / folder

    return write


def test_a_baseline_is_written_and_its_own_runs_pass_the_gate(
    tmp_path: Path, measure: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    measure("runs", "b")
    runs, output = measure("runs", "a"), tmp_path / "baseline.json"
    assert main([str(runs), "-o", str(output)]) == 0
    assert capsys.readouterr().out == f"{output} holds 2 cells on 1 machine.\n"
    assert [entry.variant for entry in read_baseline(output).entries] == ["a", "b"]
    assert gate([str(runs), "--baseline", str(output)]) == 0


def test_writing_it_again_changes_no_byte_and_says_so(
    tmp_path: Path, measure: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    runs, output = measure("runs"), tmp_path / "baseline.json"
    main([str(runs), "-o", str(output)])
    before = output.read_bytes()
    main([str(runs), "-o", str(output)])
    assert output.read_bytes() == before
    assert "Nothing moved." in capsys.readouterr().out


def test_replacing_it_says_what_moved(
    tmp_path: Path, measure: Callable[..., Path], make_record: MakeRecord, capsys: pytest.CaptureFixture[str]
) -> None:
    output, memory = tmp_path / "baseline.json", make_record().memory
    assert memory is not None
    measure("old", "a")
    main([str(measure("old", "b")), "-o", str(output)])
    measure("new", "a", memory=dataclasses.replace(memory, peak_allocated_bytes=50 * 1024**2))
    capsys.readouterr()
    main([str(measure("new", "c", status="diverged", reason="nan.")), "-o", str(output)])
    assert capsys.readouterr().out.splitlines() == [
        "demo/b resnet20 digits seed 0 on cpu-89abcdef: gone",
        "demo/c resnet20 digits seed 0 on cpu-89abcdef: new",
        "demo/a resnet20 digits seed 0: peak_allocated_bytes 40.0 MiB -> 50.0 MiB (+25.0 %)",
        "demo/c resnet20 digits seed 0: diverged (nan)",
        f"{output} holds 2 cells on 1 machine.",
    ]


def test_other_machines_are_kept_only_when_asked(
    tmp_path: Path, measure: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "baseline.json"
    main([str(measure("gpu", fingerprint="cuda-1")), "-o", str(output)])
    main([str(measure("cpu")), "-o", str(output), "--keep-machines"])
    assert [entry.fingerprint for entry in read_baseline(output).entries] == ["cpu-89abcdef", "cuda-1"]
    assert capsys.readouterr().out.endswith("holds 2 cells on 2 machines.\n")
    main([str(tmp_path / "cpu"), "-o", str(output)])
    assert [entry.fingerprint for entry in read_baseline(output).entries] == ["cpu-89abcdef"]
    assert "on cuda-1: gone" in capsys.readouterr().out


def test_no_runs_or_only_failed_ones_exit_6_and_leave_the_file(tmp_path: Path, measure: Callable[..., Path]) -> None:
    output = tmp_path / "baseline.json"
    main([str(measure("good")), "-o", str(output)])
    before = output.read_bytes()
    (tmp_path / "empty").mkdir()
    failed = measure("bad", status="failed", reason="x", timing=None, memory=None, accuracy=None, gemms=None)
    for folder, words in ((tmp_path / "empty", "no records"), (failed, "only cells that failed")):
        with pytest.raises(NothingMeasuredError, match=f"holds {words}") as caught:
            main([str(folder), "-o", str(output)])
        assert caught.value.exit_code == ExitCode.NOTHING_MEASURED == 6
    assert output.read_bytes() == before


def test_an_unreadable_record_writes_nothing(tmp_path: Path, measure: Callable[..., Path]) -> None:
    runs = measure("runs")
    (runs / "cut").mkdir()
    (runs / "cut" / "record.json").write_text('{"schema_version": 1')
    with pytest.raises(RecordError, match="not valid JSON"):
        main([str(runs), "-o", str(tmp_path / "baseline.json")])
    assert not (tmp_path / "baseline.json").exists()


def test_a_file_that_is_something_else_is_left_alone(tmp_path: Path, measure: Callable[..., Path]) -> None:
    runs = measure("runs")
    (tmp_path / "README.md").write_text("# Mine\n")
    (tmp_path / "newer.json").write_text('{"schema_version": 9, "entries": []}')
    for name, message in (
        ("README.md", "not valid JSON"),
        ("newer.json", "schema version 9"),
        ("runs", "not a regular"),
    ):
        with pytest.raises(RecordError, match=message):
            main([str(runs), "-o", str(tmp_path / name)])
    assert (tmp_path / "README.md").read_text() == "# Mine\n"
    with pytest.raises(RecordError, match="not a regular file"):
        main([str(runs), "-o", "/dev/null"])
    assert not Path("/dev/null").is_file()


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path, measure: Callable[..., Path]) -> None:
    runs = measure("runs")
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "nowhere" / "b.json", tmp_path / "file" / "b.json"):
        with pytest.raises(RecordError, match=r"cannot be written: (No such file or directory|Not a directory)"):
            main([str(runs), "-o", str(place)])


def test_a_full_disk_keeps_the_older_baseline(tmp_path: Path, measure: Callable[..., Path]) -> None:
    output = tmp_path / "out" / "baseline.json"
    output.parent.mkdir()
    main([str(measure("runs")), "-o", str(output)])
    before = output.read_bytes()
    measure("runs", "b")

    def limit_file_size() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before),) * 2)

    done = subprocess.run(
        [sys.executable, "-B", "-m", "tools.cli", "baseline", str(tmp_path / "runs"), "-o", str(output)],
        cwd=ROOT, preexec_fn=limit_file_size, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == (
        f"metagrad-bench: The file {output} cannot be written: File too large; free space or choose another place.\n"
    )
    assert output.read_bytes() == before
    assert os.listdir(output.parent) == ["baseline.json"]  # noqa: PTH208


def test_wrong_arguments_exit_2_and_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, code in (([], 2), (["runs"], 2), (["--help"], 0)):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == code
    assert "metagrad-bench baseline out/demo -o baseline.json" in capsys.readouterr().out
