"""What a run does where there is nothing to print to, nowhere to stand, or nothing left of a setting's meaning."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from bench.progress import SuiteProgress
from bench.records.find import find_records
from tools.cli import main

ROOT = Path(__file__).parents[2]
PROGRAM = [sys.executable, "-m", "tools.cli"]
ONE_PASS = (
    "protocol=tiny", "protocol.pretrain_epochs=0", "protocol.passes=[accuracy]", "data.train_limit=64",
    "data.test_limit=64", "protocol.batch_size=32", "model=custom", "model.factory=tools.faults.nets:SmallNet",
)  # fmt: skip


def test_a_working_folder_that_is_gone_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert main(["run", "variant=fp32"]) == 2
    monkeypatch.chdir(tmp_path)
    assert "The working folder is not there any more" in capsys.readouterr().err


def test_a_working_folder_that_goes_away_under_a_verb_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)

    def measure(argv: list[str]) -> int:
        gone.rmdir()
        Path("out").absolute()
        raise AssertionError("there is no folder to stand in")

    monkeypatch.setattr("tools.run.main", measure)
    assert main(["run", "variant=fp32"]) == 1
    monkeypatch.chdir(tmp_path)
    assert "The working folder is not there any more" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_an_output_that_is_full_is_one_sentence_and_a_closed_one_is_no_error(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with Path("/dev/full").open("w") as full:
        run = subprocess.run(
            [*PROGRAM, "list", "gpus"], stdout=full, stderr=subprocess.PIPE, text=True, env=environment, check=False
        )
    assert run.returncode == 2, "the only code for a failure that `list` documents"
    assert run.stderr == "metagrad-bench: The output cannot be written (No space left on device).\n"
    closed = subprocess.run(
        ["/bin/sh", "-c", '"$@" >&- 2>&-', "sh", *PROGRAM, "list", "gpus"], env=environment, check=False
    )
    assert closed.returncode == 0


@pytest.mark.parametrize("line", [["--help"], ["--version"], ["list", "gpus"], ["list", "gpus", "--json"]])
def test_a_reader_that_goes_away_is_no_error(
    line: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w", encoding="utf-8") as nobody_reads:  # noqa: PTH123  a descriptor
        monkeypatch.setattr(sys, "stdout", nobody_reads)
        assert main(line) == 0
    assert capsys.readouterr().err == ""


class FullFile(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


def test_progress_that_nobody_can_see_ends_no_measurement() -> None:
    progress = SuiteProgress(2)
    progress.console = Console(file=FullFile())
    progress.start_cell("cell", 1)
    progress.update("timing", 1, 2, 3.0)
    progress.finish_cell("ok")
    assert not progress.show


def test_fresh_is_a_flag_and_a_suite_leaves_no_path_of_the_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["run", "--multirun", "seed=1", *ONE_PASS, f"output_dir={tmp_path}/out", "progress=false"]
    for extra in ([], [], ["--fresh"]):
        assert main([*argv, *extra]) == 0
    assert capsys.readouterr().out.count("1 cell: 1 ok") == 3
    assert len(find_records([tmp_path])[0]) == 1
    assert len(list((tmp_path / "out" / "single" / "superseded").iterdir())) == 1, "only --fresh measured again"
    for path in tmp_path.rglob("*.yaml"):
        assert str(Path.cwd()) not in path.read_text(encoding="utf-8"), path


def test_a_factory_that_fails_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "failing_net.py").write_text("def make():\n    raise ValueError('planted')\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert main(["run", "model=custom", "model.factory=failing_net:make"]) == 2
    sys.modules.pop("failing_net", None)
    assert "failing_net:make: the call failed with ValueError: planted" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} <= {"failing_net.py", "__pycache__"}
