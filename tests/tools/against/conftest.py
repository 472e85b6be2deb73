"""A small git repository whose revisions are stand-ins for the package; each leaves a record of its own pace."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.records.encoding import encode_record
from bench.records.schema import RunRecord

PROJECT = """[project]
name = "metagrad-bench"
version = "{version}"
requires-python = ">=3.11"
dependencies = [{dependencies}]
"""
# What `python -m tools.cli run ...` of a stand-in does: the template record, with times multiplied by this tree's pace.
COMMAND_LINE = """
import json, pathlib, sys
tree = pathlib.Path(__file__).parents[1]
settings = {key: value.strip("'") for key, value in (a.split("=", 1) for a in sys.argv[2:] if "=" in a)}
pace = json.loads((tree / "pace.json").read_text())
with pathlib.Path(pace["journal"]).open("a") as journal:
    journal.write(f"{pace['name']} {pathlib.Path.cwd()} {' '.join(sys.argv[2:])}\\n")
if pace.get("refuses"):
    print(f"metagrad-bench: {pace['refuses']}", file=sys.stderr)
    sys.exit(2)
record = json.loads((tree / "record.json").read_text())
record["code_version"] = pace["name"]
record["cell"].update(pace.get("settings", {}))
record["timing"]["repeats"] = [record["timing"]["repeats"][0]]
(repeat,) = record["timing"]["repeats"]
number = int(settings["output_dir"].rsplit("-", 1)[1])
factor = pace["later"] if number >= pace.get("later_from", 10**6) else pace["factor"]
repeat["step_ms"] = [value * factor for value in repeat["step_ms"]]
place = pathlib.Path(settings["output_dir"], "demo", "cell")
place.mkdir(parents=True)
(place / "record.json").write_text(json.dumps(record))
print("1 cell: 1 ok")
"""


class StandIn:
    """A repository of stand-ins, made by real git."""

    def __init__(self, root: Path, record: RunRecord, journal: Path) -> None:
        self.root = root
        self.journal = journal
        for name in ("bench", "tools"):
            (root / name).mkdir(parents=True)
            (root / name / "__init__.py").write_text("")
        (root / "tools" / "cli.py").write_text(COMMAND_LINE)
        (root / "record.json").write_bytes(encode_record(record))
        self.git("init", "--quiet", "--initial-branch=main")
        self.project()

    def project(self, *dependencies: str, version: str = "0.1.0") -> None:
        listed = ", ".join(f'"{name}"' for name in dependencies)
        (self.root / "pyproject.toml").write_text(PROJECT.format(version=version, dependencies=listed))

    def pace(self, name: str, factor: float, **more: Any) -> None:
        content = {"name": name, "factor": factor, "journal": str(self.journal)} | more
        (self.root / "pace.json").write_text(json.dumps(content))

    def commit(self, message: str) -> str:
        self.git("add", "--all")
        self.git("-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "--quiet", "-m", message)
        return self.git("rev-parse", "HEAD").strip()

    def git(self, *arguments: str) -> str:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
        done = subprocess.run(
            ["git", "-C", str(self.root), *arguments], capture_output=True, text=True, check=True, env=environment
        )
        return done.stdout

    def runs(self) -> list[str]:
        """Which stand-in ran, in order."""
        return [line.split()[0] for line in self.journal.read_text().splitlines()]

    def worktrees(self) -> int:
        return self.git("worktree", "list", "--porcelain").count("worktree ")


@pytest.fixture
def stand_in(tmp_path: Path, make_record: Callable[..., RunRecord], monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """A repository with one revision, `old` at pace 1, that is the current folder."""
    record = make_record(suite="single", variant="fp32", cell={"variant_name": "fp32", "seed": 0})
    repository = StandIn(tmp_path / "checkout", record, tmp_path / "journal.txt")
    repository.pace("old", 1.0)
    repository.commit("Old pace")
    monkeypatch.chdir(repository.root)
    return repository
