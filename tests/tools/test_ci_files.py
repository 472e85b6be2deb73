from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tools.gate import build_parser

ROOT = Path(__file__).parents[2]
ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
PAGE = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
BLOCKS = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)]
STAND_IN = """#!/bin/sh
printf '%s\\n' "$*" >> "$CALLS"
[ "$1" = gate ] && exit "$CODE"
exit "$RUN_CODE"
"""


def run_gate_step(folder: Path, **settings: str) -> tuple[int, list[str], dict[str, str]]:
    """The action's own script, with a stand-in for the command: exit code, calls, outputs."""
    (folder / "metagrad-bench").write_text(STAND_IN)
    (folder / "metagrad-bench").chmod(0o755)
    environment = os.environ | {
        "PATH": f"{folder}:{os.environ['PATH']}", "RUNNER_TEMP": str(folder), "CALLS": str(folder / "calls"),
        "GITHUB_OUTPUT": str(folder / "outputs"), "CODE": "0", "RUN_CODE": "0", "CELLS": "suite=demo", "AGAINST": "",
        "BASELINE": "", "ARGUMENTS": "",
    }  # fmt: skip
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", ACTION["runs"]["steps"][1]["run"]],
        env=environment | settings, cwd=folder, check=False,
    )  # fmt: skip
    calls, outputs = ((folder / name).read_text() if (folder / name).exists() else "" for name in ("calls", "outputs"))
    return done.returncode, calls.splitlines(), dict(line.split("=", 1) for line in outputs.splitlines())


def test_the_action_measures_against_a_revision_and_hands_on_the_exit_code(tmp_path: Path) -> None:
    odd = "feature/$(touch pwned);x"
    code, calls, outputs = run_gate_step(tmp_path, AGAINST=odd, CODE="3", ARGUMENTS="--explain --repeats 6")
    results = outputs["results"]
    assert Path(results).parent == tmp_path
    assert (code, outputs) == (3, {"exit-code": "3", "results": results})
    assert calls == [
        f"gate --against {odd} suite=demo --output {results}/runs --explain --repeats 6 "
        f"--write json={results}/gate.json junit={results}/gate.xml markdown={results}/gate.md"
    ]
    assert not (tmp_path / "pwned").exists()


def test_the_action_runs_the_cells_and_compares_them_where_a_baseline_is_given(tmp_path: Path) -> None:
    settings = {"BASELINE": "baseline.json", "AGAINST": "main", "CELLS": "suite=demo device=cpu"}
    code, calls, outputs = run_gate_step(tmp_path, **settings)
    assert code == 0
    assert calls[0] == f"run suite=demo device=cpu output_dir={outputs['results']}/runs"
    assert calls[1].startswith(f"gate {outputs['results']}/runs --baseline baseline.json --write json=")


def test_a_second_use_in_one_job_has_a_folder_of_its_own(tmp_path: Path) -> None:
    results = [run_gate_step(tmp_path, AGAINST="main")[2]["results"]]
    (tmp_path / "outputs").unlink()
    results.append(run_gate_step(tmp_path, AGAINST="main")[2]["results"])
    assert results[0] != results[1]


@pytest.mark.parametrize(("ended", "code", "verbs"), [("1", 0, ["run", "gate"]), ("2", 2, ["run"])])
def test_a_failed_cell_is_judged_and_a_wrong_command_is_no_regression(
    tmp_path: Path, ended: str, code: int, verbs: list[str]
) -> None:
    found, calls, _ = run_gate_step(tmp_path, BASELINE="baseline.json", RUN_CODE=ended)
    assert (found, [call.split()[0] for call in calls]) == (code, verbs)


@pytest.mark.parametrize("revision", ["", "0" * 40])
def test_the_action_refuses_to_compare_with_nothing(tmp_path: Path, revision: str) -> None:
    assert run_gate_step(tmp_path, AGAINST=revision)[:2] == (2, [])


def test_no_input_of_the_action_is_pasted_into_a_script() -> None:
    assert not any("${{" in step["run"] for step in ACTION["runs"]["steps"])
    assert set(ACTION["runs"]["steps"][1]["env"]) == {"CELLS", "AGAINST", "BASELINE", "ARGUMENTS"}


def test_the_pages_workflows_use_inputs_that_the_action_has() -> None:
    steps = [step for block in BLOCKS if isinstance(block, list) for step in block]
    steps += [step for block in BLOCKS if "jobs" in block for job in block["jobs"].values() for step in job["steps"]]
    ours = [step for step in steps if step.get("uses") == "./"]
    assert len(ours) == 3
    for step in ours:
        assert set(step["with"]) <= set(ACTION["inputs"])
        parse_gate(f"--against main suite=demo {step['with'].get('arguments', '')}")


def test_the_pages_commands_are_ones_that_the_gate_takes() -> None:
    (gitlab,) = (block for block in BLOCKS if ".gate" in block)
    scripts = [*gitlab[".gate"]["script"], *re.findall(r"^metagrad-bench gate.*$", PAGE, flags=re.MULTILINE)]
    commands = [line for line in scripts if line.startswith("metagrad-bench gate")]
    assert len(commands) == 2
    for command in commands:
        parse_gate(
            command.removeprefix("metagrad-bench gate ").replace("$CELLS", gitlab["gate-cpu"]["variables"]["CELLS"])
        )


def parse_gate(arguments: str) -> None:
    try:
        build_parser().parse_args(shlex.split(arguments))
    except SystemExit:
        pytest.fail(f"the gate refuses {arguments}")
