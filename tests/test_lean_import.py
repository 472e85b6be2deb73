from __future__ import annotations

import subprocess
import sys

import pytest


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(' '.join(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


@pytest.mark.parametrize("statement", ["import bench.app, bench.cell, bench.passes", "import reports.build"])
def test_importing_loads_no_plotting_library_and_no_data_frames(statement: str) -> None:
    assert not {"seaborn", "matplotlib", "tensorboard", "sklearn"} & loaded_by(statement)


def test_the_command_line_imports_torch_only_where_a_verb_needs_it() -> None:
    assert not {"torch", "hydra", "pandas", "seaborn"} & loaded_by("import tools.cli")


def test_little_is_loaded_before_ctrl_c_is_answered_in_a_sentence() -> None:
    assert not {"importlib.metadata", "email.message", "pathlib"} & (loaded_by("import tools.cli") - loaded_by("pass"))


def test_writing_a_report_imports_no_torch() -> None:
    parts = ", ".join(f"reports.{name}" for name in ("csv_files", "figures", "load", "page", "render", "sections"))
    assert "torch" not in loaded_by(f"import {parts}")


def test_importing_the_passes_does_not_start_cuda() -> None:
    code = "import bench.passes, torch; print(torch.cuda.is_initialized())"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
