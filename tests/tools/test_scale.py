from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_a_report_of_thousands_of_cells_is_written_and_its_cost_measured(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tools.scale", "--sizes", "5000", "--stages", "report"]
    command += ["--folder", str(tmp_path), "--json", str(tmp_path / "scale.json")]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2])
    (stage,) = json.loads((tmp_path / "scale.json").read_text(encoding="utf-8"))["stages"]
    assert (stage["stage"], stage["cells"], stage.get("reason")) == ("report", 5000, None)
    assert stage["cpu_s"] > 0
    report = tmp_path / "5000" / "report"
    page = (report / "report.html").read_text(encoding="utf-8")
    assert page.count('<details class="cell"') == 5000
    assert (report / "report.md").stat().st_size < 60_000
    assert len((report / "tables" / "cells.csv").read_text(encoding="utf-8").splitlines()) == 5001
