"""Compile the fake driver and run Python scripts under it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

SOURCE = Path(__file__).with_name("fake_nvml.c")
CHECKOUT = Path(__file__).resolve().parents[3]


def find_compiler() -> str | None:
    return next((path for name in ("cc", "gcc", "g++", "clang") if (path := shutil.which(name))), None)


def compile_fake(compiler: str, folder: Path, *defines: str) -> Path:
    folder.mkdir(parents=True)
    library = folder / "libnvidia-ml.so.1"
    flags = ["-x", "c", "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", *(f"-D{name}" for name in defines)]
    subprocess.run([compiler, *flags, str(SOURCE), "-o", str(library)], check=True)
    return folder


def run_python(arguments: Sequence[str], library_folder: Path, mode: str, **variables: str) -> str:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CUDA_", "FAKE_NVML"))}
    environment = {**kept, "LD_LIBRARY_PATH": str(library_folder), "FAKE_NVML": mode, **variables}
    result = subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def make_runner(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """`run(script, mode)` runs a script under the driver and returns the JSON that it printed."""
    compiler = find_compiler()
    if compiler is None:
        pytest.skip("needs a C compiler to build the fake NVIDIA driver library")
    folder = tmp_path_factory.mktemp("nvml")
    new, old = compile_fake(compiler, folder / "new"), compile_fake(compiler, folder / "old", "OLD_DRIVER")

    def run(script: str, mode: str = "", *, old_driver: bool = False, **variables: str) -> Any:
        return json.loads(run_python(["-c", script], old if old_driver else new, mode, **variables))

    return run
