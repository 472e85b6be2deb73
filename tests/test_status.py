from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bench.app import parse_arguments, plan_cells
from bench.cell_folder import set_aside
from bench.cell_status import CellStatus
from bench.config import CellConfig, as_plain
from bench.errors import RecordError
from bench.pulse import PLANS, PULSES, STALE_S, CellPulse, Writer, announced, this_writer
from bench.records.find import find_records
from bench.records.schema import RunRecord
from bench.records.write import write_record
from bench.status import StatusReader, _moment, match_cells
from tests.edited_records import edit_record
from tools.status import as_text, main, sum_up, to_json

Make = Callable[..., RunRecord]


@pytest.fixture(scope="module")
def cells() -> tuple[CellConfig, ...]:
    return plan_cells(parse_arguments(["suite=demo", "variant=fp32,ste_int4,uint8_int8", "device=cpu"])).cells


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    return tmp_path / "out" / "demo"


def place(cells: tuple[CellConfig, ...], suite: Path) -> list[tuple[CellConfig, Path | None]]:
    """The cells as of that suite's folder, each with a folder of its own."""
    moved = [dataclasses.replace(cell, output_dir=str(suite.parent), suite_name=suite.name) for cell in cells]
    return [(cell, suite / cell.variant_name) for cell in moved]


def record_of(make_record: Make, cell: CellConfig, **changes: Any) -> RunRecord:
    facts = {
        "variant": cell.variant_name, "model_name": cell.model.name, "data_name": cell.data.name, "seed": cell.seed,
        "key": f"{cell.variant_name}-{cell.seed}", "cell": as_plain(cell),
    }  # fmt: skip
    return make_record(**facts | changes)


def states(suite: Path) -> dict[str, str]:
    return {cell.variant: cell.state for cell in StatusReader([suite]).read().cells}


def only(suite: Path) -> CellStatus:
    (cell,) = StatusReader([suite]).read().cells
    return cell


def elsewhere() -> Writer:
    return dataclasses.replace(this_writer(), host="node7", machine="another boot")


def test_a_cell_goes_from_queued_over_running_to_done(
    cells: tuple[CellConfig, ...], suite: Path, make_record: Make
) -> None:
    placed = place(cells, suite)
    (first, folder), *_ = placed
    assert folder is not None
    with announced(placed, launcher="basic"):
        assert set(states(suite).values()) == {"queued"}
        with CellPulse(folder, first, device="cpu") as pulse:
            pulse.update(phase="timing", done=30, total=100, step_ms=20.0, passes_done=1, passes=4)
            assert states(suite) == {"fp32": "running", "ste_int4": "queued", "uint8_int8": "queued"}
            write_record(folder, record_of(make_record, first, started_at="2099-01-01T00:00:00+00:00"), config_yaml="")
        assert states(suite) == {"fp32": "ok", "ste_int4": "queued", "uint8_int8": "queued"}
    assert states(suite) == {"fp32": "ok"}, "a run that came to its end leaves no plan"
    assert find_records([suite])[1] == [], "records are found as ever"


def test_a_running_cell_shows_its_rate_and_what_is_left_of_its_pass_and_itself(
    cells: tuple[CellConfig, ...], suite: Path, make_record: Make
) -> None:
    (first, folder), (second, done), _ = place(cells, suite)
    assert folder is not None
    assert done is not None
    with CellPulse(folder, first, device="cpu") as pulse:
        pulse.update(phase="timing", done=30, total=100, step_ms=20.0, passes_done=1, passes=4)
        cell = only(suite)
        assert (cell.phase, cell.steps_done, cell.steps, cell.passes_done, cell.passes) == ("timing", 30, 100, 1, 4)
        assert cell.steps_per_s == pytest.approx(50.0)
        assert cell.pass_left_s == pytest.approx(70 * 0.020)
        assert cell.left_s is None, "no cell has finished: nobody knows"
        write_record(done, record_of(make_record, second, duration_s=600.0), config_yaml="")
        status = StatusReader([suite]).read()
        assert status.cells[0].left_s == pytest.approx(600.0, abs=5.0)
        assert status.left_s == pytest.approx(600.0, abs=5.0)
        assert "about 10:00 left" in sum_up(status) or "about 9:5" in sum_up(status)
        pulse.update(phase="waiting: another pass holds cpu")
        assert states(suite)["fp32"] == "waiting"


def test_what_is_left_is_told_by_the_same_suite_and_never_by_cells_that_took_less(
    cells: tuple[CellConfig, ...], suite: Path, make_record: Make
) -> None:
    (first, folder), (second, done), (third, other) = place(cells, suite)
    assert folder is not None
    assert done is not None
    assert other is not None
    write_record(other, record_of(make_record, third, suite="another", duration_s=600.0), config_yaml="")
    with CellPulse(folder, first, device="cpu") as pulse:
        pulse.update(phase="timing", done=132, total=880)
        status = StatusReader([suite]).read()
        assert (status.cells[0].left_s, status.left_s) == (None, None), "another suite's protocol tells nothing"
        record = record_of(make_record, second, suite=first.suite_name, duration_s=0.0)
        write_record(done, record, config_yaml="")
        status = StatusReader([suite]).read()
        assert (status.cells[0].left_s, status.left_s) == (None, None), "it has taken longer than the finished one"
        assert "  –     takes longer than finished cells like it" in as_text(status).splitlines()[1]
        assert " left" not in sum_up(status), "not 0:00 left"
        pulse.update(phase="memory", done=10, total=110, step_ms=90.0, passes_done=1, passes=2)
        status = StatusReader([suite]).read()
        assert (status.cells[0].left_s, status.left_s) == (None, pytest.approx(9.0))
        assert "0:09 (pass)" in as_text(status)
        assert sum_up(status).endswith("; more than 0:09 left")
        pulse.update(phase="profile", done=110, total=110, step_ms=90.0)
        assert "0:00 (pass)" not in as_text(StatusReader([suite]).read()), "it goes on beyond its planned steps"


def test_a_pulse_is_written_once_a_second_at_most_and_at_once_when_the_phase_changes(
    cells: tuple[CellConfig, ...], suite: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ((first, folder),) = place(cells[:1], suite)
    assert folder is not None
    written: list[Any] = []
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    pulse = CellPulse(folder, first, device="cpu")
    monkeypatch.setattr(pulse, "write", written.append)
    for step in range(20):
        pulse.update(phase="timing", done=step, total=20, step_ms=100.0)
        now[0] += 0.25
    assert [item.done for item in written] == [0, 4, 8, 12, 16]
    pulse.update(phase="memory")
    assert written[-1].phase == "memory"


def test_a_killed_runner_is_told_by_its_process_on_this_machine(cells: tuple[CellConfig, ...], suite: Path) -> None:
    code = (
        "import sys, time, pathlib\n"
        "from bench.app import parse_arguments, plan_cells\n"
        "from bench.pulse import CellPulse, announced\n"
        "asked = parse_arguments(['suite=demo', 'variant=fp32,ste_int4', 'device=cpu', sys.argv[1]])\n"
        "cells = plan_cells(asked).cells\n"
        "places = [pathlib.Path(cell.output_dir) / 'demo' / cell.variant_name for cell in cells]\n"
        "with announced(list(zip(cells, places)), launcher='basic'), CellPulse(places[0], cells[0], device='cpu'):\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(600)\n"
    )
    command = [sys.executable, "-c", code, f"output_dir={suite.parent}"]
    runner = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])
    assert runner.stdout is not None
    assert runner.stdout.readline() == "ready\n"
    reader = StatusReader([suite])
    status = reader.read()
    assert {cell.variant: cell.state for cell in status.cells} == {"fp32": "running", "ste_int4": "queued"}
    assert status.runners == 2
    runner.kill()
    runner.wait()
    runner.stdout.close()
    status = reader.read()
    by_variant = {cell.variant: cell for cell in status.cells}
    assert by_variant["fp32"].state == "stopped"
    assert "last seen 20" in by_variant["fp32"].reason
    assert by_variant["ste_int4"].state == "queued"
    assert "run the suite again" in by_variant["ste_int4"].reason
    assert status.runners == 0


def test_no_process_id_of_another_machine_is_trusted_only_touches_are(
    cells: tuple[CellConfig, ...], suite: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ((first, folder),) = place(cells[:1], suite)
    assert folder is not None
    monkeypatch.setattr("bench.pulse.this_writer", lambda: dataclasses.replace(elsewhere(), pid=1))
    pulse = CellPulse(folder, first, device="cuda:0")
    pulse.update(phase="timing", done=1, total=2, step_ms=1.0)
    assert only(suite).state == "running"
    assert only(suite).host == "node7"
    long_ago = time.time() - 2 * STALE_S
    os.utime(pulse.path, (long_ago, long_ago))
    assert only(suite).state == "stopped"
    reader = StatusReader([suite])  # a clock that is far behind ours: touches while we look on tell that it lives
    assert reader.read().cells[0].state == "stopped"
    os.utime(pulse.path, (long_ago + 5, long_ago + 5))
    assert reader.read().cells[0].state == "running"


def test_a_cell_that_other_machines_place_is_matched_by_its_configuration(
    cells: tuple[CellConfig, ...], suite: Path, make_record: Make
) -> None:
    placed = place(cells, suite)
    first, second = placed[0][0], placed[1][0]
    with announced([(cell, None) for cell, _ in placed], launcher="ray"):
        assert sorted(states(suite).values()) == ["queued"] * 3
        write_record(suite / "named-by-node7", record_of(make_record, first), config_yaml="")
        with CellPulse(suite / "named-by-node8", second, device="cpu"):
            assert states(suite) == {"fp32": "ok", "ste_int4": "running", "uint8_int8": "queued"}
    digests = [json.loads(to_json(StatusReader([suite]).read()))["counts"]]
    assert digests == [{"ok": 1}]


def test_the_newest_record_of_a_configuration_is_matched(
    cells: tuple[CellConfig, ...], suite: Path, make_record: Make
) -> None:
    from bench.pulse import config_digest

    for name, hour in (("older", "10"), ("newer", "12")):
        started_at = f"2026-11-21T{hour}:00:00+00:00"
        record = record_of(make_record, cells[0], key=name, started_at=started_at)
        write_record(suite / name, record, config_yaml="")
    digests = [config_digest(as_plain(cell)) for cell in cells[:2]]
    assert match_cells(suite, digests) == [suite / "newer", None]
    assert match_cells(suite / "missing", digests) == [None, None]


def test_a_failed_cell_that_a_new_command_repeats_is_queued_and_not_failed(
    cells: tuple[CellConfig, ...], suite: Path, make_record: Make
) -> None:
    placed = place(cells[:2], suite)
    for (cell, folder), status in zip(placed, ("failed", "ok"), strict=True):
        assert folder is not None
        write_record(folder, record_of(make_record, cell, status=status, reason="boom"), config_yaml="")
    assert states(suite) == {"fp32": "failed", "ste_int4": "ok"}
    with announced(placed, launcher="basic"):
        assert states(suite) == {"fp32": "queued", "ste_int4": "ok"}
    fresh = [(dataclasses.replace(cell, fresh=True), folder) for cell, folder in placed]
    with announced(fresh, launcher="basic"):
        assert set(states(suite).values()) == {"queued"}


def test_a_record_wins_over_the_pulse_that_its_killed_runner_left(
    cells: tuple[CellConfig, ...], suite: Path, make_record: Make
) -> None:
    ((first, folder),) = place(cells[:1], suite)
    assert folder is not None
    pulse = CellPulse(folder, first, device="cpu")
    pulse.update(phase="accuracy")
    write_record(folder, record_of(make_record, first, started_at=pulse.started_at), config_yaml="")
    assert states(suite) == {"fp32": "ok"}
    assert pulse.path.exists()


def test_a_failed_cell_that_runs_again_after_the_clock_was_set_back_is_queued_and_then_runs(
    cells: tuple[CellConfig, ...], suite: Path, make_record: Make
) -> None:
    ((first, folder),) = place(cells[:1], suite)
    assert folder is not None
    later = record_of(make_record, first, status="failed", reason="boom", started_at="2099-01-01T00:00:00+00:00")
    write_record(folder, later, config_yaml="")
    assert states(suite) == {"fp32": "failed"}
    with announced([(first, folder)], launcher="basic"):
        assert states(suite) == {"fp32": "queued"}
        with CellPulse(folder, first, device="cpu") as pulse:
            pulse.update(phase="accuracy")
            assert states(suite) == {"fp32": "running"}
    assert states(suite) == {"fp32": "failed"}


def test_a_cell_that_is_measured_anew_while_one_looks_on_is_told_by_its_new_record(
    cells: tuple[CellConfig, ...], suite: Path, make_record: Make
) -> None:
    ((first, folder),) = place(cells[:1], suite)
    assert folder is not None
    write_record(folder, record_of(make_record, first, duration_s=1.0), config_yaml="")
    reader = StatusReader([suite])
    seen = [reader.read().cells[0]]
    with CellPulse(folder, first, device="cpu"):
        seen.append(reader.read().cells[0])
        set_aside(folder)
        write_record(folder, record_of(make_record, first, duration_s=2.0, status="diverged"), config_yaml="")
    seen += [reader.read().cells[0] for _ in range(2)]
    assert [cell.state for cell in seen] == ["ok", "running", "diverged", "diverged"]
    assert seen[-1].elapsed_s == 2.0


def test_the_plan_of_a_killed_command_goes_with_the_command_that_takes_its_cells_over(
    cells: tuple[CellConfig, ...], suite: Path, make_record: Make
) -> None:
    placed = place(cells, suite)
    left: list[Path] = []
    for members in (placed, placed[:1]):  # two commands that did not come to their end, so that their plans stay
        with contextlib.suppress(KeyboardInterrupt), announced(members, launcher="basic"):
            left += set((suite / PLANS).iterdir()) - set(left)
            raise KeyboardInterrupt
    for path in left:
        plan = json.loads(path.read_bytes())
        plan["writer"]["started_ticks"] += 1  # of a process that is gone
        path.write_text(json.dumps(plan), encoding="utf-8")
    with announced(placed[:2], launcher="basic"):
        assert left[0].exists(), "its third cell would be forgotten"
        assert not left[1].exists()
    last, folder = placed[2]
    assert folder is not None
    write_record(folder, record_of(make_record, last), config_yaml="")
    with announced(placed[:2], launcher="basic"):
        assert len(list((suite / PLANS).iterdir())) == 1
    assert list((suite / PLANS).iterdir()) == []


def test_torn_and_foreign_files_are_no_obstacle(cells: tuple[CellConfig, ...], suite: Path, make_record: Make) -> None:
    for name in (PLANS, PULSES):
        (suite / name).mkdir(parents=True)
        (suite / name / "torn.json").write_bytes(b'{"created_at": "2026')
        (suite / name / "list.json").write_text("[]", encoding="utf-8")
    (suite / "cut").mkdir()
    (suite / "cut" / "record.json").write_bytes(b"{")
    record = record_of(make_record, cells[0], reason="a\x1b[31mb", status="failed")
    write_record(suite / "red", record, config_yaml="")
    (suite / "loop").symlink_to(suite)
    status = StatusReader([suite.parent]).read()
    assert [cell.state for cell in status.cells] == ["unreadable", "failed"]
    assert "\x1b" not in as_text(status)


def test_files_that_nobody_of_us_wrote_change_no_answer_and_are_not_waited_for(
    cells: tuple[CellConfig, ...], suite: Path, make_record: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    write_record(suite / "whole", record_of(make_record, cells[0]), config_yaml="")
    edit_record(write_record(suite / "huge", record_of(make_record, cells[1]), config_yaml=""), huge_seed)
    (suite / "pipe").mkdir()
    os.mkfifo(suite / "pipe" / "record.json")
    nameless = suite / os.fsdecode(b"not\xffunicode")
    nameless.mkdir()
    (nameless / "record.json").write_text('{"cell": ' + "[" * 10_000, encoding="utf-8")
    with CellPulse(suite / "at-work", cells[0], device="cpu") as pulse:
        said = json.loads(pulse.path.read_bytes())
        for name, changes in {"huge": {"total": 10**400}, "below": {"elapsed_s": -1}}.items():
            (suite / PULSES / f"{name}.json").write_text(json.dumps(said | changes | {"folder": name}))
        os.mkfifo(suite / PULSES / "pipe.json")
        assert main([str(suite), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["counts"] == {"running": 1, "unreadable": 3, "ok": 1}
    reasons = {cell["folder"]: cell["reason"] for cell in answer["cells"]}
    assert "no regular file" in reasons["pipe"]
    assert "seed" in reasons["huge"]
    assert "recursion" in reasons["not\\udcffunicode"]


def huge_seed(content: dict[str, Any]) -> None:
    content["seed"] = 10**400


def test_a_files_time_that_no_calendar_has_is_said() -> None:
    assert _moment(0) == "1970-01-01T00:00:00+00:00"
    assert _moment(2**62) == "2116-02-20T23:53:38+00:00"
    assert _moment(2**70) == "at a time that no calendar has"


def test_nothing_fails_where_the_pulse_cannot_be_written(cells: tuple[CellConfig, ...], suite: Path) -> None:
    suite.mkdir(parents=True)
    (suite / PULSES).write_text("a file in the way", encoding="utf-8")
    ((first, folder),) = place(cells[:1], suite)
    assert folder is not None
    with CellPulse(folder, first, device="cpu") as pulse:
        pulse.update(phase="timing")
    assert (suite / PULSES).read_text(encoding="utf-8") == "a file in the way"


def test_status_prints_once_into_a_pipe_and_its_json_says_the_same(
    cells: tuple[CellConfig, ...], suite: Path, make_record: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    record = record_of(make_record, cells[0])
    write_record(suite / "one", record, config_yaml="")
    assert main([str(suite.parent)]) == 0
    text = capsys.readouterr().out.splitlines()
    assert text[-1] == "1 cell: 1 ok"
    assert "demo/fp32 resnet20 digits seed 0" in text[1]
    assert main([str(suite), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["counts"], answer["cells"][0]["variant"], answer["runners"]) == ({"ok": 1}, "fp32", 0)


def test_status_of_nothing_and_of_no_folder_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 6
    assert "no cell" in capsys.readouterr().out
    with pytest.raises(RecordError, match="not a folder"):
        main([str(tmp_path / "missing")])
    with pytest.raises(SystemExit, match="2"):
        main([""])
    assert "an empty path names nothing" in capsys.readouterr().err


def test_folders_that_cannot_be_read_are_lines_and_not_left_out(
    cells: tuple[CellConfig, ...], suite: Path, make_record: Make, tmp_path: Path
) -> None:
    for name, cell in zip(("whole", "shut", "listed"), cells, strict=True):
        write_record(suite / name, record_of(make_record, cell), config_yaml="")
    for path in (suite / PLANS, suite.parent / "other"):
        path.mkdir()
    (suite / "circle").symlink_to("circle")
    modes = {suite / "shut": 0, suite / "listed": 0o444, suite / PLANS: 0, suite.parent / "other": 0o311}
    for path, mode in modes.items():
        path.chmod(mode)
    # Root reads everything, until it gives that right away.
    rights = "-dac_override,-dac_read_search"
    as_user = ["setpriv", f"--bounding-set={rights}", f"--inh-caps={rights}"] if os.geteuid() == 0 else []
    command = [*as_user, sys.executable, "-m", "tools.cli", "status", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    try:
        below, named = (
            subprocess.run([*command, path], capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
            for path in (suite.parent, suite / "shut")
        )
    finally:
        for path in modes:
            path.chmod(0o755)
    assert below.returncode == 0, below.stderr
    reasons = {cell["folder"]: cell["reason"] for cell in json.loads(below.stdout)["cells"]}
    assert {name for name, reason in reasons.items() if "Permission denied" in reason} == {path.name for path in modes}
    assert reasons["whole"] == ""
    assert (named.returncode, named.stdout) == (2, "")
    assert "shut cannot be read (Permission denied)" in named.stderr


def test_a_reader_that_looks_again_reads_no_record_twice(
    cells: tuple[CellConfig, ...], suite: Path, make_record: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, cell in enumerate(cells):
        write_record(suite / f"cell{number}", record_of(make_record, cell), config_yaml="")
    reader = StatusReader([suite])
    first = reader.read()
    monkeypatch.setattr(StatusReader, "_read_record", lambda self, run: pytest.fail(f"{run} is read again"))
    assert msgspec.json.encode(reader.read()) == msgspec.json.encode(first)
