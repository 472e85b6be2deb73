from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tools.scale_stages import STAGES


@pytest.mark.slow
def test_a_report_of_thousands_of_cells_is_written_and_its_cost_measured(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tools.scale", "--sizes", "5000", "--stages", "report"]
    command += ["--folder", str(tmp_path), "--json", str(tmp_path / "scale.json")]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2])
    filled, stage = json.loads((tmp_path / "scale.json").read_text(encoding="utf-8"))["stages"]
    assert (filled["stage"], filled["cells"], filled.get("reason")) == ("fill", 5000, None)
    assert (stage["stage"], stage["cells"], stage.get("reason")) == ("report", 5000, None)
    assert stage["cpu_s"] > 0
    report = tmp_path / "5000" / "report"
    page = (report / "report.html").read_text(encoding="utf-8")
    assert page.count('<details class="cell"') == 5000
    assert (report / "report.md").stat().st_size < 60_000
    assert len((report / "tables" / "cells.csv").read_text(encoding="utf-8").splitlines()) == 5001


@pytest.mark.slow
def test_every_stage_is_measured_once_and_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    figures = tmp_path / "scale.json"
    command = [sys.executable, "-m", "tools.scale", "--sizes", "16,40", "--json", str(figures)]
    command += ["--folder", str(tmp_path / "scale")]

    def measure() -> tuple[dict[tuple[str, int], dict[str, object]], str]:
        ran = subprocess.run(command, check=True, cwd=Path(__file__).parents[2], capture_output=True, text=True)
        rows = json.loads(figures.read_text(encoding="utf-8"))["stages"]
        return {(row["stage"], row["cells"]): row for row in rows}, ran.stdout

    first, _ = measure()
    assert set(first) == {(stage, size) for stage in STAGES for size in (16, 40)}
    assert [row for row in first.values() if "reason" in row or not row["cpu_s"]] == []
    left = [row for key, row in first.items() if key != ("gate", 40)]
    figures.write_text(json.dumps({"stages": left}), encoding="utf-8")
    second, said = measure()
    assert {key for key, row in second.items() if row != first[key]} == {("gate", 40)}
    assert said.count(" cells  {") == 1, "only what was missing was measured"
