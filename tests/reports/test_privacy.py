from __future__ import annotations

import dataclasses
import getpass
import json
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from bench.hardware.environment import read_environment
from bench.records.schema import RunRecord
from reports.build import build_report

GPU = "GPU-12345678-abcd-ef01-2345-6789abcdef01"
TROUBLE = f"python /home/alice/secret/train.py --token x: {GPU} fell off the bus; see /Users/alice/log"


def _texts(folder: Path) -> dict[str, str]:
    endings = {".html", ".md", ".csv", ".svg"}
    return {path.name: path.read_text(encoding="utf-8") for path in folder.rglob("*") if path.suffix in endings}


@pytest.fixture
def sent(
    demo_records: Callable[..., list[RunRecord]], write_runs: Callable[[Sequence[RunRecord]], Path], tmp_path: Path
) -> dict[str, str]:
    """Every text of a report of records that quote what they should not, on this very machine."""
    environment = read_environment(torch.device("cpu"))
    records = demo_records(["fp32", "uint8_int8"], environment=environment, notices=(TROUBLE,))
    quoted = dataclasses.replace(
        records[1], status="crashed", reason=TROUBLE, missing={"hypernet": TROUBLE}, variant=f"v {GPU}",
        cell={**records[1].cell, "model": {"factory": "/home/alice/nets.py:make"}},
    )  # fmt: skip
    runs = write_runs([records[0], quoted])
    (runs / "cut").mkdir()
    (runs / "cut" / "record.json").write_text("{")
    build_report([runs], tmp_path / "out")
    return _texts(tmp_path / "out")


def test_a_report_names_no_home_user_or_gpu_that_its_records_quote(sent: dict[str, str]) -> None:
    assert {"report.html", "report.md", "cells.csv", "steps.svg"} <= set(sent)
    for name, text in sent.items():
        for private in ("alice", "/home/", "/Users/", GPU, GPU.lower()):
            assert private not in text, f"{name} holds {private}"
    assert "fell off the bus" in sent["report.html"]


def test_a_report_names_nothing_of_the_machine_that_wrote_it(sent: dict[str, str], tmp_path: Path) -> None:
    home, user, host = str(Path.home()), getpass.getuser(), socket.gethostname()
    # a user or host named as one of the program's own words ("root" is a config key) would be found everywhere
    own_words = json.dumps(sorted(path.name for path in Path(__file__).parents[2].rglob("*.py")))
    words = [word for word in (user, host) if len(word) > 4 and word not in own_words]
    for name, text in sent.items():
        for private in (home, str(tmp_path), str(Path.cwd()), *words):
            assert len(private) < 3 or private not in text, f"{name} holds {private}"
