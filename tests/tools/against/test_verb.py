from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from shutil import copy, copytree, ignore_patterns
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from bench.errors import ConfigError
from bench.records.baseline import write_baseline
from bench.records.entry import entry_of
from bench.records.read import read_record
from bench.records.schema import RunRecord
from bench.records.write import write_record
from tools import run
from tools.against import confirm
from tools.against.rounds import quoted, run_overrides
from tools.gate import main

from .conftest import StandIn


def gate(stand_in: StandIn, *arguments: str) -> int:
    return main(["--against", "HEAD", "variant=fp32", "--output", str(stand_in.root.parent / "records"), *arguments])


def rows(text: str) -> dict[str, str]:
    return {row["metric"]: row["verdict"] for row in json.loads(text)["rows"]}


def test_an_unchanged_revision_passes_and_the_output_says_what_was_compared(
    stand_in: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gate(stand_in, "--repeats", "2") == 0
    out, err = capsys.readouterr()
    assert "Gate passed" in out
    assert "base: HEAD (" in out
    assert "head: working tree at " in out
    assert "Both sides run the same measured code (old)." in out
    assert "[4/4] base run 2" in err
    assert stand_in.runs() == ["old"] * 4


def test_a_slower_working_tree_is_measured_again_and_then_fails(
    stand_in: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in.pace("new", 1.5)
    assert gate(stand_in, "--json") == 1
    out, err = capsys.readouterr()
    assert rows(out)["step_ms"] == "regressed"
    assert json.loads(out)["interleaved"] is True
    assert stand_in.runs().count("new") == 8
    assert "measuring again (1 of 1): single/fp32 resnet20 digits seed 0" in err
    assert json.loads(out)["notes"][-1].startswith("Measured again and judged on all repeats: single/fp32")


def test_a_slowdown_that_is_not_there_the_second_time_does_not_fail(
    stand_in: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in.pace("new", 1.3, later=1.0, later_from=3)
    assert gate(stand_in, "--json", "--repeats", "2") != 1
    assert rows(capsys.readouterr().out)["step_ms"] != "regressed"
    assert stand_in.runs().count("new") == 4


def test_without_confirmation_one_look_decides(stand_in: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    stand_in.pace("new", 1.5)
    assert gate(stand_in, "--json", "--confirm", "0") == 1
    assert stand_in.runs().count("new") == 4
    assert json.loads(capsys.readouterr().out)["alpha"] == 0.01


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["runs"], "one of the arguments --baseline --against is required"),
        (["--against", "main"], "what to run, such as suite=demo"),
        (["--against", "main", "--baseline", "b", "suite=demo"], "not allowed with argument"),
        (["runs", "--baseline", "b", "--repeats", "3"], "--repeats goes with --against"),
        (["runs", "--baseline", "b", "--config-dir", "c"], "--config-dir goes with --against"),
        (["--against", "main", "suite=demo", "--release-baseline", "r"], "against a release measure its tag"),
        (["--against", "main", "suite=demo", "--repeats", "0"], "argument --repeats: takes 1 or more, not 0"),
        (
            ["--against", "main", "suite=demo", "--confirm", "x"],
            "argument --confirm: takes a whole number up to 100, not 'x'",
        ),
    ],
)
def test_options_that_would_do_nothing_are_refused(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert sentence in capsys.readouterr().err


class Recorded:
    """A recorded run that is slower than its baseline, and what measuring it again gives."""

    def __init__(self, folder: Path, record: RunRecord, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.record = record
        write_baseline(folder / "baseline.json", [entry_of(record)])
        write_record(folder / "runs" / "demo" / "cell", paced(record, 1.5), config_yaml="")
        self.outputs: list[Path] = []
        self.monkeypatch = monkeypatch
        monkeypatch.chdir(folder)

    def measures(self, pace: float) -> None:
        def measure(item: Any, output: Path) -> Any:
            assert item.record.variant == self.record.variant
            self.outputs.append(output)
            return entry_of(paced(self.record, pace))

        self.monkeypatch.setattr(confirm, "_measure", measure)

    def gate(self, *arguments: str) -> int:
        return main(["runs", "--baseline", "baseline.json", "--json", *arguments])


def paced(record: RunRecord, factor: float) -> RunRecord:
    assert record.timing is not None
    repeats = tuple(
        dataclasses.replace(repeat, step_ms=tuple(value * factor for value in repeat.step_ms))
        for repeat in record.timing.repeats
    )
    return dataclasses.replace(record, timing=dataclasses.replace(record.timing, repeats=repeats))


@pytest.fixture
def recorded(tmp_path: Path, make_record: Callable[..., RunRecord], monkeypatch: pytest.MonkeyPatch) -> Recorded:
    return Recorded(tmp_path, make_record(), monkeypatch)


def test_a_recorded_slowdown_that_comes_again_fails(recorded: Recorded, capsys: pytest.CaptureFixture[str]) -> None:
    recorded.measures(1.5)
    assert recorded.gate("--confirm", "2") == 1
    out = json.loads(capsys.readouterr().out)
    assert out["notes"][-1].startswith("Measured again and judged on all repeats: demo/metagrad_int4_recompute")
    assert len(recorded.outputs) == 2
    assert out["alpha"] == pytest.approx(0.01 / 3)


def test_a_recorded_slowdown_that_does_not_come_again_does_not_fail(
    recorded: Recorded, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded.measures(1.0)
    assert recorded.gate("--confirm", "2") != 1
    assert rows(capsys.readouterr().out)["step_ms"] != "regressed"


def test_a_run_of_other_code_is_not_measured_again_and_a_note_says_why(
    recorded: Recorded, capsys: pytest.CaptureFixture[str]
) -> None:
    assert recorded.gate("--confirm", "1") == 1
    (note,) = (note for note in json.loads(capsys.readouterr().out)["notes"] if "not measured again" in note)
    assert "it was measured by other code (0.1.0+0123abcd) than runs here" in note
    assert not (recorded.folder / "out").exists()


def test_a_cell_from_a_baseline_file_says_that_it_cannot_be_run(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="it comes from a baseline file"):
        confirm._measure(None, tmp_path)


@pytest.mark.slow
def test_a_real_recorded_cell_is_measured_again_where_it_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run.main(["variant=ste_int4", "protocol=tiny", "device=cpu", "protocol.passes=[timing]"]) == 0
    (path,) = tmp_path.glob("out/single/*/record.json")
    content = json.loads(path.read_text())
    fast = paced(read_record(path), 0.5)
    write_baseline(tmp_path / "baseline.json", [entry_of(fast)])
    capsys.readouterr()
    main(["out/single", "--baseline", "baseline.json", "--json", "--confirm", "1"])
    out = json.loads(capsys.readouterr().out)
    assert out["notes"][-1].startswith("Measured again and judged on all repeats: single/ste_int4")
    (again,) = tmp_path.glob("out/confirm/*/run-1/single/*/record.json")
    assert json.loads(again.read_text())["key"] == content["key"]
    assert (again.parents[2] / "pretrained").is_symlink()


def copy_of_the_package(target: Path) -> None:
    """This checkout's package as a repository of its own."""
    root = Path(__file__).parents[3]
    skip = ignore_patterns("__pycache__")
    for name in ("bench", "tools", "suites", "reports", "hydra_plugins"):
        copytree(root / name, target / name, ignore=skip)
    for name in ("pyproject.toml", "constraints.txt", "README.md", "LICENSE"):
        copy(root / name, target / name)


@pytest.mark.slow
def test_the_package_itself_is_measured_against_a_revision_that_kept_less_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = object.__new__(StandIn)
    repository.root = tmp_path / "checkout"
    repository.root.mkdir()
    copy_of_the_package(repository.root)
    repository.git("init", "--quiet", "--initial-branch=main")
    repository.commit("As it is")
    monkeypatch.chdir(repository.root)
    memory = repository.root / "bench" / "training" / "memory.py"
    leak = "        kept = []\n        while left:\n            kept.append(torch.ones(10**6, device=device))\n"
    assert "        while left:\n" in memory.read_text()
    memory.write_text(memory.read_text().replace("        while left:\n", leak))
    cell = ["variant=ste_int4", "protocol=tiny", "device=cpu"]
    assert main(["--against", "HEAD", *cell, "--repeats", "1", "--confirm", "0", "--json"]) == 1
    assert rows(capsys.readouterr().out)["peak_allocated_bytes"] == "regressed"
    assert repository.worktrees() == 1


def test_a_mistake_in_the_overrides_is_one_sentence(stand_in: StandIn) -> None:
    with pytest.raises(ConfigError, match="There is no suite 'demoo': did you mean demo"):
        main(["--against", "HEAD", "suite=demoo"])


def test_a_folder_may_be_called_anything(stand_in: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    place = stand_in.root.parent / "job@2, (ü)=[y]"
    assert main(["--against", "HEAD", "variant=fp32", "--output", str(place), "--repeats", "1"]) == 0
    assert f"output_dir='{place}/base/run-1'" in stand_in.journal.read_text()


@pytest.mark.parametrize(
    "name", ["/a b", "/a,b", "/job@2", "/a=b", "/it's", "/ü", "/a\\b", "/a\\'b", "/end\\", '/a"b', "/[x]"]
)
def test_hydra_reads_a_quoted_folder_as_it_is(name: str) -> None:
    override = OverridesParser.create().parse_override(f"output_dir={quoted(name)}")
    assert (override.value(), override.is_sweep_override()) == (name, False)


def test_a_data_folder_beside_an_odd_working_folder_stays_whole() -> None:
    (root, *_) = run_overrides(["data.root='my data'"], Path("/job@2"))
    assert OverridesParser.create().parse_override(root).value() == "/job@2/my data"
    assert run_overrides(["data.root=/there"], Path("/job@2"))[0] == "data.root=/there"
