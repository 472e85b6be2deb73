from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tools.scale_page import BEGIN, END, as_table, quote
from tools.scale_stages import STAGES

DOCS = Path(__file__).parents[2] / "docs"


def row(stage: str, cells: int, cpu_s: float, mib: float) -> dict[str, Any]:
    return {
        "stage": stage, "cells": cells, "cpu_s": cpu_s, "peak_bytes": int(mib * 2**20),
        "machine": {"cpu": "a CPU", "cores": 2}, "measured_at": "2026-01-02T03:04:05+00:00",
    }  # fmt: skip


def test_the_table_says_what_was_measured_what_was_not_and_how_it_grows() -> None:
    failed = {**row("gate", 100_000, 0, 0), "reason": "took longer than 1800 s"}
    stages = [row("gate", 1000, 4.25, 100), row("gate", 10_000, 43, 500), failed, row("plan", 10_000, 121.4, 80)]
    table = as_table(stages)
    assert table.splitlines()[0] == "| step | 1,000 cells | 10,000 cells | 100,000 cells | grows |"
    assert "sweep | not measured | 121 s, 80.0 MiB | not measured |  |" in table
    assert "| 4.25 s, 100 MiB | 43.0 s, 500 MiB | n/a (took longer than 1800 s) | 10× the cells: 10× the time" in table
    assert "5× the memory" in table
    page = quote(f"before\n{BEGIN}old\n{END}after\n", stages)
    assert table in page
    assert page.startswith("before\n")
    assert page.endswith("after\n")
    assert "old" not in page


def test_the_docs_show_the_figures_that_are_kept() -> None:
    page = (DOCS / "scale.md").read_text(encoding="utf-8")
    stages = json.loads((DOCS / "scale" / "scale.json").read_text(encoding="utf-8"))["stages"]
    assert quote(page, stages) == page


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
