from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.records.store import find_records

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_joblib_runs_the_cells_of_a_sweep_and_no_two_passes_share_the_device(tmp_path: Path) -> None:
    command = [
        sys.executable, "-P", "-m", "tools.cli", "run", "--multirun", "seed=1,2", "protocol=tiny",
        "data.train_limit=128", "data.test_limit=64", "protocol.passes=[accuracy]", "hydra/launcher=joblib",
        "hydra.launcher.n_jobs=2",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("OMP_NUM_THREADS", None)  # joblib gives each worker its share of the cores
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found, problems = find_records([tmp_path / "out"])
    assert not problems
    assert [(item.record.seed, item.record.status) for item in found] == [(1, "ok"), (2, "ok")]
