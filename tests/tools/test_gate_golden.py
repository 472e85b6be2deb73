"""Every verdict and every exit code in every output format, against files to read: tests/golden/gate."""

from __future__ import annotations

import dataclasses
import json
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.errors import RecordError
from bench.gating import Verdict
from bench.records.baseline import write_baseline
from bench.records.entry import entry_of
from bench.records.schema import RunRecord
from bench.records.write import write_record
from bench.units import Absent
from tests.tools.gate_runs import failed
from tools import gate_output
from tools.cli import main
from tools.gate_output import RENDERERS

GOLDEN = Path(__file__).parents[1] / "golden" / "gate"
SUFFIX = {"text": "txt", "markdown": "md", "json": "json", "junit": "xml", "github": "github.txt"}
MakeRecord = Callable[..., RunRecord]
Cells = dict[str, RunRecord]


def slower(record: RunRecord, *factors: float) -> RunRecord:
    """Each process's steps, forward and backward slower by its factor."""
    assert record.timing is not None
    repeats = tuple(
        dataclasses.replace(
            repeat,
            step_ms=tuple(value * factor for value in repeat.step_ms),
            phases_ms={name: tuple(value * factor for value in values) for name, values in repeat.phases_ms.items()},
        )
        for repeat, factor in zip(record.timing.repeats, factors, strict=True)
    )
    return dataclasses.replace(record, timing=dataclasses.replace(record.timing, repeats=repeats))


def larger(record: RunRecord, value: int | Absent) -> RunRecord:
    assert record.memory is not None
    return dataclasses.replace(record, memory=dataclasses.replace(record.memory, peak_allocated_bytes=value))


# What the candidate does with the baseline's cells a and b, further arguments, the exit code.
SCENARIOS: dict[str, tuple[Callable[[Cells, MakeRecord], Any], tuple[str, ...], int]] = {
    "ok": (lambda cells, make: None, (), 0),
    "improved": (lambda cells, make: cells.update(a=slower(cells["a"], 0.7, 0.7, 0.7)), (), 0),
    "regressed": (lambda cells, make: cells.update(a=slower(cells["a"], 1.3, 1.3, 1.3)), (), 1),
    "more_memory": (lambda cells, make: cells.update(b=larger(cells["b"], 404 * 1024**2 // 10)), (), 1),
    "failed": (lambda cells, make: cells.update(b=failed(cells["b"])), (), 1),
    "missing": (lambda cells, make: cells.pop("b"), (), 1),
    "became_absent": (lambda cells, make: cells.update(a=larger(cells["a"], Absent("no permission"))), (), 1),
    "not_comparable": (
        lambda cells, make: cells.update(a=dataclasses.replace(cells["a"], cell={"variant_name": "a", "hidden": 8})),
        (),
        5,
    ),
    "another_machine": (
        lambda cells, make: cells.update(
            {name: dataclasses.replace(record, fingerprint="cpu-0") for name, record in cells.items()}
        ),
        (),
        5,
    ),
    "inconclusive": (lambda cells, make: cells.update(a=slower(cells["a"], 1.0, 1.12, 1.3)), (), 3),
    "new": (lambda cells, make: cells.update(c=make("c")), (), 0),
    "warn_only": (lambda cells, make: cells.update(a=slower(cells["a"], 1.3, 1.3, 1.3)), ("--warn-only",), 0),
    "treated": (
        lambda cells, make: cells.update(a=slower(cells["a"], 1.0, 1.12, 1.3)), ("--treat", "inconclusive=ok"), 0,
    ),
}  # fmt: skip


@pytest.fixture
def gate(tmp_path: Path, make_record: MakeRecord, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run a scenario in a folder with relative paths, so that no output holds a path of this machine."""
    monkeypatch.chdir(tmp_path)
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)

    def make(variant: str) -> RunRecord:
        return make_record(variant=variant, key=f"key-{variant}", cell={"variant_name": variant, "hidden": 4})

    def run(scenario: str, *arguments: str) -> int:
        change, more, _ = SCENARIOS[scenario]
        cells = {name: make(name) for name in "ab"}
        write_baseline(Path("baseline.json"), map(entry_of, cells.values()))
        change(cells, make)
        write_baseline(Path("candidate.json"), map(entry_of, cells.values()))
        return main(["gate", "candidate.json", "--baseline", "baseline.json", *more, *arguments])

    return run


@pytest.mark.parametrize("form", sorted(RENDERERS))
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_verdict_reads_the_same_as_ever_in_every_format(
    gate: Callable[..., int],
    scenario: str,
    form: str,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    assert gate(scenario, "--format", form, "--explain") == SCENARIOS[scenario][2]
    text, path = capsys.readouterr().out, GOLDEN / f"{scenario}.{SUFFIX[form]}"
    if request.config.getoption("--update-golden"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert path.exists(), f"{path.name} is missing: run pytest with --update-golden and read the file"
    assert text == path.read_text(encoding="utf-8"), f"{path.name} differs: if meant, run pytest with --update-golden"


def test_the_golden_files_hold_every_verdict_and_exit_code_and_no_others() -> None:
    contents = [json.loads((GOLDEN / f"{scenario}.json").read_text()) for scenario in SCENARIOS]
    assert {row["verdict"] for content in contents for row in content["rows"]} == {item.value for item in Verdict}
    assert {content["exit_code"] for content in contents} == {0, 1, 3, 5}
    expected = {f"{scenario}.{suffix}" for scenario in SCENARIOS for suffix in SUFFIX.values()}
    assert {path.name for path in GOLDEN.iterdir()} == expected


# What stands in the place of the baseline (None: nothing), the exit code, the sentence.
UNUSABLE = [
    (
        None, 4,
        "There is no baseline baseline.json: write one with `metagrad-bench baseline CANDIDATE -o baseline.json`.",
    ),
    ("", 2, "The file baseline.json is empty; write it again."),
    (
        '{"schema_version": 2, "entries": [', 2,
        "The file baseline.json is not valid JSON (cut off?): Input data was truncated; write it again.",
    ),
    (
        '{"schema_version": 2, "created": "", "entries": [{"suite": 3}]}', 2,
        "The baseline baseline.json is damaged: Expected `str`, got `int` - at `$.entries[0].suite`; "
        "restore it or write it again.",
    ),
    (
        '{"schema_version": 1, "entries": []}', 2,
        "The file baseline.json has schema version 1 of an older metagrad-bench; "
        "write it again with `metagrad-bench baseline CANDIDATE -o FILE`.",
    ),
    (
        '{"schema_version": 9, "entries": []}', 2,
        "The file baseline.json has schema version 9 and up to 2 can be read; update metagrad-bench.",
    ),
    ('{"name": "other"}', 2, "The file baseline.json is not a baseline of metagrad-bench."),
    (
        '{"schema_version": 2, "created": "", "entries": []}', 6,
        "The baseline baseline.json holds no entries: write it again.",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("baseline", "code", "sentence"), UNUSABLE)
@pytest.mark.parametrize("form", sorted(RENDERERS))
def test_a_baseline_that_cannot_be_used_gets_its_sentence_and_code_and_prints_nothing(
    gate: Callable[..., int],
    form: str,
    baseline: str | None,
    code: int,
    sentence: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate("ok")
    capsys.readouterr()
    Path("baseline.json").unlink()
    if baseline is not None:
        Path("baseline.json").write_text(baseline)
    assert main(["gate", "candidate.json", "--baseline", "baseline.json", "--format", form, "--warn-only"]) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == f"metagrad-bench: {sentence}\n"


def test_a_baseline_of_several_machines_names_the_one_it_was_compared_with(
    gate: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    gate("ok")
    content = json.loads(Path("baseline.json").read_text())
    content["entries"] += [entry | {"fingerprint": "cuda-1"} for entry in content["entries"]]
    Path("baseline.json").write_text(json.dumps(content))
    capsys.readouterr()
    assert main(["gate", "candidate.json", "--baseline", "baseline.json"]) == 0
    assert "The baseline holds 2 machines; compared was cpu-89abcdef." in capsys.readouterr().out


def test_exit_2_outweighs_4_and_4_outweighs_6(gate: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    gate("ok")
    Path("empty").mkdir()
    Path("broken").mkdir()
    Path("broken/record.json").write_text("{")
    assert main(["gate", "broken", "--baseline", "none.json"]) == 2
    assert main(["gate", "empty", "--baseline", "none.json"]) == 4
    assert main(["gate", "empty", "--baseline", "baseline.json"]) == 6


def test_junit_is_valid_and_counts_failures_errors_and_skipped(
    gate: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    totals = {}
    for scenario in ("ok", "regressed", "inconclusive", "not_comparable", "warn_only", "treated"):
        gate(scenario, "--format", "junit")
        root = ET.fromstring(capsys.readouterr().out)
        totals[scenario] = tuple(len(list(root.iter(tag))) for tag in ("failure", "error", "skipped"))
        assert int(root.get("failures") or 0) == totals[scenario][0]
        assert {suite.get("name") for suite in root.iter("testsuite")} == {
            f"demo/{name} resnet20 digits seed 0" for name in "ab"
        }
    assert totals["ok"] == totals["treated"] == (0, 0, 0)
    assert totals["regressed"][0] > 0
    assert totals["inconclusive"][1] > 0
    assert totals["not_comparable"] == (0, 1, 0)
    assert totals["warn_only"] == (0, 0, totals["regressed"][0])


def test_names_that_xml_cannot_hold_are_escaped(
    tmp_path: Path, make_record: MakeRecord, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = entry_of(make_record(variant="a<&\x00\x1b\ud7ff"))
    write_baseline(tmp_path / "b.json", [odd])
    assert main(["gate", str(tmp_path / "b.json"), "--baseline", str(tmp_path / "b.json"), "--format", "junit"]) == 0
    (suite,) = ET.fromstring(capsys.readouterr().out).iter("testsuite")
    assert (suite.get("name") or "").startswith("demo/a<&\\x00\\x1b\ud7ff ")


def test_in_a_github_workflow_findings_become_annotations_and_the_steps_summary(
    gate: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "summary.md")
    Path("summary.md").write_text("Before.\n", encoding="utf-8")
    assert gate("regressed") == 1
    out = capsys.readouterr().out
    assert "::error title=gate%3A regressed::demo/a resnet20 digits seed 0: step_ms: worse: +30 %25 (95 %25 " in out
    summary = Path("summary.md").read_text(encoding="utf-8")
    assert summary.startswith("Before.\n**Gate failed: ")
    assert gate("regressed", "--json") == 1
    printed = capsys.readouterr()
    assert json.loads(printed.out)["exit_code"] == 1
    assert "::error title=gate" in printed.err
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "nowhere/summary.md")
    assert gate("ok") == 2
    assert "GITHUB_STEP_SUMMARY) cannot be written" in capsys.readouterr().err


def test_one_run_writes_every_format_beside_what_it_prints(
    gate: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert gate("regressed", "--write", "junit=gate.xml", "markdown=gate.md", "--write", "json=gate.json") == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("Gate failed: ")
    assert Path("gate.xml").read_text().startswith("<?xml")
    assert Path("gate.md").read_text().startswith("**Gate failed: ")
    assert json.loads(Path("gate.json").read_text())["exit_code"] == 1


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        (["json=nowhere/gate.json"], "--write json=nowhere/gate.json is in a folder that does not exist"),
        (["json=baseline.json"], "--write json=baseline.json would replace what is compared"),
        (["json=accepted.json"], "--write json=accepted.json would replace what was measured"),
        (["json=run/record.json"], "--write json=run/record.json would replace what was measured"),
        (["json=run/samples.csv"], "--write json=run/samples.csv would replace what was measured"),
        (["json=candidate.json"], "--write json=candidate.json would replace what is compared"),
        (["json=gate", "junit=./gate"], "--write names gate twice"),
        (["json=."], "--write json=. names no regular file"),
        (["junit=/dev/null"], "--write junit=/dev/null names no regular file"),
    ],
)
def test_a_file_that_cannot_or_should_not_be_written_is_refused_before_anything_is_compared(
    gate: Callable[..., int],
    make_record: MakeRecord,
    files: list[str],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_record(Path("run"), make_record(variant="a"), config_yaml="")
    write_baseline(Path("accepted.json"), [entry_of(make_record(variant="a"))])
    kept = {path: path.read_bytes() for path in (Path("accepted.json"), *Path("run").iterdir())}
    assert gate("regressed", "--write", *files) == 2
    assert {path: path.read_bytes() for path in kept} == kept
    printed = capsys.readouterr()
    assert printed.out == ""
    assert sentence in printed.err
    assert json.loads(Path("baseline.json").read_text())["schema_version"] == 2


def test_a_disk_that_is_full_at_the_end_takes_the_file_and_not_the_findings(
    gate: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes, *, replace: bool) -> None:
        raise RecordError(f"The file {path.name} cannot be written: No space left on device.")

    monkeypatch.setattr(gate_output, "write_atomic", full)
    assert gate("regressed", "--write", "json=gate.json") == 2
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-1].startswith("Gate failed: ")
    assert "gate.json cannot be written" in printed.err


def test_what_is_posted_names_nobody_and_no_place_and_means_nothing_to_who_shows_it(
    tmp_path: Path, make_record: MakeRecord, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    gpu = "GPU-12345678-1234-1234-1234-123456789abc"
    reason = f"the check pass failed: @everyone see https://a.example /home/alice/x on {gpu} \x1b[31m"
    write_baseline(tmp_path / "b.json", [entry_of(make_record(variant="a"))])
    write_record(tmp_path / "run", make_record(variant="a", status="failed", reason=reason), config_yaml="")
    for form in ("text", "markdown", "json", "junit"):
        command = ["gate", str(tmp_path / "run"), "--baseline", str(tmp_path / "b.json"), "--format", form]
        assert main([*command, "--explain"]) == 1
        printed = capsys.readouterr()
        text = printed.out + printed.err
        assert "the check pass failed" in text
        assert not [what for what in ("alice", gpu, "\x1b") if what in text], form
        if form == "markdown":
            assert "@everyone" not in printed.out
            assert "https://" not in printed.out


def test_github_obeys_no_line_of_the_table(
    tmp_path: Path, make_record: MakeRecord, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    odd = entry_of(make_record(variant="a " + "::set-output::b " * 30, model_name="b\n::error::c"))
    write_baseline(tmp_path / "b.json", [odd])
    assert main(["gate", str(tmp_path / "b.json"), "--baseline", str(tmp_path / "b.json"), "--explain"]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    token = first.removeprefix("::stop-commands::")
    assert len(token) > 16
    obeyed = lines[lines.index(f"::{token}::") + 1 :]
    assert any(line.lstrip().startswith("::set-output") for line in lines)
    assert not any("set-output" in line and not line.startswith("::notice ") for line in obeyed)
    assert main(["gate", str(tmp_path / "b.json"), "--baseline", str(tmp_path / "b.json"), "--format", "junit"]) == 0
    assert not any(line.lstrip().startswith("::") for line in capsys.readouterr().out.splitlines())


def test_a_release_baseline_catches_what_crept_in_by_small_steps(
    gate: Callable[..., int], make_record: MakeRecord, capsys: pytest.CaptureFixture[str]
) -> None:
    release = make_record(variant="a", cell={"variant_name": "a", "hidden": 4})
    steps = [larger(release, int(40 * 1024**2 * (1.004**number))) for number in range(4)]
    for number, record in enumerate((release, *steps)):
        write_baseline(Path(f"{number}.json"), [entry_of(record)])
    for number in range(2, 5):
        assert main(["gate", f"{number}.json", "--baseline", f"{number - 1}.json"]) == 0
    capsys.readouterr()
    assert main(["gate", "4.json", "--baseline", "3.json", "--release-baseline", "0.json"]) == 1
    out = capsys.readouterr().out
    assert "regressed" in out
    assert "(against the release) regressed (1 regressed, 27 ok; 1 cell)." in out.splitlines()[-1]


def test_a_release_baseline_that_nothing_can_be_compared_with_is_no_pass(
    gate: Callable[..., int], make_record: MakeRecord, capsys: pytest.CaptureFixture[str]
) -> None:
    gate("ok")
    write_baseline(Path("release.json"), [entry_of(make_record(fingerprint="cuda-1"))])
    capsys.readouterr()
    arguments = ["gate", "candidate.json", "--baseline", "baseline.json", "--release-baseline"]
    assert main([*arguments, "release.json"]) == 6
    assert "The release baseline release.json holds no cell that can be compared" in capsys.readouterr().err
    assert main([*arguments, "none.json"]) == 4
    Path("broken.json").write_text("{")
    assert main(["gate", "candidate.json", "--baseline", "none.json", "--release-baseline", "broken.json"]) == 2


def test_a_cell_given_twice_is_refused(gate: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    gate("ok")
    assert main(["gate", "candidate.json", "baseline.json", "--baseline", "baseline.json"]) == 2
    assert "A cell is given twice" in capsys.readouterr().err
