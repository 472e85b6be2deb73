from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from bench.errors import ConfigError, RecordError
from bench.records.entry import Entry
from bench.records.schema import RunRecord
from bench.units import Absent
from tools.against.merge import align, merge, merged_entries
from tools.against.repository import RepositoryError
from tools.against.rounds import run_command, run_overrides
from tools.against.session import Session, open_session, plan_jobs

from .conftest import StandIn


@contextmanager
def session(stand_in: StandIn, *overrides: str, repeats: int = 2, revision: str = "HEAD") -> Iterator[Session]:
    sentences: list[str] = []
    with open_session(
        revision, overrides or ("variant=fp32",), repeats=repeats, config_dir=None,
        output=stand_in.root.parent / "records", tell=sentences.append,
    ) as opened:  # fmt: skip
        yield opened
    assert sentences[0].startswith("base is HEAD")


def medians(entries: tuple[Entry, ...]) -> list[list[float]]:
    return [[sorted(repeat)[2] for repeat in entry.metrics["step_ms"].samples] for entry in entries]  # type: ignore[union-attr]


def test_both_sides_run_in_turn_and_each_keeps_its_repeats(stand_in: StandIn) -> None:
    stand_in.pace("new", 2.0)
    with session(stand_in, repeats=3) as opened:
        opened.measure(3)
        base, head, notes = opened.entries()
    assert stand_in.runs() == ["old", "new", "new", "old", "old", "new"]
    assert (medians(base), medians(head)) == ([[101.0] * 3], [[202.0] * 3])
    assert base[0].config_digest == head[0].config_digest
    assert base[0].fingerprint == head[0].fingerprint
    assert "with 1 uncommitted change (pace.json)" in notes[1]
    assert stand_in.worktrees() == 1
    records = stand_in.root.parent / "records"
    assert len(list(records.glob("*/run-*/demo/cell/record.json"))) == 6


def test_a_side_runs_in_its_own_tree_with_one_timing_process_a_run(stand_in: StandIn) -> None:
    with session(stand_in) as opened:
        opened.measure(1)
    old, new = stand_in.journal.read_text().splitlines()
    assert "metagrad-bench-against-" in old.split()[1]
    assert new.split()[1] == str(stand_in.root)
    for line in (old, new):
        assert "protocol.timing_processes=1 protocol.passes=[timing,memory] output_dir=" in line


def test_a_cell_can_be_measured_again_and_its_repeats_join(stand_in: StandIn) -> None:
    with session(stand_in, "variant=fp32,bf16", repeats=1) as opened:
        opened.measure(1)
        opened.measure_again(["single/fp32 resnet20 digits seed 0"], 2)
        base, head, _ = opened.entries()
    assert (len(medians(base)[0]), len(medians(head)[0])) == (3, 3)
    lines = stand_in.journal.read_text().splitlines()
    assert "variant=fp32,bf16" in lines[0]
    assert all("variant=fp32 " in line for line in lines[2:])


def test_a_revision_that_refuses_the_command_line_says_so_and_nothing_stays(stand_in: StandIn) -> None:
    stand_in.pace("old", 1.0, refuses="There is no variant 'fp32'.")
    stand_in.commit("Before the variant came")
    stand_in.pace("new", 1.0)
    refused = pytest.raises(
        ConfigError, match=r"HEAD \(\w{10}\) cannot run this: There is no variant 'fp32'\. \(exit code 2, "
    )
    with refused, session(stand_in) as opened:
        opened.measure(1)
    assert stand_in.worktrees() == 1


def test_a_revision_whose_code_ends_in_a_traceback_says_its_last_line(stand_in: StandIn) -> None:
    stand_in.pace("old", 1.0)
    (stand_in.root / "tools" / "cli.py").write_text("raise ImportError('no such launcher')\n")
    stand_in.commit("Broken")
    refused = pytest.raises(ConfigError, match=r"cannot run this: ImportError: no such launcher \(exit code 1, ")
    with refused, session(stand_in) as opened:
        opened.measure(1)


def test_a_mistake_in_the_command_line_is_found_before_anything_is_made(stand_in: StandIn) -> None:
    with pytest.raises(ConfigError, match="There is no variant 'fp33'"), session(stand_in, "variant=fp33"):
        pass
    own = pytest.raises(ConfigError, match="output_dir= and fresh= are the gate's own")
    with own, session(stand_in, "variant=fp32", "output_dir=x"):
        pass
    with pytest.raises(RepositoryError, match="There is no revision"), session(stand_in, revision="nowhere"):
        pass
    assert not (stand_in.root.parent / "records").exists()


def test_a_folder_that_holds_older_records_is_refused(stand_in: StandIn) -> None:
    (stand_in.root.parent / "records" / "base").mkdir(parents=True)
    with pytest.raises(RecordError, match="is not empty: give a new folder"), session(stand_in):
        pass


def test_an_interrupted_session_leaves_its_records_and_nothing_else(stand_in: StandIn) -> None:
    def measure_and_be_ended() -> None:
        with session(stand_in) as opened:
            opened.measure(1)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    with pytest.raises(KeyboardInterrupt):
        measure_and_be_ended()
    assert stand_in.worktrees() == 1
    assert len(list((stand_in.root.parent / "records").glob("*/run-1/demo/cell/record.json"))) == 2


def test_a_command_that_is_left_is_ended(tmp_path: Path) -> None:
    script = "import os, sys, time; print(os.getpid(), file=sys.stderr, flush=True); time.sleep(3600)"
    pids: list[int] = []

    def leave(line: str) -> None:
        pids.append(int(line))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):  # pytest's own limit ends a test that waits for it
        run_command([sys.executable, "-c", script], cwd=tmp_path, log=tmp_path / "log.txt", show=leave)
    assert not psutil.pid_exists(pids[0])


def test_relative_data_folders_become_absolute_and_the_users_choices_stay() -> None:
    assert run_overrides(["data.root=sets", "protocol.passes=[timing]"], Path("/here")) == [
        "data.root=/here/sets", "protocol.passes=[timing]", "protocol.timing_processes=1",
    ]  # fmt: skip


def test_every_job_of_a_sweep_is_known_by_the_name_of_its_cell() -> None:
    jobs = plan_jobs(["suite=demo", "protocol=tiny", "seed=0,1"], None)
    assert len(jobs) == 16
    assert jobs[3].cell == "demo/ste_int4 resnet20 digits seed 1"
    assert plan_jobs(jobs[3].overrides, None)[0].cell == jobs[3].cell


def test_a_setting_that_one_side_does_not_know_tells_no_cells_apart(make_record: Callable[..., RunRecord]) -> None:
    old = make_record(cell={"seed": 0, "hypernet": {"hidden": 4}})
    new = make_record(cell={"seed": 0, "hypernet": {"hidden": 4, "depth": 2}, "compact": False})
    base, head, notes = align([[old]], [[new]])
    assert merged_entries(base)[0].config_digest == merged_entries(head)[0].config_digest
    assert notes == ("Only head knows the setting compact, hypernet.depth, so cells are told apart without it.",)
    changed = make_record(cell={"seed": 0, "hypernet": {"hidden": 8, "depth": 2}, "compact": False})
    base, head, _ = align([[old]], [[changed]])
    assert merged_entries(base)[0].config_digest != merged_entries(head)[0].config_digest


def test_a_property_that_one_side_did_not_write_down_tells_no_machines_apart(
    make_record: Callable[..., RunRecord],
) -> None:
    device = {"kind": "cpu", "name": "x"}
    old = make_record(environment={"device": device}, fingerprint="cpu-1")
    new = make_record(environment={"device": device, "elementwise": "compiled"}, fingerprint="cpu-2")
    base, head, notes = align([[old]], [[new]])
    assert base[0][0].fingerprint == head[0][0].fingerprint
    assert notes == ("Only head knows the property of the machine elementwise, so cells are told apart without it.",)
    moved = make_record(environment={"device": device | {"name": "y"}, "elementwise": "c"}, fingerprint="cpu-3")
    base, head, _ = align([[old]], [[moved]])
    assert base[0][0].fingerprint != head[0][0].fingerprint


def test_merging_keeps_the_worst_status_and_every_value(make_record: Callable[..., RunRecord]) -> None:
    good, bad = make_record(), make_record(status="failed", reason="killed", timing=None, memory=None)
    (entry,) = merged_entries([[good], [bad], [good]])
    assert (entry.status, entry.reason) == ("failed", "killed")
    assert len(entry.metrics["step_ms"].samples) == 6  # type: ignore[arg-type]
    assert entry.metrics["peak_allocated_bytes"].samples == ((40 * 1024**2,), (40 * 1024**2,))
    (lost,) = merged_entries([[bad], [dataclasses.replace(bad)]])
    assert isinstance(lost.metrics["step_ms"].samples, Absent)
    assert merge([lost]).reason == "killed"
