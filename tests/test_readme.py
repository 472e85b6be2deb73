from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from bench.app import parse_arguments, plan_cells
from tools.cli import VERBS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(line, comments=True)
    for block in re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]


def test_the_readme_stays_under_150_lines() -> None:
    assert len(README.splitlines()) < 150


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_command_of_the_readme_is_one_that_exists(command: list[str]) -> None:
    program, verb, *rest = command
    if program == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert re.search(rf"^{verb}:", makefile, flags=re.MULTILINE)
        return
    assert program == "metagrad-bench"
    assert verb in VERBS
    if verb == "run":
        assert plan_cells(parse_arguments(rest)).cells


def test_every_file_that_the_readme_points_to_is_there() -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_every_make_target_is_phony_and_every_phony_target_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = {name for line in re.findall(r"^\.PHONY:(.*)$", makefile, flags=re.MULTILINE) for name in line.split()}
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, flags=re.MULTILINE))
    assert targets == phony
    assert {"demo", "test", "test-slow", "check", "bench", "clean"} <= targets
