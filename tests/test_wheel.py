from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(ROOT), cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


def run(*command: str, cwd: Path) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.mark.slow
def test_the_wheel_carries_configs_and_templates_and_no_tests(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {"bench", "suites", "reports", "tools", "hydra_plugins"} <= tops
    launchers = "hydra_plugins/metagrad_launchers"
    assert {f"{launchers}/{name}.py" for name in ("ray_launcher", "submitit_launcher", "sweeper")} <= set(names)
    assert not any("tests" in name.split("/") for name in names)
    assert "suites/suite/demo.yaml" in names
    assert "reports/templates/report.html.j2" in names
    assert "reports/paper_tables.json" in names
    assert "bench/native/pieces.c" in names


@pytest.mark.slow
def test_the_wheels_compiled_pieces_are_found_and_built_where_it_was_unpacked(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    asks = "import bench.native as n; print(n.SOURCE); print(n.SOURCE.is_file()); print(n.status())"
    source, found, status = run(sys.executable, "-c", asks, cwd=tmp_path).splitlines()
    assert (source, found) == (str(tmp_path / "bench" / "native" / "pieces.c"), "True")
    assert status.startswith("compiled by") or "no C compiler found" in status


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_wheel_runs_the_demo_in_an_empty_environment_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "venv", "env", cwd=tmp_path)
    python = str(tmp_path / "env" / "bin" / "python")
    run(
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--constraint",
        str(ROOT / "constraints.txt"),
        str(wheel),
        cwd=tmp_path,
    )
    program = str(tmp_path / "env" / "bin" / "metagrad-bench")
    run(program, "run", "suite=demo", "protocol=tiny", "data.train_limit=128", cwd=tmp_path)
    run(program, "report", "out/demo", "-o", "report", cwd=tmp_path)
    html = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "metagrad_int4_recompute" in html
    where = run(python, "-c", "import bench; print(bench.__file__)", cwd=tmp_path)
    assert str(tmp_path) in where
