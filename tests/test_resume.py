"""A cell that was stopped, killed or left by its disk goes on in the next run, and ends like one that was not."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench import cell_folder, cell_passes, process
from bench.app import parse_arguments, plan_cells
from bench.cell import locate, run_cell
from bench.config import CellConfig
from bench.errors import RecordError
from bench.files import write_sealed
from bench.records.find import find_records
from bench.records.read import read_record
from bench.records.schema import RunRecord
from bench.records.write import write_record
from tests.edited_records import edit_record

MakeCell = Callable[..., CellConfig]


@pytest.fixture
def cell_of(tmp_path: Path) -> MakeCell:
    """A cell of a small network, its records in a temporary folder."""

    def make(*argv: str) -> CellConfig:
        quick = [
            "model=custom", "model.factory=tools.faults.nets:SmallNet", "protocol=tiny", "data.train_limit=128",
            "data.test_limit=64", "protocol.batch_size=16", "protocol.epochs=2", "protocol.pretrain_epochs=0",
            "protocol.checkpoint_s=0", f"output_dir={tmp_path}/out", "progress=false",
        ]  # fmt: skip
        return plan_cells(parse_arguments([*quick, *argv])).cells[0]

    return make


class Pass:
    """Stands before ``run_pass``: counts what runs, and interrupts where it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ran: list[str] = []
        self.interrupt_at = ""
        self.after_steps = 0
        self.real = process.run_pass
        monkeypatch.setattr(cell_passes, "run_pass", self)

    def __call__(self, function: Any, arguments: dict[str, Any], *, on_progress: Any, **settings: Any) -> Any:
        self.ran.append(function.__name__)
        if function.__name__ != self.interrupt_at:
            return self.real(function, arguments, on_progress=on_progress, **settings)

        def interrupting(progress: dict[str, Any]) -> None:
            if progress.get("done", 0) >= self.after_steps and not progress["phase"].startswith("stopping"):
                self.interrupt_at = ""
                raise KeyboardInterrupt
            on_progress(progress)

        return self.real(function, arguments, on_progress=interrupting, **settings)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Pass:
    return Pass(monkeypatch)


def assert_same_results(one: RunRecord, other: RunRecord) -> None:
    assert one.accuracy is not None
    assert other.accuracy is not None
    plain = [
        dataclasses.replace(
            record.accuracy, curve=tuple(dataclasses.replace(point, seconds=0.0) for point in record.accuracy.curve)
        )
        for record in (one, other)
        if record.accuracy is not None
    ]
    assert plain[0] == plain[1]
    assert isinstance(plain[0].weights_digest, str)


def interrupted(cell: CellConfig) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_cell(cell)


def test_an_interrupted_cell_keeps_its_finished_passes_and_its_training_goes_on(
    cell_of: MakeCell, passes: Pass, tmp_path: Path
) -> None:
    cell = cell_of("variant=metagrad_int8_recompute", "protocol.pretrain_epochs=8", "protocol.passes=[timing,accuracy]")
    passes.interrupt_at, passes.after_steps = "pretrain_pass", 1
    interrupted(cell)
    passes.interrupt_at, passes.after_steps = "accuracy_pass", 5
    interrupted(cell)
    assert not find_records([tmp_path])[0], "what is not whole is no record"
    assert passes.ran == ["check_pass", "pretrain_pass", "pretrain_pass", "timing_pass", "accuracy_pass"]
    passes.ran.clear()
    record = run_cell(cell)
    assert passes.ran == ["accuracy_pass"]
    assert record.status == "ok"
    several, pretraining, training = record.notices[-3:]
    assert several.startswith("Measured in several runs: check, timing 1 stood from before")
    assert pretraining.startswith("FP32 weights: The training was interrupted and went on after step")
    assert training.startswith("The training was interrupted and went on after step")
    waiting = [path.name for path in locate(cell)[0].parent.iterdir() if path.suffix in (".resume", ".files")]
    assert not waiting, "nothing waits any more"
    whole = run_cell(dataclasses.replace(cell, output_dir=str(tmp_path / "twin")))
    assert_same_results(record, whole)
    assert not any("interrupt" in notice for notice in whole.notices)


def test_fresh_ignores_what_an_interrupted_run_left(cell_of: MakeCell, passes: Pass) -> None:
    cell = cell_of("variant=fp32", "protocol.passes=[accuracy]")
    passes.interrupt_at, passes.after_steps = "accuracy_pass", 5
    interrupted(cell)
    record = run_cell(dataclasses.replace(cell, fresh=True))
    assert passes.ran == ["check_pass", "accuracy_pass"] * 2
    assert not any("interrupt" in notice for notice in record.notices)


def test_a_damaged_answer_or_checkpoint_is_measured_again_and_said(
    cell_of: MakeCell, passes: Pass, tmp_path: Path
) -> None:
    cell = cell_of("variant=fp32", "protocol.passes=[accuracy]")
    passes.interrupt_at, passes.after_steps = "accuracy_pass", 5
    interrupted(cell)
    folder = locate(cell)[0]
    resume = folder.with_name(f".{folder.name}.resume")
    (resume / "check.answer").write_bytes((resume / "check.answer").read_bytes()[:-1])
    newest = max((resume / "checkpoints").iterdir())
    newest.write_bytes(b"")
    record = run_cell(cell)
    assert passes.ran == ["check_pass", "accuracy_pass"] * 2
    assert any("check pass is damaged, so the pass ran again" in notice for notice in record.notices)
    assert any(f"{newest.name} is damaged and was left for the one before" in notice for notice in record.notices)
    assert_same_results(record, run_cell(dataclasses.replace(cell, output_dir=str(tmp_path / "twin"))))


def test_damaged_or_foreign_fp32_weights_are_trained_again(cell_of: MakeCell, passes: Pass, tmp_path: Path) -> None:
    cell = cell_of("variant=fp32", "protocol.passes=[accuracy]", "protocol.pretrain_epochs=1")
    first = run_cell(cell)
    (weights,) = (tmp_path / "out" / "pretrained").glob("*.pt")
    weights.write_bytes(b"PK\x03\x04 somebody else's")
    again = run_cell(dataclasses.replace(cell, fresh=True))
    assert any("have been trained again" in notice for notice in again.notices)
    assert_same_results(first, again)
    write_sealed(weights, b"sealed, but no weights")
    assert_same_results(first, run_cell(dataclasses.replace(cell, fresh=True)))


def test_the_record_of_another_cell_in_a_cells_folder_is_not_taken_for_its_own(
    make_record: Callable[..., RunRecord], tmp_path: Path
) -> None:
    record = make_record(status="ok")
    own, other = (tmp_path / f"ste_int8-{key[:10]}" for key in (record.key, "fedcba9876543210"))
    write_record(own, record, config_yaml="seed: 0\n")
    shutil.copytree(own, other)
    assert cell_folder.find_finished(own) == record
    assert cell_folder.find_finished(other) is None


CRASHES = {
    "crashed": "import os, signal\n        os.kill(os.getpid(), signal.SIGSEGV)",
    "killed": "import os, signal\n        os.kill(os.getpid(), signal.SIGKILL)",
    "out_of_memory": "raise MemoryError('no more')",
    "timed_out": "import time\n        time.sleep(600)",
    "failed": "raise KeyError('planted')",
}


@pytest.mark.parametrize("status", list(CRASHES))
def test_a_cell_that_ends_badly_is_a_record_with_that_status_and_its_last_samples(
    status: str, cell_of: MakeCell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = (
        "import torch\nfrom tools.faults.nets import SmallNet\nclass Net(SmallNet):\n    calls = 0\n"
        "    def forward(self, x):\n        type(self).calls += self.training\n"
        f"        if type(self).calls > 13:\n            self.end()\n        return super().forward(x)\n"
        f"    def end(self):\n        {CRASHES[status]}\n"
    )
    (tmp_path / "ending_net.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    limit = 15 if status == "timed_out" else 3600  # a busy machine is silent for a while too
    settings = ("protocol.passes=[accuracy]", f"protocol.silence_limit_s={limit}")
    cell = cell_of("variant=fp32", "model.factory=ending_net:Net", *settings)
    record, folder = run_cell(cell), locate(cell)[0]
    sys.modules.pop("ending_net", None)
    assert (record.status, record.accuracy is not None) == (status, True)
    assert record.accuracy is not None
    assert record.reason
    assert "did not come to its end" in str(record.accuracy.test_accuracy_pct)
    assert 8 <= record.accuracy.steps <= 13, "8 steps an epoch: a whole one and some more"
    assert len(record.accuracy.curve) == 1
    lines = (folder / "training.csv").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1 + record.accuracy.steps


def test_a_cell_has_so_long_in_all_and_what_is_left_then_is_not_measured(cell_of: MakeCell) -> None:
    record = run_cell(cell_of("variant=fp32", "protocol.passes=[timing]", "protocol.cell_limit_s=0.001"))
    assert record.status == "timed_out"
    assert "protocol.cell_limit_s" in record.reason
    first, second = (cell_of("variant=fp32", limit) for limit in ("seed=0", "protocol.cell_limit_s=7"))
    assert locate(first)[1] == locate(second)[1], "a limit is no part of what is measured"


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[bool], None]:
    """Switches a disk full: no record can be written below the output folder."""
    real = cell_folder.write_record
    state = {"full": True}

    def write(folder: Path, record: RunRecord, *, config_yaml: str) -> Path:
        if state["full"] and folder.is_relative_to(tmp_path / "out"):
            raise RecordError(f"The file {folder}/record.json cannot be written: No space left on device.")
        return real(folder, record, config_yaml=config_yaml)

    monkeypatch.setattr(cell_folder, "write_record", write)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    return lambda full: state.update(full=full)


def test_what_a_full_disk_does_not_take_is_kept_elsewhere_and_comes_back(
    cell_of: MakeCell, passes: Pass, full_disk: Callable[[bool], None], tmp_path: Path
) -> None:
    cell = cell_of("variant=fp32", "protocol.passes=[accuracy]")
    folder = locate(cell)[0]
    with pytest.raises(RecordError, match=r"What was measured is kept in .* the next run finds it"):
        run_cell(cell)
    assert not (folder / "record.json").exists()
    kept = read_record(cell_folder.spare_folder(folder) / "record.json")
    full_disk(False)
    passes.ran.clear()
    assert run_cell(cell) == kept
    assert passes.ran == []
    assert read_record(folder / "record.json") == kept
    assert (folder / "training.csv").is_file()
    assert not cell_folder.spare_folder(folder).exists()
    found, problems = find_records([tmp_path / "out"])
    assert ([item.record for item in found], problems) == ([kept], [])


def test_a_kept_result_of_somebody_else_is_not_brought_in(
    cell_of: MakeCell, full_disk: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = cell_of("variant=fp32", "protocol.passes=[accuracy]")
    with pytest.raises(RecordError):
        run_cell(cell)
    full_disk(False)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    cell_folder.fetch_spare(locate(cell)[0])
    assert not locate(cell)[0].joinpath("record.json").exists()


def test_a_record_of_a_newer_version_is_set_aside_and_not_lost(cell_of: MakeCell) -> None:
    cell = cell_of("variant=fp32", "protocol.passes=[accuracy]")
    folder = locate(cell)[0]
    run_cell(cell)
    edit_record(folder / "record.json", lambda content: content.update(schema_version=99))
    assert run_cell(cell).schema_version < 99
    (aside,) = (folder.parent / "superseded").iterdir()
    assert json.loads((aside / "record.json").read_text())["schema_version"] == 99


def test_setting_aside_does_not_need_a_clock_that_goes_forward(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / "cell").mkdir()
        (tmp_path / "cell" / "note").write_text(str(number))
        cell_folder.set_aside(tmp_path / "cell")
    kept = sorted(path.read_text() for path in (tmp_path / "superseded").glob("*/note"))
    assert kept == ["0", "1", "2"]


def test_another_run_in_the_folder_is_waited_for_and_said(tmp_path: Path) -> None:
    said: list[str] = []

    class GivenUpError(Exception):
        pass

    def give_up() -> None:
        said.append("waiting")
        raise GivenUpError

    with cell_folder.only_here(tmp_path / "cell", on_wait=lambda: said.append("first")):
        pid = os.fork()
        if pid == 0:  # the lock is between processes
            with contextlib.suppress(GivenUpError), cell_folder.only_here(tmp_path / "cell", on_wait=give_up):
                os._exit(1)
            os._exit(0 if said == ["waiting"] else 2)
        _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert said == []


def test_an_output_folder_that_takes_no_lock_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused = pytest.raises(RecordError, match="cannot be used")
    with refused, cell_folder.only_here(tmp_path / "file" / "cell", on_wait=lambda: None):
        pass


def test_a_pass_asked_to_stop_is_no_crash(cell_of: MakeCell, passes: Pass) -> None:
    cell = cell_of("variant=fp32", "protocol.passes=[timing]")
    passes.interrupt_at = "timing_pass"
    interrupted(cell)
    assert run_cell(cell).status == "ok"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
